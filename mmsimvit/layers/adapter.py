"""ViT-Adapter: Vision Transformer Adapter for Dense Predictions (Chen et al., ICLR 2023, arXiv 2205.08534), for backbones of
stride 8."""
from collections.abc import Sequence
from itertools import pairwise
from math import pi, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import deformable_attention
from .drop_path import DropPath
from .ffn import ConvFFN
from .padding import divide
from .position_table import resize
from .stage import LayerScale, run_block

EPS = 1e-6  # of the layer norms; batch norms have torch's 1e-5
STRIDE = 8  # of the backbone's map
TOKEN_STRIDES = (8, 16, 32)  # of the maps in the adapter's tokens
NUM_HEADS = 6
NUM_POINTS = 4
NUM_FURTHER = 2  # extractors more than one in the end

Shapes = Sequence[tuple[int, int]]


def conv_norm(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> list[nn.Module]:
    """A convolution without bias, a batch norm and ReLU."""
    return [nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False),
            nn.BatchNorm2d(out_channels), nn.ReLU()]


def as_map(x: Tensor) -> Tensor:
    """``(B, H, W, C)`` -> ``(B, C, H, W)`` of the same memory; but not in a trace, where a batch norm would ask how the strides
    compare."""
    x = x.permute(0, 3, 1, 2)
    return x.contiguous() if torch.compiler.is_compiling() else x


class SpatialPrior(nn.Module):
    """Maps of an image by convolutions.

    Args:
        in_channels, dims: channels of the image and of the maps.
        strides: of the maps, among 4, 8, 16 and 32.
    """

    def __init__(self, in_channels: int, dims: int, strides: Sequence[int]):
        super().__init__()
        self.stem = nn.Sequential(*conv_norm(in_channels, 64, 3, 2), *conv_norm(64, 64, 3), *conv_norm(64, 64, 3),
                                  nn.MaxPool2d(3, 2, 1))
        widths = {4: 64, 8: 128, 16: 256, 32: 256}
        self.convs = nn.ModuleList(nn.Sequential(*conv_norm(*channels, 3, 2)) for channels in pairwise(widths.values()))
        self.projs = nn.ModuleDict({str(stride): nn.Conv2d(widths[stride], dims, 1) for stride in strides})

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        """``(B, C_in, H, W)`` of whole 32 x 32 pixels -> for each stride ``(B, C, H / stride, W / stride)``."""
        if not torch.compiler.is_compiling():  # as in as_map
            x = x.contiguous(memory_format=torch.channels_last)
        maps = [self.stem(x)]
        for conv in self.convs:
            maps.append(conv(maps[-1]))
        return {stride: self.projs[str(stride)](y) for stride, y in zip((4, 8, 16, 32), maps) if str(stride) in self.projs}


class DeformableAttention(nn.Module):
    """Attention of each query to a few places around it in maps, which the query itself chooses."""

    def __init__(self, dims: int, num_levels: int):
        super().__init__()
        self.num_levels = num_levels
        self.offsets = nn.Linear(dims, NUM_HEADS * num_levels * NUM_POINTS * 2)
        self.weights = nn.Linear(dims, NUM_HEADS * num_levels * NUM_POINTS)
        self.value = nn.Linear(dims, dims)
        self.proj = nn.Linear(dims, dims)

    def init_random_weights(self) -> None:
        """Draw the initialisation: heads look in directions around a circle, points one pixel further each, on the border of a
        square; all weights are equal."""
        angle = torch.arange(NUM_HEADS, dtype=torch.float32) * (2 * pi / NUM_HEADS)
        direction = torch.stack([angle.cos(), angle.sin()], -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, NUM_POINTS + 1)
        ring = (direction[:, None, None] * steps[:, None]).expand(-1, self.num_levels, -1, -1)
        with torch.no_grad():
            self.offsets.bias.copy_(ring.flatten())
        for parameter in (self.offsets.weight, self.weights.weight, self.weights.bias, self.value.bias, self.proj.bias):
            nn.init.zeros_(parameter)
        nn.init.xavier_uniform_(self.value.weight)
        nn.init.xavier_uniform_(self.proj.weight)

    def forward(self, query: Tensor, value: Tensor, origins: Tensor, shapes: Shapes) -> Tensor:
        """Gather values.

        Args:
            query: ``(B, queries, C)``.
            value: ``(B, keys, C)``, the pixels of all levels' maps.
            origins: where the queries are in each level's map, ``(queries, levels, 2)``, in its pixels.
            shapes: of the levels' maps.

        Returns:
            ``(B, queries, C)``.
        """
        offsets = self.offsets(query).unflatten(-1, (NUM_HEADS, self.num_levels, NUM_POINTS, 2))
        weights = self.weights(query).unflatten(-1, (NUM_HEADS, -1)).softmax(-1)
        weights = weights.unflatten(-1, (self.num_levels, NUM_POINTS))
        value = self.value(value).unflatten(-1, (NUM_HEADS, -1))
        places = origins[:, None, :, None] + offsets  # not of 16 bits, which have too few digits
        return self.proj(deformable_attention(value, shapes, places, weights))


