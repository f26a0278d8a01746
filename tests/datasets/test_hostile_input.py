"""Hostile and broken data: what is trained on, what is left out with a warning that counts it, and what is refused with the
file's name and the reason."""
import io
import logging
import re

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from PIL import Image

from mmsimvit import DataError
from mmsimvit.datasets import check_data, check_pipelines
from mmsimvit.datasets.checked_pipeline import CheckedPipeline
from tests.conftest import ROOT, run
from tests.own_data import edit, own_segmentation_config, user_config

ANNOTATIONS = 'annotations/instances_train.json'


def load(config, split='train'):
    """Everything that a training would see of a split: the samples, after the checks before it."""
    cfg = Config.fromfile(config)
    check_data(cfg, (split, ))
    loader = cfg[f'{split}_dataloader']
    loader.update(num_workers=0, persistent_workers=False)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        built = Runner.build_dataloader(loader, seed=0)
        check_pipelines(built.dataset)
        return [sample for batch in built for sample in batch['data_samples']]


def jpeg(mode='RGB'):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    content = io.BytesIO()
    noise.convert(mode).save(content, 'JPEG')
    return content.getvalue()


def png(pixels):
    return cv2.imencode('.png', pixels)[1].tobytes()


def first(part='annotations', **changes):
    """An edit of the first annotation, or image, of the training set."""
    return lambda root: edit(root, lambda coco: coco[part][0].update(changes))


def image(content, width=64, height=64):
    """An edit that puts these bytes in the place of the first image, and where its size is another, one box over all of it."""
    def change(coco):
        if (width, height) != (64, 64):
            coco['images'][0].update(width=width, height=height)
            _, *others = [item for item in coco['annotations'] if item['image_id'] == coco['images'][0]['id']]
            coco['annotations'] = [item for item in coco['annotations'] if item not in others]
            coco['annotations'][0].update(bbox=[0, 0, width, height], area=width * height,
                                          segmentation=[[0, 0, width, 0, width, height, 0, height]])

    def replace(root):
        (root / 'train/000000.png').write_bytes(content)
        edit(root, change)
    return replace


def sparse_ids(root):
    def change(coco):
        for item in coco['categories']:
            item['id'] = item['id'] * 17 + 3
        for item in coco['annotations']:
            item['category_id'] = item['category_id'] * 17 + 3
    edit(root, change)


def without(key):
    return lambda root: edit(root, lambda coco: coco['annotations'][0].pop(key))


def duplicate_image(root):
    edit(root, lambda coco: coco['images'][1].update(id=coco['images'][0]['id']))


TRAINED = {
    '16-bit image': image(png(np.full((64, 64, 3), 40000, np.uint16))),
    '16-bit grey image': image(png(np.full((64, 64), 40000, np.uint16))),
    'CMYK image': image(jpeg('CMYK')),
    'grey image': image(jpeg('L')),
    'image with transparency': image(png(np.zeros((64, 64, 4), np.uint8))),
    'image of one pixel': image(png(np.zeros((1, 1, 3), np.uint8)), width=1, height=1),
    'category ids with gaps': sparse_ids,
}
LEFT_OUT = {
    'box outside of the image': (first(bbox=[100, 100, 5, 5]), r'1 of \d+ annotations in .*, with boxes outside.*: 1'),
    'box without area': (first(bbox=[1, 1, 0, 5]), r'1 of \d+ annotations in .*, with boxes outside.*: 1'),
    'polygon of two points': (first(segmentation=[[1, 1, 9, 9]]), r'1 of \d+ annotations in .*, whose masks have no polygon'),
    'box without area and without mask': (first(bbox=[1, 1, 0, 0], segmentation=[]), r'1 of \d+ .*, with boxes outside.*: 1'),
    'annotation of no image': (first(image_id=999), r'1 of \d+ annotations in .*, of no image: 1'),
}
REFUSED = {
    'JPEG cut short': (image(jpeg()[:1000]), r'image .*train/000000.png cannot be decoded, it may be cut short'),
    'PNG cut short': (image(png(np.zeros((64, 64, 3), np.uint8))[:60]), r'image .*train/000000.png cannot be decoded'),
    'no image': (image(b'no image'), r'image .*train/000000.png cannot be decoded'),
    'file of no bytes': (image(b''), r'image .*train/000000.png of .* is empty \(1 of 8 are\)'),
    'thin image': (image(png(np.zeros((1, 5000, 3), np.uint8)), width=5000, height=1), r'image .*train/000000.png is so thin'),
    'box of no number': (first(bbox=[float('nan'), 1, 5, 5]), r'annotation 1 of .*000000.png\) has the box \[nan, 1, 5, 5\]'),
    'infinite box': (first(bbox=[1, 1, float('inf'), 5]), r'annotation 1 of .* has the box \[1, 1, inf, 5\]'),
    'box of three numbers': (first(bbox=[1, 1, 5]), r'annotation 1 of .* has the box \[1, 1, 5\]'),
    'run lengths of another size': (first(segmentation=dict(size=[32, 32], counts=[0, 1024])),
                                    r'mask of annotation 1 of .* is of \[32, 32\] pixels.*image of \[64, 64\]'),
    'polygon of no number': (first(segmentation=[[1, 1, 5, float('nan'), 9, 9]]), r'mask of annotation 1 of .*finite numbers'),
    'two images of one id': (duplicate_image, r'images 000000.png and 000001.png of .* have the same id'),
    'image of no width': (first('images', width=None), r'000000.png of .* has the width None and height 64; they must be'),
    'annotation without area': (without('area'), r"annotation 1 of .* has no 'area'; add it"),
    'area of no number': (first(area=None), r'annotation 1 of .* has the area None; it must be a finite number'),
    'two annotations of one id': (lambda root: edit(root, lambda coco: coco['annotations'][1].update(id=1)),
                                  r'two annotations of .* have the id 1'),
    'image without size': (lambda root: edit(root, lambda coco: coco['images'][0].pop('width')),
                           r'000000.png of .* has no .width'),
    'empty object': (lambda root: (root / ANNOTATIONS).write_text('{}'), r'no list of images, annotations'),
    'empty file': (lambda root: (root / ANNOTATIONS).write_text(''), r'instances_train.json is no JSON'),
}


