"""A model's forward pass without data and without memory for its maps: what its parts are given, and whether they fit."""
import copy
import re
from collections.abc import Callable
from types import MethodType
from typing import Any, NamedTuple

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .backbones import Backbone
from .errors import ModelError

BACKBONES = 'backbone', 'image_encoder'
Regions = list[tuple[str, int]]


def is_a(model: nn.Module, base: str) -> bool:
    """Whether a model is of a library's class of that name, without importing the library."""
    return base in {parent.__name__ for parent in type(model).__mro__}


def image_channels(model: nn.Module) -> int:
    """How many channels the images of a model, or of a backbone, have."""
    backbone = getattr(model, 'backbone', model)
    return backbone.in_channels if isinstance(backbone, Backbone) else 3


def detector_of(model: Any) -> Any:
    """The detector that predicts in a semi-supervised one or in a tracker; any other model is given back."""
    if is_a(model, 'SemiBaseDetector'):
        return getattr(model, model.semi_test_cfg.get('forward_on', 'teacher'))
    return model.detector if is_a(model, 'BaseMOTModel') and hasattr(model, 'detector') else model


class Prepared(NamedTuple):
    """A model's copy that can be run on one image."""
    model: nn.Module
    run: Callable[[], Any]
    regions: Regions  # once it has run: what each region was pooled for, and how many there were


def prepare(original: nn.Module, shape: tuple[int, int], device: str, num_proposals: int | None = None) -> Prepared:
    """A copy of a model and of one image on a device, to be run in the libraries' ``tensor`` mode.

    Args:
        original: a detector, segmentor, classifier or backbone.
        shape: height and width of the image in pixels.
        device: ``meta``, or ``cpu`` for models that look at their numbers.
        num_proposals: for two-stage detectors; ``test_cfg.rpn.max_per_img`` if None.
    """
    model: Any = copy.deepcopy(original).to(device)
    model.eval()  # whose result some distilled detectors do not give back
    model.requires_grad_(False)
    image = torch.rand(1, image_channels(model), *shape, device=device)
    sizes = dict(img_shape=shape, ori_shape=shape, pad_shape=shape, batch_input_shape=shape, scale_factor=(1., 1.))
    samples: list | None = None
    regions: Regions = []
    if is_a(model, 'BaseDetector'):
        from mmdet.structures import DetDataSample
        samples = [DetDataSample(metainfo=sizes)]
        if getattr(model, 'roi_head', None) is not None:
            regions = _fix_proposals(model, samples[0], image, num_proposals)
        elif is_a(model, 'SingleStageInstanceSegmentor') and model.with_bbox:
            _fix_instances(model, image)
    elif is_a(model, 'BaseSegmentor'):  # whose tensor mode knows neither cascades nor Mask2Former
        model._forward = lambda inputs, _: model.encode_decode(inputs, [sizes])
    arguments = (image, samples, 'tensor') if isinstance(model, BaseModel) else (image, )
    return Prepared(model, lambda: model(*arguments), regions)


