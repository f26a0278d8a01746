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
from PIL import ExifTags, Image
from pycocotools import mask as mask_tools

from mmsimvit import DataError
from mmsimvit.datasets import CLASSES, check_data, check_pipelines
from mmsimvit.datasets.checked_pipeline import CheckedPipeline
from mmsimvit.datasets.coco import run_lengths
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


def turn(*orientations):
    """An edit that makes the first images 96 x 64 pixels, with EXIF data that turns them when they are loaded."""
    def damage(root):
        for number, orientation in enumerate(orientations):
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = orientation
            Image.new('RGB', (96, 64)).save(root / f'train/{number:06}.png', exif=exif)
            wide(number, 96)(root)
    return damage


def wide(number, width):
    """An edit that gives an image another width in the annotation file; its masks would not fit any more."""
    def change(coco):
        coco['images'][number]['width'] = width
        coco['annotations'] = [item for item in coco['annotations'] if item['image_id'] != coco['images'][number]['id']]
    return lambda root: edit(root, change)


def only(number, **changes):
    """An edit after which the first ``number`` images alone have annotations."""
    def change(coco):
        coco['annotations'] = [{**item, **changes} for item in coco['annotations'] if item['image_id'] < number]
    return lambda root: edit(root, change)


def of_categories(change):
    return lambda root: edit(root, lambda coco: change(coco['categories']))


def each(change, split='train'):
    """An edit of every annotation, for which its box is given as well."""
    return lambda root: edit(root, lambda coco: [change(item, *item['bbox']) for item in coco['annotations']], split)


SAID = {
    'all crowds': (only(8, iscrowd=1), r'has no annotation of .*; \d+ are crowds \(iscrowd=1\)'),
    'images without objects': (only(2), r'6 of 8 images in .* are left out, .*no annotation.*filter_empty_gt.*000002.png'),
    'category that is not listed': (first(category_id=0),
                                    r'1 of \d+ annotations of .* are of no category.* category_id 0;.*ids 1'),
    'categories of one name': (of_categories(lambda items: items[1].update(name=items[0]['name'])),
                               r"^no category of|two categories of .*same name 'circle' \(ids 1, 2\)"),
    'other size': (wide(0, 80), r'train/000000.png is 64 x 64 pixels, but 80 x 64 in .* \(1 of 8 differ\)'),
    'turned by EXIF data': (turn(6, 8),
                            r'train/000000.png is 64 x 96 pixels, but 96 x 64 .*\(2 of 8 .*color_ignore_orientation'),
    'mirrored by EXIF data': (turn(3), r'1 of 8 images of .* turned or mirrored by their EXIF data .*: .000000.png'),
    'run lengths of too few pixels': (first(segmentation=dict(size=[64, 64], counts=[100, 50, 100])),
                                      r'mask of annotation 1 .* run lengths of 250 pixels, but its image has 4096'),
    'categories of one id': (of_categories(lambda items: items[1].update(id=items[0]['id'])), 'two categories of .* same id'),
    'category without a name': (of_categories(lambda items: items[0].pop('name')), 'a category of .* has no id or no name'),
    'corners for sides': (each(lambda item, x, y, w, h: item.update(bbox=[x, y, x + w, y + h])),
                          r'\d+ of \d+ boxes in .*train.json reach beyond their images: bbox must be x and y'),
    'polygons in other units': (each(lambda item, x, y, w, h: item.update(
        segmentation=[[x / 64, y / 64, (x + w) / 64, y / 64, x / 64, (y + h) / 64]])),
        r'\d+ of \d+ boxes in .*train.json have another place or size than their polygons'),
    'two entries of one image': (lambda root: edit(root, lambda coco: coco['images'][1].update(
        file_name=coco['images'][0]['file_name'])), r"1 images of .*train.json have more than one entry, .*'000000.png'"),
    'nothing to evaluate': (lambda root: edit(root, lambda coco: coco['annotations'].clear(), 'val'),
                            r'nothing can be evaluated on .*val.json: it has no annotation of'),
    'objects of no image to evaluate': (each(lambda item, *_: item.update(image_id=str(item['image_id'])), 'val'),
                                        r'annotations in .*val.json are of no image, and not as the evaluation'),
    'text of too few pixels': (first(segmentation=dict(size=[64, 64], counts='T3b1T3')),
                               r'mask of annotation 1 .* run lengths of 250 pixels, but its image has 4096'),
}


@pytest.mark.parametrize('case', SAID)
def test_what_would_be_wrong_in_silence_is_said(case, own, tmp_path, capsys):
    damage, message = SAID[case]
    classes = CLASSES[:1] if case == 'categories of one name' else CLASSES
    assert not re.search(message, '\n'.join(said(user_config(tmp_path, classes), capsys)))
    damage(own)
    assert re.search(message, '\n'.join(said(user_config(tmp_path, classes), capsys)), re.MULTILINE)