@pytest.mark.parametrize('case', TRAINED)
def test_trained_on(case, own, tmp_path, caplog):
    TRAINED[case](own)
    samples = load(user_config(tmp_path))
    assert {sample.img_id for sample in samples} == set(range(8)), 'no image is left out'
    assert {label for sample in samples for label in sample.gt_instances.labels.tolist()} <= set(range(6))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize('case', LEFT_OUT)
def test_left_out_with_a_warning_that_counts(case, own, tmp_path, capsys):
    damage, message = LEFT_OUT[case]

    def trained(samples):
        return sum(len(sample.gt_instances) for sample in samples)

    whole = trained(load(user_config(tmp_path)))
    capsys.readouterr()
    damage(own)
    assert trained(load(user_config(tmp_path))) == whole - 1
    warning, = [line for line in capsys.readouterr().out.splitlines() if 'left out' in line]
    assert re.search(message, warning)


@pytest.mark.parametrize('case', REFUSED)
def test_refused_with_file_and_reason(case, own, tmp_path):
    damage, message = REFUSED[case]
    damage(own)
    with pytest.raises(DataError, match=message) as error:
        load(user_config(tmp_path))
    assert '\n' not in str(error.value)


def test_an_evaluation_takes_two_points_for_a_box(own, tmp_path, capsys):
    edit(own, lambda coco: coco['annotations'][0].update(segmentation=[[1, 1, 9, 9]]), 'val')
    assert len(load(user_config(tmp_path), 'val')) == 3
    assert re.search(r'1 of \d+ masks in .*instances_val.json begin with a polygon of two points', capsys.readouterr().out)
    edit(own, lambda coco: coco['annotations'][0].update(segmentation=[[1, 1]]), 'val')
    with pytest.raises(DataError, match=r'mask of annotation 1 of .*instances_val.json .* begins with a polygon of 2 numbers'):
        load(user_config(tmp_path), 'val')


def test_spaces_and_letters_of_all_kinds_in_a_folder_name(own, tmp_path):
    folder = tmp_path / 'größe 大小 и ещё'
    folder.mkdir()
    own.rename(folder / 'own')
    assert len(load(user_config(folder))) == 8


@pytest.fixture
def masks(workspace, tmp_path):
    """The config for the generated images as one's own label maps, and the folder of these."""
    return own_segmentation_config(workspace, tmp_path), tmp_path / 'own/ann_dir/train'


def flip(content):
    """A PNG whose pixels are damaged, and no longer what their checksum says."""
    return content[:60] + bytes(255 - byte for byte in content[60:90]) + content[90:]


BAD_MASKS = {
    'value without a class': (png(np.full((64, 64), 9, np.uint8)),
                              r'label map .*train/000000.png has the value 9, but there are 7 classes, from 0 to 6, and 255'),
    'values beyond 8 bits': (png(np.full((64, 64), 300, np.uint16)), r'label map .*000000.png has pixels of the kind I;16'),
    'colours': (png(np.zeros((64, 64, 3), np.uint8)), r'label map .*000000.png has pixels of the kind RGB.*turned into'),
    'no image': (b'no image', r'label map .*train/000000.png cannot be read as an image'),
    'no bytes': (b'', r'label map .*train/000000.png cannot be read as an image'),
    'cut short': (png(np.random.default_rng(0).integers(0, 7, (64, 64), dtype=np.uint8))[:900],
                  r'label map .*train/000000.png cannot be decoded'),
    'bytes turned over': (flip(png(np.random.default_rng(0).integers(0, 7, (64, 64), dtype=np.uint8))),
                          r'image .*000000.png with label map .*train/000000.png cannot be read \(OSError: '),
    'another size': (png(np.zeros((64, 16), np.uint8)), r'label map .*train/000000.png'),
}


