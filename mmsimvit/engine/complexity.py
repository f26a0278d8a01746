"""Parameters, multiply-accumulates and activations of a model, by part, without data and without memory for its maps."""
import copy
import re
from collections import Counter
from collections.abc import Callable
from types import MethodType
from typing import Any, NamedTuple

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.module_tracker import ModuleTracker

from ..errors import ModelError
from ..models import image_channels, is_a
from ..ops.backends import use_backend

aten, central_attention = torch.ops.aten, torch.ops.mmsimvit.central_attention
inhomogeneous_conv = torch.ops.mmsimvit.inhomogeneous_conv
# Of two maps; all other operators that are counted apply weights.
PRODUCTS = {aten.bmm, aten.baddbmm, central_attention, inhomogeneous_conv}
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
# What a module of a backbone belongs to, by its own name and class or those of the nearest module around it.
KINDS = {'patch embedding': 'patch', 'attention': 'attn|attention|msa', 'FFN': 'ffn|mlp'}
KIND_ORDER = ('patch embedding', 'attention projections', 'attention products', 'FFN', 'norms', 'other')


class Part(NamedTuple):
    """One line of the table; it includes the lines of a higher level that follow it."""
    name: str
    level: int  # 0 the model, 1 its parts, 2 the stages of a backbone, 3 what they consist of
    parameters: int
    macs: int  # multiply-accumulates; 1 MAC = 2 FLOPs
    activations: int  # numbers, not bytes

    @property
    def flops(self) -> int:
        """Two for each MAC."""
        return 2 * self.macs


class Complexity(NamedTuple):
    """What a model computes for one image, as a table."""
    parts: list[Part]
    notes: list[str]  # sentences on what was and was not counted

    @property
    def total(self) -> Part:
        """The line of the whole model."""
        return self.parts[0]


def count_complexity(model: nn.Module, shape: tuple[int, int], num_proposals: int | None = None) -> Complexity:
    """Count what a model computes for one image.

    Counted are convolutions, linear layers and matrix products, with attention's: ``q k^T`` and the weighted sum of the
    values, over all pixels in full attention and over ``k * k`` (also where the window reaches over the border) in central
    attention. As is the convention, elementwise work is not: norms, softmax, activation functions, biases and additions,
    resizing, pooling. Nor is what follows the heads. Activations are the numbers in the outputs of what is counted (as in
    fvcore and MMEngine), the attention weights included.

    SimViT's published 0.65 (micro) and 6.2 (small) GMACs at 224 x 224 are so counted; without the products of attention
    small would have 6.1. fvcore and MMEngine call MACs FLOPs, count norms, and see neither our operator nor PyTorch's
    ``scaled_dot_product_attention``; PyTorch's ``FlopCounterMode`` misses them on a CPU.

    Args:
        model: a detector, segmentor, classifier or backbone. It is copied, not changed.
        shape: height and width of the image that the backbone gets, in pixels.
        num_proposals: for two-stage detectors; ``test_cfg.rpn.max_per_img`` if None.

    Raises:
        ModelError: if the model cannot be run in its libraries' ``tensor`` mode; the message says why.
    """
    notes = ['Not counted: elementwise work (norms, activation functions, softmax, additions), resizing and pooling.']
    if is_a(model, 'BaseDetector'):
        notes.append('Not counted: what follows the heads (decoding of boxes, selection of proposals, NMS, pasting of masks).')
    try:
        counter, rois = _run(model, shape, num_proposals, 'meta')
    except Exception as reason:  # of any kind: some models look at their numbers, some operators exist for real devices alone
        try:
            counter, rois = _run(model, shape, num_proposals, 'cpu')
        except Exception as error:
            raise ModelError(f'{type(model).__name__} cannot be run on an image of {shape[0]} x {shape[1]} pixels: '
                             + (str(error).strip().splitlines() or [type(error).__name__])[0]) from error
        notes.append('Run on the CPU with random numbers, since it does not run without: '
                     + (re.split(r'\. |\n', str(reason).strip())[0] or type(reason).__name__))
    compiled = {type(module).__name__ for module in model.modules()
                if any(base.__module__.startswith('mmcv.ops') for base in type(module).__mro__)}
    if compiled:
        notes.append(f"Not counted: MMCV's compiled operators in {', '.join(sorted(compiled))}.")
    parts = _table(model, counter)
    modules = dict(model.named_modules())
    idle = [part.name for part in parts if part.level == 1 and not part.macs and part.name in modules
            and any(isinstance(module, (nn.Conv2d, nn.Linear)) for module in modules[part.name].modules())]
    if idle:
        notes.append(f'Not run outside of training: {", ".join(idle)}.')
    if rois:
        stages = Counter(rois)
        notes.insert(0, 'Regions: ' + ', '.join(
            f'{number} for {name} heads{f" in each of {stages[name, number]} stages" if stages[name, number] > 1 else ""}'
            for name, number in stages) + '.')
    return Complexity(parts, notes)


