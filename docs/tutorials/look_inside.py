# %% [markdown]
# # Look inside SimViT
# What does a backbone see in an image, and where does a pixel of it look? This page trains a small segmentor, draws
# its feature maps and attention, and computes the attention again by hand, in plain PyTorch. All that it writes is in
# `work_dirs/tutorials/look_inside`, below the current folder.
#
# SimViT ([arXiv 2112.13085](https://arxiv.org/abs/2112.13085)) has four stages, with maps of 1/4, 1/8, 1/16 and 1/32 of
# the image's width and height. In stages 1 to 3 each pixel of a map, a *token*, attends to the k x k window around it:
# *central attention*. In stage 4 each token attends to all.

# %%
import shutil
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmsimvit import SimViT, find_config, generate_shapes
from mmsimvit.analysis.feature_maps import (
    draw_feature_maps,
    draw_pixel_attention,
    find_pixel,
    get_feature_maps,
    get_pixel_attention,
    read_image,
)
from mmsimvit.analysis.notebook import brief_log, show
from mmsimvit.ops import central_attention
from mmsimvit.train import main as train

work = Path('work_dirs/tutorials/look_inside')
shutil.rmtree(work, ignore_errors=True)  # what an earlier run of this page left
warnings.filterwarnings('ignore', module='mm(cv|engine|det|seg)|rich')  # of what is deprecated in them, and the like

# %% [markdown]
# ## A model to look at
# Random weights attend to everything almost alike, so a segmentor is trained for half a minute on generated images. That
# is enough for attention with something to see in it, and far from enough to tell the shapes apart, as the mean IoU (in
# percent) says. So take what follows as a way to look, and not as findings about SimViT: for those, take pretrained
# weights, and your own config and images, with `tools/visualize.py`.

# %%
settings = dict(num_training=200, num_validation=20, image_size=96)
shapes = generate_shapes(work / 'shapes', **settings)
config = work / 'segmentor.py'
config.write_text(f"""
_base_ = {find_config('semfpn_simvit_micro_shapes')!r}
data_root, size = {shapes.as_posix()!r}, (96, 96)
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = size
generated = dict(root=data_root, **{settings})
loader = dict(num_workers=0, persistent_workers=False)  # images are loaded in this process
train_dataloader = dict(**loader, dataset=dict(**generated, dataset=dict(data_root=data_root)))
val_dataloader = dict(
    **loader, dataset=dict(**generated, dataset=dict(data_root=data_root, pipeline=test_pipeline)))
test_dataloader = val_dataloader
model = dict(data_preprocessor=dict(size=size))
train_cfg = dict(max_epochs=4, val_interval=2)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, by_epoch=True, convert_to_iter_based=True)]
""")
with brief_log():
    model = train([str(config), '--work-dir', str(work / 'training')]).eval()

# %% [markdown]
# ## Feature maps
# `read_image` prepares an image as the config's test pipeline does. Each stage gives a map of many channels, of which two
# summaries are drawn: their mean, over the image, and their first three principal components as red, green and blue. Where
# two places have the same colour, the stage sees much the same there.

# %%
cfg = Config.fromfile(config)
path = shapes / 'images/validation/000001.png'
with DefaultScope.overwrite_default_scope('mmseg'):  # whose names the config's pipeline has
    view = read_image(cfg, model, str(path))
maps = get_feature_maps(model.backbone, view)
for number, (stride, features) in enumerate(maps, 1):
    print(f'stage {number}: one token for {stride} x {stride} pixels, map of {tuple(features.shape)} (channels, height, width)')
show(draw_feature_maps(view, maps), work / 'features.png')

# %% [markdown]
# ## Where a pixel looks
# Take a pixel on the right edge of the dark square. It belongs to one token of each stage, larger ones in later stages
# (cyan). For the last block of each stage, a picture shows with which weights that token attends to its window, in each
# head; in stage 4, to all tokens.

# %%
x, y = 66, 32
column, row = find_pixel(view, x, y)  # of the network's input, which may be of another size than the file
found = get_pixel_attention(model.backbone, view, column, row)
for attention in found:
    show(draw_pixel_attention(view, (x, y), attention), work / f'attention_stage{attention.stage}.png')

