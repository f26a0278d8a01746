"""Training of classifiers that leave out what is unimportant: DynamicViT (Rao et al., NeurIPS 2021, arXiv 2106.02034), section
3.4, and dynamic spatial sparsification (2207.01580)."""
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmpretrain.models import ImageClassifier, LinearClsHead
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from ..errors import CheckpointError
from ..layers import ratio_loss
from ..weights import load_file, strip_module, unwrap

# What layers behind the backbone are called, and where they are in checkpoints: of a training here, of MMPreTrain, published.
LAYERS = {
    'head.fc': ('head.fc', 'head.layers.head', 'head'),
    'head.aux': ('head.aux', 'aux_head'),
    'neck.norm': ('neck.norm', 'backbone.norm3', 'norm'),
}


def divergence(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """The Kullback-Leibler divergence of the student's softmax from the teacher's, a mean and a scalar.

    Args:
        student, teacher: logits ``(..., classes)``.
        weights: of each row, ``(...)``; None for the same of all.
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    student, teacher = (x.to(dtype).log_softmax(-1) for x in (student, teacher))
    return average(F.kl_div(student, teacher, reduction='none', log_target=True).sum(-1), weights)


def squared_distance(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean of squared differences, a scalar.

    Args:
        student, teacher: ``(..., C)``.
        weights: of each row, ``(...)``; None for the same of all.
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    return average((student.to(dtype) - teacher.to(dtype)).square().mean(-1), weights)


def average(x: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of ``(B, ...)``, with weights of its shape or None; zero where all weights are."""
    if weights is None:
        return x.mean()
    weights = weights.detach().to(x.dtype)
    return (x * weights).sum() / weights.sum().clamp(min=1)


@MODELS.register_module()
class TokenClsHead(LinearClsHead):
    """Classifies tokens ``(B, N, C)`` by the first, the class token; as LV-ViT (2104.10858) does, also by the others: half the
    largest score of each class among these is added.

    Args:
        *args, **kwargs: those of ``LinearClsHead``.
        has_aux: whether the others count, with a linear layer of their own.
    """

    def __init__(self, *args: Any, has_aux: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.aux = nn.Linear(self.in_channels, self.num_classes) if has_aux else None

    def pre_logits(self, feats: tuple[Tensor, ...]) -> Tensor:
        """The last of ``(B, N, C)`` -> its class token ``(B, C)``."""
        return feats[-1][:, 0]

    def forward(self, feats: tuple[Tensor, ...], kept: Tensor | None = None) -> Tensor:
        """The last of ``(B, 1 + N, C)`` -> ``(B, classes)``; ``kept`` ``(B, N)`` is 0 for tokens that do not count."""
        logits = super().forward(feats)
        if self.aux is None or feats[-1].shape[1] == 1:
            return logits
        scores = self.score_tokens(feats)
        if kept is not None:
            kept = kept.detach()[..., None] > 0
            kept = kept | ~kept.any(1, keepdim=True)  # the maximum of none would be no number
            scores = scores.masked_fill(~kept, torch.finfo(scores.dtype).min)
        return logits + scores.amax(1) / 2

    def score_tokens(self, feats: tuple[Tensor, ...]) -> Tensor:
        """The last of ``(B, 1 + N, C)`` -> the scores of all but the class token, ``(B, N, classes)``."""
        assert self.aux is not None
        return self.aux(feats[-1][:, 1:])


@MODELS.register_module()
class NormedPooling(nn.Module):
    """The mean over the last map, normalised, as ConvNeXt's classifier (2201.03545) has it.

    Args:
        in_channels: channels of the map.
        eps: of the norm.
    """

    def __init__(self, in_channels: int, eps: float = 1e-6):
        super().__init__()
        self.norm = nn.LayerNorm(in_channels, eps=eps)

    def forward(self, feats: tuple[Tensor, ...]) -> tuple[Tensor]:
        """Maps, the last ``(B, C, H, W)`` -> one ``(B, C)``."""
        return (self.norm(feats[-1].mean((2, 3))), )

    def normalize(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` -> ``(B, H, W, C)``, each position by itself."""
        return self.norm(x.permute(0, 2, 3, 1))


class Teacher:
    """A frozen model, which is no part of the one that holds it: no parameter of it, in no checkpoint, and copies share it."""

    def __init__(self, model: nn.Module):
        self.model: Any = model.requires_grad_(False).eval()

    def __deepcopy__(self, memo: dict) -> 'Teacher':
        return self


@MODELS.register_module()
class DynamicClassifier(ImageClassifier):
    """A classifier whose backbone leaves out what is unimportant, taught by the same backbone that leaves out nothing.

    The student begins with the teacher's weights; its predictors, and whatever else the teacher lacks, begin anew. The loss is
    the sum of the head's loss of soft or hard labels; of how far the kept parts are from the backbone's ``keep_ratios``; of the
    divergence of the logits from the teacher's for the same images; and of the distance of the last features: of patches that
    are kept the mean square, or where the head scores them the divergence of these scores, and of maps the mean square of all
    positions. Where it is not trained it is an ``ImageClassifier``.

    The teacher is made and loaded when the weights are initialised, before a training. It is in evaluation mode, gets no
    gradient, and is not in checkpoints: whoever resumes needs its file again.

    Args:
        backbone: settings of ``DynamicViT`` with ``out_type='raw'``, or of another backbone with ``forward_decisions``,
            ``keep_ratios`` and ``predictors`` in its ``arch``.
        neck, head: settings, as in ``ImageClassifier``. Maps are compared after the norm of a ``NormedPooling``.
        teacher: the path of its checkpoint, of a training here, of MMPreTrain or published, with its head; None for a
            training without the two losses that take one.
        ratio_weight, logit_weight, feature_weight: factors of these losses.
        *args, **kwargs: those of ``ImageClassifier``.

    Raises:
        CheckpointError: when weights are initialised, if ``teacher`` does not hold every parameter of backbone and head.
        ValueError: for a backbone without decisions.
    """

    backbone: Any
    neck: Any
    head: Any

    def __init__(self, backbone: dict, neck: dict | None = None, head: dict | None = None, *args: Any,
                 teacher: str | None = None, ratio_weight: float = 2.0, logit_weight: float = 0.5,
                 feature_weight: float = 0.5, **kwargs: Any):
        self.settings: dict[str, Any] = dict(
            backbone=dict(backbone, predictors=(), init_cfg=None), neck=neck and dict(neck), head=head and dict(head))
        super().__init__(backbone, neck, head, *args, **kwargs)
        if not hasattr(self.backbone, 'forward_decisions'):
            raise ValueError('backbone must be one with decisions, DynamicViT, DynamicConvNeXt or DynamicSwin, got '
                             f'{type(self.backbone).__name__}')
        self.checkpoint = teacher
        self.teacher: Teacher | None = None
        self.ratio_weight = ratio_weight
        self.logit_weight = logit_weight
        self.feature_weight = feature_weight

    def _apply(self, fn: Any, recurse: bool = True) -> 'DynamicClassifier':
        """The teacher goes to the same device."""
        if self.teacher is not None:
            self.teacher.model._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def init_weights(self) -> None:
        """Draw random weights, apply ``init_cfg``, and begin with the weights of the teacher."""
        is_first = not self.is_init
        super().init_weights()
        if is_first and self.checkpoint is not None:
            teacher = self.build_teacher(self.checkpoint)
            new = self.load_state_dict(teacher.state_dict(), strict=False).missing_keys
            print_log(f'the training begins with the weights of its teacher, {self.checkpoint}; {len(new)} tensors are new',
                      'current')
            self.teacher = Teacher(teacher)

    def build_teacher(self, path: str) -> ImageClassifier:
        """The model that leaves out nothing, with the weights of a checkpoint, on the device of this one."""
        init_cfg = dict(type='Pretrained', checkpoint=path)
        model = ImageClassifier(**{**self.settings, 'backbone': {**self.settings['backbone'], 'init_cfg': init_cfg}})
        try:
            model.init_weights()
        except CheckpointError as error:  # which knows the setting of a backbone alone
            raise CheckpointError(str(error).replace('model.backbone.init_cfg=None', 'model.teacher=None')) from error
        load_rest(model, path)
        return model.to(next(self.parameters()).device)

    def loss(self, inputs: Tensor, data_samples: list[DataSample]) -> dict[str, Tensor]:
        """The losses of one step.

        Args:
            inputs: ``(B, 3, H, W)``, which the teacher sees too, with mixup and the like if there is any.
            data_samples: labels.

        Returns:
            ``loss``, ``loss_ratio``, and of a teacher ``loss_logits`` and ``loss_features``; ``kept`` is no loss but the part
            that the last predictor keeps.

        Raises:
            RuntimeError: if it is to have a teacher, and weights were not initialised.
        """
        outs, decisions = self.backbone.forward_decisions(inputs)
        kept = decisions[-1] if decisions else None
        logits = score(self, outs, kept)
        losses = self.head._get_loss(logits, data_samples)
        if kept is not None:
            losses['loss_ratio'] = self.ratio_weight * ratio_loss(decisions, self.backbone.keep_ratios)
            losses['kept'] = kept.detach().mean()
        if self.checkpoint is None:
            return losses
        if self.teacher is None:
            raise RuntimeError(f'{type(self).__name__} has no teacher yet: call init_weights() before it is trained')
        teacher = self.teacher.model
        with torch.no_grad():
            targets = teacher.backbone(inputs)
            target_logits = score(teacher, targets)
        losses['loss_logits'] = self.logit_weight * divergence(logits, target_logits)
        losses['loss_features'] = self.feature_weight * self.compare(outs, targets, kept)
        return losses

    def compare(self, outs: tuple[Tensor, ...], targets: tuple[Tensor, ...], kept: Tensor | None) -> Tensor:
        """The distance of the last features from the teacher's, a scalar.

        Args:
            outs, targets: what the backbones give, the last ``(B, 1 + N, C)`` or ``(B, C, H, W)``.
            kept: ``(B, N)``, 1 for tokens that are compared; all if None.
        """
        assert self.teacher is not None
        if outs[-1].dim() == 4:
            student, teacher = outs[-1], targets[-1]
            if isinstance(self.neck, NormedPooling):
                student, teacher = self.neck.normalize(student), self.teacher.model.neck.normalize(teacher)
            return squared_distance(student, teacher)
        if getattr(self.head, 'aux', None) is None:
            return squared_distance(outs[-1][:, 1:], targets[-1][:, 1:], kept)
        with torch.no_grad():
            scores = self.teacher.model.head.score_tokens(targets)
        return divergence(self.head.score_tokens(outs), scores, kept)


def score(model: ImageClassifier, outs: tuple[Tensor, ...], kept: Tensor | None = None) -> Tensor:
    """Logits ``(B, classes)``.

    Args:
        model: a classifier.
        outs: what its backbone gives.
        kept: which tokens count, ``(B, N)``; all if None.
    """
    feats = model.neck(outs) if model.with_neck else outs
    return model.head(feats, kept) if isinstance(model.head, TokenClsHead) else model.head(feats)


def load_rest(model: ImageClassifier, path: str) -> None:
    """Load what is behind the backbone, neck and head, from a checkpoint with our, MMPreTrain's or published names.

    Raises:
        CheckpointError: if something is missing or of another shape.
    """
    given = strip_module(unwrap(load_file(path)))
    weights = {}
    for name, tensor in model.state_dict().items():
        layer, _, kind = name.rpartition('.')
        if layer.startswith('backbone'):
            continue
        found = next((given[other] for place in LAYERS.get(layer, (layer, )) if (other := f'{place}.{kind}') in given), None)
        if found is None or found.shape != tensor.shape:
            shape = 'nothing' if found is None else tuple(found.shape)
            raise CheckpointError(f'checkpoint {path} of a teacher must have {name} of shape {tuple(tensor.shape)}, found '
                                  f'{shape}; it must be a classifier of the same classes')
        weights[name] = found
    model.load_state_dict(weights, strict=False)
