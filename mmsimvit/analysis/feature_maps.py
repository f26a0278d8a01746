"""What a network sees in an image: feature maps, the attention of a pixel, Grad-CAM; and pictures of them."""
import importlib.util
from collections.abc import Sequence
from copy import deepcopy
from math import ceil
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.model import BaseModel, BaseModule
from mmengine.visualization import Visualizer
from torch import Tensor, nn

from ..backbones import PlainBackbone, PyramidBackbone
from ..backbones.simvit import Attention, CentralAttention
from ..datasets.unwrap import unwrap_dataset
from ..errors import DataError

# Not `pip install grad-cam`: that brings opencv-python-headless, which overwrites the files of MMCV's opencv-python.
INSTALL_GRAD_CAM = 'pip install scikit-learn tqdm ttach && pip install --no-deps grad-cam'


class View(NamedTuple):
    """An image as a network takes it."""
    inputs: Tensor  # (1, 3, H, W), normalised, padded at the bottom and right
    image: np.ndarray  # (h, w, 3) uint8, RGB, before that; h <= H and w <= W
    coordinates: np.ndarray  # (h, w, 2): which x, y of the file each of its pixels shows; NaN for padding
    file_size: tuple[int, int]  # width, height


class PixelAttention(NamedTuple):
    """How the token of one pixel attends to others."""
    stage: int  # from 1
    block: int  # from 1
    kernel_size: int | None  # width of the window; None where the token attends to the whole map
    stride: int  # width of a token in pixels of the network's input
    row: int  # of the token in the map
    column: int
    top: int  # row in the map of ``weights[:, 0]``; negative where a window reaches over the border
    left: int
    weights: np.ndarray  # (heads, rows, columns); each head's sum is 1
    inside: np.ndarray  # (rows, columns) bool: False for the zeros outside of the map

    @property
    def outside(self) -> np.ndarray:
        """Each head's share of weight on the zeros outside of the map."""
        return self.weights[:, ~self.inside].sum(-1)


def get_test_dataset(cfg: Config) -> ConfigDict:
    """The config of the test data set inside of its wrappers; it is not built, for its files need not be there.

    Raises:
        DataError: if it has no pipeline that loads an image first.
    """
    dataset = unwrap_dataset((cfg.get('test_dataloader') or {}).get('dataset') or ConfigDict())[0]
    if not dataset.get('pipeline') or not dataset.pipeline[0]['type'].endswith('LoadImageFromFile'):
        raise DataError('the config has no test_dataloader whose pipeline begins with LoadImageFromFile, by which the image '
                        'could be prepared')
    return dataset


def read_image(cfg: Config, model: BaseModel, path: str) -> View:
    """Put an image through the pipeline of ``test_dataloader``, in whose scope it is called, and the model's preprocessor.

    Raises:
        DataError: if the config has no such pipeline.
    """
    steps = [step for step in get_test_dataset(cfg).pipeline if not step['type'].endswith('Annotations')]
    loaded = Compose(steps[:1])(dict(img_path=path, img_id=0))
    height, width = loaded['img'].shape[:2]
    packed = Compose(steps[1:])(deepcopy(loaded))
    # The same steps move an image of coordinates (and -1, which no padding has): whatever they are, they tell where pixels
    # went. Pillow resizes no floating point; OpenCV puts pixels at the same places.
    moves = [{**step, 'backend': 'cv2'} if 'backend' in step else step for step in steps[1:]]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    moved = Compose(moves)({**loaded, 'img': np.stack([x, y, np.full_like(x, -1)], -1)})['inputs'].permute(1, 2, 0).numpy()
    coordinates = np.where(moved[..., 2:] < -0.99, moved[..., :2], np.nan)
    data = model.data_preprocessor(dict(inputs=[packed['inputs']], data_samples=[packed['data_samples']]), False)
    image = packed['inputs'].permute(1, 2, 0).flip(-1).clamp(0, 255).byte().numpy()  # MMCV loads BGR
    return View(data['inputs'], image, coordinates, (width, height))


