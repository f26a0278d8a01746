"""Faults in a user's data: each ends with one line that names the file and what to do."""
import copy
import re
import shutil

import pytest
from mmengine.config import Config

from mmsimvit import DataError
from mmsimvit.datasets import CLASSES, check_data
from mmsimvit.train import main as train
from tests.conftest import ROOT, run
from tests.own_data import edit, own_classification_config, own_segmentation_config, user_config


def test_whole_data_passes(own, tmp_path):
    check_data(Config.fromfile(user_config(tmp_path)), ('train', 'val', 'test'))
    check_data(Config.fromfile(user_config(tmp_path, CLASSES[1:4:2])), ('train', ))  # some of the classes, in order


def test_one_place_for_folder_and_classes(tmp_path):
    cfg = Config.fromfile(user_config(tmp_path, ('star', 'cross')))
    assert cfg.model.roi_head.bbox_head.num_classes == cfg.model.roi_head.mask_head.num_classes == 2
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert tuple(loader.dataset.metainfo.classes) == ('star', 'cross')
        assert loader.dataset.data_root == f'{tmp_path}/own'
    assert cfg.test_evaluator.ann_file == f'{tmp_path}/own/annotations/instances_val.json'


@pytest.mark.parametrize(('classes', 'message'), [
    (('circle', 'hexagon'), r"no category of .*instances_train.json is called 'hexagon'; it has 'circle', .*set classes"),
    (('square', 'circle'), r"other order than in .*instances_train.json.*write them as \('circle', 'square'\)"),
    ('circle', r"classes is the text 'circle'.*write \('circle', \)"),
])
def test_class_names(own, tmp_path, classes, message):
    with pytest.raises(DataError, match=message):
        check_data(Config.fromfile(user_config(tmp_path, classes)), ('train', ))


@pytest.mark.parametrize(('damage', 'message'), [
    (lambda root: edit(root, lambda coco: coco['annotations'][2].pop('segmentation')),
     r'annotation 3 of .*instances_train.json .*has no segmentation.*RetinaNet'),
    (lambda root: edit(root, lambda coco: coco['annotations'][0].update(segmentation=[])), 'annotation 1 of .*no segmentation'),
    (lambda root: edit(root, lambda coco: coco['annotations'].clear()), r'instances_train.json has no annotation of .*circle'),
    (lambda root: edit(root, lambda coco: coco['images'].clear()), r'instances_train.json lists no images'),
    (lambda root: edit(root, lambda coco: coco.pop('categories')), r'not in COCO format: it has no list of categories'),
    (lambda root: (root / 'annotations/instances_train.json').write_text('{"images": ['), r'instances_train.json is no JSON'),
    (lambda root: (root / 'annotations/instances_train.json').unlink(), r'instances_train.json does not exist'),
    (lambda root: (root / 'train/000003.png').write_bytes(b''), r'train/000003.png of .* is empty \(1 of 8 are\)'),
    (lambda root: (root / 'train/000003.png').unlink(), r'train/000003.png of .* does not exist \(1 of 8 are missing\)'),
    (lambda root: [path.unlink() for path in (root / 'train').iterdir()], r'folder .*own/train is empty'),
    (lambda root: shutil.rmtree(root / 'train'), r'folder .*own/train does not exist'),
])
def test_damaged_data(own, tmp_path, damage, message):
    damage(own)
    with pytest.raises(DataError, match=message) as error:
        check_data(Config.fromfile(user_config(tmp_path)), ('train', 'val'))
    assert '\n' not in str(error.value)


def test_boxes_alone_are_enough_without_a_mask_head(own, tmp_path):
    edit(own, lambda coco: [annotation.pop('segmentation') for annotation in coco['annotations']])
    cfg = Config.fromfile(user_config(tmp_path))
    cfg.train_dataloader.dataset.pipeline[1].with_mask = False
    check_data(cfg, ('train', ))


def test_a_test_set_needs_no_annotations(own, tmp_path):
    """As COCO's test-dev, on which predictions are only written down."""
    edit(own, lambda coco: coco.pop('annotations'), 'val')
    cfg = Config.fromfile(user_config(tmp_path))
    check_data(cfg, ('test', ))
    with pytest.raises(DataError, match='no list of annotations'):
        check_data(cfg, ('val', ))


def test_classes_may_be_a_file(own, tmp_path):
    (tmp_path / 'classes.txt').write_text('\n'.join(CLASSES))
    cfg = Config.fromfile(user_config(tmp_path))
    cfg.train_dataloader.dataset.metainfo.classes = str(tmp_path / 'classes.txt')
    check_data(cfg, ('train', ))


def test_an_empty_classification_folder(tmp_path):
    dataset = dict(type='mmpretrain.CustomDataset', data_root=str(tmp_path / 'own'))
    with pytest.raises(DataError, match='own does not exist'):
        check_data(Config(dict(train_dataloader=dict(dataset=dataset))), ('train', ))
    (tmp_path / 'own').mkdir()
    with pytest.raises(DataError, match='own is empty'):
        check_data(Config(dict(train_dataloader=dict(dataset=dataset))), ('train', ))