def said(config, capsys):
    """The lines of a check: its warnings, or its error."""
    capsys.readouterr()
    try:
        check_data(Config.fromfile(config), ('train', 'val'))
    except DataError as error:
        return [str(error)]
    return capsys.readouterr().out.splitlines()


def test_run_lengths_are_those_of_pycocotools():
    masks = np.random.default_rng(0).random((20, 37, 53)) < np.linspace(0, 1, 20)[:, None, None]
    for mask in masks:
        flat = np.concatenate([[0], mask.flatten(order='F'), [2]])  # column by column, beginning with zeros
        ends = np.flatnonzero(np.diff(flat.astype(int)))
        expected = np.diff(ends, prepend=0) if ends[0] else [0, *np.diff(ends)]
        encoded = mask_tools.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert run_lengths(encoded['counts']) == list(expected)


def test_two_files_of_two_orders(own, tmp_path):
    """What the one error advises does not lead to the other."""
    edit(own, lambda coco: coco['categories'].reverse(), 'val')
    with pytest.raises(DataError, match=r'categories of .*instances_val.json are in another order than those of .*_train.json.*'
                                        "list them in both files as 'circle', 'square'"):
        check_data(Config.fromfile(user_config(tmp_path)), ('train', 'val'))


def test_types_that_are_classes_are_checked(own, tmp_path):
    """As in mmengine's pure Python configs, and of data sets that inherit the library's."""
    from mmdet.datasets import CocoDataset
    cfg = Config.fromfile(user_config(tmp_path, ('square', 'circle')))
    for kind in (CocoDataset, type('Mine', (CocoDataset, ), {})):
        cfg.train_dataloader.dataset.type = kind
        with pytest.raises(DataError, match='another order'):
            check_data(cfg, ('train', ))
    cfg.train_dataloader.dataset.type = type('Other', (CocoDataset, ), {'load_data_list': lambda self: []})
    check_data(cfg, ('train', ))  # reads what it likes


def test_classes_of_label_maps_without_a_pixel(masks, capsys):
    config, folder = masks
    for path in folder.iterdir():
        path.write_bytes(png(np.full((64, 64), 255, np.uint8) * (np.arange(64) > 32)))
    load(config)
    assert re.search(r"6 of 7 classes have no pixel in the 8 of 8 label maps .*: 'circle', .*The values are 0, 255; 255 counts "
                     'for none', capsys.readouterr().out)


def test_images_of_other_suffixes_are_counted(masks, capsys):
    config, folder = masks
    images = folder.parents[1] / 'img_dir/train'
    for name in ('000000', '000001'):
        (images / f'{name}.png').rename(images / f'{name}.PNG')
    (images / 'notes.txt').touch()
    assert len(load(config)) == 6
    assert re.search(r"2 of 8 images in .*img_dir/train are left out, .* \.png \(img_suffix\): '000000.PNG', '000001.PNG'",
                     capsys.readouterr().out)


def test_one_class_without_its_comma(masks):
    config, _ = masks
    config.write_text(re.sub(r"classes = \('background'.*\)", "classes = ('crack')", config.read_text()))
    with pytest.raises(DataError, match=r"classes is the text 'crack' .*write \('crack', \)"):
        check_data(Config.fromfile(config), ('train', ))


def test_a_label_map_of_too_many_pixels(masks, monkeypatch):
    config, _ = masks
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)
    with pytest.raises(DataError, match=r'label map .*train/000000.png has too many pixels to be opened .*cut it and'):
        check_data(Config.fromfile(config), ('train', ))


