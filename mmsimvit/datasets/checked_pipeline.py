"""Errors of data loading that name the file."""
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from mmengine.dataset import Compose, InfiniteSampler
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import DataError
from .unwrap import unwrap_dataset


class CheckedPipeline(Compose):
    """A data set's transforms, of which whatever goes wrong names the file that it went wrong with.

    It also refuses label maps with classes that the data set does not have, which a GPU would answer with an assertion that
    names nothing, and an evaluator with silence.

    Args:
        pipeline: the transforms as the data set built them.
        num_classes: of label maps; None where they are of no concern, as in data sets of boxes, whose label maps are an extra.
        ignore_index: the value of pixels that count for no class.

    Raises:
        DataError: when called, instead of what a transform raises.
    """

    def __init__(self, pipeline: Compose, num_classes: int | None, ignore_index: int) -> None:
        self.transforms = pipeline.transforms
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    def __call__(self, data: dict) -> Any:
        """What the transforms make of an entry of the data set."""
        name, labels = data.get('img_path'), data.get('seg_map_path')  # before a transform changes them
        packed: Any = data
        for transform in self.transforms:
            packed = self._apply(transform, packed, name, labels)
            if packed is None:  # the data set takes another entry
                return None
        sample = packed.get('data_samples') if isinstance(packed, dict) else None
        if self.num_classes and sample is not None and 'gt_sem_seg' in sample:
            self._check_labels(labels, packed['inputs'], sample, self.num_classes)
        return packed

    def _apply(self, transform: Callable, data: dict, name: str | None, labels: str | None) -> Any:
        try:
            return transform(data)
        except (AssertionError, LookupError, OSError, RuntimeError, TypeError, ValueError, cv2.error) as error:
            if isinstance(error, DataError) or name is None:
                raise
            if 'when load annotation the `reduce_zero_label` is' in str(error):  # MMSegmentation's LoadAnnotations
                raise DataError(
                    f'{error}: give the data set and the LoadAnnotations of its pipeline the same reduce_zero_label (True if '
                    "0 in label maps stands for none, as in ADE20K's), or leave it out of LoadAnnotations, which then takes "
                    'that of the data set') from error
            image = f'image {name}' + (f' with label map {labels}' if labels else '')
            if reason := _fault_of_image(error, data.get('img')):
                raise DataError(f'{image} {reason}; replace it, or take it out of the data') from error
            raise DataError(f"{getattr(transform, '__name__', type(transform).__name__)} fails with {image} "
                            f"({_in_one_line(error)}); if it does so with others, too, the pipeline, its settings or their "
                            'order, does not fit the data, and if not, replace the image, or take it out of the data'
                            ) from error

    def _check_labels(self, labels: str | None, image: Tensor, sample: Any, num_classes: int) -> None:
        shape = tuple(sample.gt_sem_seg.shape)
        if shape not in (tuple(image.shape[-2:]), tuple(sample.get('ori_shape', ()))):  # the latter where it is not resized
            raise DataError(f'label map {labels} does not fit its image: {shape} pixels, height and width, beside '
                            f'{tuple(image.shape[-2:])}; it must have the size of the image')
        values = sample.gt_sem_seg.data
        worst = values[values != self.ignore_index]
        if worst.numel() and worst.max() >= num_classes:
            raise DataError(
                f'label map {labels} has the value {worst.max().item()}, but there are {num_classes} classes, from 0 to '
                f'{num_classes - 1}, and {self.ignore_index} for none; name all classes in metainfo, set '
                'reduce_zero_label if 0 stands for none, or mend the map')


def _fault_of_image(error: Exception, image: Any) -> str | None:
    text = _in_one_line(error)
    if isinstance(error, FileNotFoundError):
        return f'cannot be loaded, for {error.filename} does not exist'
    if 'failed to load image' in text or 'cannot identify image file' in text or 'truncated' in text:
        return 'cannot be decoded, it may be cut short'
    if isinstance(error, OSError):
        return f'cannot be read ({text})'
    resized = isinstance(error, cv2.error) and 'resize' in text and isinstance(image, np.ndarray)
    if resized and max(image.shape[:2]) > 10 * min(image.shape[:2]):  # or else the sizes asked for are what is wrong
        return 'is so thin that nothing is left of it when it is resized'
    return None


def _in_one_line(error: Exception) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'


def check_batches(loader: DataLoader) -> None:
    """
    Raises:
        DataError: if a data loader has no batch to give.
    """
    images = len(loader.dataset)  # type: ignore[arg-type]
    if not isinstance(loader.sampler, InfiniteSampler) and not len(loader):
        raise DataError(f'{images} images make no batch of {loader.batch_size}, and drop_last=True leaves out the last that is '
                        f'not full; set batch_size to {images} or less, or drop_last=False')


def check_pipelines(dataset: Any) -> None:
    """Put a ``CheckedPipeline`` into a data set, or into each of those that a wrapper holds."""
    for leaf in unwrap_dataset(dataset):
        pipeline = getattr(leaf, 'pipeline', None)
        if isinstance(pipeline, Compose) and not isinstance(pipeline, CheckedPipeline):
            classes = leaf.metainfo.get('classes') if hasattr(leaf, 'reduce_zero_label') else None  # MMSegmentation's
            leaf.pipeline = CheckedPipeline(pipeline, classes and len(classes), getattr(leaf, 'ignore_index', 255))