@pytest.mark.parametrize(('dataset', 'missing', 'setting'), [
    (dict(type='mmpretrain.ImageNet', split='train'), 'own/train', 'data_root or split'),
    (dict(type='mmpretrain.CustomDataset', data_prefix='trein'), 'own/trein', 'data_prefix'),
    (dict(type='mmdet.CocoDataset', data_prefix=dict(img='trein/')), 'own/trein', 'data_prefix'),
    (dict(type='mmdet.CocoDataset', data_root='no', data_prefix='/no/trein'), '^folder /no/trein', 'data_prefix'),
    (dict(type='mmdet.CocoDataset', data_root='no', data_prefix=dict(img='train/')), 'no/train', 'data_root')])
def test_a_missing_folder_is_blamed_on_the_setting_that_names_it(dataset, missing, setting, tmp_path):
    (tmp_path / 'own').mkdir()
    dataset = {**dataset, 'data_root': str(tmp_path / dataset.get('data_root', 'own'))}
    with pytest.raises(DataError, match=f'{missing} does not exist; .* change {setting} of the train data in the config'):
        check_data(Config(dict(train_dataloader=dict(dataset=dataset))), ('train', ))


@pytest.mark.parametrize('dataset', [
    dict(type='mmpretrain.ImageNet', data_root='own', split='train', ann_file='meta/paths.txt'),
    dict(type='mmpretrain.ImageNet', data_root='own', data_prefix='s3://bucket/train'),
    dict(type='mmpretrain.CustomDataset', data_prefix='~/own')])
def test_what_the_libraries_find_themselves_passes(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'own').mkdir()
    (tmp_path / 'own/a.png').touch()
    (tmp_path / 'own/meta').mkdir()
    (tmp_path / 'own/meta/paths.txt').write_text('a.png 0\n')
    check_data(Config(dict(train_dataloader=dict(dataset=dataset))), ('train', ))


def test_the_first_process_alone_looks(own, tmp_path, monkeypatch):
    (own / 'train/000000.png').unlink()
    monkeypatch.setenv('RANK', '1')
    check_data(Config.fromfile(user_config(tmp_path)), ('train', ))
    monkeypatch.setenv('RANK', '0')
    with pytest.raises(DataError):
        check_data(Config.fromfile(user_config(tmp_path)), ('train', ))


def test_wrapped_datasets_are_looked_into(own, tmp_path):
    cfg = Config.fromfile(user_config(tmp_path))
    inner = copy.deepcopy(cfg.train_dataloader.dataset)
    (own / 'train/000000.png').unlink()
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[inner]))
    with pytest.raises(DataError, match='000000.png'):
        check_data(cfg, ('train', ))


def test_training_ends_with_the_line(own, tmp_path):
    (own / 'val/000001.png').unlink()
    out = run(ROOT / 'tools/train.py', user_config(tmp_path), '--work-dir', tmp_path, cwd=tmp_path, code=1)
    assert 'Traceback' not in out
    line = out.splitlines()[-1]
    assert line.startswith(f'error: image {own}/val/000001.png of {own}/annotations/instances_val.json does not exist')


def test_an_image_that_cannot_be_decoded_ends_with_one_line(own, tmp_path):
    (own / 'train/000003.png').write_bytes(b'no image')
    out = run(ROOT / 'tools/train.py', user_config(tmp_path), '--work-dir', tmp_path, cwd=tmp_path, code=1)
    assert out.splitlines()[-1] == (f'error: image {own}/train/000003.png cannot be decoded, it may be cut short; replace '
                                    'it, or take it out of the data')


@pytest.mark.parametrize('detector', ['maskrcnn', 'retinanet'])
def test_own_data_trains_and_evaluates(detector, own, tmp_path):
    every_score = dict(maskrcnn='model.test_cfg.rcnn.score_thr=0', retinanet='model.test_cfg.score_thr=0')[detector]
    out = run(ROOT / 'tools/train.py', user_config(tmp_path, detector=detector), '--work-dir', tmp_path, '--cfg-options',
              'train_cfg.val_interval=1', every_score, cwd=tmp_path)
    assert 'coco/bbox_mAP' in out
    assert ('coco/segm_mAP' in out) == (detector == 'maskrcnn')


def test_own_segmentation_data_trains_and_evaluates(workspace, tmp_path):
    config = own_segmentation_config(workspace, tmp_path)
    out = run(ROOT / 'tools/train.py', config, '--work-dir', tmp_path, '--cfg-options', 'train_cfg.val_interval=1',
              cwd=tmp_path)
    assert 'mIoU' in out
    assert all(name in out for name in ('background', *CLASSES))  # the table of classes


def test_own_classes_train_and_evaluate(workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train([str(own_classification_config(workspace, tmp_path)), '--work-dir', 'work', '--cfg-options',
           'train_cfg.val_interval=1', 'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False'])
    log, = tmp_path.glob('work/*/*.log')
    assert re.search(r'accuracy/top1: \d', log.read_text())


@pytest.mark.parametrize(('before', 'after', 'message'), [
    ("'.png', '.png'", "'.jpg', '.png'", r'no file in .*own/img_dir/train ends with .jpg \(there is .*png\); set img_suffix'),
    ("'.png', '.png'", "'.png', '_mask.png'", r'no file in .*own/ann_dir/train ends with _mask.png .*set seg_map_suffix'),
])
def test_another_file_suffix_is_said(before, after, message, workspace, tmp_path):
    config = own_segmentation_config(workspace, tmp_path)
    config.write_text(config.read_text().replace(before, after))
    with pytest.raises(DataError, match=message):
        check_data(Config.fromfile(config), ('train', 'val'))