def _fix_proposals(model: Any, sample: Any, image: Tensor, num_proposals: int | None) -> Regions:
    """Let a two-stage detector take fixed numbers of proposals and of detections, and leave out the pooling of features.

    Returns:
        A list that has, once the model has run, what each region was pooled for and how many regions there were.
    """
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
    from mmdet.models.roi_heads.roi_extractors.base_roi_extractor import BaseRoIExtractor
    from mmengine.structures import InstanceData
    rois: Regions = []
    roi_head = model.roi_head
    rpn_head = getattr(model, 'rpn_head', None)
    number = num_proposals or (model.test_cfg.get('rpn') or {}).get('max_per_img', 1000)
    whole_image = InstanceData(bboxes=image.new_tensor([[0., 0., image.shape[3], image.shape[2]]]).repeat(number, 1))

    def propose(rpn_head: Any, x: Any, *_: object, **__: object) -> list[InstanceData]:
        if not hasattr(rpn_head, 'stages'):
            rpn_head(x)
            return [whole_image]
        return type(rpn_head).predict(rpn_head, x, [sample], rescale=False)  # a cascade of them, without a forward of its own

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
    if rpn_head is None or isinstance(rpn_head, BaseDenseHead):
        if rpn_head is None:  # Fast R-CNN, which is given its proposals
            sample.proposals = whole_image
        else:
            rpn_head.predict = MethodType(propose, rpn_head)
        if type(roi_head) in (StandardRoIHead, CascadeRoIHead):  # whose tensor mode takes 100, or every proposal
            roi_head._mask_forward = MethodType(predict_masks, roi_head)
    else:  # learned proposals (Sparse R-CNN): the tensor mode computes losses, and boxes are refined image by image
        roi_head.forward = roi_head.predict
        for bbox_head in roi_head.bbox_head:
            bbox_head.refine_bboxes = MethodType(keep_boxes, bbox_head)
        for mask_head in getattr(roi_head, 'mask_head', None) or ():  # which would paste masks
            mask_head.predict_by_feat = lambda mask_preds, results_list, *_, **__: results_list
    return rois


def _fix_instances(model: Any, image: Tensor) -> None:
    """Let CondInst or YOLACT make masks of as many instances as they may detect: their tensor mode takes annotated ones."""
    from mmengine.structures import InstanceData
    head = model.bbox_head
    number = model.test_cfg.get('max_per_img') or model.test_cfg.get('max_per_img', 100)
    if hasattr(head, 'num_protos'):
        instances = InstanceData(coeffs=image.new_zeros(number, head.num_protos))
    else:
        instances = InstanceData(param_preds=image.new_zeros(number, head.num_params), points=image.new_zeros(number, 2),
                                 strides=image.new_ones(number))
    head.loss = lambda *_, **__: {}
    head.get_positive_infos = lambda: [instances]


class Misfit(NamedTuple):
    """Why a model cannot run, or would run wrong."""
    line: str
    kind: str  # channels, features (of linear layers), maps, index, strides or other
    name: str = ''  # of the module
    takes: Any = None
    gets: Any = None


class DryRun(NamedTuple):
    """What was seen of a forward pass."""
    backbone: str  # the name of the module
    widths: list[int]  # of the maps that it returns
    strides: list[int]  # 0 for what is no map
    read: list[int]  # the places of the maps that what follows it computes with
    misfit: Misfit | None


class _Reads(TorchDispatchMode):
    """Which tensors are computed with."""

    def __init__(self) -> None:
        super().__init__()
        self.maps: dict[int, int] = {}  # the place of each map, by the tensor's identity
        self.read: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.maps:
            given = {id(leaf) for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)}
            self.read |= {self.maps[one] for one in given & self.maps.keys()}
        return func(*args, **(kwargs or {}))


def dry_run(original: nn.Module, shape: tuple[int, int] = (256, 320)) -> DryRun:
    """Run a model on an image of ``shape`` that needs no memory, and look at what each part is given.

    Compared are the channels that layers take and get, and the strides that priors, and extractors of regions, have and that
    their maps have.
    """
    model = detector_of(original)
    if is_a(model, 'BaseReID'):  # which pools a map of one size
        shape = 256, 128
    parts = [*model.modules()]
    fixed: list[Any] = [getattr(part, 'img_size', None) for part in parts]
    of_priors: list[Any] = [getattr(getattr(part, 'prior_generator', None), 'input_size', None) for part in parts]
    sizes: list[Any] = [*filter(None, of_priors), shape, *filter(None, fixed)]
    sizes = [*dict.fromkeys((size, size) if isinstance(size, int) else tuple(size) for size in sizes)]
    for size in sizes:  # some backbones take images of one size
        seen = _watch(model, size, 'meta')
        if seen.misfit is None or seen.misfit.kind != 'other':
            return seen
    return _watch(model, sizes[-1], 'cpu')  # some models look at their numbers, some operators are of real devices


