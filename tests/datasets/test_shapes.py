import hashlib
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from mmsimvit import DataError, generate_shapes
from mmsimvit.datasets import shapes
from mmsimvit.datasets.shapes import CLASSES, draw_object, draw_scene, run_lengths

SETTINGS = dict(num_training=12, num_validation=10, image_size=64)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return generate_shapes(tmp_path_factory.mktemp('data') / 'shapes', **SETTINGS)


def test_same_seed_same_pixels_on_any_machine():
    """Stored when the generator was written; another value means another data set, which needs another VERSION."""
    digest = hashlib.sha256()
    for number in range(5):
        image, labels, masks = draw_scene(np.random.RandomState([0, 0, number]), 128)
        digest.update(image.tobytes() + bytes(labels) + b''.join(mask.tobytes() for mask in masks))
    digest.update(draw_object(np.random.RandomState([0]), 64, 3).tobytes())
    assert digest.hexdigest() == '4e4d56f3042c25707f54e5633f890e79788cbe37f8d8b3303410ada3e9f5fa97'


def test_another_seed_gives_other_pixels():
    scenes = [draw_scene(np.random.RandomState([seed, 0, 0]), 64)[0] for seed in (0, 1)]
    assert not np.array_equal(*scenes)


def test_the_layouts_agree_to_the_pixel(root):
    for split in ('training', 'validation'):
        coco = COCO(root / f'annotations/instances_{split}.json')
        assert len(coco.imgs) == SETTINGS[f'num_{split}']
        assert [category['name'] for category in coco.cats.values()] == list(CLASSES)
        for image in coco.imgs.values():
            semantic = np.zeros((64, 64), np.uint8)
            for annotation in coco.imgToAnns[image['id']]:
                mask = coco.annToMask(annotation).astype(bool)
                rows, cols = np.nonzero(mask)
                assert not semantic[mask].any()  # visible pixels belong to one object
                semantic[mask] = annotation['category_id']
                assert annotation['area'] == mask.sum()
                assert annotation['bbox'] == [cols.min(), rows.min(), np.ptp(cols) + 1, np.ptp(rows) + 1]
            assert np.array_equal(semantic, np.asarray(Image.open(root / 'annotations' / split / image['file_name'])))
            assert Image.open(root / 'images' / split / image['file_name']).size == (64, 64)
        for name in CLASSES:
            assert len(list((root / 'classification' / split / name).glob('*.png'))) == dict(training=6, validation=5)[split]


def test_masks_are_the_painted_pixels(monkeypatch):
    """What each shape painted, less what later ones painted over it, is its mask; the rest is background."""
    painted = []
    paint = shapes._paint

    def paint_and_compare(random, image, mask):
        before = image.copy()
        paint(random, image, mask)
        painted.append((before != image).any(-1))

    monkeypatch.setattr(shapes, '_paint', paint_and_compare)
    for number in range(20):
        painted.clear()
        _, _, masks = draw_scene(np.random.RandomState([7, 0, number]), 96)
        assert len(painted) == len(masks)
        for index, mask in enumerate(masks):
            covered = np.any(painted[index + 1:], axis=0) if index + 1 < len(masks) else np.zeros_like(mask)
            # Grain may give a pixel the very value that it had, so of a thousand a few are not seen to change.
            assert not (painted[index] & ~covered & ~mask).any()
            assert (mask & ~painted[index]).mean() < 0.001


def test_objects_keep_half_of_their_pixels_and_vary_in_size():
    areas, counts = [], set()
    for number in range(200):
        _, labels, masks = draw_scene(np.random.RandomState([3, 0, number]), 128)
        counts.add(len(labels))
        areas += [mask.sum() for mask in masks]
    assert counts == {1, 2, 3, 4, 5}
    assert np.min(areas) >= 40
    assert np.max(areas) > 30 * np.min(areas)


@pytest.mark.parametrize('mask', [[[0, 0], [0, 0]], [[1, 1], [1, 1]], [[0, 1], [1, 1]], [[1, 0], [0, 1]]])
def test_run_lengths_are_cocos(mask):
    from pycocotools import mask as coco_mask
    mask = np.array(mask, bool)
    rle = coco_mask.frPyObjects(dict(size=[2, 2], counts=run_lengths(mask)), 2, 2)
    assert np.array_equal(coco_mask.decode(rle), mask)


def test_a_second_use_writes_nothing(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
    assert generate_shapes(root, **SETTINGS) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob('*')} == before


def test_other_settings_are_refused(root):
    with pytest.raises(DataError, match=r"shapes should hold .*'seed': 1.* but holds .*'seed': 0.*move it away"):
        generate_shapes(root, **SETTINGS, seed=1)
    with pytest.raises(DataError, match='but holds something else'):
        generate_shapes(root / 'images')
    with pytest.raises(ValueError, match='image_size must be at least 32'):
        generate_shapes(root, image_size=16)


def test_an_interrupted_generation_leaves_nothing_that_looks_whole(tmp_path):
    """Killed while writing, so that no clean-up runs; the next use makes the data set as if nothing had been."""
    code = f'''
import os, signal
from mmsimvit.datasets import shapes
draw, drawn = shapes.draw_scene, []
def draw_and_die(*arguments):
    drawn.append(1)
    if len(drawn) == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return draw(*arguments)
shapes.draw_scene = draw_and_die
shapes.generate_shapes({str(tmp_path / "shapes")!r}, **{SETTINGS!r})
'''
    assert subprocess.run([sys.executable, '-c', code], capture_output=True).returncode == -9
    assert not (tmp_path / 'shapes').exists()
    assert json.loads((generate_shapes(tmp_path / 'shapes', **SETTINGS) / 'shapes.json').read_text())['num_training'] == 12


def test_an_error_in_a_generation_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr('mmsimvit.datasets.shapes.draw_object', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate_shapes(tmp_path / 'shapes', **SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_old_leftovers_are_removed_and_nothing_else(tmp_path):
    for name, age in (('.shapes-a.unfinished', 2 * 86400), ('.shapes-b.unfinished', 60), ('.shapes-backup', 2 * 86400)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age, ) * 2)
    generate_shapes(tmp_path / 'shapes', **SETTINGS)
    assert {path.name for path in tmp_path.iterdir()} == {'shapes', '.shapes-b.unfinished', '.shapes-backup'}
