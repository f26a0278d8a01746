import json

import numpy as np
import pytest
from PIL import Image

from mmsimvit.engine.pictures import draw_curves, read_scalars


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
