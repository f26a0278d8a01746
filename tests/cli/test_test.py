"""Testing and training with the configs of all three libraries."""
import json
import pickle
import re

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmsimvit.cli.test import at_size, configure, main, parse_args
from mmsimvit.train import main as train
from tests.conftest import ROOT, options, refusal, run

DETECTION = ROOT / 'configs/maskrcnn_simvit_micro_shapes.py'
LOOPS = '''
custom_imports = dict(imports=['mmsimvit'])
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3))
'''
SEGMENTATION = LOOPS + '''
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', mean=[127.5] * 3, std=[64.] * 3, bgr_to_rgb=True, size=(64, 64)),
    backbone=dict(type='SimViT', arch='micro'),
    decode_head=dict(type='UPerHead', in_channels=[32, 64, 160, 256], in_index=[0, 1, 2, 3], channels=16, num_classes=7,
                     norm_cfg=dict(type='BN'), loss_decode=dict(type='CrossEntropyLoss')),
    test_cfg=dict(mode='whole'))
pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
def loader(split):
    return dict(batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=split == 'training'), dataset=dict(
        type='Shapes', root='data/shapes', num_training=8, num_validation=3, image_size=64, dataset=dict(
            type='BaseSegDataset', data_root='data/shapes', img_suffix='.png', seg_map_suffix='.png', pipeline=pipeline,
            data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}'),
            metainfo=dict(classes=['background', 'circle', 'square', 'triangle', 'star', 'cross', 'ring'],
                          palette=[[40 * i, 0, 0] for i in range(7)]))))
train_dataloader, val_dataloader, test_dataloader = loader('training'), loader('validation'), loader('validation')
val_evaluator = test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
default_hooks = dict(visualization=dict(type='SegVisualizationHook'))
visualizer = dict(type='SegLocalVisualizer', name='visualizer', vis_backends=[dict(type='LocalVisBackend')])
'''
CLASSIFICATION = LOOPS + '''
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier', data_preprocessor=dict(mean=[127.5] * 3, std=[64.] * 3, to_rgb=True, num_classes=6),
    backbone=dict(type='SimViT', arch='micro', out_indices=(3, )), neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=6, in_channels=256))
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
def loader(split):
    return dict(batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=split == 'training'), dataset=dict(
        type='Shapes', root='data/shapes', num_training=8, num_validation=3, image_size=64, dataset=dict(
            type='CustomDataset', data_root=f'data/shapes/classification/{split}', with_label=True, pipeline=pipeline)))
train_dataloader, val_dataloader, test_dataloader = loader('training'), loader('validation'), loader('validation')
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1, ))
default_hooks = dict(visualization=dict(type='VisualizationHook'))
visualizer = dict(type='UniversalVisualizer', name='visualizer', vis_backends=[dict(type='LocalVisBackend')])
'''
# The metric's name, the number of images, and of names among them: MMPreTrain draws by name, and each class has a 000000.png.
TASKS = {'segmentation': (SEGMENTATION, 'mIoU', 3, 3), 'classification': (CLASSIFICATION, 'accuracy/top1', 6, 1)}


@pytest.mark.parametrize('task', TASKS)
@pytest.mark.full
def test_segmentors_and_classifiers_train_and_test(task, workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(workspace)
    text, metric, num_images, num_drawn = TASKS[task]
    config = tmp_path / f'{task}.py'
    config.write_text(text)
    train([str(config), '--work-dir', str(tmp_path / 'train')])
    for extra in (['--show-dir', tmp_path / 'shown'], ['--tta']):
        out = run(ROOT / 'tools/test.py', config, tmp_path / 'train/epoch_1.pth', '--work-dir', tmp_path / 'test',
                  '--out', tmp_path / 'out.pkl', *extra, cwd=workspace)
        assert re.search(rf'{metric}: \d', out)
        assert re.search(r'the checkpoint gives (\d+) of \1 parameters', out)
        assert len(pickle.loads((tmp_path / 'out.pkl').read_bytes())) == num_images
    assert len(list((tmp_path / 'shown').rglob('*.png'))) == num_drawn


@pytest.fixture(scope='module')
def untrained(tmp_path_factory):
    """A Mask R-CNN checkpoint of the demo's config, with random weights."""
    cfg = Config.fromfile(DETECTION)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg.model)
    path = tmp_path_factory.mktemp('untrained') / 'untrained.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


def test_detectors_test(untrained, workspace, tmp_path):
    out = run(ROOT / 'tools/test.py', DETECTION, untrained, '--work-dir', tmp_path, '--out', tmp_path / 'out.pkl',
              '--show-dir', 'shown', *options(), cwd=workspace)
    assert 'coco/bbox_mAP' in out
    assert re.search(r'the checkpoint gives (\d+) of \1 parameters', out)
    predictions = pickle.loads((tmp_path / 'out.pkl').read_bytes())
    assert len(predictions) == 3
    assert {'bboxes', 'scores', 'labels', 'masks'} <= set(predictions[0]['pred_instances'])
    assert len(list((workspace / 'shown').glob('*.png'))) == 3
    metrics = json.loads(next(tmp_path.glob('*/*.json')).read_text())
    assert 0 <= metrics['coco/segm_mAP'] <= 1


