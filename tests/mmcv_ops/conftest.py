import mmcv._ext
import pytest

from mmsimvit.analysis.benchmark.mmcv_ops import TORCHVISION, implementations, switch_to


@pytest.fixture
def ours():
    """Have mmcv.ops call our operators, where mmcv is compiled too."""
    module = implementations([TORCHVISION])[TORCHVISION]
    switch_to(module)
    yield module
    switch_to(mmcv._ext)
