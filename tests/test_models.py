"""Whether the parts of a model fit together is said before anything is computed."""
import copy
import importlib
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmsimvit import find_config
from mmsimvit.errors import ModelError
from mmsimvit.models import (
    build_model,
    check_classes,
    check_fit,
    check_ignored,
    check_image_channels,
    check_losses,
    check_mixing,
    check_topk,
    check_unread,
)
from mmsimvit.train import main as train
from tests.conftest import options


def build(name, **changes):
    cfg = Config.fromfile(find_config(name))
    cfg.model.backbone.init_cfg = None
    cfg.merge_from_dict(changes)
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device('meta'):
        return MODELS.build(cfg.model)


def build_whole(name, **changes):
    cfg = Config.fromfile(find_config(name))
    cfg.merge_from_dict(changes)
    return build_model(cfg)


@pytest.mark.parametrize(('name', 'changes', 'message'), [
    ('maskrcnn_simvit_micro_shapes', {'model.backbone.arch': 'tiny'},
     r'neck.lateral_convs.0.conv takes 32 channels, but gets 64. The backbone gives maps of \[64, 128, 320, 512\] channels and '
     r'strides \[4, 8, 16, 32\]; with this it fits, as a dry run says: model = dict\(neck=dict\(in_channels=\[64, 128, 320'),
    ('retinanet_simvit_micro_shapes', {'model.neck.in_channels': [64, 160, 256]},
     r'neck takes maps of \[64, 160, 256\] channels, but gets .*: model = dict\(neck=dict\(in_channels='
     r'\[32, 64, 160, 256\]\)\)'),
    ('upernet_simvit_micro_shapes', {'model.backbone.out_indices': (1, 2, 3)},
     r'the in_index of decode_head is \[0, 1, 2, 3\], but it gets 3 maps, .*out_indices=\(0, 1, 2, 3\)\)\)'),
    ('upernet_simvit_micro_shapes', {'model.backbone.arch': 'tiny'},
     r'decode_head.* takes 32 .*decode_head=dict\(in_channels=\[64, 128, 320, 512\]\), auxiliary_head=dict\(in_channels=320\)'),
    ('upernet_simvit_micro_shapes', {'model.auxiliary_head.in_channels': 64},
     r'auxiliary_head.* takes 64 .*: model = dict\(auxiliary_head=dict\(in_channels=160\)\)'),
    ('simvit_micro_shapes', {'model.head.in_channels': 768},
     r'head.fc takes 768 .*: model = dict\(head=dict\(in_channels=256\)\)'),
])
def test_what_does_not_fit_is_named_with_settings_that_a_dry_run_proved(name, changes, message):
    with pytest.raises(ModelError, match=message):
        build_whole(name, **changes)


def test_norms_that_nothing_reads_are_named_before_training(monkeypatch):
    settings = dict(type='mmdet.RetinaNet', backbone=dict(type='GCViT', arch='xxtiny'), data_preprocessor=None,
                    neck=dict(type='FPN', in_channels=[64, 128, 256, 512], out_channels=8, start_level=1, num_outs=5),
                    bbox_head=dict(type='RetinaHead', num_classes=2, in_channels=8, feat_channels=8, stacked_convs=1,
                                   anchor_generator=dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=3,
                                                         ratios=[1.0], strides=[8, 16, 32, 64, 128])))
    importlib.import_module('mmdet.models')
    lines = []
    monkeypatch.setattr('mmsimvit.models.print_log', lambda line, *_: lines.append(line))
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(copy.deepcopy(settings))
        seen = check_fit(model, settings)
        assert seen.read == [1, 2, 3]
        check_unread(model, settings, seen, stops=False)
        with pytest.raises(ModelError) as error:
            check_unread(model, settings, seen, stops=True)
    assert lines == [str(error.value)]
    assert 'nothing reads the maps [0] of the 4 that GCViT returns' in lines[0]
    assert lines[0].endswith('model = dict(backbone=dict(out_indices=(1, 2, 3)), '
                             'neck=dict(in_channels=[128, 256, 512], start_level=0))')


def test_maps_and_channels_of_other_numbers():
    cfg = Config.fromfile(find_config('upernet_simvit_micro_shapes'))
    cfg.model.decode_head.in_index = [0, 1]
    with pytest.raises(ModelError, match=r"a head's in_index is \[0, 1\] and its in_channels are \[32, 64, 160, 256\]"):
        build_model(cfg)


