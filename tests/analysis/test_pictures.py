import json

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from mmsimvit.analysis.pictures import (
    draw_classifications,
    draw_curves,
    draw_detections,
    draw_segmentations,
    read_scalars,
    validation_scores,
)
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


def test_scores_are_on_one_scale():
    """MMSegmentation and MMPreTrain give percentages, MMDetection fractions."""
    records = [dict(loss=2.0, step=1), {'coco/bbox_mAP': 0.25, 'coco/bbox_mAP_s': 0.1, 'step': 1}, {'mIoU': 25.0, 'step': 1},
               {'accuracy/top1': 75.0, 'step': 2}, {'coco/bbox_mAP': 0.5, 'step': 2}]
    assert validation_scores(records) == {'coco/bbox_mAP': {1: 0.25, 2: 0.5}, 'mIoU': {1: 0.25}, 'accuracy/top1': {2: 0.75}}


def untrained(name, tmp_path):
    """A config on the small generated data set, and a checkpoint of it with random weights."""
    config = tmp_path / 'config.py'
    config.write_text(f'_base_ = {str(ROOT / "configs" / name)!r}\n'
                      f'val_dataloader = test_dataloader = dict(dataset=dict(**{SETTINGS!r}))\n')
    cfg = Config.fromfile(config)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), tmp_path / 'untrained.pth')
    return config, tmp_path / 'untrained.pth'


def test_ground_truth_is_drawn_beside_predictions(workspace, tmp_path, monkeypatch):
    """Three images in two columns; an untrained detector finds nothing, so that the right side is the image alone."""
    monkeypatch.chdir(workspace)
    draw_detections(*untrained('maskrcnn_simvit_micro_shapes.py', tmp_path), tmp_path / 'out.png', height=128, score_thr=0.999)
    drawn = np.asarray(Image.open(tmp_path / 'out.png')).astype(int)
    assert drawn.shape == (2 * (128 + 8), 2 * (2 * 128 + 12), 3)
    truth, found = drawn[4:132, 4:132], drawn[4:132, 136:264]
    mask = np.asarray(Image.open('data/shapes/annotations/validation/000000.png').resize((128, 128), 0)) > 0
    changed = np.abs(truth - found).max(-1) > 10
    assert changed[mask].mean() > 0.5
    image = np.asarray(Image.open('data/shapes/images/validation/000000.png').resize((128, 128), 0)).astype(int)
    # In means of 16 x 16 pixels, for matplotlib before 3.11 moves parts of an image by up to three pixels.
    found, image = (pixels.reshape(8, 16, 8, 16, 3).mean((1, 3)) for pixels in (found, image))
    assert np.abs(found - image).mean() < 8
    assert (drawn[140:, 272:] == 255).all()  # no fourth image


def test_label_maps_are_drawn_beside_one_another(workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(workspace)
    draw_segmentations(*untrained('semfpn_simvit_micro_shapes.py', tmp_path), tmp_path / 'out.png', height=64)
    drawn = np.asarray(Image.open(tmp_path / 'out.png')).astype(int)
    assert drawn.shape[1:] == (2 * (2 * 64 + 12), 3)
    labels = np.asarray(Image.open('data/shapes/annotations/validation/000000.png'))
    image = np.asarray(Image.open('data/shapes/images/validation/000000.png').convert('L')).astype(int)[..., None]
    assert labels.max() > 0
    palette = Config.fromfile(ROOT / 'configs/semfpn_simvit_micro_shapes.py').metainfo.palette
    expected = 0.4 * image + 0.6 * np.array(palette)[labels]
    assert np.abs(drawn[4:68, 4:68] - expected).max() <= 2
    assert np.abs(drawn[4:68, 72:136] - expected).max() > 20  # random weights see something else
    legend = {tuple(colour) for colour in drawn[2 * (64 + 8):].reshape(-1, 3)}
    assert {tuple(colour) for colour in palette} <= legend


def test_classes_are_written_over_images(workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(workspace)
    draw_classifications(*untrained('simvit_micro_shapes.py', tmp_path), tmp_path / 'out.png', num_images=6, columns=3)
    drawn = np.asarray(Image.open(tmp_path / 'out.png').convert('RGB')).astype(int)
    assert np.abs(np.subtract(drawn.shape, (408, 504, 3))).max() <= 2  # matplotlib's versions round differently
    red = np.abs(drawn - (214, 39, 40)).sum(-1) < 40
    assert red.sum() > 100  # six classes, one image of each: random weights are wrong somewhere