def find_pixel(view: View, x: int, y: int) -> tuple[int, int]:
    """Column and row in the network's input of a pixel of the file.

    Raises:
        DataError: if the image has no such pixel, or the pipeline cuts it away.
    """
    width, height = view.file_size
    if not (0 <= x < width and 0 <= y < height):
        raise DataError(f'pixel {x} {y} lies outside of the image, which is {width} pixels wide and {height} high; its pixels '
                        f'are 0 0 to {width - 1} {height - 1}')
    distance = np.abs(view.coordinates - (x, y))
    steps = [np.nanmax(np.abs(np.diff(view.coordinates[..., axis], axis=1 - axis)), initial=1) for axis in (0, 1)]
    distance = np.nan_to_num(distance / steps, nan=np.inf).max(-1)
    row, column = np.unravel_index(distance.argmin(), distance.shape)
    if distance[row, column] > 0.51:  # each of the network's pixels stands for a step's width of the file
        first, last = (f'{corner[0]:.0f} {corner[1]:.0f}' for corner in
                       (np.nanmin(view.coordinates, (0, 1)), np.nanmax(view.coordinates, (0, 1))))
        raise DataError(f'pixel {x} {y} is cut away by the pipeline of test_dataloader; what is left are {first} to {last}')
    return int(column), int(row)


def _record(network: nn.Module, inputs: Tensor, modules: Sequence[nn.Module]) -> list[tuple[Tensor, Tensor]]:
    """Input and output of each of ``modules`` when ``network`` runs."""
    found = {}
    handles = [module.register_forward_hook(lambda module, args, out: found.update({module: (args[0], out)}))
               for module in modules]
    try:
        with torch.no_grad():
            network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [found[module] for module in modules]


def get_feature_maps(backbone: nn.Module, view: View) -> list[tuple[int, Tensor]]:
    """Stride and map ``(C, h, w)`` of each stage; of another kind of backbone, of each map that it returns.

    For a plain backbone that returns class tokens, the maps of the same blocks.
    """
    if isinstance(backbone, PyramidBackbone):
        outs = [out for _, out in _record(backbone, view.inputs, list(backbone.stages))]
        with torch.no_grad():
            maps = [backbone.get_map(index, out if isinstance(out, Tensor) else out[0]) for index, out in enumerate(outs)]
        return [(stride, out[0]) for stride, out in zip(backbone.stage_strides, maps)]
    if isinstance(backbone, PlainBackbone):
        with torch.no_grad():
            tokens, height, width = backbone.forward_tokens(view.inputs)
        return [(stride, backbone.to_map(out, height, width)[0]) for stride, out in zip(backbone.strides, tokens)]
    with torch.no_grad():
        maps = backbone(view.inputs)
    return [(ceil(view.inputs.shape[-1] / out.shape[-1]), out[0]) for out in maps]


