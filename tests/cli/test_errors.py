"""What the command lines make of errors."""
import importlib
import re

import pytest
import torch
from mmdet.utils import register_all_modules
from mmengine.registry import DATA_SAMPLERS, DATASETS, MODELS, PARAM_SCHEDULERS, DefaultScope

from mmsimvit import ConfigError
from mmsimvit.cli.errors import explain
from mmsimvit.cli.train import configure, parse_args
from tests.conftest import base_of


@pytest.mark.parametrize(('settings', 'line'), [
    ({'arch': 'mikro'}, "SimViT has no arch 'mikro'; it has micro, tiny, "),
    ({'arch': 'micro', 'kernel_size': 4}, 'SimViT: kernel_size must be odd and positive, '),
    ({'arch': 'micro', 'pretrained': None}, r"SimViT has no argument 'pretrained', .* model=dict\(pretrained=None, .* takes"),
    ({'arch': 'micro', '_delete_': True}, r"the config says _delete_ for SimViT, .*; is its line _base_ = '...' missing\?"),
    ({'arch': 'micro', 'depth': 50}, r"SimViT has no argument 'depth'; if .*, backbone=dict\(_delete_=True, type='SimViT'"),
])
def test_what_a_backbone_refuses_is_one_line(settings, line):
    with pytest.raises((TypeError, ValueError)) as error:
        MODELS.build(dict(type='SimViT', **settings))
    assert re.match(line, explain(error.value))


@pytest.mark.parametrize(('built', 'line'), [
    (dict(type='SimVIT'), r'SimVIT is not in the mmdet::model registry; near to it: SimViT\b'),
    (dict(type='Lit'), r'Lit is not in the mmdet::model registry; near to it: LIT\b'),
    (dict(type='simvit'), r'simvit is not in the mmdet::model registry; near to it: SimViT\b'),
    (dict(type='UPerHaed'), r'UPerHaed is not in the mmdet::model registry; near to it: mmseg\.UPerHead\b'),
    (dict(type='Qqqqqqqq'), r'Qqqqqqqq is not in the mmdet::model registry; is it spelt right, .*custom_imports='),
    (dict(type='Shared2FCBBoxHead', classes=3), r"Shared2FCBBoxHead has no argument 'classes'; is it spelt right\? .*"
     r"dict\(_delete_=True, type='Shared2FCBBoxHead', \.\.\.\)"),
])
def test_what_a_config_gets_wrong_of_a_library_is_one_line(built, line):
    importlib.import_module('mmseg.models')
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmdet'), pytest.raises((KeyError, TypeError)) as error:
        MODELS.build(built)
    assert re.match(line, explain(error.value))


@pytest.mark.parametrize(('registry', 'built', 'line'), [
    (PARAM_SCHEDULERS, 'CosineAnealingLR', 'CosineAnealingLR is not in the .*parameter scheduler registry; near to it: Cosine'),
    (DATA_SAMPLERS, 'DefaultSampeler', r'DefaultSampeler is not in the .*data sampler registry; near to it: DefaultSampler\b')])
def test_a_registry_of_two_words(registry, built, line):
    with pytest.raises(KeyError) as error:
        registry.build(dict(type=built, optimizer=None))
    assert re.match(line, explain(error.value))


@pytest.mark.parametrize('scope', ['mmdet', 'mmpretrain', None])
def test_an_optimizer_that_is_misspelt(scope, tmp_path):
    (tmp_path / 'mine.py').write_text(f"default_scope = {scope!r}\noptim_wrapper = dict(optimizer=dict(type='AdmW', lr=1e-4))")
    with pytest.raises(ConfigError, match=r'AdmW is not in the optimizer registry; near to it: .*\bAdamW\b'):
        configure(parse_args([str(tmp_path / 'mine.py')]))


def test_a_module_of_custom_imports_that_is_not_there(tmp_path):
    (tmp_path / 'mine.py').write_text("custom_imports = dict(imports=['mmsimvitt'])")
    with pytest.raises(ImportError) as error:
        configure(parse_args([str(tmp_path / 'mine.py')]))
    assert explain(error.value).startswith("mmsimvitt of custom_imports in the config cannot be imported: No module named "
                                           "'mmsimvitt'; is the name right, ")


def test_a_fault_inside_a_module_of_custom_imports(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'faulty_outer.py').write_text('import faulty_inner')
    (tmp_path / 'faulty_inner.py').write_text('\nfrom mmsimvit import Nope')
    (tmp_path / 'mine.py').write_text("custom_imports = dict(imports=['faulty_outer'])")
    with pytest.raises(ImportError) as error:
        configure(parse_args([str(tmp_path / 'mine.py')]))
    line = explain(error.value)
    assert line.startswith("faulty_outer of custom_imports in the config cannot be imported: cannot import name 'Nope' ")
    assert line.endswith(f'({tmp_path}/faulty_inner.py, line 2)')


