"""Images that are made worse, and test pipelines of other sizes."""
import numpy as np
import pytest
from mmengine.config import Config

from mmsimvit.compare.stress import CORRUPTIONS, Corrupt, conditions, under


@pytest.fixture
def image():
    """A gradient with an edge, not near black or white."""
    picture = np.full((64, 96, 3), 100, np.uint8)
    picture[:, 48:] = (60, 150, 190)
    picture[20:40] += np.arange(20, dtype=np.uint8)[:, None, None]
    return picture


def corrupt(image, kind, severity, name='a.png'):
    return Corrupt(kind, severity)(dict(img=image.copy(), img_path=f'/folder/{name}'))['img']


@pytest.mark.parametrize('kind', CORRUPTIONS)
def test_a_higher_severity_is_worse(kind, image):
    off = [np.abs(corrupt(image, kind, severity).astype(float) - image).mean() for severity in range(1, 6)]
    assert off[0] > 0.2 and off[-1] > off[0]
    assert off == sorted(off) or kind == 'fog'  # which also grows coarser
    found = corrupt(image, kind, 3)
    assert found.dtype == np.uint8 and found.shape == image.shape
    assert (found == corrupt(image, kind, 3)).all()  # the same for each backbone


def test_corruptions_by_hand(image):
    flat = np.full((200, 200, 3), 128, np.uint8)
    noise = corrupt(flat, 'noise', 1).astype(float) - 128
    assert noise.std() == pytest.approx(0.08 * 255, rel=0.02)
    assert (corrupt(flat, 'noise', 1, 'b.png') != noise + 128).any()  # another image has other noise
    low = corrupt(image, 'contrast', 2).astype(float)
    np.testing.assert_allclose(low.std((0, 1)), 0.3 * image.astype(float).std((0, 1)), rtol=0.05)
    np.testing.assert_allclose(low.mean((0, 1)), image.mean((0, 1)), atol=0.5)
    assert (corrupt(flat, 'blur', 5) == flat).all()


def test_conditions_change_the_pipeline_of_the_test():
    pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(128, 96)), dict(type='PackSegInputs')]
    cfg = Config(dict(test_dataloader=dict(dataset=dict(pipeline=pipeline)), test_evaluator=dict(out_file='records.npz')))
    larger = under(cfg, 'other.npz', factor=1.5)
    assert larger.test_dataloader.dataset.pipeline[1].scale == (192, 144)
    assert larger.test_evaluator.out_file == 'other.npz'
    worse = under(cfg, 'other.npz', kind='fog', severity=4)
    assert [step.type.split('.')[-1] for step in worse.test_dataloader.dataset.pipeline] == [
        'LoadImageFromFile', 'Corrupt', 'Resize', 'PackSegInputs']
    cfg.test_dataloader.dataset.pipeline.pop(1)
    assert under(cfg, '', factor=0.5).test_dataloader.dataset.pipeline[1] == dict(
        type='Resize', scale_factor=0.5, keep_ratio=True)
    assert len(cfg.test_dataloader.dataset.pipeline) == 2
    assert list(conditions([0.5, 2], [3])) == ['size 0.5', 'size 2', 'noise 3', 'blur 3', 'contrast 3', 'fog 3', 'JPEG 3']
