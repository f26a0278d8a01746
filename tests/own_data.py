"""The generated images as somebody's own data, and the configs as they edit them."""
import json
import shutil

from mmsimvit.datasets import CLASSES
from tests.conftest import ROOT


def edited(name, folder, changes):
    """A config as its user edits the first lines, each text there by another; the path of the copy."""
    text = (ROOT / f'configs/{name}.py').read_text()
    for before, after in (("'./_base_/", f"'{ROOT}/configs/_base_/"), *changes):
        assert before in text
        text = text.replace(before, after)
    path = folder / 'own.py'
    path.write_text(text)
    return path


def user_config(folder, classes=CLASSES, detector='maskrcnn'):
    """The config of a detector on ``folder / 'own'``; its path."""
    return edited(f'{detector}_simvit_micro_custom', folder, (
        ("data_root = 'data/custom'", f"data_root = '{folder}/own'"),
        ("classes = ('object', )", f'classes = {classes!r}'),
        ('image_scale = (640, 640)', 'image_scale = (64, 64)'),
        ('batch_size, max_epochs, learning_rate = 4, 24, 4e-4', 'batch_size, max_epochs, learning_rate = 4, 1, 4e-4'),
    ))


def edit(root, change, split='train'):
    path = root / f'annotations/instances_{split}.json'
    coco = json.loads(path.read_text())
    change(coco)
    path.write_text(json.dumps(coco))


def own_segmentation_config(workspace, folder):
    """The generated images and index masks as somebody's own, and the config as they edit it."""
    for split, name in (('training', 'train'), ('validation', 'val')):
        shutil.copytree(workspace / f'data/shapes/images/{split}', folder / f'own/img_dir/{name}')
        shutil.copytree(workspace / f'data/shapes/annotations/{split}', folder / f'own/ann_dir/{name}')
    return edited('semfpn_simvit_micro_custom', folder, (
        ("data_root = 'data/custom'", f"data_root = '{folder}/own'"),
        ("image_suffix, mask_suffix = '.jpg', '.png'", "image_suffix, mask_suffix = '.png', '.png'"),
        ("classes = ('background', 'object')", f"classes = {('background', *CLASSES)!r}"),
        ('palette = [(0, 0, 0), (220, 20, 60)]', 'palette = [(0, 0, 30 * i) for i in range(7)]'),
        ('image_scale = (640, 640)', 'image_scale = (64, 64)'),
        ('crop_size = (256, 256)', 'crop_size = (64, 64)'),
        ('batch_size, max_epochs, learning_rate = 8, 50, 5e-4', 'batch_size, max_epochs, learning_rate = 4, 1, 5e-4'),
    ))


def own_classification_config(workspace, folder):
    """The generated images as somebody's own, a folder for each class, and the config as they edit it."""
    shapes = workspace / 'data/shapes/classification'
    return edited('simvit_micro_custom', folder, (
        ("'data/custom/train', 'data/custom/val'", f"'{shapes}/training', '{shapes}/validation'"),
        ('num_classes = 2', f'num_classes = {len(CLASSES)}'),
        ('image_size = 224', 'image_size = 32'),
        ('batch_size, max_epochs, learning_rate = 32, 50, 1e-3', 'batch_size, max_epochs, learning_rate = 8, 1, 1e-3'),
    ))
