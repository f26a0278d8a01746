"""DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification (Rao et al., NeurIPS 2021, arXiv 2106.02034).

LV-ViT (2104.10858), which it also prunes, has the same blocks after another stem.
"""
from collections.abc import Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..layers import FFN, Block, PatchEmbed, PositionTable, multi_head_attention, pad_to_multiple, run_block
from ..layers.importance import ImportancePredictor, count_kept
from ..weights import Published
from .base import Layer, is_positive, is_sequence
from .plain import PlainBackbone

EPS = 1e-6  # of the masked softmax
PREDICTOR_EPS = 1e-5  # of the predictors' layer norms


class ConvStem(nn.Module):
    """LV-ViT's stem: three convolutions at half the resolution, and patches of 8 x 8 of their pixels.

    Args:
        in_channels, dims, embed_dims: channels of the image, of the convolutions, and of the tokens.
    """

    def __init__(self, in_channels: int, dims: int, embed_dims: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, dims, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(dims)
        self.conv2 = nn.Conv2d(dims, dims, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(dims)
        self.conv3 = nn.Conv2d(dims, dims, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(dims)
        self.proj = nn.Conv2d(dims, embed_dims, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, ceil(H / 16), ceil(W / 16), C)``."""
        x = pad_to_multiple(x, 16)
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        x = self.bn3(self.conv3(x)).relu()
        return self.proj(x).permute(0, 2, 3, 1)


class TokenPositions(PositionTable):
    """A learned vector for each patch of a grid, resized to other grids, and one for the class token."""

    def __init__(self, dims: int, grid: Sequence[int]):
        super().__init__(dims, grid, 'bicubic')
        self.class_token = nn.Parameter(torch.empty(1, 1, dims))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the vectors from a normal distribution with a deviation of 0.02, cut at 2."""
        for parameter in self.parameters():
            nn.init.trunc_normal_(parameter, std=0.02)


class Scale(nn.Module):
    """A fixed factor of a residual branch.

    Args:
        factor: what branches are multiplied by.
    """

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C)`` -> ``(..., C)``."""
        return x * self.factor


class Attention(nn.Module):
    """Self-attention of tokens, of which some may be masked."""

    def __init__(self, dims: int, num_heads: int, qkv_bias: bool):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dims, 3 * dims, qkv_bias)
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: Tensor, policy: Tensor | None = None) -> Tensor:
        """``(B, N, C)`` -> ``(B, N, C)``; ``policy`` ``(B, N)`` is that of ``masked_softmax``, None for a plain softmax."""
        query, key, value = self.qkv(x).chunk(3, -1)
        if policy is None:
            return self.proj(multi_head_attention(query, key, value, self.num_heads))
        query, key, value = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (query, key, value))
        weights = masked_softmax(query @ key.transpose(-2, -1) * query.shape[-1]**-0.5, policy)
        return self.proj((weights.to(value.dtype) @ value).transpose(1, 2).flatten(2))


def masked_softmax(logits: Tensor, policy: Tensor) -> Tensor:
    """A softmax in which tokens take part that are kept, and each for itself (section 3.3 of the paper).

    It differs a little from a softmax where all are kept, for it has a small constant in numerator and denominator.

    Args:
        logits: ``(B, heads, N, N)``, of queries in rows and keys in columns.
        policy: ``(B, N)``, 1 for kept and 0 for dropped tokens; its gradient tells the worth of dropped ones too.

    Returns:
        ``(B, heads, N, N)``, in float32 at least.
    """
    number, dtype = logits.shape[-1], torch.promote_types(logits.dtype, torch.float32)
    mask = policy[:, None, None].to(dtype)
    mask = mask + (1 - mask) * torch.eye(number, dtype=dtype, device=logits.device)
    logits = logits.to(dtype)
    weights = (logits - logits.detach().amax(-1, keepdim=True)).exp() * mask
    return (weights + EPS / number) / (weights.sum(-1, keepdim=True) + EPS)


def is_ratio(value: object) -> bool:
    """Whether an argument is a number in (0, 1]."""
    return isinstance(value, Real) and 0 < float(value) <= 1


def is_location(value: object) -> bool:
    """Whether an argument lists blocks, ascending, each after the first."""
    return is_sequence(value) and all(map(is_positive, value)) and sorted(set(value)) == list(value)


def split_positions(converted: dict[str, Tensor]) -> None:
    """Give the class token's position a name of its own, and the norm the number of the last block."""
    if 'pos_embed' in converted:
        positions = converted.pop('pos_embed')
        converted['pos_embed.class_token'], converted['pos_embed.table'] = positions[:, :1], positions[:, 1:]
    last = max((int(name.split('.')[1]) for name in converted if name.startswith('blocks.')), default=0)
    for name in [name for name in converted if name.startswith('norm.')]:
        converted[name.replace('norm.', f'norms.{last}.', 1)] = converted.pop(name)


@MODELS.register_module()
class DynamicViT(PlainBackbone):
    """DynamicViT: a plain vision transformer that drops patches before some of its blocks, those that a small network of each
    takes for the least important ones of the image at hand.

    In evaluation the others are gathered, most important first, so that later blocks compute with fewer tokens. In training
    nothing is gathered: dropped tokens are masked in all attention that follows, by decisions that are drawn and have
    gradients. Parts of the number of patches are kept: ``keep_ratio`` after the first predictor, its square after the second,
    its cube after the third, each rounded down, but one patch at least. At a ratio of 1 no predictor computes.

    The outputs are the published code's at 224 x 224 pixels, all that it takes. Images of other sizes are padded with zeros at
    the bottom and right to whole patches of 16 x 16 pixels, and the positions are resized. There are no maps for dense
    prediction, since patches are missing in them: ``DynamicConvNeXt`` and ``DynamicSwin`` keep them all.

    Args:
        arch: ``deit_256``, ``deit_s``, ``deit_b``, ``lvvit_s`` or ``lvvit_m``, or a dict of ``embed_dims``, ``depth``,
            ``num_heads``, ``mlp_ratio``, ``qkv_bias``, ``predictors`` (the blocks, counted from 0, that have one before them;
            none for the model that the paper begins with), ``stem_dims`` (channels of LV-ViT's stem, None for DeiT's patches),
            ``branch_scale`` (factor of residual branches) and ``eps`` (of layer norms).
        in_channels: channels of the input image.
        out_indices: blocks, counted from 0; -1 for the last alone.
        drop_path_rate: drop path rate of the last block, as published 0, for ``deit_b`` 0.2. The rate grows linearly from 0 at
            the first.
        out_type: ``cls_token`` for the class token ``(B, C)``, ``raw`` for all tokens ``(B, N, C)``, the class token first:
            in evaluation those that are kept, the most important first, in training all.
        keep_ratio: which part is kept.

    ``frozen_stages``, ``with_cp`` and ``init_cfg`` are those of ``PlainBackbone``, as are the errors. A predictor is frozen
    with the block behind it. Published checkpoints of DynamicViT, DeiT and LV-ViT, and MMPreTrain's of DeiT, are loaded as
    they are; those without predictors leave these random.

    Attributes:
        keep_ratio: as the argument, which may be set at any time.
        keep_ratios: which part of the image's patches is kept after each predictor.

    Raises:
        ValueError: also for ``keep_ratio`` outside of (0, 1], for predictors before no block, and for ``embed_dims`` that are
            no multiple of 4.
    """

    has_cls_token = True
    arch_zoo = {
        'deit_256': dict(embed_dims=256, depth=12, num_heads=4, mlp_ratio=4, qkv_bias=True, predictors=(3, 6, 9),
                         stem_dims=None, branch_scale=1., eps=1e-6),
        'deit_s': dict(embed_dims=384, depth=12, num_heads=6, mlp_ratio=4, qkv_bias=True, predictors=(3, 6, 9),
                       stem_dims=None, branch_scale=1., eps=1e-6),
        'deit_b': dict(embed_dims=768, depth=12, num_heads=12, mlp_ratio=4, qkv_bias=True, predictors=(3, 6, 9),
                       stem_dims=None, branch_scale=1., eps=1e-6),
        'lvvit_s': dict(embed_dims=384, depth=16, num_heads=6, mlp_ratio=3, qkv_bias=False, predictors=(4, 8, 12),
                        stem_dims=64, branch_scale=0.5, eps=1e-5),
        'lvvit_m': dict(embed_dims=512, depth=20, num_heads=8, mlp_ratio=3, qkv_bias=False, predictors=(5, 10, 15),
                        stem_dims=64, branch_scale=0.5, eps=1e-5),
    }
    arch_rules = {
        'qkv_bias': ('True or False', lambda value: isinstance(value, bool)),
        'predictors': ('blocks in ascending order, from 1 on', is_location),
        'stem_dims': ('None or a positive whole number', lambda value: value is None or is_positive(value)),
        'branch_scale': ('a number above 0', lambda value: isinstance(value, (int, float)) and value > 0),
        'eps': ('a number above 0', lambda value: isinstance(value, (int, float)) and value > 0),
    }
    published = Published(
        url='https://github.com/raoyongming/DynamicViT',
        licence='MIT',
        released=('deit_256', 'deit_s', 'deit_b', 'lvvit_s', 'lvvit_m'),
        rename=(
            (r'^layers\.(\d+)\.ln([12])\.', r'blocks.\1.norm\2.'),  # MMPreTrain's
            (r'^layers\.(\d+)\.ffn\.layers\.0\.0\.', r'blocks.\1.ffn.fc1.'),
            (r'^layers\.(\d+)\.ffn\.layers\.1\.', r'blocks.\1.ffn.fc2.'),
            (r'^layers\.', 'blocks.'),
            (r'^patch_embed\.projection\.', 'patch_embed.proj.'),
            (r'^ln1\.', 'norm.'),
            (r'\.mlp\.', '.ffn.'),
            (r'^score_predictor\.', 'predictors.'),
        ),
        drop=r'^(head|aux_head)\.',
        finish=split_positions,
        classifiers=('deit_256', 'deit_s', 'deit_b', 'lvvit_s', 'lvvit_m'),
        auxiliary=(('aux_head', 'head.aux'), ),
    )
    training_size = 224, 224  # of the table of positions
    predictors: Any
    _keep_ratio: float

    def __init__(self,
                 arch: str | Mapping = 'deit_s',
                 in_channels: int = 3,
                 out_indices: int | Sequence[int] = -1,
                 frozen_stages: int = -1,
                 drop_path_rate: float = 0.,
                 with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None,
                 out_type: str = 'cls_token',
                 keep_ratio: float = 0.7,
                 **arch_overrides: Any):
        if out_type == 'featmap':
            raise ValueError("DynamicViT drops patches and has no maps, so that its out_type must be cls_token or raw, got "
                             f'{out_type!r}; DynamicConvNeXt and DynamicSwin have maps')
        super().__init__(arch, in_channels, out_indices, frozen_stages, drop_path_rate, with_cp, init_cfg, out_type,
                         **arch_overrides)
        locations = self.arch['predictors']
        if locations and locations[-1] >= self.arch['depth']:
            raise ValueError(f'predictors must be before some of the {self.arch["depth"]} blocks (depth), got {locations}')
        self.keep_ratio = keep_ratio
        dims = self.arch['embed_dims']
        if locations and dims % 4:
            raise ValueError(f'embed_dims must be a multiple of 4, for the layers of the predictors, got {dims}')
        self.predictors = nn.ModuleList(ImportancePredictor(dims, PREDICTOR_EPS) for location in locations
                                        if location <= self.out_indices[-1])
        self.build_blocks()

    @property
    def keep_ratio(self) -> float:
        """Which part of the patches is kept after the first predictor."""
        return self._keep_ratio

    @keep_ratio.setter
    def keep_ratio(self, value: float) -> None:
        """Refuse, with a ``ValueError``, what is not in (0, 1]."""
        if not is_ratio(value):
            raise ValueError(f'keep_ratio must be a number above 0 and at most 1, got {value!r}')
        self._keep_ratio = float(value)

    @property
    def keep_ratios(self) -> tuple[float, ...]:
        """Which part of the image's patches is kept after each predictor."""
        return tuple(self.keep_ratio**(index + 1) for index in range(len(self.predictors)))

    def layer_order(self) -> list[Layer]:
        """As in ``PlainBackbone``; each predictor before its block."""
        predictors = {f'blocks.{location}': Layer(f'predictors.{index}', location + 1, is_added=True)
                      for index, location in enumerate(self.arch['predictors'])}
        order: list[Layer] = []
        for layer in super().layer_order():
            if layer.prefixes[0] in predictors:
                order.append(predictors[layer.prefixes[0]])
            order.append(layer)
        return order

    def build_patch_embed(self) -> nn.Module:
        """Patches of 16 x 16 pixels without a norm, or LV-ViT's stem."""
        dims, stem_dims = self.arch['embed_dims'], self.arch['stem_dims']
        if stem_dims is None:
            return PatchEmbed(self.in_channels, dims, self.patch_size, has_norm=False)
        return ConvStem(self.in_channels, stem_dims, dims)

    def build_pos_embed(self) -> TokenPositions:
        """Learned."""
        return TokenPositions(self.arch['embed_dims'], [length // self.patch_size for length in self.training_size])

    def build_block(self, index: int, drop_path_rate: float) -> Block:
        """Attention and FFN."""
        dims, arch = self.arch['embed_dims'], self.arch
        attn = Attention(dims, arch['num_heads'], arch['qkv_bias'])
        block: Any = Block(attn, FFN(dims, dims * arch['mlp_ratio']), dims, drop_path_rate, arch['eps'])
        if arch['branch_scale'] != 1:
            block.scale1 = block.scale2 = Scale(arch['branch_scale'])
        return block

    def norm_layer(self, index: int) -> partial | None:
        """A layer norm after the last block."""
        return partial(nn.LayerNorm, eps=self.arch['eps']) if index == self.arch['depth'] - 1 else None

    def no_weight_decay(self) -> set[str]:
        """Also the class token and the positions."""
        return super().no_weight_decay() | {'cls_token', 'pos_embed.class_token', 'pos_embed.table'}

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(B, in_channels, H, W)``, any H, W >= 1 -> for each of ``out_indices`` the class token ``(B, C)``, or with
        ``out_type='raw'`` tokens ``(B, N, C)``."""
        return super().forward(x)

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(B, in_channels, H, W)`` -> what ``forward`` gives."""
        return self._give(self._run(x)[0])

    def forward_decisions(self, x: Tensor) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """What ``forward`` gives, and what each predictor decided.

        Args:
            x: ``(B, in_channels, H, W)``.

        Returns:
            outs: as ``forward``.
            decisions: for each predictor ``(B, N)``, N the number of the image's patches, 1 for kept and 0 for dropped ones;
                in training with gradients.
        """
        self.check_images(x)
        outs, kept = self._run(x)
        if self.training:
            return self._give(outs), kept
        number = -(-x.shape[2] // self.patch_size) * -(-x.shape[3] // self.patch_size)
        return self._give(outs), [outs[0].new_zeros(len(x), number).scatter(1, positions, 1) for positions in kept]

    def _give(self, outs: list[Tensor]) -> tuple[Tensor, ...]:
        return tuple(outs) if self.out_type == 'raw' else tuple(out[:, 0] for out in outs)

    def _run(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Tokens of each of ``out_indices``; and of each predictor, in training the decisions ``(B, N)``, else the positions
        ``(B, K)`` of the patches that it keeps, in the order of the tokens."""
        x = self.pos_embed(self.patch_embed(x)).flatten(1, 2)
        token: Any = self.cls_token
        token = (token + self.pos_embed.class_token).expand(x.shape[0], -1, -1).to(x.dtype)
        number = x.shape[1]
        x = torch.cat([token, x], 1)
        policy = x.new_ones(x.shape[:2]) if self.training else None
        ratios, predictors = dict(zip(self.arch['predictors'], self.keep_ratios)), iter(self.predictors)
        outs: list[Tensor] = []
        kept: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            if index in ratios:
                predictor = next(predictors)
                if policy is None:
                    x, positions = select(x, predictor, number, ratios[index], kept)
                    kept.append(positions)
                else:
                    decision = predictor.gate(predictor(x[:, 1:], policy[:, 1:])) * policy[:, 1:]
                    policy = torch.cat([policy[:, :1], decision], 1)
                    kept.append(decision)
            x = run_block(block, self.with_cp, x, policy)
            if index in self.out_indices:
                outs.append(self.norms[str(index)](x) if str(index) in self.norms else x)
        return outs, kept


def select(x: Tensor, predictor: nn.Module, number: int, ratio: float, kept: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Gather the tokens that a predictor takes for the most important ones.

    Args:
        x: ``(B, 1 + N, C)``, the class token first.
        predictor: takes patches ``(B, N, C)`` to log-probabilities ``(B, N, 2)`` of keeping and dropping them.
        number: of the image's patches.
        ratio: which part of these is kept.
        kept: the positions that earlier predictors left, the last ``(B, N)``.

    Returns:
        The class token and the kept patches ``(B, 1 + K, C)``, in descending order; and the positions of these ``(B, K)``.
    """
    before = kept[-1] if kept else torch.arange(number, device=x.device).expand(x.shape[0], -1)
    if ratio == 1:
        return x, before
    patches, count = x[:, 1:], count_kept(number, ratio)
    if not torch.compiler.is_compiling():  # comparing would fix a symbol
        count = max(count, 1)
    chosen = predictor(patches)[..., 0].topk(count, 1).indices
    x = torch.cat([x[:, :1], patches.gather(1, chosen[..., None].expand(-1, -1, patches.shape[2]))], 1)
    return x, before.gather(1, chosen)