class _Counter(TorchDispatchMode):
    """MACs and activations of every operator, by the innermost module that runs it."""

    def __init__(self) -> None:
        super().__init__()
        self.formulas: dict[Any, Callable] = {
            **flop_registry, central_attention: _central_attention_flops, inhomogeneous_conv: _inhomogeneous_conv_flops}
        if hasattr(torch.ops.torchvision, 'deform_conv2d'):  # of LIT; its bilinear sampling is not counted
            self.formulas[torch.ops.torchvision.deform_conv2d] = _deform_conv_flops
        self.tracker = ModuleTracker()
        # Keys: name of the module, whether it is a product of two maps.
        self.macs: Counter[tuple[str, bool]] = Counter()
        self.activations: Counter[tuple[str, bool]] = Counter()

    def __enter__(self) -> '_Counter':
        self.tracker.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.tracker.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        operator = func.overloadpacket
        if operator in self.formulas:
            innermost = max(self.tracker.parents - {'Global'}, key=len, default='')
            key = (innermost.partition('.')[2], operator in PRODUCTS)  # the first word is the class of the model
            self.macs[key] += self.formulas[operator](*args, **kwargs, out_val=out) // 2
            self.activations[key] += out.numel()
            if operator is central_attention:
                self.activations[key] += args[0].shape[:3].numel() * args[3] * args[4]**2  # the weights
        return out


def _central_attention_flops(query: Tensor, key: Tensor, value: Tensor | None, num_heads: int, kernel_size: int, *_: object,
                             out_val: Tensor) -> int:
    return 2 * 2 * query.numel() * kernel_size**2


def _inhomogeneous_conv_flops(x: Tensor, kernels: Tensor, groups: int, *, out_val: Tensor) -> int:
    return 2 * x.numel() * kernels.shape[1] // groups


def _deform_conv_flops(x: Tensor, weight: Tensor, *_: object, out_val: Tensor) -> int:
    return 2 * out_val.numel() * weight[0].numel()


def _run(original: nn.Module, shape: tuple[int, int], num_proposals: int | None,
         device: str) -> tuple[_Counter, list[tuple[str, int]]]:
    """What a copy of the model counts on a device, and on how many regions each part of a second stage was run."""
    model: Any = copy.deepcopy(original).to(device).eval().requires_grad_(False)
    image = torch.rand(1, image_channels(model), *shape, device=device)
    sizes = dict(img_shape=shape, ori_shape=shape, pad_shape=shape, batch_input_shape=shape, scale_factor=(1., 1.))
    samples: list | None = None
    rois: list[tuple[str, int]] = []
    if is_a(model, 'BaseDetector'):
        from mmdet.structures import DetDataSample
        samples = [DetDataSample(metainfo=sizes)]
        if getattr(model, 'roi_head', None) is not None:
            rois = _fix_proposals(model, image, num_proposals)
    elif is_a(model, 'BaseSegmentor'):  # whose tensor mode knows neither cascades nor Mask2Former
        model._forward = lambda inputs, _: model.encode_decode(inputs, [sizes])
    arguments = (image, samples, 'tensor') if isinstance(model, BaseModel) else (image, )
    # PyTorch has no formulas for the fused kernels of a CPU, and the composite form of our operator is elementwise.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), use_backend('auto'), _Counter() as counter:
            model(*arguments)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return counter, rois


