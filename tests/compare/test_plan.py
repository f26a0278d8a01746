"""What is written to be trained, and what is refused before anything is."""
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope
from PIL import Image

from mmsimvit.cli.compare import Comparison, main, parse_args
from mmsimvit.compare.plan import Protocol, base_config, check_protocol, read_candidates, search_config
from mmsimvit.compare.queue import alone_in
from mmsimvit.dry_run import dry_run
from mmsimvit.fitting import build
from tests.conftest import refusal

SMALL = dict(num_training=8, num_validation=3, image_size=64)


def settings(**data):
    """Of the generated images, which are few and small unless they are named."""
    return {f'{split}_dataloader.dataset.{key}': value for split in ('train', 'val', 'test')
            for key, value in {**SMALL, **data}.items()}


OPTIONS = settings()
BACKBONES = ['SimViT:micro', 'r18=mmdet.ResNet:18', 'ResFormer:tiny', 'mmpretrain.MobileNetV2']


@pytest.fixture
def here(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    return workspace


def words(out, *more):
    return [*more, '--out-dir', out, '--cfg-options', *(f'{key}={value}' for key, value in OPTIONS.items())]


@pytest.mark.parametrize('head', ['semfpn_small_heads', 'upernet_small_heads'])
def test_backbones_are_fitted(head, here):
    cfg = base_config(Protocol(head=head, options=OPTIONS))
    found = {one.label: one.fit for one in read_candidates(BACKBONES, cfg)}
    seen = {label: (fit.seen.widths, fit.seen.strides) for label, fit in found.items()}
    assert seen == {'SimViT:micro': ([32, 64, 160, 256], [4, 8, 16, 32]), 'r18': ([64, 128, 256, 512], [4, 8, 16, 32]),
                    'ResFormer:tiny': ([192], [16]), 'mmpretrain.MobileNetV2': ([24, 32, 64, 160], [4, 8, 16, 32])}
    for fit in found.values():
        assert dry_run(build(fit.model, 'mmseg')).misfit is None
        assert fit.model['decode_head']['num_classes'] == 7
    assert found['ResFormer:tiny'].model['neck']['type'] == 'SimpleFeaturePyramid'
    assert found['r18'].model['backbone']['norm_eval'] is False  # from random weights
    assert found['SimViT:micro'].model['backbone']['drop_path_rate'] == 0


def test_trainings_are_written(here, tmp_path, capsys):
    main(words(str(tmp_path), 'SimViT:micro', 'r18=mmdet.ResNet:18,pretrained=r18.pth', '--plan', '--seeds', '4', '5',
               '--rates', '2e-3', '--iterations', '50'))
    configs = {path.parent.relative_to(tmp_path / 'runs').as_posix(): Config.fromfile(path)
               for path in tmp_path.glob('runs/*/*/config.py')}
    assert sorted(configs) == ['SimViT_micro/seed_4', 'SimViT_micro/seed_5', 'r18/seed_4', 'r18/seed_5']
    ours, theirs = configs['SimViT_micro/seed_4'], configs['r18/seed_4']
    same = [key for key in ours if key not in ('model', 'work_dir', 'val_evaluator', 'test_evaluator')]
    assert all(ours[key] == theirs[key] for key in same)
    assert ours.model.decode_head == theirs.model.decode_head
    assert theirs.model.backbone.init_cfg == dict(type='Pretrained', checkpoint='r18.pth')
    assert 'norm_eval' not in theirs.model.backbone  # as it is made for pretrained weights
    assert (ours.optim_wrapper.optimizer.lr, ours.train_cfg.max_iters, ours.randomness.seed) == (2e-3, 50, 4)
    assert configs['SimViT_micro/seed_5'].randomness.seed == 5
    main(words(str(tmp_path), 'PVT=pvtv2-b0', '--plan', '--seeds', '4', '--rates', '2e-3', '--iterations', '50'))  # one more
    said = refusal(main, *words(tmp_path, 'SimViT:micro', '--plan', '--rates', '2e-3', '--iterations', '60'), cwd=here)
    assert 'holds a comparison of other settings: iterations 50, not 60; name another' in said


def test_a_search_leaves_the_validation_set_alone(here):
    cfg = base_config(Protocol(options=OPTIONS))
    found = search_config(cfg, check_protocol(cfg), 7)
    train, val = found.train_dataloader.dataset.dataset, found.val_dataloader.dataset.dataset
    assert train.data_prefix == val.data_prefix and 'training' in val.data_prefix.img_path
    assert not set(train.indices) & set(val.indices) and len(train.indices) + len(val.indices) == 7
    assert val.pipeline == cfg.val_dataloader.dataset.dataset.pipeline
    assert 'indices' not in cfg.train_dataloader.dataset.dataset


def test_a_search_numbers_the_images_of_detectors_alike(here):
    """With test_mode, MMDetection would keep images without objects, which filter_cfg takes out of the training."""
    cfg = base_config(Protocol(task='detection', options=OPTIONS))
    sets = check_protocol(cfg)
    file = Path(sets['train'][0].ann_file)
    content = json.loads(file.read_text())
    lost = content['images'][0]['id']
    content['annotations'] = [one for one in content['annotations'] if one['image_id'] != lost]
    own = here / 'without.json'
    own.write_text(json.dumps(content))
    cfg.train_dataloader.dataset.dataset.ann_file = str(own)
    found = search_config(cfg, check_protocol(cfg), 7)
    assert found.val_evaluator.ann_file == str(own)
    with DefaultScope.overwrite_default_scope('mmdet'):
        train, val = (DATASETS.build(found[f'{split}_dataloader'].dataset) for split in ('train', 'val'))
    images = [{one.get_data_info(place)['img_id'] for place in range(len(one))} for one in (train, val)]
    assert not images[0] & images[1] and len(images[0] | images[1]) == 7


@pytest.fixture
def camvid(tmp_path):
    """Images and label maps as CamVid's are laid."""
    random, root = np.random.default_rng(0), tmp_path / 'camvid'
    for split in ('train', 'val', 'test'):
        for kind in ('img_dir', 'ann_dir'):
            (root / kind / split).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(random.integers(0, 255, (48, 64, 3), np.uint8)).save(root / 'img_dir' / split / f'{number}.png')
            Image.fromarray(random.integers(0, 3, (48, 64), np.uint8)).save(root / 'ann_dir' / split / f'{number}.png')
    return root


def test_a_report_is_made_while_others_train(here, tmp_path):
    with alone_in(tmp_path):
        results = main(words(str(tmp_path), 'SimViT:micro', '--report'))
    assert len(results['unfinished']) == 3 and 'SimViT:micro' in (tmp_path / 'report.html').read_text()


def test_folders_in_three_layouts(camvid):
    cfg = base_config(Protocol(data=str(camvid)))
    assert cfg.val_dataloader.dataset.metainfo.classes == ('class 0', 'class 1', 'class 2')
    assert cfg.val_dataloader.dataset.data_prefix.img_path == 'img_dir/val'
    assert cfg.model.data_preprocessor.size == (64, 64)  # the longer side, which is less than the crop
    on_test = base_config(Protocol(data=str(camvid), validation='test'))
    assert on_test.val_dataloader.dataset.data_prefix.img_path == 'img_dir/test'
    (camvid / 'classes.txt').write_text('sky\nroad\ncar\n')
    assert base_config(Protocol(data=str(camvid))).val_dataloader.dataset.metainfo.classes == ('sky', 'road', 'car')
    other = camvid.parent / 'segnet'
    for split in ('train', 'val'):
        shutil.copytree(camvid / 'img_dir' / split, other / split)
        shutil.copytree(camvid / 'ann_dir' / split, other / f'{split}annot')
    assert base_config(Protocol(data=str(other))).val_dataloader.dataset.data_prefix.seg_map_path == 'valannot'
    ade = camvid.parent / 'ade'
    for split, name in (('train', 'training'), ('val', 'validation')):
        shutil.copytree(camvid / 'img_dir' / split, ade / 'images' / name)
        shutil.copytree(camvid / 'ann_dir' / split, ade / 'annotations' / name)
    dataset = base_config(Protocol(data=str(ade))).val_dataloader.dataset
    assert dataset.reduce_zero_label
    assert dataset.metainfo.classes[:2] == ('wall', 'building') and len(dataset.metainfo.classes) == 150


def spoil(root, how):
    maps = root / 'ann_dir'
    if how == 'size':
        Image.fromarray(np.zeros((48, 60), np.uint8)).save(maps / 'val/3.png')
    elif how == 'one class':
        (root / 'classes.txt').write_text('road\n')
    elif how == 'empty':
        for path in [*(root / 'img_dir/val').iterdir(), *(maps / 'val').iterdir()]:
            path.unlink()
    elif how == 'few':
        for path in root.glob('*/train/[2-9].png'):
            path.unlink()
    elif how == 'no map':
        (maps / 'val/3.png').write_text('')
    elif how == 'no text':
        (root / 'classes.txt').write_bytes('Gebäude\nStraße\n'.encode('latin-1'))
    elif how == 'layout':
        maps.rename(root / 'masks')


@pytest.mark.parametrize(('how', 'more', 'said'), [
    ('size', [], 'it must have the size of the image'),
    ('one class', [], 'has 1 classes (road)'),
    ('empty', [], 'img_dir/val is empty'),
    ('layout', [], 'has none of the known layouts'),
    ('', ['--data', 'nowhere'], 'nowhere does not exist'),
    ('', ['--iterations', '0'], 'the budget must be above 0, got --iterations 0'),
    ('', ['--minutes', '0'], 'the budget must be above 0, got --minutes 0'),
    ('', ['--rates', '0'], '--rates must be above 0'),
    ('', ['--rates', 'nan'], '--rates must be above 0, got nan'),
    ('', ['--rates', '1e-3', '0.001'], '--rates must be one or more numbers that differ'),
    ('', ['--minutes', 'inf'], 'the budget must be above 0, got --minutes inf'),
    ('', ['--seeds', '-1'], '--seeds must be one or more different numbers from 0 on'),
    ('', ['--sizes', '0.5', '0'], '--sizes must be above 0, got 0.5 0.0'),
    ('', ['--workers', '-1'], '--workers must be 0 or more'),
    ('', ['--head', 'retinanet'], 'head retinanet is one of detection, and this comparison is one of segmentation'),
    ('', ['--data', 'shapes', '--validation', 'test'], '--validation and --reduce-zero-label are for folders of data'),
    ('', ['..=SimViT:tiny'], "no folder can be called '..'"),
    ('', [f'{"L" * 300}=SimViT:tiny'], 'no folder can be called'),
    ('few', ['--rates', '1e-3', '2e-3'], 'too few to search a learning rate with'),
    ('no map', [], 'label map'),
    ('no text', [], 'classes.txt is no text in UTF-8'),
    ('', ['--seeds', '1', '1'], '--seeds must be one or more different numbers'),
    ('', ['--head', 'fpnn'], 'there is no head fpnn; it must be one of'),
    ('', ['--validation', 'dev'], 'img_dir/dev does not exist'),
    ('', ['SimViT:micro'], 'two backbones are called SimViT:micro; name one of them otherwise: OTHER=SimViT:micro'),
])
def test_bad_input_ends_in_one_line_before_a_training(how, more, said, camvid):
    spoil(camvid, how)
    found = refusal(main, 'SimViT:micro', *more, *([] if '--data' in more else ['--data', camvid]), '--out-dir', 'out',
                    cwd=camvid.parent)
    assert said in found and '\n' not in found.strip()
    assert [path.name for path in camvid.parent.glob('out/*') if path.name != '.lock'] == []


@pytest.mark.parametrize('name', ['protocol.json', 'measured.json'])
@pytest.mark.parametrize('content', ['no JSON', '[1]'])
def test_a_foreign_file_is_told(name, content, camvid):
    (camvid.parent / 'out').mkdir()
    (camvid.parent / 'out' / name).write_text(content)
    assert refusal(main, 'SimViT:micro', '--data', camvid, '--out-dir', 'out', cwd=camvid.parent) == (
        f'error: out/{name} is not of a comparison; take it away, or name another folder with --out-dir')


@pytest.mark.full
def test_a_name_stays_with_its_backbone(camvid):
    """Or its trainings would be told of another."""
    given = ['--data', camvid, '--out-dir', camvid.parent / 'out', '--rates', '1e-3', '--plan']
    main([*map(str, ('r=mmdet.ResNet:18', *given))])
    main([*map(str, ('r=mmdet.ResNet,depth=18', *given))])  # the same
    said = refusal(main, 'r=mmdet.ResNet:34', *given, cwd=camvid.parent)
    assert 'runs/r is of another backbone that was called r; give this one another name, OTHER=mmdet.ResNet:34' in said
    refused = refusal(main, 'r=mmdet.ResNet:18', *given, '--amp', cwd=camvid.parent)
    assert 'holds a comparison of other settings: amp False, not True' in refused
    content = json.loads((camvid.parent / 'out/protocol.json').read_text())
    del content['amp']  # as if an earlier version had written it
    (camvid.parent / 'out/protocol.json').write_text(json.dumps(content))
    main([*map(str, ('r=mmdet.ResNet:18', *given))])


@pytest.mark.full
def test_minutes_give_a_backbone_the_same_iterations_when_another_is_added(camvid, monkeypatch):
    """All are timed again then, in turns; before that a report has nothing to tell."""
    given = ['--data', camvid, '--out-dir', camvid.parent / 'out', '--rates', '1e-3', '--seeds', '0', '--minutes', '1']
    assert main([*map(str, ('SimViT:micro', *given, '--report'))])['unfinished'] == []
    for seconds, backbones in ((0.5, ['SimViT:micro']), (0.6, ['SimViT:micro', 'r=mmdet.ResNet:18'])):
        def measure(candidates, *_, seconds=seconds):
            costs = dict(training=[seconds], model=[seconds], backbone=[seconds], parameters=1, macs=1, backbone_parameters=1,
                         backbone_macs=1, saved_bytes=1, peak_bytes=1, peak_bytes_inference=1)
            return dict(backbones={one.label: costs for one in candidates})

        monkeypatch.setattr('mmsimvit.cli.compare.measure_candidates', measure)
        main([*map(str, (*backbones, *given, '--plan'))])
    configs = {path.parent.parent.name: Config.fromfile(path) for path in (camvid.parent / 'out').glob('runs/*/*/config.py')}
    assert {name: cfg.train_cfg.max_iters for name, cfg in configs.items()} == {'SimViT_micro': 120, 'r': 100}
    results = json.loads((camvid.parent / 'out/results.json').read_text())
    assert results['unfinished'] == ['SimViT:micro, rate 0.001, seed 0', 'r, rate 0.001, seed 0']
    monkeypatch.undo()
    known = Comparison(parse_args([*map(str, ('SimViT:micro', *given))])).iterations()
    assert known['SimViT:micro'] == 120


def test_short_names_are_trained_as_others(here):
    found = {one.label: one.fit.model['backbone'] for one in read_candidates(
        ['resnet-50', 'swin-t', 'own=swin-t,drop_path_rate=0.1'], base_config(Protocol(options=OPTIONS)))}
    assert found['resnet-50']['norm_eval'] is False
    assert found['swin-t']['drop_path_rate'] == 0 and found['own']['drop_path_rate'] == 0.1


def test_weights_of_another_model_are_told(here, tmp_path):
    """Of which stock backbones say nothing: they would be compared with random weights."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.save(MODELS.build(dict(type='ResNet', depth=18)).state_dict(), tmp_path / 'r18.pth')
    torch.save(dict(state_dict={'stem.weight': torch.zeros(3)}), tmp_path / 'other.pth')
    cfg = base_config(Protocol(options=OPTIONS))
    good, deeper, other = read_candidates(
        [f'a=mmdet.ResNet:18,pretrained={tmp_path}/r18.pth', f'b=mmdet.ResNet:50,pretrained={tmp_path}/r18.pth',
         f'c=mmdet.ResNet:18,pretrained={tmp_path}/other.pth'], cfg)
    assert good.fit and not deeper.fit and not other.fit
    assert 'r18.pth is of another variant of mmdet.ResNet' in deeper.reason
    assert 'other.pth gives none of the' in other.reason


def test_images_are_not_padded_to_a_size_that_an_option_changes(here):
    assert base_config(Protocol(options=OPTIONS)).model.data_preprocessor.size == (64, 64)


@pytest.mark.parametrize(('word', 'said'), [
    ('SimViT:nano', "SimViT has no arch 'nano'"), ('NoSuchThing', 'names no backbone'), ('SimViT:micro,depths', '=VALUE'),
    ('timm.no_such_model', 'timm'), ('nowhere.py', 'config nowhere.py does not exist')])
def test_a_backbone_that_cannot_run_is_told(word, said, here):
    cfg = base_config(Protocol(options=OPTIONS))
    bad, good = read_candidates([word, 'SimViT:micro'], cfg)
    assert bad.fit is None and said in bad.reason
    assert good.fit is not None
    assert said in refusal(main, *words('out', word), cwd=here)


def test_slurm_gets_jobs_that_follow_each_other(here, tmp_path, monkeypatch, capsys):
    """A stand-in for sbatch notes what it is given."""
    (tmp_path / 'sbatch').write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/given\nwc -l < {tmp_path}/given\n')
    (tmp_path / 'sbatch').chmod(0o755)
    given = ['SimViT:micro', 'bad=SimViT:nano', 'r18=mmdet.ResNet:18', '--slurm', '--partition=gpu --gres=gpu:1', '--jobs', '4']
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    assert main(words(str(tmp_path / 'out'), *given)) is None
    assert 'submitted 1, 2, 3, 4' in capsys.readouterr().out
    folder = tmp_path / 'out/slurm'
    assert (tmp_path / 'given').read_text().split() == [
        '--parsable', f'{folder}/measure.sh', '--parsable', '--dependency=afterany:1', f'{folder}/search.sh', '--parsable',
        '--dependency=afterany:2', f'{folder}/train.sh', '--parsable', '--dependency=afterany:3', f'{folder}/report.sh']
    script = (folder / 'search.sh').read_text()
    assert '#SBATCH --array=0-5%4\n#SBATCH --partition=gpu\n#SBATCH --gres=gpu:1\nexec ' in script  # two backbones, three rates
    assert "SimViT:micro bad=SimViT:nano r18=mmdet.ResNet:18 --jobs 4" in script and '--slurm' not in script
    assert script.endswith('--stage search --number "$SLURM_ARRAY_TASK_ID"\n')