def turned(folder, orientation):
    """The first image of a folder of label maps as a phone has it, and its label map as the image lies in its file."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new('RGB', (64, 48)).save(folder.parent.parent / 'img_dir/train/000000.png', exif=exif)
    (folder / '000000.png').write_bytes(png(np.zeros((48, 64), np.uint8)))


def test_label_maps_of_turned_images(masks, capsys):
    config, folder = masks
    turned(folder, 6)
    with pytest.raises(DataError, match=r'label map .*train/000000.png is 64 x 48 pixels, width and height, but its image '
                                        r'.*train/000000.png 48 x 64, which its EXIF data turns when it is loaded'):
        check_data(Config.fromfile(config), ('train', ))
    cfg = Config.fromfile(config)
    cfg.train_dataloader.dataset.pipeline[0].color_type = 'color_ignore_orientation'
    check_data(cfg, ('train', ))
    turned(folder, 3)
    check_data(Config.fromfile(config), ('train', ))
    assert "1 of 8 images in" in (said := ' '.join(capsys.readouterr().out.split()))
    assert "mirrored by their EXIF data when they are loaded, and label maps must be for the turned image: '000000.png'" in said


def test_label_maps_of_a_list_of_images(masks, capsys):
    config, folder = masks
    cfg = Config.fromfile(config)
    cfg.train_dataloader.dataset.ann_file = 'train.txt'
    with pytest.raises(DataError, match=r'annotation file .*own/train.txt does not exist'):
        check_data(cfg, ('train', ))
    (folder.parent.parent / 'train.txt').write_text('000000\n000001\n')
    (folder / '000001.png').write_bytes(png(np.zeros((64, 64), np.uint8)))
    (folder / '000000.png').write_bytes(png(np.zeros((64, 64), np.uint8)))
    (folder / '000002.png').write_bytes(b'')  # which is not listed
    check_data(cfg, ('train', ))
    assert '6 of 7 classes have no pixel in the 2 of 2 label maps' in ' '.join(capsys.readouterr().out.split())
    (folder.parent.parent / 'train.txt').write_text('000000.png\n000001\n')
    with pytest.raises(DataError, match=r"train.txt lists 2 images, and 1 of them are not in .*such as \['000000.png'\]; it"):
        check_data(cfg, ('train', ))


@pytest.fixture
def folders(tmp_path):
    """Of three classes for training and validation, and a config with them."""
    for split in ('train', 'val'):
        for name in ('ant', 'bee', 'cow'):
            (tmp_path / split / name).mkdir(parents=True)
    loaders = {split: dict(dataset=dict(type='CustomDataset', data_root=str(tmp_path), data_prefix=split))
               for split in ('train', 'val')}
    return tmp_path, Config(dict(default_scope='mmpretrain', model=dict(head=dict(num_classes=3)),
                                 **{f'{split}_dataloader': loader for split, loader in loaders.items()}))


def test_class_folders_of_two_splits(folders):
    root, cfg = folders
    check_data(cfg, ('train', 'val'))
    (root / 'val/ant').rmdir()
    with pytest.raises(DataError, match=r"train and .*val do not have the folders of the same classes: .*'ant'"):
        check_data(cfg, ('train', 'val'))
    cfg.val_dataloader.dataset.metainfo = dict(classes=('ant', 'bee', 'cow'))
    with pytest.raises(DataError, match=r"val has folders of 2 classes \('bee', 'cow'\), but the config names 3"):
        check_data(cfg, ('val', ))
    cfg.train_dataloader.dataset.metainfo = dict(classes=('cow', 'ant', 'bee'))
    with pytest.raises(DataError, match=r"another order than the folders in .*write them as \('ant', 'bee', 'cow'\)"):
        check_data(cfg, ('train', ))


def test_class_folders_that_slip(folders, capsys):
    root, cfg = folders
    cfg.train_dataloader.dataset.metainfo = dict(classes=('Bee', 'Ant', 'Cow '))
    with pytest.raises(DataError, match=r"whatever their capitals: 'Bee', 'Ant' would be of other folders"):
        check_data(cfg, ('train', ))
    cfg.train_dataloader.dataset.metainfo = dict(classes=('Ameise', 'Biene', 'Kuh'))  # names of one's own
    (root / 'train/ant/a.webp').touch()
    (root / 'train/ant/b.PNG').touch()
    check_data(cfg, ('train', ))
    assert re.search(r"1 images in .*train are left out, .*extensions of the dataset\): 'ant/a.webp'",
                     ' '.join(capsys.readouterr().out.split()))
    for split in ('train', 'val'):
        (root / split / '.ipynb_checkpoints').mkdir()
    cfg.train_dataloader.dataset.pop('metainfo')
    with pytest.raises(DataError, match=r"train has the folders '.ipynb_checkpoints', which MMPreTrain would take for classes"):
        check_data(cfg, ('train', 'val'))


@pytest.mark.parametrize(('lines', 'classes', 'message'), [
    ('a b.png 1\nc.png 2\na b.png 0\n', None, r"1 images are in .*list.txt with two labels: 'a b.png'"),
    ('a.png 1\nb.png 3\n', ('x', 'y', 'z'), r'line 2 of .*list.txt has the label 3, but there are 3 classes, from 0 to 2'),
    ('a.png 1\nb.png 3\n', None, r'line 2 of .*list.txt has the label 3, but there are 3 classes'),  # those of the head
    ('a.png 1\nb.png 2\n', ('x', 'y'), r'line 2 of .*list.txt has the label 2, but there are 2 classes'),
    ('a.png 0\nb.png\n', None, r"line 2 of .*list.txt is 'b.png'; it must be the path"),
    ('a.png -1\n', None, r"line 1 of .*list.txt is 'a.png -1'; it must be"),
])
def test_labels_of_a_list(folders, lines, classes, message):
    root, cfg = folders
    (root / 'list.txt').write_text(lines)
    cfg.train_dataloader.dataset.update(ann_file='list.txt', metainfo=classes and dict(classes=classes))
    with pytest.raises(DataError, match=message):
        check_data(cfg, ('train', ))


def test_labels_without_images(folders, capsys):
    root, cfg = folders
    (root / 'list.txt').write_text('a.png 1\nb.png 2\n')
    cfg.train_dataloader.dataset.update(ann_file='list.txt')
    check_data(cfg, ('train', ))
    assert 'list.txt and will not be learnt: those of the labels 0' in capsys.readouterr().out