def _fix_proposals(model: BaseModel, image: Tensor, num_proposals: int | None) -> list[tuple[str, int]]:
    """Let a two-stage detector take fixed numbers of proposals and of detections, and leave out the pooling of features.

    Returns:
        A list that has, once the model has run, what each region was pooled for and how many regions there were.
    """
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
    from mmdet.models.roi_heads.roi_extractors.base_roi_extractor import BaseRoIExtractor
    from mmengine.structures import InstanceData
    rois: list[tuple[str, int]] = []
    roi_head = model.roi_head

    def propose(rpn_head: Any, x: Any, *_: object, **__: object) -> list[InstanceData]:
        rpn_head(x)
        number = num_proposals or model.test_cfg['rpn']['max_per_img']
        whole_image = image.new_tensor([[0., 0., image.shape[3], image.shape[2]]])
        return [InstanceData(bboxes=whole_image.repeat(number, 1))]

    def pool(extractor: Any, feats: tuple[Tensor, ...], regions: Tensor, *_: object, **__: object) -> Tensor:
        rois.append((names[extractor], len(regions)))
        return feats[0].new_zeros(len(regions), extractor.out_channels, *extractor.roi_layers[0].output_size)

    def predict_masks(roi_head: Any, *arguments: Any) -> dict[str, Tensor]:
        *others, regions = arguments
        masks = type(roi_head)._mask_forward(roi_head, *others, regions[:roi_head.test_cfg['max_per_img']])['mask_preds']
        return dict(mask_preds=masks.new_zeros(len(regions), *masks.shape[1:]))

    def keep_boxes(bbox_head: Any, sampling_results: Any, bbox_results: dict, batch_img_metas: Any) -> list[InstanceData]:
        return [InstanceData(bboxes=bbox_results['rois'][:, 1:])]

    names = {module: found[1] for name, module in model.named_modules()
             if isinstance(module, BaseRoIExtractor) and (found := re.search(r'(\w+)_roi_extractor|$', name))}
    for extractor in names:
        extractor.forward = MethodType(pool, extractor)
    if isinstance(model.rpn_head, BaseDenseHead):
        model.rpn_head.predict = MethodType(propose, model.rpn_head)
        if type(roi_head) in (StandardRoIHead, CascadeRoIHead):  # whose tensor mode takes 100, or every proposal
            roi_head._mask_forward = MethodType(predict_masks, roi_head)
    else:  # learned proposals (Sparse R-CNN): the tensor mode computes losses, and boxes are refined image by image
        roi_head.forward = roi_head.predict
        for bbox_head in roi_head.bbox_head:
            bbox_head.refine_bboxes = MethodType(keep_boxes, bbox_head)
    return rois


def _table(model: nn.Module, counter: _Counter) -> list[Part]:
    owners: Counter[tuple[str, bool]] = Counter()
    for name, parameter in model.named_parameters():
        owners[name.rpartition('.')[0], False] += parameter.numel()
    sums: dict[tuple[str, ...], list[int]] = {(): [0, 0, 0]}  # path in the table -> parameters, MACs, activations
    for name, _ in model.named_modules(remove_duplicate=False):  # shared modules run by any of their names
        for is_product in (False, True):
            path = _path(model, name, is_product)
            numbers = [counts[name, is_product] for counts in (owners, counter.macs, counter.activations)]
            if not any(numbers):
                continue
            for length in range(len(path) + 1):
                total = sums.setdefault(path[:length], [0, 0, 0])
                total[:] = map(sum, zip(total, numbers))
    parts = [Part(type(model).__name__, 0, *sums[()])]

    def add(path: tuple[str, ...]) -> None:
        inside = [other for other in sums if len(other) == len(path) + 1 and other[:-1] == path]
        if len(path) == 2:
            inside.sort(key=lambda other: KIND_ORDER.index(other[-1]))
            if len(inside) == 1:
                return
        for other in inside:
            parts.append(Part(other[-1], len(other), *sums[other]))
            add(other)

    add(())
    return parts


def _path(model: nn.Module, name: str, is_product: bool) -> tuple[str, ...]:
    """The lines of the table that a module belongs to."""
    part, _, rest = name.partition('.')
    if not hasattr(model, 'backbone'):
        part, rest = 'backbone', name  # the model is one
    if part == 'roi_head':
        return (f'{part}.{rest.split(".")[0]}', )
    if part != 'backbone':
        return (part or 'other', )
    # Its stages, or what lies beside them.
    found = re.match(r'[a-z_]+\.?\d+|\w+', rest)
    stage = found[0] if found else 'other'
    if isinstance(model.get_submodule(name), NORMS):
        return part, stage, 'norms'
    path = name
    while path:
        words = path.rpartition('.')[2] + ' ' + type(model.get_submodule(path)).__name__
        for kind, pattern in KINDS.items():
            if re.search(pattern, words, re.IGNORECASE):
                if kind == 'attention':
                    kind = 'attention products' if is_product else 'attention projections'
                return part, stage, kind
        path = path.rpartition('.')[0]
    return part, stage, 'other'
