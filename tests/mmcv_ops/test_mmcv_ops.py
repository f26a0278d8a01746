"""MMCV's operators out of torchvision give compiled MMCV's numbers, and those that it has not on a CPU their definitions'."""
import json
import subprocess
import sys
from types import ModuleType

import mmcv
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmcv import ops
from torch.autograd import gradcheck

from mmsimvit.mmcv_ops import Loader, needs_compiled_mmcv
from tests.mmcv_ops import cases
from tests.mmcv_ops.cases import draw

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}


@pytest.fixture
def ours(monkeypatch):
    """Have mmcv.ops call our operators, where mmcv is compiled too."""
    module = ModuleType('mmcv._ext')
    Loader.exec_module(module)
    for name, part in list(sys.modules.items()):
        if name.startswith('mmcv.ops.') and hasattr(part, 'ext_module'):
            monkeypatch.setattr(part, 'ext_module', module)
    return module


def test_gives_the_numbers_of_compiled_operators(ours):
    expected = json.loads(cases.PATH.read_text())
    wrong = {}
    for name, results in cases.compute():
        for index, (result, known) in enumerate(zip(results, expected.pop(name), strict=True)):
            found = cases.record(result)
            assert found['shape'] == known['shape'], (name, index)
            if 'scale' not in known:
                if found['values'] != known['values']:
                    wrong[name, index] = found['values'], known['values']
            else:
                off = np.abs(np.subtract(found['values'], known['values'])).max(initial=0) / (known['scale'] or 1)
                if not off < TOLERANCES[result.dtype]:
                    wrong[name, index] = off
    assert not wrong
    assert not expected  # each was compared


@pytest.mark.skipif(not hasattr(mmcv._ext, '__file__'), reason='mmcv is not compiled')
def test_gives_the_numbers_of_the_compiled_operators_beside_it(request):
    compiled = dict(cases.compute(break_ties=True))
    request.getfixturevalue('ours')
    for name, results in cases.compute():
        for result, expected in zip(results, compiled[name], strict=True):
            scale = expected.abs().max() if expected.numel() else 1
            tolerance = TOLERANCES.get(result.dtype, 0)
            torch.testing.assert_close(result, expected, rtol=0, atol=float(scale * tolerance), msg=name)