def test_a_checkpoint_that_matches_nothing_ends_with_one_line(workspace, tmp_path):
    torch.save(dict(state_dict={'layer1.weight': torch.zeros(3)}), tmp_path / 'other.pth')
    out = run(ROOT / 'tools/test.py', DETECTION, tmp_path / 'other.pth', '--work-dir', tmp_path, *options(),
              cwd=workspace, code=1)
    last = out.splitlines()[-1]
    assert re.match(r'error: checkpoint .*other.pth gives none of the \d+ parameters of MaskRCNN', last)


def test_a_checkpoint_of_another_detector_ends_with_one_line(untrained, workspace, tmp_path, monkeypatch):
    """The backbone alone would fit; the rest would be tested with random weights."""
    weights = torch.load(untrained)['state_dict']
    backbone = {name: tensor for name, tensor in weights.items() if name.startswith('backbone')}
    torch.save(dict(state_dict=backbone), tmp_path / 'other.pth')
    last = refusal(main, DETECTION, tmp_path / 'other.pth', '--work-dir', tmp_path, *options(), cwd=workspace)
    assert re.match(r'error: checkpoint .*other.pth gives \d+ of the \d+ parameters of MaskRCNN; \d+ missing .*config\?', last)
    monkeypatch.chdir(workspace)
    metrics = main([str(DETECTION), str(tmp_path / 'other.pth'), '--work-dir', str(tmp_path), '--allow-partial', *options()])
    assert 'coco/bbox_mAP' in metrics


def test_bad_options_end_with_one_line(untrained, workspace, tmp_path):
    cut = tmp_path / 'cut.pth'
    cut.write_bytes(untrained.read_bytes()[:1000])
    for words, message in (
        ([cut], 'cut.pth cannot be read; it may have been cut short'),
        ([DETECTION], 'maskrcnn_simvit_micro_shapes.py is refused'),
        ([tmp_path / 'nowhere.pth'], 'nowhere.pth does not exist'),
        ([untrained, '--out', 'out.json'], 'must end in .pkl or .pickle, got out.json'),
        ([untrained, '--tta'], 'merges augmented boxes but not masks'),
    ):
        out = refusal(main, DETECTION, *words, cwd=workspace)
        assert out.startswith('error: ')
        assert message in out


def test_detectors_without_masks_have_tta(untrained, workspace, tmp_path, monkeypatch):
    """MMDetection merges boxes: the pipeline flips after the resize, the wrapped model takes the checkpoint and is scored."""
    config = tmp_path / 'boxes.py'
    config.write_text(f'_base_ = {str(DETECTION)!r}\nmodel = dict(roi_head=dict(mask_head=None, mask_roi_extractor=None))\n'
                      "test_evaluator = dict(metric='bbox')\n")
    cfg = configure(parse_args([str(config), str(untrained), '--tta']))
    assert [step.type for step in cfg.test_dataloader.dataset.dataset.pipeline] == ['LoadImageFromFile', 'TestTimeAug']
    monkeypatch.chdir(workspace)
    assert 'coco/bbox_mAP' in main([str(config), str(untrained), '--tta', '--work-dir', str(tmp_path), *options()])


def test_images_of_several_sizes():
    """A crop keeps its ratio to what is resized before it; of a segmentor the short side changes."""
    def steps(name, size):
        cfg = at_size(Config.fromfile(ROOT / 'configs' / name), size)
        pipeline = cfg.test_dataloader.dataset.pipeline
        return [{key: step[key] for key in ('scale', 'crop_size') if key in step} for step in pipeline]

    assert steps('simvit_t_imagenet.py', 448)[1:3] == [{'scale': 512}, {'crop_size': 448}]
    assert steps('upernet_simvit_t_ade20k.py', 256)[1] == {'scale': (1024, 256)}


def test_scores_at_several_sizes(workspace, tmp_path, monkeypatch):
    """At the size of the images, the scores are those of a test."""
    monkeypatch.chdir(workspace)
    config, checkpoint = tmp_path / 'config.py', tmp_path / 'random.pth'
    config.write_text(CLASSIFICATION.replace("dict(type='LoadImageFromFile'), ",
                                             "dict(type='LoadImageFromFile'), dict(type='Resize', scale=32), "))
    cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        torch.manual_seed(0)
        torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict()), checkpoint)
    words = [str(config), str(checkpoint), '--work-dir', str(tmp_path)]
    whole = main(words)
    scores = main([*words, '--sizes', '64', '32', '16'])
    assert list(scores) == ['16/accuracy/top1', '32/accuracy/top1', '64/accuracy/top1']
    assert scores['32/accuracy/top1'] == whole['accuracy/top1']
    assert json.loads((tmp_path / 'sizes.json').read_text())['64'] == {'accuracy/top1': scores['64/accuracy/top1']}
    assert (tmp_path / 'sizes.png').stat().st_size > 1000
    for wrong, told in ((['0'], 'must be positive, got 0'), (['32', '--out', 'x.pkl'], 'leave out --out and --show-dir')):
        assert told in refusal(main, *words, '--sizes', *wrong, cwd=workspace)
