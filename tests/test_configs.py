"""Every config in configs/ builds a model that takes a training step."""
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

from mmsimvit.datasets import CLASSES
from tests.conftest import ROOT, SETTINGS

CONFIGS = sorted(path.relative_to(ROOT) for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts)


@pytest.mark.parametrize('path', CONFIGS, ids=str)
def test_takes_a_training_step_on_real_masks(path, workspace, monkeypatch):
    """The config's model, losses, pipeline and optimizer, on generated images in place of its data."""
    monkeypatch.chdir(workspace)
    cfg = Config.fromfile(ROOT / path)
    cfg.model.backbone.init_cfg = None
    loader = cfg.train_dataloader
    dataset = loader.dataset.dataset if loader.dataset.type == 'Shapes' else loader.dataset
    shapes = Config.fromfile(ROOT / 'configs/_base_/datasets/shapes_instance.py').train_dataloader.dataset.dataset
    dataset.update({key: shapes[key] for key in ('data_root', 'ann_file', 'data_prefix')})
    dataset.metainfo = dict(classes=CLASSES[:cfg.model.roi_head.bbox_head.num_classes])
    for step in dataset.pipeline:
        if step.type == 'Resize':
            step.scale = (96, 96)
    loader.dataset = dict(type='Shapes', root='data/shapes', dataset=dataset, **SETTINGS)
    loader.update(batch_size=2, num_workers=0, persistent_workers=False)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        model.init_weights()
        optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        batch = next(iter(Runner.build_dataloader(loader, seed=0)))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = model.train_step(batch, optim_wrapper)
    assert {'loss', 'loss_rpn_cls', 'loss_bbox', 'loss_mask'} <= set(losses)
    assert np.isfinite(losses['loss'].item())
    unchanged = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert [name for name in unchanged if name.startswith(('backbone', 'neck'))] == []


@pytest.mark.parametrize('path', CONFIGS, ids=str)
def test_neck_takes_the_channels_that_the_backbone_gives(path):
    cfg = Config.fromfile(ROOT / path)
    cfg.model.backbone.init_cfg = None
    with torch.device('meta'):
        backbone = MODELS.build(cfg.model.backbone)
    assert tuple(cfg.model.neck.in_channels) == backbone.out_channels
    assert cfg.auto_scale_lr.base_batch_size > 0


def test_coco_recipe_is_the_published_1x():
    cfg = Config.fromfile(ROOT / 'configs/maskrcnn_simvit_t_coco.py')
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=1e-4)
    assert cfg.train_cfg.max_epochs == 12
    assert [step.type for step in cfg.param_scheduler] == ['LinearLR', 'MultiStepLR']
    assert cfg.param_scheduler[0].start_factor == 0.001 and cfg.param_scheduler[0].end == 500
    assert cfg.param_scheduler[1].milestones == [8, 11]
    assert cfg.train_dataloader.dataset.pipeline[2].scale == (1333, 800)
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=16)
    assert cfg.model.backbone == dict(
        type='SimViT', arch='tiny', init_cfg=dict(type='Pretrained', checkpoint='checkpoints/simvit_tiny.pth'))