@pytest.mark.parametrize('name', ['maskrcnn_simvit_micro_shapes', 'sparsercnn_simvit_s_coco_3x', 'semfpn_simvit_t_ade20k',
                                  'upernet_gcvit_t_ade20k', 'simvit_t_imagenet'])
def test_widths_that_fit_are_not_refused(name):
    cfg = Config.fromfile(find_config(name))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        seen = check_fit(build(name), cfg.model)
    assert seen.misfit is None


def test_a_training_ends_with_the_line(workspace, monkeypatch, tmp_path):
    monkeypatch.chdir(workspace)
    with pytest.raises(SystemExit, match=r'^error: neck.lateral_convs.0.conv takes 32 .*neck=dict\(in_channels=\[64, 128, 320'):
        train([find_config('maskrcnn_simvit_micro_shapes'), '--work-dir', str(tmp_path),
               *options(**{'model.backbone.arch': 'tiny'})])


CLASSES = ('apple', 'pear', 'plum')


def data(*classes, **info):
    return SimpleNamespace(metainfo=dict(classes=classes, **info))


@pytest.mark.parametrize(('name', 'head'), [
    ('retinanet_simvit_micro_shapes', 'bbox_head'), ('maskrcnn_simvit_t_coco', 'roi_head.mask_head'),
    ('simvit_micro_shapes', 'head'), ('upernet_simvit_t_ade20k', 'decode_head'), ('upernet_simvit_t_ade20k', 'auxiliary_head')])
def test_a_head_with_fewer_classes_than_the_data_is_refused(name, head):
    """To MMDetection those beyond are background, so that they would go unlearnt without a word."""
    with pytest.raises(ModelError, match=rf'^{head} has num_classes=2, but the data has 3 classes \(apple, pear, plum\), .*'
                                         rf'set model.{head}.num_classes to 3'):
        check_classes(build(name, **{f'model.{head}.num_classes': 2}), data(*CLASSES))


def test_each_head_of_a_cascade_is_looked_at():
    heads = nn.ModuleList([nn.Module() for _ in range(3)])
    for head, number in zip(heads, (3, 2, 3)):
        head.num_classes = number
    with pytest.raises(ModelError, match='roi_head.bbox_head has num_classes=2'):
        check_classes(nn.ModuleDict(dict(roi_head=nn.ModuleDict(dict(bbox_head=heads)))), data(*CLASSES))


class RPN(nn.Module):  # by its name, as MMDetection's

    def __init__(self):
        super().__init__()
        self.bbox_head = nn.Module()
        self.bbox_head.num_classes = 1


class STDCHead(nn.Module):  # as MMSegmentation's, which tells edges from what is none
    num_classes = 2


class BinaryHead(nn.Module):  # one output, of MMSegmentation
    num_classes, threshold = 1, 0.3


class DepthEstimator(nn.ModuleDict):  # whose data sets have kinds of rooms for classes
    pass


class ImageNet(SimpleNamespace):
    METAINFO = dict(classes=CLASSES)


@pytest.mark.parametrize(('model', 'dataset'), [
    (RPN(), data(*CLASSES)),  # whose head knows objects from background alone
    (nn.ModuleDict(dict(auxiliary_head=nn.ModuleList([STDCHead()]))), data(*CLASSES)),
    (nn.ModuleDict(dict(decode_head=BinaryHead())), data('background', 'apple')),
    (DepthEstimator(dict(decode_head=RPN().bbox_head)), data(*CLASSES)),
    (lambda: build('retinanet_simvit_micro_shapes'), data(*map(str, range(9)), thing_classes=CLASSES * 2)),  # a panoptic one
    (lambda: build('simvit_micro_shapes', **{'model.head.num_classes': 2}), ImageNet(metainfo=dict(classes=CLASSES))),  # a part
    (lambda: build('maskrcnn_simvit_micro_shapes', **{'model.roi_head.mask_head.num_classes': 2}), data(*CLASSES * 2)),
    (lambda: build('retinanet_simvit_micro_shapes'), SimpleNamespace(metainfo=[dict(classes=CLASSES)])),  # of several data sets
    (lambda: build('retinanet_simvit_micro_shapes'), []),
], ids=['regions', 'edges', 'two', 'depth', 'things', 'part', 'masks', 'several', 'none'])
def test_classes_that_may_be_right_are_not_refused(model, dataset):
    check_classes(model if isinstance(model, nn.Module) else model(), dataset)


