"""Of the errors that docs/errors.md quotes, those that can be met here: they are so, and their cures cure."""
import importlib
import re

import mmcv.ops  # asks for its operators
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.registry import DATASETS, METRICS, MODELS, DefaultScope

from tests.conftest import ROOT, base_of, run

PAGE = ' '.join((ROOT / 'docs/errors.md').read_text().split())


@pytest.mark.parametrize('library', ['mmdet', 'mmseg', 'mmpretrain'])
def test_a_backbone_that_nothing_imported(library, tmp_path):
    model = "model = dict(type='SimViT', arch='micro')\n"
    (tmp_path / 'wrong.py').write_text(model)
    (tmp_path / 'cured.py').write_text("custom_imports = dict(imports=['mmsimvit'])\n" + model)
    out = run('-c', f'''
from mmengine.config import Config
from {library}.registry import MODELS
for name in ('wrong.py', 'cured.py'):
    try:
        print(type(MODELS.build(Config.fromfile(name).model)).__name__)
    except KeyError as error:
        print('KeyError:', error)  # as Python's last line has it
''', cwd=tmp_path)
    error, backbone = out.replace('`', '').strip().splitlines()[-2:]
    assert backbone == 'SimViT'
    if not hasattr(mmcv._ext, '__file__'):  # the libraries import mmsimvit, for its operators
        assert error == 'SimViT'
        return
    quoted = re.search(r"`(KeyError: 'SimViT is not in the mmdet::model registry\. .*?)'`", PAGE)[1]
    assert error.startswith(quoted.replace('mmdet::', f'{library}::'))
    assert f'{library}::model' in PAGE


def test_a_training_checkpoint_in_a_process_without_mmsimvit(tmp_path):
    torch.save(dict(history=HistoryBuffer([1.0], [1])), tmp_path / 'epoch_1.pth')
    load = "import torch; print(torch.load('epoch_1.pth').keys())"
    out = run('-c', load, cwd=tmp_path, code=1)
    for words in ('Weights only load failed. This file can still be loaded, to do so you have two options', 'weights_only'):
        assert words in out
        assert words in PAGE
    assert 'history' in run('-c', f'import mmsimvit; {load}', cwd=tmp_path)


HEADS = 'decode_head=dict(in_channels=[64, 128, 320, 512]), auxiliary_head=dict(in_channels=320)'


@pytest.mark.parametrize(('base', 'wrong', 'argument', 'cured'), [
    ('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py', "backbone=dict(type='SimViT')", 'depth',
     "backbone=dict(_delete_=True, type='SimViT'), neck=dict(in_channels=[64, 128, 320, 512])"),
    ('mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py', f"backbone=dict(_delete_=True, type='SimViT'), {HEADS}",
     'pretrained', f"pretrained=None, backbone=dict(_delete_=True, type='SimViT'), {HEADS}")])
def test_the_arguments_of_another_backbone(base, wrong, argument, cured, tmp_path):
    start = f"_base_ = '{base_of(base)}'\ncustom_imports = dict(imports=['mmsimvit'])\n"
    for name, model in dict(wrong=wrong, cured=cured).items():
        (tmp_path / f'{name}.py').write_text(f'{start}model = dict({model})')
    out = run('-c', '''
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
for name in ('wrong.py', 'cured.py'):
    cfg = Config.fromfile(name)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        try:
            print(type(MODELS.build(cfg.model).backbone).__name__)
        except TypeError as error:
            print(f'TypeError: {error}')
''', cwd=tmp_path)
    error, backbone = [line for line in out.splitlines() if 'SimViT' in line]
    assert error.startswith(f"TypeError: SimViT.__init__() got an unexpected keyword argument '{argument}'")
    assert f"'{argument}'" in PAGE
    assert error.split("'")[0] in PAGE
    assert backbone == 'SimViT'


def test_widths_of_another_backbone():
    with pytest.raises(RuntimeError) as error:
        torch.nn.Conv2d(256, 256, 1)(torch.zeros(1, 64, 200, 304))
    assert f'RuntimeError: {error.value}' in PAGE


def test_a_batch_of_one_image():
    head = Config.fromfile(ROOT / 'configs/upernet_simvit_micro_shapes.py').model.decode_head
    with DefaultScope.overwrite_default_scope('mmseg'):
        head = MODELS.build(head).train()
    maps = [torch.randn(2, channels, 32 // 2**stage, 32 // 2**stage) for stage, channels in enumerate(head.in_channels)]
    with pytest.raises(ValueError) as error:
        head([part[:1] for part in maps])
    assert str(error.value).split(', got')[0] in PAGE
    assert len(head(maps)) == 2


def test_an_argument_of_another_data_set(tmp_path):
    importlib.import_module('mmpretrain.datasets')
    with DefaultScope.overwrite_default_scope('mmpretrain'), pytest.raises(TypeError) as error:
        DATASETS.build(dict(type='CustomDataset', data_root=str(tmp_path), split='train'))
    assert str(error.value) in PAGE


def test_accuracies_beyond_the_classes():
    importlib.import_module('mmpretrain.evaluation')
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        wrong, cured = (METRICS.build(dict(type='Accuracy', topk=topk)) for topk in ((1, 5), (1, )))
    scores = dict(pred_score=torch.tensor([0.2, 0.3, 0.5]), gt_label=torch.tensor([2]))
    with pytest.raises(ValueError) as error:
        wrong.compute_metrics([scores])
    assert f'ValueError: {error.value}'.replace('`', '') in PAGE
    assert cured.compute_metrics([scores]) == {'top1': 100.}
