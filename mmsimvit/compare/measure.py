"""What the compared models cost: parameters, operations, time and memory."""
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.model import BaseModel, revert_sync_batchnorm

from ..analysis.benchmark.measure import Candidate as Timed
from ..analysis.benchmark.measure import measure
from ..analysis.benchmark.report import environment
from ..analysis.flops import count_complexity
from ..analysis.memory import random_batch
from ..fitting import build
from .plan import Candidate

TRAINING, WHOLE, BACKBONE = 'training', 'model', 'backbone'


def measure_candidates(candidates: Sequence[Candidate], scope: str, size: tuple[int, int], batch_size: int,
                       rounds: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """Count and time the models, in turns, so that a busy moment of the machine meets all.

    Args:
        candidates: those that fit are measured.
        scope: their library.
        size: height and width of the images, in pixels; those of the training.
        batch_size: of a training step. Without gradients one image is timed.
        rounds: how often each is timed.
        progress: is told what is done.

    Returns:
        ``environment``, ``size``, ``batch_size``, and in ``backbones`` for each label ``parameters`` and ``macs`` of the whole
        model, ``backbone_parameters``, ``backbone_macs``, lists of seconds: ``backbone`` and ``model`` for one image,
        ``training`` for a step on a batch, forward and backward; in bytes ``saved_bytes`` and ``peak_bytes`` of that step,
        ``peak_bytes_inference``; or the reason in ``failed``.
    """
    device = torch.device(get_device())
    found: dict[str, dict[str, Any]] = {}
    timed: dict[str, dict[str, Timed]] = {}
    for candidate in candidates:
        if not candidate.fit:
            continue
        progress(f'{candidate.label}: parameters and operations')
        try:
            settings = {**candidate.fit.model, 'backbone': {**candidate.fit.model['backbone'], 'init_cfg': None}}
            model = revert_sync_batchnorm(build(settings, scope))
            counted = count_complexity(model, size)
            part = next(part for part in counted.parts if part.name == 'backbone')
            row = dict(parameters=counted.total.parameters, macs=counted.total.macs, backbone_parameters=part.parameters,
                       backbone_macs=part.macs)
            calls = _calls(model.to(device), scope, size, batch_size, device)
            for name, one in calls.items():
                measure([one], ('training', ) if name == TRAINING else ('forward', ), 1, lambda _: None)  # does it run at all
            found[candidate.label], timed[candidate.label] = row, calls
        except Exception as error:  # of any kind: the others go on
            found[candidate.label] = dict(failed=f'{type(error).__name__}: {" ".join(str(error).split())}')
    for name, step in ((BACKBONE, 'forward'), (WHOLE, 'forward'), (TRAINING, 'training')):
        parts = [timed[label][name] for label in timed]
        measure(parts, (step, ), rounds, partial(_tell, progress, name))
        for label, one in zip(timed, parts):
            found[label][name] = one.seconds[step]
            if name == TRAINING:
                found[label] |= dict(saved_bytes=one.saved_bytes, peak_bytes=one.peak_bytes[step])
            elif name == WHOLE:
                found[label]['peak_bytes_inference'] = one.peak_bytes[step]
    return dict(environment=environment(device, torch.get_num_threads(), 'float32'), size=list(size), batch_size=batch_size,
                backbones=found)


def _tell(progress: Callable[[str], None], name: str, line: str) -> None:
    progress(f'{name}, {line}')


def _calls(model: BaseModel, scope: str, size: tuple[int, int], batch_size: int, device: torch.device) -> dict[str, Timed]:
    one = model.data_preprocessor(random_batch(model, scope, 1, size), training=False)
    batch = model.data_preprocessor(random_batch(model, scope, batch_size, size), training=True)

    def predict() -> Any:
        model.eval()
        return model(one['inputs'], one['data_samples'], mode='predict')

    def extract() -> Any:
        model.eval()
        return model.backbone(one['inputs'])

    def train() -> list[torch.Tensor]:
        model.train()
        losses = model(**batch, mode='loss')
        values = [value for name, value in losses.items() if 'loss' in name]
        return [part for value in values for part in (value if isinstance(value, list) else [value])]

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return {BACKBONE: Timed(BACKBONE, extract, [], device), WHOLE: Timed(WHOLE, predict, [], device),
            TRAINING: Timed(TRAINING, train, parameters, device)}