def test_a_part_without_a_type_may_lack_its_base():
    with pytest.raises(KeyError) as error:
        MODELS.build(dict(backbone=dict(type='SimViT')))
    assert explain(error.value) == ("a part of the config has no type; is the line _base_ = '...' missing? It is "
                                    "{'backbone': {'type': 'SimViT'}}")


class Base(torch.nn.Module):
    def __init__(self):
        super().__init__()


class HandsOnWrongly(Base):
    def __init__(self, extra):
        super().__init__(extra=extra)


def test_a_class_that_hands_on_its_own_argument_is_a_bug_of_code():
    with pytest.raises(TypeError) as error:
        MODELS.build(dict(type=HandsOnWrongly, extra=1))
    assert explain(error.value) is None


def test_a_dataset_that_inherits_an_argument_of_another(tmp_path):
    """Of MMPreTrain's ImageNet; the class that refuses it is a parent of the one in the config."""
    importlib.import_module('mmpretrain.datasets')
    with DefaultScope.overwrite_default_scope('mmpretrain'), pytest.raises(TypeError) as error:
        DATASETS.build(dict(type='CustomDataset', data_root=str(tmp_path), split='train'))
    assert explain(error.value).startswith("CustomDataset has no argument 'split'; ")


def test_a_missing_base_is_named_once_and_what_is_near(tmp_path):
    base = base_of('mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py').replace('mask_rcnn/', 'maskrcnn/')
    (tmp_path / 'mine.py').write_text(f'_base_ = {base!r}')
    with pytest.raises(FileNotFoundError) as error:
        configure(parse_args([str(tmp_path / 'mine.py')]))
    line = explain(error.value)
    assert line.count('does not exist') == 1
    assert 'maskrcnn/mask-rcnn_r50_fpn_1x_coco.py does not exist; ' in line
    assert 'Near to it: mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py' in line


@pytest.mark.parametrize(('message', 'path'), [
    ("[Errno 2] No such file or directory: 'a b.png'", 'a b.png'),
    ('[Errno 2] No such file or directory: "it\'s.png"', "it's.png"), ("'x.txt' wasn't found", 'x.txt'),
    ('no quotes', 'no quotes')])
def test_a_missing_file_is_named(message, path):
    assert explain(FileNotFoundError(message)).startswith(f'{path} does not exist; ')


def test_a_batch_of_one_image_is_one_line():
    with pytest.raises(ValueError) as error:
        torch.nn.BatchNorm2d(4)(torch.zeros(1, 4, 1, 1))
    assert 'train_dataloader.batch_size=2 (get_memory: --batch-size 2)' in explain(error.value)


def test_what_a_constructor_of_a_library_refuses_is_one_line():
    """Of settings that do not go together, which the libraries assert."""
    importlib.import_module('mmseg.models')
    with DefaultScope.overwrite_default_scope('mmseg'), pytest.raises(AssertionError) as error:
        MODELS.build(dict(type='FocalLoss', gamma=2., alpha='a'))
    assert explain(error.value) == 'FocalLoss refuses its settings in the config: AssertionError: alpha should be of type float'


def test_images_of_other_channels_are_one_line():
    with pytest.raises(ValueError) as error:
        MODELS.build(dict(type='SimViT', arch='micro'))(torch.zeros(1, 4, 8, 8))
    assert explain(error.value) == 'SimViT takes images of shape (B, 3, H, W), got (1, 4, 8, 8)'


def test_errors_of_code_are_not_explained_away():
    assert explain(TypeError('a bug')) is None
    assert explain(RuntimeError('a bug')) is None
    assert explain(KeyError('')) is None
    assert explain(ImportError('a bug')) is None
    assert explain(ValueError('a bug')) is None
    assert explain(TypeError("Hook.__init__() got an unexpected keyword argument 'depth'")) is None


def test_an_error_of_a_worker_is_its_last_line():
    trace = 'Caught AssertionError in DataLoader worker.\nTraceback ...\nAssertionError: failed to load image: a b.png'
    assert explain(AssertionError(trace)).startswith('image a b.png cannot be decoded; ')


def test_class_folders_without_images():
    assert explain(RuntimeError('Found 0 files in subfolders of: data/cls.')).startswith('folder data/cls has no images')