def _watch(original: nn.Module, shape: tuple[int, int], device: str) -> DryRun:
    try:
        model, run, _ = prepare(original, shape, device, num_proposals=2)
    except NotImplementedError as error:  # parameters that exist on no real device
        return DryRun('', [], [], [], Misfit(str(error), 'other'))
    whole: Any = model
    name = next((name for name, _ in model.named_modules() if name.split('.')[-1] in BACKBONES), '')
    if isinstance(model.get_submodule(name), nn.Sequential):  # an image encoder, with its neck
        name += '.0'
    names = {module: path for path, module in model.named_modules()}
    reads = _Reads()
    active: list[tuple[nn.Module, tuple]] = []
    failed: list[bool] = []
    misfits: list[Misfit] = []
    maps: list[Tensor] = []
    kept: list[list] = []

    def watched(module: nn.Module, forward: Callable) -> Callable:
        """A module's forward, which libraries also call past its hooks."""
        def watch(*args: Any, **kwargs: Any) -> Any:
            inputs = args or tuple(kwargs.values())
            if not failed:
                active.append((module, inputs))
            misfits.extend(_compare_strides(names[module], module, inputs, shape))
            try:
                outputs = forward(*args, **kwargs)
            except Exception:
                failed.append(True)
                raise
            active.pop()
            if module is backbone:
                found = list(outputs if isinstance(outputs, (tuple, list)) else [outputs])
                maps[:] = maps or found
                kept.append(found)  # or else another tensor could have the identity of one
                reads.maps.update({id(one): place for place, one in enumerate(found)})
            return outputs
        return watch

    backbone = model.get_submodule(name)
    for module in model.modules():
        module.forward = watched(module, module.forward)
    misfit = None
    try:
        with torch.no_grad(), reads:
            run()
            for head in _heads_of_training(model):
                head(maps if not getattr(model, 'with_neck', False) else whole.neck(maps))
            image = torch.rand(1, image_channels(model), *shape, device=device)
            if is_a(model, 'ImageToImageRetriever'):
                whole.head(whole.extract_feat(image))
            elif is_a(model, 'BaseSelfSupervisor'):  # whose tensor mode is the backbone alone
                views = sum(next((crops for part in model.modules() if (crops := getattr(part, 'num_crops', None))), [2]))
                whole.loss([image] * views, [])
        misfit = next(iter(misfits), None)
    except Exception as error:  # of any kind
        misfit = next((found for found in misfits if found.kind == 'channels'), None) or _explain(error, active, names)
        misfit = next(iter(misfits), misfit) if misfit.kind == 'other' else misfit
    shapes = [tuple(one.shape) for one in maps if isinstance(one, Tensor)]
    return DryRun(name, [found[1] for found in shapes],
                  [round(shape[0] / found[2]) if len(found) == 4 else 0 for found in shapes], sorted(reads.read), misfit)


def _heads_of_training(model: nn.Module) -> list[nn.Module]:
    found = getattr(model, 'auxiliary_head', None)
    return list(found) if isinstance(found, nn.ModuleList) else [found] if isinstance(found, nn.Module) else []


