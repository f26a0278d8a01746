"""One class for each backbone, found by both spellings from the three libraries, in fresh processes as a user would have it."""
import subprocess
import sys

import pytest

from mmsimvit.weights import find_systems

SCOPES = ('mmdet', 'mmseg', 'mmpretrain')
BACKBONES = {kind.__name__: next(iter(kind.arch_zoo)) for kind in find_systems().values()}
FIND = '''
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
Config.fromstring({config!r}, '.py')
init_default_scope({scope!r})
MODELS.build(dict(type={prefix!r} + 'SimViT', arch='micro'))  # torch 2.6 cannot load all of itself on the meta device
with torch.device('meta'):
    for name, arch in {backbones}.items():
        model = MODELS.build(dict(type={prefix!r} + name, arch=arch))
        print(type(model).__module__, type(model).__name__)
'''


@pytest.mark.parametrize('scope', SCOPES)
@pytest.mark.parametrize(('prefix', 'config'), [
    ('', "custom_imports = dict(imports=['mmsimvit'])"), ('mmsimvit.', '')], ids=['custom_imports', 'dotted'])
def test_are_found(scope, prefix, config):
    code = FIND.format(scope=scope, prefix=prefix, config=config, backbones=BACKBONES)
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.stdout.splitlines() == [f'mmsimvit.backbones.{name.lower()} {name}' for name in BACKBONES], result.stderr


def test_import_brings_none_of_the_libraries():
    code = "import sys, mmsimvit; print([m for m in ('mmcv', 'mmdet', 'mmseg', 'mmpretrain') if m in sys.modules])"
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == '[]'


def test_feeds_the_heads_of_each_library():
    """SimViT's channels fit FPN, UPerNet and a classifier, and a loss goes back through them."""
    import torch
    from mmengine.registry import MODELS, DefaultScope

    parts = {
        'mmdet': dict(type='FPN', in_channels=[32, 64, 160, 256], out_channels=32, num_outs=5),
        'mmseg': dict(type='UPerHead', in_channels=[32, 64, 160, 256], in_index=[0, 1, 2, 3], channels=32, num_classes=5,
                      norm_cfg=dict(type='BN')),
        'mmpretrain': dict(type='GlobalAveragePooling'),
    }
    torch.manual_seed(0)
    backbone = MODELS.build(dict(type='SimViT', arch='micro'))
    for scope, part in parts.items():
        with DefaultScope.overwrite_default_scope(scope):
            head = MODELS.build(part)
        out = head(backbone(torch.randn(2, 3, 64, 64)))
        leaf = out[-1] if isinstance(out, tuple) else out
        backbone.zero_grad()
        # Not the sum: over the channels of a layer norm that is a constant, whose gradient is zero but for rounding.
        leaf.square().mul(torch.rand_like(leaf)).sum().backward()
        assert backbone.stages[0].patch_embed.proj.weight.grad.abs().sum() > 0