def get_decisions(backbone: Any, view: View) -> tuple[int, list[np.ndarray]]:
    """How many pixels wide a position is, and which positions each predictor of a backbone with dynamic sparsification keeps,
    bool ``(h, w)``; none for others."""
    if not hasattr(backbone, 'forward_decisions'):
        return 0, []
    with torch.no_grad():
        _, decisions = backbone.forward_decisions(view.inputs)
    stride = backbone.stage_strides[2] if isinstance(backbone, PyramidBackbone) else backbone.strides[0]
    rows, columns = ((length // stride, ceil(length / stride)) for length in view.inputs.shape[2:])  # rounded down or up
    found = []
    for decision in decisions:
        shape = next((h, w) for h, w in zip(rows, columns) if h * w == decision.shape[1])
        found.append(decision[0].bool().unflatten(0, shape).cpu().numpy())
    return stride, found


def get_principal_components(features: Tensor) -> np.ndarray:
    """The first three principal components of a map ``(C, h, w)`` as colours ``(h, w, 3)``.

    Each is scaled such that its 1st percentile becomes 0 and its 99th 1. Its sign, which is free, is the one that makes its
    largest loading positive.
    """
    pixels = features.flatten(1).T.double().cpu()
    pixels = pixels - pixels.mean(0)
    _, vectors = torch.linalg.eigh(pixels.T @ pixels)  # ascending
    vectors = vectors.flip(1)[:, :3]
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    found = F.pad(pixels @ vectors, (0, 3 - vectors.shape[1]))
    low, high = (found.quantile(q, dim=0) for q in (0.01, 0.99))
    found = ((found - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return found.unflatten(0, features.shape[1:]).numpy()


def get_token_weights(attention: Attention | CentralAttention, x: Tensor, row: int, column: int) -> Tensor:
    """The weights with which a token attends: ``(heads, k, k)`` to its window, those on zeros outside of the map included, in
    central attention; ``(heads, H, W)`` to all in full attention.

    Args:
        attention: the module.
        x: what it takes, ``(1, H, W, C)``.
        row, column: of the token.
    """
    query = attention.q(x[0, row, column]).unflatten(-1, (attention.num_heads, -1))  # (heads, C / heads)
    key = attention.kv(x[0]).chunk(2, -1)[0]
    if isinstance(attention, CentralAttention):
        size = attention.kernel_size
        key = F.pad(key, (0, 0) + (size // 2, ) * 4)[row:row + size, column:column + size]
    logits = torch.einsum('nd,hwnd->nhw', query, key.unflatten(-1, query.shape)) * query.shape[-1]**-0.5
    return logits.flatten(1).softmax(-1).view_as(logits)


def get_pixel_attention(backbone: BaseModule, view: View, column: int, row: int, stages: Sequence[int] | None = None,
                        block: int | None = None) -> list[PixelAttention]:
    """The attention of the tokens that a pixel belongs to.

    Args:
        backbone: one with central attention.
        view: its input.
        column, row: the pixel, in the network's input.
        stages: from 1; all that were built if None.
        block: of each of them, from 1; the last if None.

    Raises:
        DataError: if the backbone has no central attention, or no such stage or block.
    """
    if not any(isinstance(module, CentralAttention) for module in backbone.modules()):
        raise DataError(f'{type(backbone).__name__} has no central attention, whose windows --pixel shows; take a config with '
                        'SimViT')
    built = len(backbone.stages)
    stages = range(1, built + 1) if stages is None else stages
    chosen = []
    for stage in stages:
        if stage not in range(1, built + 1):
            raise DataError(f'there is no stage {stage}: this {type(backbone).__name__} has stages 1 to {built}')
        depth = len(backbone.stages[stage - 1].blocks)
        number = depth if block is None else block
        if number not in range(1, depth + 1):
            raise DataError(f'there is no block {number} in stage {stage}, which has blocks 1 to {depth}')
        chosen.append((stage, number, backbone.stages[stage - 1].blocks[number - 1].attn))
    records = _record(backbone, view.inputs, [attention for _, _, attention in chosen])
    found = []
    for (stage, number, attention), (x, _) in zip(chosen, records):
        stride = backbone.stage_strides[stage - 1]
        i, j = row // stride, column // stride
        kernel_size = getattr(attention, 'kernel_size', None)
        top, left = (i - kernel_size // 2, j - kernel_size // 2) if kernel_size else (0, 0)
        weights = get_token_weights(attention, x, i, j)
        rows, columns = (np.arange(size) + start for size, start in zip(weights.shape[1:], (top, left)))
        inside = ((rows >= 0) & (rows < x.shape[1]))[:, None] & (columns >= 0) & (columns < x.shape[2])
        found.append(PixelAttention(stage, number, kernel_size, stride, i, j, top, left, weights.detach().cpu().numpy(),
                                    inside))
    return found


def get_grad_cam(model: BaseModel, view: View, classes: Sequence[str], wanted: str | None) -> tuple[str, np.ndarray]:
    """Where in the image the score of a class comes from, by the last map of the backbone (Grad-CAM, arXiv 1610.02391).

    A segmentor's score is summed over the pixels in which it finds the class, as pytorch-grad-cam's guide has it.

    Args:
        model: a classifier of MMPreTrain or a segmentor of MMSegmentation, whose backbone is one of our pyramids.
        view: its input.
        classes: names of all classes.
        wanted: name or number of a class; the one with the highest score, or in most pixels, if None.

    Returns:
        The class's name, and its map ``(H, W)`` over the network's input, from 0 to 1.

    Raises:
        DataError: for another kind of model, if pytorch-grad-cam is not installed, or if there is no such class, in the
            model or in what a segmentor finds.
    """
    library = type(model).__module__.partition('.')[0]
    if library not in ('mmpretrain', 'mmseg') or not isinstance(model.backbone, PyramidBackbone):
        raise DataError('--grad-cam is for classifiers and segmentors with a pyramid of mmsimvit, not for '
                        f'{type(model).__name__} with {type(model.backbone).__name__} (pytorch-grad-cam has no Grad-CAM of '
                        'detectors); leave it out')
    if importlib.util.find_spec('pytorch_grad_cam') is None:
        raise DataError(f'--grad-cam needs pytorch-grad-cam, which is not installed; {INSTALL_GRAD_CAM}')
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget, SemanticSegmentationTarget
    with torch.no_grad():
        scores = model(view.inputs)[0]  # (classes, ...)
    labels = scores.argmax(0)
    found, counts = labels.unique(return_counts=True)
    if wanted is None:
        label = int(found[counts.argmax()])
    elif wanted in classes:
        label = classes.index(wanted)
    elif wanted.isdecimal() and int(wanted) < len(classes):
        label = int(wanted)
    else:
        raise DataError(f'there is no class {wanted}; there are {_some(classes)}')
    if library == 'mmpretrain':
        target = ClassifierOutputTarget(label)
    elif label in found:
        target = SemanticSegmentationTarget(label, (labels == label).cpu().numpy())
    else:
        raise DataError(f'the model finds {classes[label]} in no pixel of the image; it finds '
                        f'{_some([classes[index] for index in found.tolist()])}')
    # From the input on, so that a frozen backbone has gradients too.
    stage = model.backbone.stages[-1]
    last, from_last = (stage.norm, lambda x: x.permute(0, 3, 1, 2)) if model.backbone.carries_norms else (stage, None)
    heat, = GradCAM(model, [last], reshape_transform=from_last)(view.inputs.clone().requires_grad_(), [target])
    return classes[label], heat


def _some(names: Sequence[str]) -> str:
    return ', '.join(names[:20]) + (f' and {len(names) - 20} more' if len(names) > 20 else '')


def draw_feature_maps(view: View, maps: Sequence[tuple[int, Tensor]]) -> Figure:
    """A matplotlib figure: the image, and for each stage the mean over its channels and its principal components.

    Args:
        view: the input of the network.
        maps: the stride and the map ``(C, h, w)`` of each stage, from ``get_feature_maps``.
    """
    height, width = view.image.shape[:2]
    size = 2.6 * max(width / height, 0.75)
    figure = Figure(figsize=(size * (len(maps) + 1), 2 * (2.6 + 0.5)), layout='constrained')
    axes = figure.subplots(2, len(maps) + 1)
    axes[0, 0].imshow(view.image)
    axes[0, 0].set_title(f'input of the network\n{width} x {height}', fontsize=9)
    for index, (stride, features) in enumerate(maps, 1):
        features = features[:, :ceil(height / stride), :ceil(width / stride)].cpu()  # without padding
        components = torch.from_numpy(get_principal_components(features)).permute(2, 0, 1)
        # Normalised channels have the mean 0 unless the norm has learnt otherwise; rounding errors of it are not drawn.
        is_flat = bool(features.mean(0).std(correction=0) < 1e-5 * features.std())
        features, components = (tokens.repeat_interleave(stride, 1).repeat_interleave(stride, 2)[:, :height, :width]
                                for tokens in (features, components))
        axes[0, index].imshow(
            view.image if is_flat else Visualizer.draw_featmap(features, view.image, 'squeeze_mean', alpha=0.6))
        axes[0, index].set_title(f'map {index}, stride {stride}\nmean of {len(features)} channels'
                                 f'{": the same everywhere" if is_flat else ""}', fontsize=9)
        axes[1, index].imshow(components.permute(1, 2, 0))
        axes[1, index].set_title('principal components 1-3 as RGB', fontsize=9)
    for ax in axes.flat:
        ax.axis('off')
    return figure


def draw_decisions(view: View, stride: int, decisions: Sequence[np.ndarray], ratios: Sequence[float]) -> Figure:
    """A matplotlib figure: the image, and for each predictor the kept positions as they are, over the others in grey.

    Args:
        view: the input of the network.
        stride, decisions: what ``get_decisions`` gives.
        ratios: what part each was to keep.
    """
    height, width = view.image.shape[:2]
    size = 2.6 * max(width / height, 0.75)
    figure = Figure(figsize=(size * (len(decisions) + 1), 3.2), layout='constrained')
    axes = figure.subplots(1, len(decisions) + 1)
    axes[0].imshow(view.image)
    axes[0].set_title(f'input of the network\n{width} x {height}', fontsize=9)
    for number, (kept, ratio) in enumerate(zip(decisions, ratios), 1):
        mask = kept.repeat(stride, 0).repeat(stride, 1)[:height, :width]
        mask = np.pad(mask, ((0, height - mask.shape[0]), (0, width - mask.shape[1])))  # remainders are of no position
        shown = np.where(mask[..., None], view.image, (128 + _pale(view.image) / 2).astype(np.uint8)[..., None])
        axes[number].imshow(shown)
        axes[number].set_title(f'predictor {number}: {kept.sum()} of {kept.size}\npositions go the slow way ({ratio:.2f})',
                               fontsize=9)
    for ax in axes:
        ax.axis('off')
    return figure


def draw_pixel_attention(view: View, pixel: tuple[int, int], found: PixelAttention) -> Figure:
    """A matplotlib figure: on the left the image, on the right the weights over it, their mean over the heads and each head's.

    A window's mean is also shown on the left, where it lies; on the right it is enlarged, with the weights as numbers.
    ``pixel`` is x, y in the file.
    """
    heads, rows, columns = found.weights.shape
    panels = {f'head {head + 1}': (weights, found.outside[head]) for head, weights in enumerate(found.weights)}
    if heads > 1:
        panels = {f'mean of {heads} heads': (found.weights.mean(0), found.outside.mean()), **panels}
    height, width = view.inputs.shape[-2:]
    size = found.stride
    window = (found.left * size - 0.5, (found.left + columns) * size - 0.5,
              (found.top + rows) * size - 0.5, found.top * size - 0.5)  # as matplotlib's extent
    canvas = np.full((height, width, 3), 255, np.uint8)
    canvas[:view.image.shape[0], :view.image.shape[1]] = view.image
    grey = _pale(canvas)
    across = ceil(len(panels)**0.5)
    down = ceil(len(panels) / across)
    shape = min(max(width / height, 0.6), 2.2)
    wide, wide_each = shape * min(max(2.4 * down, 3.6), 5), 2.4 * (1 if found.kernel_size else shape)
    figure = Figure(figsize=(wide + wide_each * across + 0.8, max(2.4 * down, 3.6) + 0.9), layout='constrained')
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(wide, wide_each * across + 0.8))[0]
    what = f'the {rows} x {columns} window around it' if found.kernel_size else f'all {rows} x {columns} tokens'
    what += '' if found.inside.all() else '; the grey ones are the zeros outside of the map'
    figure.suptitle(f'stage {found.stage}, block {found.block}\npixel {pixel[0]} {pixel[1]} attends to {what}', fontsize=11)
    # From 0 for a few weights that are compared with their numbers; of many, all are small.
    shown = found.weights[:, found.inside]
    lowest, highest = 0 if found.kernel_size else shown.min(), shown.max()

    def overlay(ax: Any, weights: np.ndarray, backdrop: np.ndarray) -> Any:
        ax.imshow(backdrop, cmap='gray', vmin=0, vmax=255)
        image = ax.imshow(np.ma.masked_where(~found.inside, weights), cmap='inferno', vmin=lowest, vmax=highest,
                          extent=window, alpha=0.6, interpolation='nearest')
        ax.add_patch(Rectangle((found.column * size - 0.5, found.row * size - 0.5), size, size, fill=False, color='cyan'))
        ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), xticks=[], yticks=[])
        return image

    ax = left.subplots()
    if found.kernel_size:
        overlay(ax, found.weights.mean(0), canvas)
        ax.add_patch(Rectangle((window[0], window[3]), window[1] - window[0], window[2] - window[3], fill=False, color='white'))
    else:
        overlay(ax, np.ma.masked_all((rows, columns)), canvas)
    ax.set_title(f'input of the network, {view.image.shape[1]} x {view.image.shape[0]}', fontsize=9)
    axes = np.atleast_1d(right.subplots(down, across)).ravel()
    for ax in axes[len(panels):]:
        ax.axis('off')
    for ax, (title, (weights, outside)) in zip(axes, panels.items()):
        image = overlay(ax, weights, grey)
        ax.set_title(title + ('' if found.inside.all() else f', {outside:.1%} outside'), fontsize=9)
        if found.kernel_size:
            ax.set(xlim=window[:2], ylim=window[2:], facecolor='0.7')
            for (i, j), weight in np.ndenumerate(weights):
                ax.text(window[0] + (j + 0.5) * size, window[3] + (i + 0.5) * size, f'{weight:.3f}', ha='center', va='center',
                        color='white', fontsize=27 / rows, path_effects=[withStroke(linewidth=2, foreground='black')])
    right.colorbar(image, ax=axes, shrink=0.8, label='attention weight')
    return figure


def _pale(image: np.ndarray) -> np.ndarray:
    """Grey and light, so that colours over it are those of the colour bar."""
    return 128 + image.mean(-1) / 2


def draw_grad_cam(view: View, heat: np.ndarray, title: str) -> Figure:
    """A matplotlib figure: the image, and Grad-CAM's map ``(H, W)`` over it."""
    height, width = view.image.shape[:2]
    figure = Figure(figsize=(2 * 3.6 * max(width / height, 0.6) + 0.8, 4.2), layout='constrained')
    plain, overlaid = figure.subplots(1, 2)
    plain.imshow(view.image)
    overlaid.imshow(_pale(view.image), cmap='gray', vmin=0, vmax=255)
    image = overlaid.imshow(heat[:height, :width], cmap='inferno', vmin=0, vmax=1, alpha=0.6)
    figure.colorbar(image, ax=overlaid, shrink=0.8, label='relative to the highest')
    figure.suptitle(title, fontsize=11)
    for ax in (plain, overlaid):
        ax.axis('off')
    return figure