def _explain(error: Exception, active: list, names: dict) -> Misfit:
    """What the innermost module took and got."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if not active:
        return Misfit(text, 'other')
    module, inputs = active[-1]
    takes: Any
    gets: Any
    name = names[module]
    one = inputs[0] if inputs else None
    if isinstance(one, Tensor):
        takes = next((value for key in ('in_channels', 'in_features', 'num_features', 'n_dims')
                      if (value := getattr(module, key, None)) is not None), None)
        gets = one.shape[-1] if isinstance(module, nn.Linear) else one.shape[1] if one.dim() > 1 else None
        if isinstance(module, nn.LayerNorm):
            takes, gets = module.normalized_shape[-1], one.shape[-1]
        flat = isinstance(module, nn.Linear) and one.dim() == 4  # a map that should have been pooled
        if isinstance(takes, int) and takes != gets and not flat:
            kind = 'features' if isinstance(module, nn.Linear) else 'channels'
            return Misfit(f'{name} takes {takes} channels, but gets {gets}', kind, name, takes, gets)
        return Misfit(f'{name}: {text}', 'other', name)
    if isinstance(one, (tuple, list)) and all(isinstance(part, Tensor) and part.dim() == 4 for part in one):
        takes, gets = getattr(module, 'in_channels', None), [part.shape[1] for part in one]
        index = getattr(module, 'in_index', None)
        indices = [*index] if isinstance(index, (list, tuple)) else [index] if isinstance(index, int) else []
        if not all(-len(gets) <= place < len(gets) for place in indices):
            return Misfit(f'the in_index of {name} is {index}, but it gets {len(gets)} maps, counted from 0, of {gets} '
                          'channels', 'index', name, indices, gets)
        if takes is not None and (list(takes) if isinstance(takes, (list, tuple)) else [takes]) != gets:
            return Misfit(f'{name} takes maps of {takes} channels, but gets {gets}', 'maps', name, takes, gets)
        if takes is None and isinstance(error, (AssertionError, IndexError)):  # mostly of another number of maps
            return Misfit(f'{name} does not take maps of {gets} channels: {text}', 'maps', name, None, gets)
    return Misfit(f'{name}: {text}', 'other', name)


def _compare_strides(name: str, module: nn.Module, inputs: tuple, shape: tuple[int, int]) -> list[Misfit]:
    """What priors and extractors of regions take their maps for, beside what these are."""
    maps = inputs[0] if inputs else None
    generator: Any = getattr(module, 'prior_generator', None) or getattr(module, 'square_anchor_generator', None)
    if not is_a(module, 'BaseDenseHead'):  # heads of masks have a generator for a map of their own
        generator = None
    strides = getattr(module, 'featmap_strides', getattr(generator, 'strides', None))
    if not isinstance(strides, (list, tuple)) or not isinstance(maps, (tuple, list)) or not maps:
        return []
    if not all(isinstance(one, Tensor) and one.dim() == 4 for one in maps):
        return []
    strides = [max(stride) if isinstance(stride, (list, tuple)) else stride for stride in strides]
    real = [round(shape[0] / one.shape[2]) for one in maps]
    if len(strides) != len(maps):
        return [Misfit(f'{name} has the strides {strides}, but gets {len(maps)} maps, of strides {real}', 'strides', name,
                       strides, real)]
    width = getattr(module, 'out_channels', None) if hasattr(module, 'featmap_strides') else None
    if isinstance(width, int) and width != maps[0].shape[1]:
        return [Misfit(f'{name} has out_channels={width}, but its maps have {maps[0].shape[1]}', 'channels', name, width,
                       maps[0].shape[1])]
    if any(abs(one.shape[2] - shape[0] / stride) > 1 for stride, one in zip(strides, maps)):
        return [Misfit(f'{name} takes its maps for ones of strides {strides}, but they are {real}', 'strides', name, strides,
                       real)]
    return []


def find_backbone(model: dict) -> tuple[str | int, ...]:
    """The keys that lead to the backbone of a model's config.

    Raises:
        ModelError: if it has none.
    """
    for name in BACKBONES:
        if isinstance(model.get(name), dict):
            return (name, )
    if isinstance(model.get(BACKBONES[1]), (list, tuple)):  # with its neck
        return (BACKBONES[1], 0)
    if isinstance(model.get('detector'), dict):
        return ('detector', *find_backbone(model['detector']))
    raise ModelError(f'a model {model.get("type")} has no backbone of its own that could be taken out')