@pytest.mark.parametrize('case', BAD_MASKS)
def test_label_maps_are_refused_with_file_and_reason(case, masks):
    config, folder = masks
    content, message = BAD_MASKS[case]
    assert len(load(config)) == 8
    (folder / '000000.png').write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(config)


def test_label_maps_with_a_palette_or_ignored_pixels_are_trained_on(masks):
    config, folder = masks
    with Image.open(folder / '000000.png') as image:
        image.convert('P').save(folder / '000000.png')
    (folder / '000001.png').write_bytes(png(np.full((64, 64), 255, np.uint8)))
    (folder / '000002.png').write_bytes(png(np.full((64, 64), 3, np.uint16)))
    (folder / 'of_no_image.png').write_bytes(png(np.zeros((64, 64, 3), np.uint8)))
    assert len(load(config)) == 8


def test_zeros_that_are_none_here_and_a_class_there_are_no_fault_of_the_image(masks):
    config, _ = masks
    found, other = "dict(type='LoadAnnotations')", "dict(type='LoadAnnotations', reduce_zero_label=True)"
    config.write_text(config.read_text().replace(found, other))
    with pytest.raises(DataError, match='give the data set and .* the same reduce_zero_label') as error:
        load(config)
    assert 'replace it' not in str(error.value)


def test_a_wrong_setting_of_a_transform_is_not_blamed_on_the_image_alone(tmp_path):
    (tmp_path / 'a.png').write_bytes(png(np.zeros((64, 64, 3), np.uint8)))
    with DefaultScope.overwrite_default_scope('mmdet'):
        steps = Compose([dict(type='LoadImageFromFile'), dict(type='Resize', scale=[32, 32], keep_ratio=True)])
    with pytest.raises(DataError, match=rf'^Resize fails with image {tmp_path}/a.png \(TypeError: Scale must be .* tuple of '
                                        r'int, .*\); if it does so with others, too, the pipeline, '):
        CheckedPipeline(steps, None, 255)(dict(img_path=str(tmp_path / 'a.png')))


def test_a_size_of_nothing_is_no_fault_of_the_image(tmp_path):
    (tmp_path / 'a.png').write_bytes(png(np.zeros((64, 64, 3), np.uint8)))
    with DefaultScope.overwrite_default_scope('mmseg'):
        steps = Compose([dict(type='LoadImageFromFile'), dict(type='Resize', scale=(0, 0))])
    with pytest.raises(DataError, match=rf'^Resize fails with image {tmp_path}/a.png \(error: OpenCV'):
        CheckedPipeline(steps, None, 255)(dict(img_path=str(tmp_path / 'a.png'), seg_fields=[]))


def test_colours_for_some_classes_alone(masks, tmp_path):
    config, _ = masks
    config.write_text(config.read_text().replace('palette = [', 'palette = [(1, 2, 3)]  # ['))
    out = run(ROOT / 'tools/train.py', config, '--work-dir', tmp_path / 'work', cwd=tmp_path, code=1)
    assert out.splitlines()[-1].startswith('error: the palette of the data set must have one colour for each of its '
                                                'classes, or be [] for colours at random; its metainfo is {')
    config.write_text(config.read_text().replace('palette = [(1, 2, 3)]', 'palette = []'))
    assert len(load(config)) == 8


def test_a_missing_label_map(masks):
    config, folder = masks
    (folder / '000003.png').unlink()
    with pytest.raises(DataError, match=r'label map .*train/000003.png does not exist, but its image does'):
        load(config)


def test_images_without_annotations_for_training_without_them(own, tmp_path):
    """As the unlabelled part of semi-supervised training."""
    edit(own, lambda coco: coco.pop('annotations'))
    cfg = Config.fromfile(user_config(tmp_path))
    with pytest.raises(DataError, match='has no list of annotations'):
        check_data(cfg, ('train', ))
    cfg.train_dataloader.dataset.pipeline = [dict(type='LoadImageFromFile'), dict(type='PackDetInputs')]
    cfg.train_dataloader.dataset.filter_cfg = None
    check_data(cfg, ('train', ))


def test_an_evaluation_needs_to_know_what_is_a_crowd(own, tmp_path):
    edit(own, lambda coco: coco['annotations'][0].pop('iscrowd'), 'val')
    with pytest.raises(DataError, match=r"annotation 1 of .*instances_val.json has no 'iscrowd'"):
        load(user_config(tmp_path), 'val')


def test_a_worker_ends_with_one_line_too(masks, tmp_path):
    config, folder = masks
    (folder / '000000.png').write_bytes(png(np.full((64, 64), 9, np.uint8)))
    out = run(ROOT / 'tools/train.py', config, '--work-dir', tmp_path / 'work', cwd=tmp_path, code=1)
    assert out.splitlines()[-1].startswith(f'error: label map {folder}/000000.png has the value 9')
    assert 'Traceback' not in out


def test_category_ids_with_gaps_keep_their_classes(own, tmp_path):
    def labels():
        return {sample.img_id: sample.gt_instances.labels.tolist() for sample in load(user_config(tmp_path))}

    before = labels()
    sparse_ids(own)
    assert labels() == before
