import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from mmsimvit.engine.pictures import draw_curves, draw_detections, read_scalars
from tests.conftest import ROOT, SETTINGS


def log(work_dir, run, records):
    folder = work_dir / run / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join(map(json.dumps, records)))


def test_curves_go_on_over_a_resumed_run(tmp_path):
    log(tmp_path, '20260101_000000', [dict(loss=2.0, step=1), dict(loss=1.5, step=2), {'coco/bbox_mAP': 0.1, 'step': 1}])
    log(tmp_path, '20260102_000000', [dict(loss=1.4, step=2), dict(loss=1.0, step=3), {'coco/bbox_mAP': 0.3, 'step': 2}])
    assert [record['step'] for record in read_scalars(tmp_path)] == [1, 2, 1, 2, 3, 2]
    draw_curves(tmp_path, tmp_path / 'curves.png')
    drawn = np.asarray(Image.open(tmp_path / 'curves.png').convert('RGB'))
    assert drawn.shape == (420, 1080, 3)
    assert (drawn != 255).any(-1)[:, 600:].mean() > 0.01  # the right half has a curve too


def test_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(ValueError, match=r'no loss was logged in .*scalars.json'):
        draw_curves(tmp_path, tmp_path / 'curves.png')


def test_a_log_cut_in_its_last_line_is_read(tmp_path):
    log(tmp_path, '20260101_000000', [dict(loss=2.0, step=1)])
    with open(tmp_path / '20260101_000000/vis_data/scalars.json', 'a') as file:
        file.write('\n{"loss": 1.')
    assert read_scalars(tmp_path) == [dict(loss=2.0, step=1)]


def test_ground_truth_is_drawn_beside_predictions(workspace, tmp_path, monkeypatch):
    """Three images in two columns; an untrained detector finds nothing, so that the right side is the image alone."""
    monkeypatch.chdir(workspace)
    config = tmp_path / 'config.py'
    config.write_text(f'_base_ = {str(ROOT / "configs/maskrcnn_simvit_micro_shapes.py")!r}\n'
                      f'val_dataloader = test_dataloader = dict(dataset=dict(**{SETTINGS!r}))\n')
    cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), tmp_path / 'untrained.pth')
    draw_detections(config, tmp_path / 'untrained.pth', tmp_path / 'out.png', height=128)
    drawn = np.asarray(Image.open(tmp_path / 'out.png')).astype(int)
    assert drawn.shape == (2 * (128 + 8), 2 * (2 * 128 + 12), 3)
    truth, found = drawn[4:132, 4:132], drawn[4:132, 136:264]
    mask = np.asarray(Image.open('data/shapes/annotations/validation/000000.png').resize((128, 128), 0)) > 0
    changed = np.abs(truth - found).max(-1) > 10
    assert changed[mask].mean() > 0.5
    image = np.asarray(Image.open('data/shapes/images/validation/000000.png').resize((128, 128), 0)).astype(int)
    assert np.abs(found - image).mean() < 5
    assert (drawn[140:, 272:] == 255).all()  # no fourth image
