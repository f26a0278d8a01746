"""What the training of a whole model keeps in memory."""
import os
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from mmengine.model import BaseModel
from mmengine.structures import InstanceData, PixelData
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils import _pytree as pytree

from ..dry_run import image_channels
from ..ops.ffn import without_chunks

if not torch.cuda.is_available():
    os.environ.setdefault('KINETO_LOG_LEVEL', '5')  # torch's profiler would print an error that there is no GPU

# What a parameter takes while it is trained with Adam in float32: itself, its gradient, two averages.
BYTES_PER_PARAMETER = 16
BOXES = 7  # in an image of COCO, on average


class TrainingMemory(NamedTuple):
    """In bytes."""
    states: int  # of parameters, gradients and optimizer
    saved_activations: int  # for the backward pass, for the whole batch
    shape: tuple[int, int]  # of the images, height and width in pixels, as the data_preprocessor padded them


def saved_activations(call: Callable[[], object], device: torch.device, inputs: Iterable[Tensor] = ()) -> int:
    """Bytes that wait for the backward pass of ``call``: what is allocated after it and was not before, without the tensors
    that it gives, and those of ``inputs`` (of any shape) that it saves."""
    saved = set()

    def keep(x: Tensor) -> Tensor:
        saved.add(x.untyped_storage().data_ptr())
        return x.detach()  # a node that kept its own output would be a circle, and never be freed

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        allocated, outs = _run(call, device)
    given = {x.untyped_storage().data_ptr(): x for x in pytree.tree_leaves(outs) if isinstance(x, Tensor)}
    again = {x.untyped_storage().data_ptr(): x for x in inputs if x.untyped_storage().data_ptr() in saved}
    return allocated + sum(x.untyped_storage().nbytes() for x in again.values()) - sum(
        x.untyped_storage().nbytes() for x in given.values())


def _run(call: Callable[[], object], device: torch.device) -> tuple[int, object]:
    """What ``call`` leaves allocated, in bytes, and what it gives."""
    if device.type == 'cuda':
        before = torch.cuda.memory_allocated(device)
        outs = call()
        return torch.cuda.memory_allocated(device) - before, outs
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        outs = call()
    return sum(event.nbytes() for event in memory_events(profiler)), outs


def memory_events(profiler: profile) -> list:
    """Every allocation (positive ``nbytes()``) and release (negative) of torch's allocator on the CPU, also those inside of
    operators."""
    finished = profiler.profiler
    assert finished is not None and finished.kineto_results is not None
    return [event for event in finished.kineto_results.events() if event.name() == '[memory]']


def measure_training_memory(model: BaseModel, scope: str, batch: int, shape: tuple[int, int]) -> TrainingMemory:
    """Run the forward pass of a training step on random images, on the CPU in float32, and count.

    Args:
        model: a detector, segmentor or classifier.
        scope: its library.
        batch: number of images.
        shape: height and width of the images in pixels.
    """
    model.train()
    data = model.data_preprocessor(random_batch(model, scope, batch, shape), training=True)
    height, width = data['inputs'].shape[2:]
    trained = [p for p in model.parameters() if p.requires_grad]

    with without_chunks():
        saved = saved_activations(lambda: model(**data, mode='loss'), torch.device('cpu'))
    states = sum(p.numel() for p in trained) * BYTES_PER_PARAMETER
    states += sum(p.numel() * 4 for p in model.parameters() if not p.requires_grad)
    return TrainingMemory(states, saved, (height, width))


def random_batch(model: BaseModel, scope: str, batch: int, shape: tuple[int, int]) -> dict:
    """Noise as images, and for each of them boxes with masks, a label map or a label.

    Raises:
        ValueError: for a scope that is none of the three libraries.
    """
    generator = torch.Generator().manual_seed(0)
    size = (image_channels(model), *shape)
    images = [torch.randint(0, 256, size, generator=generator, dtype=torch.uint8) for _ in range(batch)]
    return dict(inputs=torch.stack(images) if scope == 'mmpretrain' else images,
                data_samples=[_sample(model, scope, shape, generator) for _ in range(batch)])


def _sample(model: BaseModel, scope: str, shape: tuple[int, int], generator: torch.Generator) -> object:
    meta = dict(img_shape=shape, ori_shape=shape, pad_shape=shape, batch_input_shape=shape, scale_factor=(1., 1.), flip=False)
    if scope == 'mmdet':
        from mmdet.structures import DetDataSample
        from mmdet.structures.mask import BitmapMasks
        height, width = shape
        start = torch.rand(BOXES, 2, generator=generator) * 0.7
        corners = torch.cat([start, start + 0.3], 1) * torch.tensor([width, height, width, height])
        masks = torch.zeros(BOXES, height, width, dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, corners.int().tolist()):
            mask[top:bottom, left:right] = 1
        labels = torch.zeros(BOXES, dtype=torch.long)
        boxes = InstanceData(bboxes=corners, labels=labels, masks=BitmapMasks(masks.numpy(), *shape))
        return DetDataSample(metainfo=meta, gt_instances=boxes)
    if scope == 'mmseg':
        from mmseg.structures import SegDataSample
        labels = torch.randint(0, model.decode_head.num_classes, (1, *shape), generator=generator)
        return SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=labels))
    if scope == 'mmpretrain':
        from mmpretrain.structures import DataSample
        return DataSample(metainfo=meta).set_gt_label(0)
    raise ValueError(f'the default_scope of a config must be mmdet, mmseg or mmpretrain, got {scope}')
