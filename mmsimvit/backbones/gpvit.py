"""GPViT: A High Resolution Non-Hierarchical Vision Transformer with Group Propagation (Yang et al., ICLR 2023,
arXiv 2212.06795)."""
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from .. import layers
from ..layers import (
    FFN,
    Adapter,
    CrossShapedAttention,
    DropPath,
    PositionTable,
    as_map,
    conv_norm,
    crop,
    multi_head_attention,
    pad_to_multiple,
    run_block,
)
from ..weights import Published
from .base import Backbone, FeatureInfo, Layer, is_numbers

LOCAL_EPS = 1e-6  # of the norms in local blocks and of the maps
GROUP_EPS = 1e-5  # of those in blocks with group tokens
STRIDE = 8  # of all maps but the adapter's
STRIPE_WIDTH = 2
GRID = 28  # of the position table, in each direction
NUM_STAGES = 4
STAGE_DEPTH = 3  # a local block, one with group tokens, a local one


class PatchEmbed(nn.Module):
    """Convolutions with stride 2 in all, whose map is padded with zeros at the bottom and right to whole 4 x 4 patches."""

    def __init__(self, in_channels: int, dims: int, num_convs: int):
        super().__init__()
        self.convs = nn.Sequential(*conv_norm(in_channels, 64, 7, 2))
        for _ in range(num_convs):
            self.convs.extend(conv_norm(64, 64, 3))
        self.proj = nn.Conv2d(64, dims, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C_in, H, W)`` -> ``(B, ceil(H / 8), ceil(W / 8), C)``."""
        if not torch.compiler.is_compiling():  # where batch norms would ask how strides compare
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.convs(x)
        return self.proj(pad_to_multiple(x, 4)).permute(0, 2, 3, 1)


class LocalBlock(layers.Block):
    """Attention in stripes and FFN, then a depth-wise convolution, to whose output nothing is added."""

    def __init__(self, dims: int, num_heads: int, mlp_ratio: int, drop_path: float):
        super().__init__(CrossShapedAttention(dims, num_heads, STRIPE_WIDTH), FFN(dims, dims * mlp_ratio), dims, drop_path,
                         LOCAL_EPS)
        self.conv = nn.Conv2d(dims, dims, 3, padding=1, groups=dims, bias=False)

    def forward(self, x: Tensor, *context: Tensor | int) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``."""
        return self.conv(super().forward(x, *context).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Gather(nn.Module):
    """Group tokens become weighted means of the pixels, which are not projected."""

    def __init__(self, dims: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query_norm = nn.LayerNorm(dims, eps=GROUP_EPS)
        self.value_norm = nn.LayerNorm(dims, eps=GROUP_EPS)
        self.key = nn.Linear(dims, dims)

    def forward(self, groups: Tensor, x: Tensor) -> Tensor:
        """``(1, groups, C)`` and pixels ``(B, N, C)`` -> ``(B, groups, C)``."""
        value = self.value_norm(x)
        query = self.query_norm(groups).expand(x.shape[0], -1, -1)
        return multi_head_attention(query, self.key(value), value, self.num_heads)


class Mixer(nn.Module):
    """An FFN over the group tokens and one over their channels (MLP-Mixer, 2105.01601)."""

    def __init__(self, num_groups: int, dims: int, mlp_ratio: int, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dims, eps=GROUP_EPS)
        self.tokens = FFN(num_groups, dims // 2)
        self.norm2 = nn.LayerNorm(dims, eps=GROUP_EPS)
        self.channels = FFN(dims, dims * mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, groups: Tensor) -> Tensor:
        """``(B, groups, C)`` -> ``(B, groups, C)``."""
        groups = groups + self.drop_path(self.tokens(self.norm1(groups).transpose(1, 2)).transpose(1, 2))
        return groups + self.drop_path(self.channels(self.norm2(groups)))


class Ungroup(nn.Module):
    """Pixels attend to the group tokens, and are merged with what they find; then an FFN."""

    def __init__(self, dims: int, num_heads: int, mlp_ratio: int, drop_path: float):
        super().__init__()
        self.num_heads = num_heads
        self.query_norm = nn.LayerNorm(dims, eps=GROUP_EPS)
        self.value_norm = nn.LayerNorm(dims, eps=GROUP_EPS)
        self.query, self.key, self.value, self.proj = (nn.Linear(dims, dims) for _ in range(4))
        self.merge = nn.Linear(2 * dims, dims)
        self.norm2 = nn.LayerNorm(dims, eps=GROUP_EPS)
        self.ffn = FFN(dims, dims * mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, groups: Tensor) -> Tensor:
        """Pixels ``(B, N, C)`` and ``(B, groups, C)`` -> ``(B, N, C)``."""
        groups = self.value_norm(groups)
        found = multi_head_attention(self.query(self.query_norm(x)), self.key(groups), self.value(groups), self.num_heads)
        found = self.drop_path(self.proj(found))
        # The linear layer of both side by side, without the copy.
        of_pixels, of_groups = self.merge.weight.chunk(2, 1)
        x = F.linear(x, of_pixels, self.merge.bias) + F.linear(found, of_groups)
        return x + self.drop_path(self.ffn(self.norm2(x)))


class GroupBlock(nn.Module):
    """Group propagation: group tokens gather from the whole map, mix and give back; then a depth-wise convolution with a batch
    norm and ReLU, to whose output nothing is added."""

    def __init__(self, dims: int, num_heads: int, mlp_ratio: int, num_groups: int, drop_path: float):
        super().__init__()
        self.group_token = nn.Parameter(torch.empty(1, num_groups, dims))
        self.gather = Gather(dims, num_heads)
        self.mixer = Mixer(num_groups, dims, mlp_ratio, drop_path)
        self.ungroup = Ungroup(dims, num_heads, mlp_ratio, drop_path)
        self.conv = nn.Conv2d(dims, dims, 3, padding=1, groups=dims, bias=False)
        self.norm = nn.BatchNorm2d(dims)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the group tokens from a normal distribution with a deviation of 0.02."""
        nn.init.trunc_normal_(self.group_token, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` -> ``(B, H, W, C)``, nothing below zero."""
        shape = x.shape[1:3]
        x = x.flatten(1, 2)
        x = self.ungroup(x, self.mixer(self.gather(self.group_token, x)))
        return F.relu(self.norm(self.conv(as_map(x.unflatten(1, shape))))).permute(0, 2, 3, 1)


@MODELS.register_module()
class GPViT(Backbone):
    """GPViT: blocks of one resolution, stride 8, which attend in stripes of two rows and two columns; every third exchanges
    features of the whole map by a few group tokens. Detectors take it with ViT-Adapter around it.

    The outputs are the published code's on images of all sizes that it takes. Its map must have an even number of rows and
    columns, ``ceil(H / 8)`` and ``ceil(W / 8)``; with the adapter, H and W must be multiples of 32. Images of other sizes are
    padded with zeros at the bottom and right to multiples of 16, with the adapter of 32, and the maps are cropped. Positions
    are resized to the padded map.

    The batch norms are best synchronised over processes with few images each: ``sync_bn='torch'`` in a config.

    Args:
        arch: ``l1``, ``l2``, ``l3`` or ``l4``, with ``_det`` for four maps of an adapter, with ``_retina`` for its last three;
            or a dict of ``embed_dims``; ``stem_convs``, how many convolutions with stride 1 there are before the patches;
            ``group_tokens``, one number for each of the four stages, which are three blocks; ``num_heads``, of the stripes'
            attention, twice those of the group tokens'; ``mlp_ratio``; and ``adapter_strides``, those of the adapter's maps, ()
            for no adapter.
        in_channels: channels of the input image.
        out_indices: without an adapter, stages, counted from 0, whose maps are all of stride 8 and have a norm each. With one,
            which of its maps. All if None.
        frozen_stages: 0 freezes the stem, with that of an adapter; n >= 1 also the first n stages, with what exchanges features
            with the adapter and with the norms of the maps.
        drop_path_rate: drop path rate of the last block. The rate grows linearly from 0 at the first; the adapter has this one
            everywhere. As published for ``l1``, ``l2``, ``l3``, ``l4``: for ImageNet 0.2, 0.2, 0.3, 0.3; in segmentors 0.1,
            0.1, 0.2, 0.2; in detectors 0.1, 0.1, 0.1, and 0.2 with the long schedule, 0.2.

    ``with_cp`` and ``init_cfg`` are those of ``Backbone``. A classifier's checkpoint may be without the adapter, which then
    starts anew, and with the norm of the last map, which the adapter does not take.

    Raises:
        ValueError: also for ``embed_dims`` that are no multiple of ``num_heads``, for odd ``num_heads``, and, when called, for
            one image of at most 32 x 32 pixels in training with an adapter.
    """

    arch_zoo = {
        name + form: dict(embed_dims=embed_dims, stem_convs=stem_convs, group_tokens=(64, 32, 32, 16), num_heads=12,
                          mlp_ratio=4, adapter_strides=strides)
        for form, strides in (('', ()), ('_retina', (8, 16, 32)), ('_det', (4, 8, 16, 32)))
        for name, embed_dims, stem_convs in (('l1', 216, 0), ('l2', 348, 1), ('l3', 432, 1), ('l4', 624, 2))
    }
    arch_rules = {
        'stem_convs': ('0 or a positive whole number', lambda value: isinstance(value, int) and value >= 0),
        'group_tokens': ('4 positive whole numbers, one for each stage', lambda value: is_numbers(value, NUM_STAGES)),
        'adapter_strides': ('no strides, or 8, 16, 32, or 4, 8, 16, 32', lambda value: (
            isinstance(value, Sequence) and tuple(value) in ((), (8, 16, 32), (4, 8, 16, 32)))),
    }
    published = Published(
        url='https://github.com/ChenhongyiYang/GPViT',
        licence='Apache-2.0',
        released=tuple(arch_zoo),
        rename=(
            (r'^pos_embed$', 'pos_embed.table'),
            (r'^patch_embed\.convs\.(\d+)\.', lambda m: f'patch_embed.convs.{int(m[1]) + 3}.'),
            (r'^patch_embed\.stem\.', 'patch_embed.convs.'),
            (r'^patch_embed\.projection\.', 'patch_embed.proj.'),
            (r'^layers\.(\d+)\.', r'blocks.\1.'),
            (r'^(blocks\.\d+)\.(qkv|proj)\.', r'\1.attn.\2.'),
            (r'\.attns\.([01])\.get_v\.', r'.attn.lepe.\1.'),
            (r'\.ffn\.layers\.0\.0\.', '.ffn.fc1.'),
            (r'\.ffn\.layers\.1\.', '.ffn.fc2.'),
            (r'\.dw\.', '.conv.'),
            (r'\.group_layer\.', '.gather.'),
            (r'\.un_group_layer\.proj\.', '.ungroup.merge.'),
            (r'\.un_group_layer\.', '.ungroup.'),
            (r'\.norm_query\.', '.query_norm.'),
            (r'\.norm_key\.', '.value_norm.'),
            (r'\.attn\.([qkv])_proj\.', lambda m: f'.{dict(q="query", k="key", v="value")[m[1]]}.'),
            (r'\.ungroup\.attn\.proj\.', '.ungroup.proj.'),
            (r'\.mixer\.layers\.0\.', '.mixer.'),
            (r'\.patch_mixer\.', '.tokens.'),
            (r'\.channel_mixer\.', '.channels.'),
            (r'\.(tokens|channels)\.0\.', r'.\1.fc1.'),
            (r'\.(tokens|channels)\.3\.', r'.\1.fc2.'),
            (r'\.dwconv\.0\.', '.conv.'),
            (r'\.dwconv\.1\.', '.norm.'),
            (r'^norm(2|5|8)\.', lambda m: f'norms.{int(m[1]) // STAGE_DEPTH}.'),
            (r'^ln1\.', 'norms.3.'),
            (r'^spm\.fc([1-4])\.', lambda m: f'adapter.prior.projs.{2**(int(m[1]) + 1)}.'),
            (r'^spm\.conv([2-4])\.', lambda m: f'adapter.prior.convs.{int(m[1]) - 2}.'),
            (r'^spm\.', 'adapter.prior.'),
            (r'^level_embed$', 'adapter.level_embed'),
            (r'^interactions\.(\d)\.injector\.', r'adapter.injectors.\1.'),
            (r'^interactions\.(\d)\.extractor\.', r'adapter.extractors.\1.0.'),
            (r'^interactions\.(\d)\.extra_extractors\.(\d)\.', lambda m: f'adapter.extractors.{m[1]}.{int(m[2]) + 1}.'),
            (r'\.feat_norm\.', '.value_norm.'),
            (r'\.ffn_norm\.', '.norm.'),
            (r'\.gamma$', '.scale.gamma'),
            (r'\.attn\.sampling_offsets\.', '.attn.offsets.'),
            (r'\.attn\.attention_weights\.', '.attn.weights.'),
            (r'\.attn\.value_proj\.', '.attn.value.'),
            (r'\.attn\.output_proj\.', '.attn.proj.'),
            (r'\.ffn\.dwconv\.dwconv\.', '.ffn.dwconv.'),
            (r'^up\.', 'adapter.up.'),
            (r'^ad_norm([1-4])\.', lambda m: f'adapter.norms.{2**(int(m[1]) + 1)}.'),
        ),
        drop=r'^(head|neck)\.',
        classifiers=('l1', 'l2', 'l3', 'l4'),
        head=(('head.fc', 'head.fc'), ('neck.norm_query', 'neck.norm')),
        pooling=(('neck.group_token', 'neck.query'), ('neck.attn.k_proj.weight', 'neck.key.weight')),
    )
    blocks: Any  # an nn.ModuleList and an nn.ModuleDict, whose entries torch's types cannot say
    norms: Any

    def __init__(self,
                 arch: str | Mapping = 'l1',
                 in_channels: int = 3,
                 out_indices: int | Sequence[int] | None = None,
                 frozen_stages: int = -1,
                 drop_path_rate: float = 0.1,
                 with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None,
                 **arch_overrides: Any):
        super().__init__(arch, in_channels, out_indices, frozen_stages, drop_path_rate, with_cp, init_cfg, **arch_overrides)
        dims, heads, mlp_ratio = (self.arch[key] for key in ('embed_dims', 'num_heads', 'mlp_ratio'))
        if dims % heads:
            raise ValueError(f'embed_dims must be a multiple of its num_heads, got {dims} and {heads}')
        if heads % 2:
            raise ValueError('num_heads must be even, one half for the vertical stripes and one for the horizontal ones, '
                             f'got {heads}')
        has_adapter = bool(self.arch['adapter_strides'])
        num_stages = NUM_STAGES if has_adapter else self.out_indices[-1] + 1
        # Over all blocks, built or not, so that a backbone cut short is the beginning of the whole one.
        rates = torch.linspace(0, drop_path_rate, NUM_STAGES * STAGE_DEPTH, device='cpu').tolist()
        self.patch_embed = PatchEmbed(in_channels, dims, self.arch['stem_convs'])
        self.pos_embed = PositionTable(dims, (GRID, GRID), 'bicubic')
        self.blocks = nn.ModuleList()
        for index, num_groups in enumerate(self.arch['group_tokens'][:num_stages]):
            before, rate, after = rates[STAGE_DEPTH * index:STAGE_DEPTH * (index + 1)]
            self.blocks += [LocalBlock(dims, heads, mlp_ratio, before),
                            GroupBlock(dims, heads // 2, mlp_ratio, num_groups, rate),
                            LocalBlock(dims, heads, mlp_ratio, after)]
        self.norms = nn.ModuleDict({} if has_adapter else {
            str(index): nn.LayerNorm(dims, eps=LOCAL_EPS) for index in self.out_indices})
        self.adapter = Adapter(in_channels, dims, NUM_STAGES, self.strides, drop_path_rate) if has_adapter else None
        self.freeze()

    def describe_maps(self) -> Sequence[FeatureInfo]:
        """The map of each stage, or those of the adapter."""
        return [FeatureInfo(self.arch['embed_dims'], stride)
                for stride in self.arch['adapter_strides'] or (STRIDE, ) * NUM_STAGES]

    def layer_order(self) -> list[Layer]:
        """The stem and the adapter's; each stage's blocks and its norm, or the injector before and the extractors behind it;
        what makes the adapter's maps."""
        has_adapter = bool(self.arch['adapter_strides'])
        order = [Layer(('patch_embed', 'pos_embed'), 0)]
        if has_adapter:
            # That of stride 4 on a line of its own: a checkpoint of fewer maps may be without, and one of more with it.
            order += [Layer(('adapter.prior', 'adapter.level_embed'), 0, is_added=True),
                      Layer('adapter.prior.projs.4', 0, is_added=True)]
        for index in range(NUM_STAGES):
            if has_adapter:
                order.append(Layer(f'adapter.injectors.{index}', index + 1, is_added=True))
            order += [Layer(f'blocks.{STAGE_DEPTH * index + block}', index + 1, is_block=True) for block in range(STAGE_DEPTH)]
            order.append(Layer(f'adapter.extractors.{index}', index + 1, is_added=True) if has_adapter
                         else Layer(f'norms.{index}', index + 1, is_added=index < NUM_STAGES - 1))
        if has_adapter:
            norms = [f'adapter.norms.{stride}' for stride in (4, 8, 16, 32)]
            order.append(Layer(('adapter.up', *norms), NUM_STAGES, is_added=True))
        return order

    def init_random_weights(self) -> None:
        """Draw the published initialisation: linear layers from a normal distribution with a deviation of 0.02, biases zero,
        convolutions as torch has them; those of the adapter, and its attention, as ViT-Adapter and Deformable DETR have
        them."""
        super().init_random_weights()
        if self.adapter is not None:
            self.adapter.init_random_weights()

    def no_weight_decay(self) -> set[str]:
        """Also the positions."""
        return super().no_weight_decay() | {'pos_embed.table'}

    def forward_features(self, x: Tensor) -> tuple[Tensor, ...]:
        """``(B, in_channels, H, W)`` -> for each of ``out_indices`` the contiguous ``(B, C, ceil(H / stride), ceil(W /
        stride))``."""
        size = x.shape[2:]
        if self.adapter is None:
            outs = self._forward_stages(pad_to_even(x))
        else:
            x = pad_to_multiple(x, 32)
            stages = [self.blocks[first:first + STAGE_DEPTH] for first in range(0, len(self.blocks), STAGE_DEPTH)]
            outs = self.adapter(x, self.pos_embed(self.patch_embed(x)), stages, self.with_cp)
        return tuple(crop(out, *((length + stride - 1) // stride for length in size)).contiguous()
                     for out, stride in zip(outs, self.strides))

    def _forward_stages(self, x: Tensor) -> tuple[Tensor, ...]:
        """Padded images -> their maps, each after its norm, ``(B, C, H', W')``."""
        x, outs = self.pos_embed(self.patch_embed(x)), []
        for number, block in enumerate(self.blocks):
            x = run_block(block, self.with_cp, x)
            index, position = divmod(number, STAGE_DEPTH)
            if position == STAGE_DEPTH - 1 and index in self.out_indices:
                outs.append(self.norms[str(index)](x).permute(0, 3, 1, 2))
        return tuple(outs)


def pad_to_even(x: Tensor) -> Tensor:
    """``(B, C, H, W)``, as it is if ``ceil(H / 8)`` and ``ceil(W / 8)`` are even, or with zeros to multiples of 16 pixels."""
    size = 2 * STRIDE
    parts = [(length + STRIDE - 1) // STRIDE % 2 for length in x.shape[2:]]
    if not torch.compiler.is_compiling():
        return pad_to_multiple(x, size) if any(parts) else x
    is_odd = (parts[0] + parts[1] + 1) // 2  # 0 or 1, which a trace may not ask
    height, width = (length + is_odd * (-length % size) for length in x.shape[2:])
    return crop(F.pad(x, (0, size - 1, 0, size - 1)), height, width)