# %% [markdown]
# The weights come from a softmax, so those of one head sum to one. With weights of 1/9 each, attention in a window of
# 3 x 3 would be a mere average. The largest weight, as a multiple of the mean, tells how far it is from that; beside it
# stands what it is in a SimViT that nobody has trained.

# %%
untrained = SimViT('micro').eval()
untrained.init_weights()
for attention, before in zip(found, get_pixel_attention(untrained, view, column, row)):
    sums, (heads, *window) = attention.weights.sum((1, 2)), attention.weights.shape
    print(f'stage {attention.stage}, heads: {heads}, weights of each: {window[0]} x {window[1]}, '
          f'their sums: {sums.min():.6f} to {sums.max():.6f}, '
          f'the largest: {attention.weights.max() / attention.weights.mean():.2f} times their mean, '
          f'{before.weights.max() / before.weights.mean():.2f} untrained')
    assert abs(sums - 1).max() < 1e-5

# %% [markdown]
# What about a token at the border, whose window reaches over it? There the published model has zeros for keys and
# values, and they stay in the softmax: a zero key has the logit 0, and so a weight, though its value adds nothing. In
# the picture they are grey. This is also how a token can tell that it is at the border: SimViT has no other encoding of
# position, but for the convolutions in its FFNs.

# %%
corner, = get_pixel_attention(model.backbone, view, *find_pixel(view, 0, 0), stages=[3])
print('weight on the zeros outside of the map, head by head: ' + ', '.join(f'{share:.3f}' for share in corner.outside))
show(draw_pixel_attention(view, (0, 0), corner), work / 'attention_corner.png')

# %% [markdown]
# ## Central attention by hand
# Central attention is the attention of every token to every token, *restricted to the window*. In plain PyTorch:
# surround keys and values with zeros, compute all logits, set those outside of the window to minus infinity, and take
# the softmax.


# %%
def windowed_attention(query, key, value, kernel_size):
    """One image and one head: (H, W, C) each."""
    reach = kernel_size // 2
    height, width, channels = query.shape
    key, value = (F.pad(x, (0, 0) + (reach, ) * 4).flatten(0, 1) for x in (key, value))
    logits = query.flatten(0, 1) @ key.T * channels**-0.5
    rows, columns = (abs(torch.arange(n)[:, None] + reach - torch.arange(n + 2 * reach)) <= reach for n in (height, width))
    near = (rows[:, None, :, None] & columns[None, :, None, :]).flatten(2).flatten(0, 1)  # (tokens, tokens and zeros around)
    return (logits.masked_fill(~near, -torch.inf).softmax(-1) @ value).view(height, width, channels)


torch.manual_seed(0)
query, key, value = torch.randn(3, 14, 18, 32, dtype=torch.float64)
for kernel_size in (3, 5, 7):
    expected = windowed_attention(query, key, value, kernel_size)
    out = central_attention(query[None], key[None], value[None], num_heads=1, kernel_size=kernel_size)[0]
    print(f'{kernel_size} x {kernel_size}: largest difference {abs(out - expected).max():.1e}')
    torch.testing.assert_close(out, expected)

# %% [markdown]
# The two are the same up to rounding, but not in cost: by hand each token is compared with all, and all but k x k of
# the logits are thrown away. `central_attention` computes k x k logits for each token, so its cost grows with the
# number of tokens and not with its square. For stage 1 of a photograph:

# %%
height, width = 200, 334  # of an image of 800 x 1333 pixels
tokens = height * width
print(f'{height} x {width} tokens: {tokens**2:,} logits in full attention, {9 * tokens:,} in windows of 3 x 3')

# %% [markdown]
# The price is reach: through one block nothing comes from further away than the window. The gradient shows it: of one
# output token, with respect to all values, it is zero outside of the window.

# %%
values = value[None].clone().requires_grad_()
out = central_attention(query[None], key[None], values, num_heads=1, kernel_size=3)
gradient, = torch.autograd.grad(out[0, 5, 7].sum(), values)
rows, columns = gradient[0].abs().sum(-1).nonzero(as_tuple=True)
print(f'token (5, 7) depends on {len(rows)} tokens, '
      f'in rows {rows.min()} to {rows.max()} and columns {columns.min()} to {columns.max()}')
assert len(rows) == 9