class Injector(nn.Module):
    """The backbone's map takes from the adapter's tokens. It begins with factors of zero, as if it were not there."""

    def __init__(self, dims: int):
        super().__init__()
        self.query_norm = nn.LayerNorm(dims, eps=EPS)
        self.value_norm = nn.LayerNorm(dims, eps=EPS)
        self.attn = DeformableAttention(dims, len(TOKEN_STRIDES))
        self.scale = LayerScale(dims, 0.)

    def forward(self, x: Tensor, tokens: Tensor, origins: Tensor, shapes: Shapes) -> Tensor:
        """The map ``(B, H, W, C)``, the tokens ``(B, N, C)`` and what attention takes -> ``(B, H, W, C)``."""
        out = self.attn(self.query_norm(x).flatten(1, 2), self.value_norm(tokens), origins, shapes)
        return x + self.scale(out).unflatten(1, x.shape[1:3])


class Extractor(nn.Module):
    """The adapter's tokens take from the backbone's map."""

    def __init__(self, dims: int, drop_path: float):
        super().__init__()
        self.query_norm = nn.LayerNorm(dims, eps=EPS)
        self.value_norm = nn.LayerNorm(dims, eps=EPS)
        self.attn = DeformableAttention(dims, 1)
        self.norm = nn.LayerNorm(dims, eps=EPS)
        self.ffn = ConvFFN(dims, dims // 4)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, x: Tensor, origins: Tensor, shapes: Shapes) -> Tensor:
        """The tokens ``(B, N, C)``, the map ``(B, H, W, C)``, what attention takes, but with the shapes of the tokens' maps ->
        ``(B, N, C)``."""
        value = self.value_norm(x).flatten(1, 2)
        tokens = tokens + self.attn(self.query_norm(tokens), value, origins, [(x.shape[1], x.shape[2])])
        maps = split_maps(self.norm(tokens), shapes)
        return tokens + self.drop_path(torch.cat([self.ffn(y).flatten(1, 2) for y in maps], 1))


class Adapter(nn.Module):
    """Maps of several strides beside a backbone of stride 8, with which they exchange features.

    Args:
        in_channels, dims: channels of the image and of all maps.
        num_interactions: how often.
        strides: of the maps that are given back, among 4, 8, 16 and 32.
        drop_path: rate of the branches of extractors.
    """

    injectors: Any  # nn.ModuleList and nn.ModuleDict, whose entries torch's types cannot say
    extractors: Any
    norms: Any

    def __init__(self, in_channels: int, dims: int, num_interactions: int, strides: Sequence[int], drop_path: float):
        super().__init__()
        self.strides = tuple(strides)
        self.prior = SpatialPrior(in_channels, dims, sorted({*TOKEN_STRIDES, *self.strides}))
        self.level_embed = nn.Parameter(torch.empty(len(TOKEN_STRIDES), dims))
        self.injectors = nn.ModuleList(Injector(dims) for _ in range(num_interactions))
        self.extractors = nn.ModuleList(
            nn.ModuleList(Extractor(dims, drop_path) for _ in range(1 + NUM_FURTHER * (index == num_interactions - 1)))
            for index in range(num_interactions))
        self.up = nn.ConvTranspose2d(dims, dims, 2, 2) if 4 in self.strides else None
        self.norms = nn.ModuleDict({str(stride): nn.BatchNorm2d(dims) for stride in self.strides})
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the vectors of the levels from the standard normal distribution."""
        nn.init.normal_(self.level_embed)

    def init_random_weights(self) -> None:
        """Draw the initialisation of convolutions and of attention; linear layers else are the backbone's to draw."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=sqrt(2 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, DeformableAttention):
                module.init_random_weights()

    def forward(self, image: Tensor, x: Tensor, stages: Sequence[Sequence[nn.Module]], with_cp: bool) -> tuple[Tensor, ...]:
        """Run the backbone.

        Args:
            image: ``(B, C_in, H, W)`` of whole 32 x 32 pixels.
            x: the backbone's first map, ``(B, H / 8, W / 8, C)``.
            stages: the backbone's blocks, which take and give such a map; one sequence for each interaction.
            with_cp: recompute what is computed in blocks, injectors, extractors and the spatial prior.

        Returns:
            For each stride ``(B, C, H / stride, W / stride)``.
        """
        self._check(image)
        maps: Any = run_block(self.prior, with_cp, image)  # at stride 2, this is much
        shapes = [(image.shape[2] // stride, image.shape[3] // stride) for stride in TOKEN_STRIDES]
        parts = [maps[stride].permute(0, 2, 3, 1).flatten(1, 2) + embed
                 for stride, embed in zip(TOKEN_STRIDES, self.level_embed)]
        tokens = torch.cat(parts, 1)
        dtype = torch.promote_types(self.level_embed.dtype, torch.float32)
        of_map = locate(shapes[:1], (STRIDE, ), TOKEN_STRIDES, image.device, dtype)
        of_tokens = locate(shapes, TOKEN_STRIDES, (STRIDE, ), image.device, dtype)
        for injector, blocks, extractors in zip(self.injectors, stages, self.extractors):
            x = run_block(injector, with_cp, x, tokens, of_map, shapes)
            for block in blocks:
                x = run_block(block, with_cp, x)
            for extractor in extractors:
                tokens = run_block(extractor, with_cp, tokens, x, of_tokens, shapes)
        found = {stride: as_map(y) for stride, y in zip(TOKEN_STRIDES, split_maps(tokens, shapes))}
        if self.up is not None:
            found[4] = self.up(found[8]) + maps[4]
        x = as_map(x)
        return tuple(self.norms[str(stride)](
            found[stride] + (x if stride == STRIDE else resize(x, found[stride].shape[2:]))) for stride in self.strides)

    def _check(self, image: Tensor) -> None:
        """Refuse what a batch norm in training cannot take: a single number for each channel.

        Raises:
            ValueError: for one image of one pixel in the last map, where a batch norm is trained and not synchronised.
        """
        if torch.compiler.is_compiling() or image.shape[0] * image.shape[2] * image.shape[3] > 32 * 32:
            return
        if any(module.training and type(module) is nn.BatchNorm2d for module in self.modules()):
            raise ValueError('the adapter has batch norms of maps with one pixel for 32 x 32 of the image, and in training '
                             'each needs two: take larger images, or more than one in a batch')


def split_maps(tokens: Tensor, shapes: Shapes) -> list[Tensor]:
    """``(B, N, C)``, the pixels of maps one after the other -> these maps, ``(B, H, W, C)``."""
    parts = tokens.split([height * width for height, width in shapes], 1)
    return [part.unflatten(1, shape) for part, shape in zip(parts, shapes)]


def locate(shapes: Shapes, strides: Sequence[int], of_strides: Sequence[int], device: torch.device,
           dtype: torch.dtype) -> Tensor:
    """Where the pixels of maps are in other maps of the same image.

    Args:
        shapes, strides: of the maps.
        of_strides: the strides of the other maps.
        device, dtype: of what is given.

    Returns:
        ``(pixels of all maps, other maps, 2)``, x and y in pixels of the others, 0 in the middle of the first.
    """
    places = []
    for (height, width), stride in zip(shapes, strides):
        row, column = divide(torch.arange(height * width, device=device), width)
        place = torch.stack([column, row], -1).to(dtype) + 0.5
        places.append(torch.stack([place * (stride / other) - 0.5 for other in of_strides], 1))
    return torch.cat(places)
