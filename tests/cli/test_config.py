"""What the command lines make of a config."""

import pytest
import torch
from mmengine.registry import MODELS

from mmsimvit import ConfigError, find_config
from mmsimvit.cli.config import CLASSES_HOOK, MATCH_HOOK, NON_FINITE_LOSS_HOOK, RESEED_HOOK
from mmsimvit.cli.train import configure, parse_args
from tests.conftest import ROOT

OURS = [MATCH_HOOK, CLASSES_HOOK, RESEED_HOOK, NON_FINITE_LOSS_HOOK]
CONFIG = ROOT / 'configs/maskrcnn_simvit_micro_shapes.py'


def test_the_config_of_a_work_dir_serves_again(tmp_path):
    """It holds the hook that the first run added; hooks of the user stay, and none at all is fine."""
    cfg = configure(parse_args([str(CONFIG), '--work-dir', str(tmp_path)]))
    cfg.custom_hooks.append(dict(type='EmptyCacheHook'))
    cfg.dump(tmp_path / 'again.py')
    again = configure(parse_args([str(tmp_path / 'again.py')]))
    assert [hook.type for hook in again.custom_hooks] == [*OURS, 'EmptyCacheHook']
    (tmp_path / 'none.py').write_text(f'_base_ = {str(CONFIG)!r}\ncustom_hooks = None\n')
    assert [hook.type for hook in configure(parse_args([str(tmp_path / 'none.py')])).custom_hooks] == OURS


def test_mmpretrain_gets_the_collation_that_its_tools_add(tmp_path):
    (tmp_path / 'cls.py').write_text("default_scope = 'mmpretrain'\ntrain_dataloader = dict(batch_size=2)\n")
    cfg = configure(parse_args([str(tmp_path / 'cls.py')]))
    assert cfg.train_dataloader.collate_fn.type == 'default_collate'


@pytest.mark.parametrize(('option', 'reason'), [
    ('lr=3', 'there is no setting lr'), ('optim_wraper.optimizer.lr=3', 'there is no setting optim_wraper'),
    ('max_epochs=3', 'max_epochs is a variable of the config file, and what the file made of it stays')])
def test_an_option_that_nothing_reads_is_refused(option, reason):
    with pytest.raises(ConfigError, match=f'^--cfg-options {option} would change nothing: {reason}; name .*optimizer.lr'):
        configure(parse_args([find_config('retinanet_simvit_micro_custom'), '--cfg-options', option]))


@pytest.mark.parametrize(('option', 'meant'), [
    ('train_dataloader.batchsize=2', 'batchsize; did you mean batch_size'),
    ('train_cfg.max_epoch=2', 'max_epoch; did you mean max_epochs'),
    ('model.Backbone.arch=tiny', 'Backbone; did you mean backbone')])
def test_an_option_that_is_misspelt_names_the_one_meant(option, meant):
    with pytest.raises(ConfigError, match=f'^--cfg-options {option}: there is no {meant}\\?$'):
        configure(parse_args([find_config('retinanet_simvit_micro_custom'), '--cfg-options', option]))


@pytest.mark.parametrize(('name', 'arch'), [('retinanet_simvit_micro_custom', 'micro'), ('maskrcnn_simvit_t_coco', 'tiny')])
def test_weights_of_the_command_line_also_where_the_config_has_none(name, arch, tmp_path):
    torch.save(MODELS.build(dict(type='SimViT', arch=arch)).state_dict(), tmp_path / 'my.pth')
    cfg = configure(parse_args([find_config(name), '--cfg-options', f'model.backbone.init_cfg.checkpoint={tmp_path}/my.pth']))
    assert cfg.model.backbone.init_cfg == dict(type='Pretrained', checkpoint=f'{tmp_path}/my.pth')


def test_nothing_can_be_set_in_none():
    with pytest.raises(ConfigError, match='^--cfg-options model.backbone.init_cfg.typ=a: init_cfg is None in the config, '):
        configure(parse_args([find_config('retinanet_simvit_micro_custom'), '--cfg-options', 'model.backbone.init_cfg.typ=a']))


def test_bfloat16_leaves_roi_features_in_float32(monkeypatch):
    """For which MMCV has no RoIAlign; boxes in 8 bits would be off by pixels as well."""
    monkeypatch.setattr('mmsimvit.cli.train.is_cuda_available', lambda: True)
    cfg = configure(parse_args([str(CONFIG), '--amp', '--amp-dtype', 'bfloat16']))
    extractor = MODELS.build(cfg.model.roi_head.bbox_roi_extractor)
    features = [torch.randn(1, 64, 32 // 2**level, 32 // 2**level) for level in range(4)]
    rois = torch.tensor([[0, 3.3, 5.7, 90.1, 101.9]])
    with torch.autocast('cpu', torch.bfloat16):
        found = extractor([x.bfloat16() for x in features], rois)
        exact = extractor(features, rois)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, rtol=0, atol=0.02)
    float16 = configure(parse_args([str(CONFIG), '--amp']))
    assert float16.model.roi_head.bbox_roi_extractor.type == 'SingleRoIExtractor'


@pytest.mark.parametrize(('option', 'message'), [
    ('train_dataloader.batch_size=0', 'batch_size of a data loader is 0; it must be a whole number, 1 or more'),
    ('val_dataloader.batch_size=2.5', 'batch_size of a data loader is 2.5; it must'),
    ('train_dataloader.num_workers=-1', 'num_workers of a data loader is -1; it must be a whole number, 0 or more')])
def test_numbers_of_a_data_loader(option, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        configure(parse_args([str(CONFIG), '--work-dir', str(tmp_path), '--cfg-options', option]))


def test_no_workers_are_not_kept(tmp_path):
    """To debug, or on Windows; torch refuses to keep workers that are not there."""
    cfg = configure(parse_args([str(CONFIG), '--cfg-options', 'train_dataloader.num_workers=0', '--work-dir', str(tmp_path)]))
    assert 'persistent_workers' not in cfg.train_dataloader
    assert cfg.val_dataloader.persistent_workers
