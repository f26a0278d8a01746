"""Multi-resolution training: ResFormer: Scaling ViTs with Multi-Resolution Training (Tian et al., CVPR 2023, arXiv 2212.00776),
section 3.1."""
from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub
from mmpretrain.models import ClsDataPreprocessor, ImageClassifier
from mmpretrain.models.utils.batch_augments import CutMix, Mixup
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor

from ..layers import recompute

TARGETS = ('cls', 'gap', 'logit')
FORMS = ('smooth_l1', 'l2', 'cosine', 'soft')
EPS = 1e-6  # of the norm that whitens a teacher


def scale_consistency(student: Tensor, teacher: Tensor, form: str, temperature: float = 1.0) -> Tensor:
    """How far the features of images at one resolution are from those at the next larger one, which get no gradient.

    Args:
        student, teacher: ``(B, C)``.
        form: ``smooth_l1``, of the teacher whitened by a layer norm without parameters; ``l2`` for squared differences;
            ``cosine`` for one minus the similarity; ``soft`` for the Kullback-Leibler divergence of softmaxes.
        temperature: of these softmaxes; its square is a factor, as in 1503.02531.

    Returns:
        The mean, a scalar in float32 at least.
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    student, teacher = student.to(dtype), teacher.detach().to(dtype)
    if form == 'smooth_l1':
        return F.smooth_l1_loss(student, F.layer_norm(teacher, teacher.shape[1:], eps=EPS))
    if form == 'l2':
        return F.mse_loss(student, teacher)
    if form == 'cosine':
        return 1 - F.cosine_similarity(student, teacher).mean()
    student, teacher = ((x / temperature).log_softmax(1) for x in (student, teacher))
    return F.kl_div(student, teacher, reduction='batchmean', log_target=True) * temperature**2


@MODELS.register_module()
class MultiResolutionPreprocessor(ClsDataPreprocessor):
    """Makes of each batch in training one of each resolution, the largest first, and mixes all in the same way.

    With ``MultiView`` of MMPreTrain in the pipeline, each resolution has an augmentation of its own. Without it, the pipeline's
    images are resized.

    Args:
        sizes: heights and widths in pixels, from the largest to the smallest.
        mixes_alike: draw mixup or CutMix once for all resolutions, with one set of soft labels, rather than for each.
        *args, **kwargs: those of ``ClsDataPreprocessor``; ``batch_augments`` are ``Mixup`` and ``CutMix`` alone.

    Raises:
        ValueError: for sizes that do not fall, for views of other sizes, and for other augmentations.
    """

    def __init__(self, sizes: Sequence[int], *args: Any, mixes_alike: bool = True, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not sizes or sorted(set(sizes), reverse=True) != list(sizes) or sizes[-1] < 1:
            raise ValueError(f'sizes must fall from the largest to the smallest, each teaching the next, got {tuple(sizes)}')
        augments = self.batch_augments.augments if self.batch_augments else []
        other = [type(augment).__name__ for augment in augments if augment and type(augment) not in (Mixup, CutMix)]
        if other:
            raise ValueError(f'batch_augments of several resolutions must be Mixup or CutMix, got {", ".join(other)}')
        self.sizes = tuple(sizes)
        self.mixes_alike = mixes_alike

    def forward(self, data: dict, training: bool = False) -> dict:
        """What a data loader gives -> ``inputs`` and ``data_samples``: in training lists of them, one for each resolution."""
        if not training:
            return super().forward(data)
        inputs, samples = data['inputs'], data['data_samples']
        is_list = not isinstance(inputs, Tensor)
        has_views = is_list and (not isinstance(inputs[0], Tensor) or inputs[0].dim() == 4)
        first = super().forward({'inputs': inputs[0] if has_views else inputs, 'data_samples': samples})  # and the labels
        if has_views:
            views = [first['inputs'], *(super(MultiResolutionPreprocessor, self).forward({'inputs': view})['inputs']
                                        for view in inputs[1:])]
        else:
            views = [F.interpolate(first['inputs'], (size, size), mode='bilinear', antialias=True) for size in self.sizes]
        found = [tuple(view.shape[2:]) for view in views]
        if found != [(size, size) for size in self.sizes]:
            raise ValueError(f'sizes are {self.sizes}, but the views of the pipeline have {found}; MultiView must have one '
                             'view for each of sizes, in their order')
        return self._mix(views, samples)

    def _mix(self, views: list[Tensor], samples: list[DataSample]) -> dict:
        if self.batch_augments is None:
            return {'inputs': views, 'data_samples': [samples] * len(views)}
        scores = torch.stack([sample.gt_score for sample in samples]).float()
        if not self.mixes_alike:
            mixed = [self.batch_augments(view, scores) for view in views]
            return {'inputs': [view for view, _ in mixed], 'data_samples': [give_scores(samples, score) for _, score in mixed]}
        augments, probs = self.batch_augments.augments, self.batch_augments.probs
        augment = augments[np.random.choice(len(augments), p=probs)]
        if augment is not None:
            share = np.random.beta(augment.alpha, augment.alpha)
            index = torch.randperm(len(samples))
            if isinstance(augment, CutMix):
                (top, bottom, left, right), share = augment.cutmix_bbox_and_lam(views[0].shape[2:], share)
                for view in views:
                    scale = view.shape[2] / views[0].shape[2]
                    rows, columns = (slice(round(low * scale), round(high * scale))
                                     for low, high in ((top, bottom), (left, right)))
                    view[:, :, rows, columns] = view[index, :, rows, columns]
            else:
                views = [share * view + (1 - share) * view[index] for view in views]
            scores = share * scores + (1 - share) * scores[index]
        return {'inputs': views, 'data_samples': [give_scores(samples, scores)] * len(views)}


def give_scores(samples: Sequence[DataSample], scores: Tensor) -> list[DataSample]:
    """Copies of the samples with other soft labels ``(B, classes)``."""
    samples = [copy(sample) for sample in samples]
    for sample, score in zip(samples, scores, strict=True):
        sample.set_gt_score(score)
    return samples


@MODELS.register_module()
class MultiResolutionClassifier(ImageClassifier):
    """A classifier that sees each batch at several resolutions in one step, the largest first; each teaches the next.

    The loss is the mean over the resolutions of the head's loss, and of the consistency with the next larger one, for all but
    the first. Its data preprocessor is a ``MultiResolutionPreprocessor``. Where it is not trained it is an
    ``ImageClassifier``.

    Args:
        *args, **kwargs: those of ``ImageClassifier``.
        target: the features that are to be alike: ``cls`` for what the head's last layer takes, which is the class token where
            the head reads that; ``gap`` for the mean over the map, of the patches' tokens alone, where a backbone with
            ``out_type='raw'`` also has a class token; ``logit`` for what the head gives.
        form: see ``scale_consistency``.
        weight: factor of the consistency.
        temperature: see ``scale_consistency``.
        mode: ``co`` for all resolutions in each step; ``iter`` for ``views_per_step`` neighbouring ones, which move on by one
            from step to step, and begin again at the largest after the smallest.
        views_per_step: how many, for ``iter``.
        with_cp: compute each resolution again in the backward pass, so that one at a time is in memory.

    Raises:
        ValueError: for another ``target``, ``form`` or ``mode``, and for more ``views_per_step`` than there are.
    """

    def __init__(self, *args: Any, target: str = 'cls', form: str = 'smooth_l1', weight: float = 1.0, temperature: float = 1.0,
                 mode: str = 'co', views_per_step: int = 2, with_cp: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        for name, value, known in (('target', target, TARGETS), ('form', form, FORMS), ('mode', mode, ('co', 'iter'))):
            if value not in known:
                raise ValueError(f'{name} must be one of {", ".join(known)}, got {value!r}')
        sizes = getattr(self.data_preprocessor, 'sizes', None)
        if sizes is None:
            raise ValueError('data_preprocessor must be a MultiResolutionPreprocessor, got '
                             f'{type(self.data_preprocessor).__name__}')
        if mode == 'iter' and not 1 <= views_per_step <= len(sizes):
            raise ValueError(f'views_per_step must be between 1 and the {len(sizes)} of sizes, got {views_per_step}')
        self.target = target
        self.form = form
        self.weight = weight
        self.temperature = temperature
        self.views_per_step = views_per_step if mode == 'iter' else len(sizes)
        self.with_cp = with_cp

    def extract_feat(self, inputs: Tensor, stage: str = 'neck') -> Any:
        """As ``ImageClassifier``; of tokens ``(B, N, C)``, neck and head see the first, which is the class token."""
        maps = self.backbone(inputs)
        return maps if stage == 'backbone' else self._read(maps, stage)

    def _read(self, maps: tuple[Tensor, ...], stage: str) -> Any:
        if maps[-1].dim() == 3:
            maps = tuple(tokens[:, 0] for tokens in maps)
        features = self.neck(maps) if self.with_neck else maps
        return features if stage == 'neck' else self.head.pre_logits(features)

    def loss(self, inputs: list[Tensor], data_samples: list[list[DataSample]]) -> dict[str, Tensor]:
        """The losses of one step.

        Args:
            inputs: ``(B, 3, H, W)`` of each resolution, the largest first.
            data_samples: labels of each.

        Returns:
            ``loss``, and ``loss_consistency`` where there are several.
        """
        views = self.views_per_step
        first = MessageHub.get_current_instance().get_info('iter', 0) % (len(inputs) - views + 1)
        losses: list[Tensor] = []
        consistency: list[Tensor] = []
        teacher = None
        for view, samples in zip(inputs[first:first + views], data_samples[first:first + views]):
            loss, feature = recompute(self._see, self, view, samples) if self.with_cp else self._see(view, samples)
            losses.append(loss)
            if teacher is not None:
                consistency.append(scale_consistency(feature, teacher, self.form, self.temperature))
            teacher = feature
        out = {'loss': torch.stack(losses).mean()}
        if consistency:
            out['loss_consistency'] = self.weight * torch.stack(consistency).sum() / views
        return out

    def _see(self, view: Tensor, samples: list[DataSample]) -> tuple[Tensor, Tensor]:
        maps = self.backbone(view)
        features = self._read(maps, 'neck')
        loss = self.head.loss(features, samples)['loss']
        if self.target == 'logit':
            return loss, self.head(features)
        if self.target == 'cls':
            return loss, self.head.pre_logits(features)
        last = maps[-1]
        return loss, last[:, 1:].mean(1) if last.dim() == 3 else last.flatten(2).mean(2)
