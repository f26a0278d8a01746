"""What a training keeps in memory."""
import re

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmsimvit.analysis.memory import BYTES_PER_PARAMETER, measure_training_memory, saved_activations
from mmsimvit.cli.get_memory import main
from tests.conftest import ROOT


def test_saved_activations_are_what_waits_for_the_backward_pass():
    x = torch.zeros(1000, 8)

    def kept(call):
        return saved_activations(call, torch.device('cpu'))

    layer = nn.Linear(8, 5)
    assert kept(lambda: layer(x)) == 0, 'its input and its weight are there anyway, its output is given'
    assert kept(lambda: layer(x).exp().sum()) == 1000 * 5 * 4, 'exp keeps its output'
    assert kept(lambda: layer(x).exp().exp().sum()) == 2 * 1000 * 5 * 4
    first = nn.Linear(8, 8)
    assert kept(lambda: checkpoint(lambda y: y.exp().exp(), first(x), use_reentrant=False, preserve_rng_state=False).sum()) == \
        1000 * 8 * 4, 'what is computed again keeps the input that it starts from'
    image = torch.zeros(1000, 8)
    assert saved_activations(lambda: layer(image).sum(), torch.device('cpu'), [image]) == 1000 * 8 * 4, 'asked for by name'


@pytest.mark.parametrize(('name', 'scope'), [
    ('maskrcnn_simvit_micro_shapes.py', 'mmdet'), ('semfpn_simvit_micro_shapes.py', 'mmseg'),
    ('simvit_micro_shapes.py', 'mmpretrain')])
def test_models_of_all_libraries(name, scope):
    cfg = Config.fromfile(ROOT / 'configs' / name)
    if 'data_preprocessor' in cfg:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(cfg.model)
    one, two = (measure_training_memory(model, scope, batch, (128, 128)) for batch in (1, 2))
    assert one.states == two.states == BYTES_PER_PARAMETER * sum(p.numel() for p in model.parameters())
    assert two.saved_activations == pytest.approx(2 * one.saved_activations, rel=0.1)
    model.backbone.stages[0].requires_grad_(False)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters()) - trained
    assert measure_training_memory(model, scope, 1, (128, 128)).states == 16 * trained + 4 * frozen


def test_less_is_kept_where_blocks_or_ffns_are_computed_again(capsys):
    def kept(*words):
        main([str(ROOT / 'configs/maskrcnn_simvit_micro_shapes.py'), '--shape', '256', '256', *words])
        return float(re.search(r'measured\): +([\d.]+) GiB', capsys.readouterr().out)[1])

    whole = kept()
    assert kept('--cfg-options', 'model.backbone.with_cp=True') < kept(
        '--cfg-options', 'model.backbone.recompute_ffn=True') < whole


def test_images_are_padded_as_training_does_and_the_size_is_said(capsys):
    for shape in ('48', '64'):
        main([str(ROOT / 'configs/semfpn_simvit_micro_shapes.py'), '--shape', shape, shape, '--cfg-options',
              'model.data_preprocessor.size=64,64'])
    small, full = capsys.readouterr().out.split('48 x 48 pixels are padded to 64 x 64')[-1].split('semfpn')[1:]
    assert small == full
    assert '1 x 64 x 64 pixels' in small


def test_images_of_four_channels():
    cfg = Config.fromfile(ROOT / 'configs/semfpn_simvit_micro_shapes.py')
    cfg.model.backbone.in_channels = 4
    cfg.model.data_preprocessor.update(mean=[0.] * 4, std=[1.] * 4, bgr_to_rgb=False)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model)
        assert measure_training_memory(model, 'mmseg', 1, (64, 64)).saved_activations > 0