@pytest.mark.parametrize(('name', 'head', 'number'), [
    ('retinanet_simvit_t_coco', 'bbox_head', 80), ('semfpn_simvit_t_ade20k', 'decode_head', 150)])
def test_more_classes_than_the_data_has_are_a_warning(name, head, number, monkeypatch):
    lines = []
    monkeypatch.setattr('mmsimvit.models.print_log', lambda line, *_: lines.append(line))
    check_classes(build(name), data(*CLASSES))
    assert lines == [f'{head} has num_classes={number}, but the data has 3 classes: the others will not be learnt']


def test_a_training_with_too_few_classes_ends_with_the_line(workspace, monkeypatch, tmp_path):
    monkeypatch.chdir(workspace)
    with pytest.raises(SystemExit, match='^error: head has num_classes=2, but the data has 6 classes'):
        train([find_config('simvit_micro_shapes'), '--work-dir', str(tmp_path), *options(**{'model.head.num_classes': 2})])


def test_accuracies_beyond_the_classes_are_refused_before_an_epoch_is_trained(workspace, monkeypatch, tmp_path):
    monkeypatch.chdir(workspace)
    with pytest.raises(SystemExit, match=r'^error: the validation asks for top-7 accuracy, but the head has 6 classes: set'):
        train([find_config('simvit_micro_shapes'), '--work-dir', str(tmp_path), *options(**{'val_evaluator.topk': '1,7'})])
    assert not list(tmp_path.glob('*.pth'))


def test_mixing_of_other_classes_is_refused():
    model = build('simvit_micro_shapes')
    model.data_preprocessor.num_classes = 1000
    check_mixing(model)  # it has none
    model.data_preprocessor.batch_augments = object()
    with pytest.raises(ModelError, match=r'num_classes=1000, for mixup .*head has num_classes=6: set model.data_preprocessor.'):
        check_mixing(model)
    model.data_preprocessor.num_classes = 6
    check_mixing(model)


@pytest.mark.parametrize(('name', 'changes', 'message'), [
    ('semfpn_simvit_micro_shapes', {'model.decode_head.loss_decode.class_weight': [1., 2.]},
     'a loss of decode_head has class_weight for 2 classes, but the head has num_classes=7'),
    ('semfpn_simvit_micro_shapes', {'model.decode_head.num_classes': 1}, 'decode_head takes a softmax over one class'),
    ('simvit_micro_shapes', {'model.head.num_classes': 1}, 'head takes a softmax over one class'),
    ('simvit_micro_shapes', {'model.head.loss.class_weight': [1., 2.]}, 'a loss of head has class_weight for 2 classes')])
def test_losses_of_other_classes_are_refused(name, changes, message):
    check_losses(build(name))
    with pytest.raises(ModelError, match=f'^{message}'):
        check_losses(build(name, **changes))


def test_one_class_by_a_sigmoid_is_learnt():
    head = dict(num_classes=2, out_channels=1, loss_decode=dict(use_sigmoid=True))
    check_losses(build('semfpn_simvit_micro_shapes', **{'model.decode_head': head}))


def test_pixels_that_count_for_no_class_have_one_value():
    model = build('semfpn_simvit_micro_shapes')
    check_ignored(model, SimpleNamespace(reduce_zero_label=False, ignore_index=255))
    check_ignored(model, data(*CLASSES))  # of boxes
    with pytest.raises(ModelError, match='decode_head has ignore_index=255, but the data set 0, for pixels of no class'):
        check_ignored(model, SimpleNamespace(reduce_zero_label=False, ignore_index=0))


def test_channels_of_images_are_those_of_the_model():
    model = build('simvit_micro_shapes')
    for inputs in (torch.zeros(2, 3, 8, 8), [torch.zeros(3, 8, 8)]):
        check_image_channels(model, dict(inputs=inputs))
    with pytest.raises(ModelError, match=r'images have 4 channels, but SimViT has in_channels=3: set in_channels .*color_type'):
        check_image_channels(model, dict(inputs=[torch.zeros(4, 8, 8)]))
    with pytest.raises(ModelError, match='mean of data_preprocessor is of 3 channels, but SimViT has in_channels=4'):
        check_fit(build('simvit_micro_shapes', **{'model.backbone.in_channels': 4}))


class Accuracy:  # by its name, as MMPreTrain's
    pass


def test_a_metric_of_ones_own_of_that_name_is_left_alone():
    check_topk(build('simvit_micro_shapes'), [Accuracy()])
