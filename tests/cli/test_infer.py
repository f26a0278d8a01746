"""Predictions of the three libraries' models, written as files: the numbers are those of the libraries' own inference."""
import json
import shutil
from types import SimpleNamespace

import mmcv
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, default_collate
from mmengine.registry import MODELS, DefaultScope
from PIL import Image
from pycocotools.mask import decode
from torch import nn

from mmsimvit.cli.infer import find_classes, find_images, main
from mmsimvit.datasets import CLASSES, DataError
from mmsimvit.weights import match
from tests.conftest import ROOT, run

CONFIGS = {'mmdet': 'maskrcnn_simvit_micro_shapes', 'mmseg': 'upernet_simvit_micro_shapes', 'mmpretrain': 'simvit_micro_shapes'}
ORIENTATION = 0x0112  # of EXIF


@pytest.fixture(autouse=True)
def default_scope():
    """Leave the scope to other tests as it was."""
    before = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


@pytest.fixture(scope='module')
def untrained(tmp_path_factory):
    """Config and checkpoint of a model for each library, with random weights that tell classes apart."""
    folder, made = tmp_path_factory.mktemp('untrained'), {}
    for scope, name in CONFIGS.items():
        cfg = Config.fromfile(ROOT / f'configs/{name}.py')
        with DefaultScope.overwrite_default_scope(scope):
            torch.manual_seed(0)
            model = MODELS.build(cfg.model)
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module.weight.shape[0] <= 7:  # the layers that give scores
                nn.init.normal_(module.weight, std=1.)
        classes = ('background', *CLASSES) if scope == 'mmseg' else CLASSES
        classes = [f'my {name}' for name in classes]
        path = folder / f'{scope}.pth'
        torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=classes))), path)
        made[scope] = SimpleNamespace(config=ROOT / f'configs/{name}.py', cfg=cfg, checkpoint=path, classes=classes)
    return made


@pytest.fixture(scope='module')
def images(workspace, tmp_path_factory):
    """Images of one name; the first two have the same size, the last is to be turned."""
    folder = tmp_path_factory.mktemp('images')
    source = workspace / 'data/shapes/images/validation'
    scenes = [Image.open(source / f'{number:06d}.png') for number in range(3)]
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for name, scene, options in (('a/scene.png', scenes[0], {}), ('b/scene.jpg', scenes[1], {}),
                                 ('b/scene.png', scenes[2].crop((0, 0, 64, 40)), {}),
                                 ('turned.JPG', scenes[2].crop((0, 0, 64, 48)), dict(exif=exif))):
        (folder / name).parent.mkdir(exist_ok=True)
        scene.save(folder / name, **options)
    return folder


NAMES = ['a/scene.png', 'b/scene.jpg', 'b/scene.png', 'turned.JPG']
SIZES = [(64, 64), (64, 64), (64, 40), (48, 64)]  # width, height


def infer(made, images, out_dir, *words):
    """Run the tool; give the JSON of each image, after a look at what all libraries have in common."""
    main([str(images), str(made.config), str(made.checkpoint), '--out-dir', str(out_dir), '--device', 'cpu', *words])
    records = {name: json.loads((out_dir / f'{name}.json').read_text()) for name in NAMES}
    assert [record['image'] for record in records.values()] == NAMES
    assert [(record['width'], record['height']) for record in records.values()] == SIZES
    suffixes = ['.json', '.drawn.jpg'] + ['.classes.png'] * (made.cfg.default_scope == 'mmseg')
    written = {path.relative_to(out_dir).as_posix() for path in out_dir.rglob('*') if path.is_file()}
    assert written == {name + suffix for name in NAMES for suffix in suffixes}
    for record in records.values():
        zoom = 512 // max(record['width'], record['height'])
        drawn = mmcv.imread(out_dir / f'{record["image"]}.drawn.jpg').astype(int)
        assert drawn.shape[:2] == (record['height'] * zoom, record['width'] * zoom)
        plain = mmcv.imread(images / record['image']).repeat(zoom, 0).repeat(zoom, 1)
        assert 0.01 < (abs(drawn - plain).max(-1) > 40).mean() < 1  # something is drawn
    return records


@pytest.mark.parametrize(('threshold', 'said'), [('0.25', False), ('1.5', True)])
def test_that_nothing_was_found_is_said(threshold, said, untrained, images, tmp_path, capsys):
    made = untrained['mmdet']
    main([str(images / 'a/scene.png'), str(made.config), str(made.checkpoint), '--out-dir', str(tmp_path), '--device', 'cpu',
          '--score-thr', threshold])
    assert (f'no instance has a score of {threshold} or more: --score-thr ' in capsys.readouterr().out) == said


@pytest.mark.parametrize(('batch_size', 'tolerance'), [(1, 0.), (3, 5e-3)])
def test_detections_are_those_of_inference_detector(untrained, images, tmp_path, batch_size, tolerance):
    from mmdet.apis import inference_detector, init_detector
    made = untrained['mmdet']
    thr = 0.25
    records = infer(made, images, tmp_path, '--score-thr', str(thr), '--batch-size', str(batch_size))
    model = init_detector(made.cfg.copy(), str(made.checkpoint), palette='random', device='cpu')
    for name, record in records.items():
        expected = inference_detector(model, str(images / name)).pred_instances
        expected = expected[expected.scores >= thr]
        assert len(record['instances']) == len(expected) > 3
        for key, values in dict(box=expected.bboxes, score=expected.scores, label=expected.labels).items():
            np.testing.assert_allclose([instance[key] for instance in record['instances']], values, rtol=0., atol=tolerance)
        assert [instance['class'] for instance in record['instances']] == [f'my {CLASSES[i]}' for i in expected.labels]
        masks = np.stack([decode(instance['mask']) for instance in record['instances']])
        assert (masks != expected.masks.numpy()).mean() <= tolerance


def test_class_maps_are_those_of_inference_model(untrained, images, tmp_path):
    from mmseg.apis import inference_model, init_model
    made = untrained['mmseg']
    records = infer(made, images, tmp_path)
    model = init_model(made.cfg.copy(), str(made.checkpoint), device='cpu')
    for name, record in records.items():
        expected = inference_model(model, str(images / name)).pred_sem_seg.data[0].numpy()
        found = np.asarray(Image.open(tmp_path / f'{name}.classes.png'))
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected)
        assert len(record['classes']) > 2
        assert record['classes'] == [
            {'label': int(label), 'class': made.classes[label], 'share': float((expected == label).mean())}
            for label in np.unique(expected)]


def test_scores_of_classes_are_those_of_the_model(untrained, images, tmp_path):
    from mmpretrain import get_model
    from mmpretrain.registry import TRANSFORMS
    made = untrained['mmpretrain']
    records = infer(made, images, tmp_path, '--batch-size', '2')
    model = get_model(made.cfg, str(made.checkpoint), device='cpu')
    pipeline = Compose([TRANSFORMS.build(step) for step in made.cfg.test_dataloader.dataset.dataset.pipeline])
    for name, record in records.items():
        with torch.no_grad():
            sample, = model.test_step(default_collate([pipeline(dict(img_path=str(images / name)))]))
        scores, labels = sample.pred_score.topk(5)
        assert [found['label'] for found in record['classes']] == labels.tolist()
        assert [found['class'] for found in record['classes']] == [f'my {CLASSES[label]}' for label in labels]
        torch.testing.assert_close(torch.tensor([found['score'] for found in record['classes']]), scores, rtol=1e-5, atol=1e-6)
        assert scores[0] > scores[4] + 1e-3


def test_command_line(untrained, images, tmp_path):
    """With a config that does not import mmsimvit and, as MMPreTrain's own, gives its visualizer no name; and images that are
    none: the rest is done, again the second time."""
    made = untrained['mmpretrain']
    (tmp_path / 'config.py').write_text(f'_base_ = {str(made.config)!r}\ncustom_imports = None\n'
                                       "visualizer = dict(_delete_=True, type='UniversalVisualizer')\n")
    folder = shutil.copytree(images, tmp_path / 'images')
    (folder / 'a/cut.png').write_bytes((images / 'a/scene.png').read_bytes()[:300])
    (folder / 'empty.jpg').touch()
    (folder / 'text.txt').write_text('not looked at')
    for _ in range(2):
        lines = run(ROOT / 'tools/infer.py', 'images', 'config.py', made.checkpoint, '--out-dir', 'images/out',
                    cwd=tmp_path, code=1).splitlines()
        assert 'predictions on 4 of 6 images are in images/out' in lines
        assert lines[-1] == 'error: left out, for they cannot be decoded or resized: a/cut.png, empty.jpg'
        found = {path.relative_to(folder / 'out').as_posix() for path in (folder / 'out').rglob('*.*')}
        assert found == {name + suffix for name in NAMES for suffix in ('.json', '.drawn.jpg')}


def test_an_image_that_the_pipeline_cannot_prepare_is_left_out(untrained, images, tmp_path):
    made = untrained['mmdet']
    Image.new('RGB', (900, 3)).save(tmp_path / 'thin.png')  # no pixel of its height is left at a width of 128
    shutil.copy(images / 'a/scene.png', tmp_path / 'whole.png')
    with pytest.raises(SystemExit, match=r'cannot be decoded or resized: thin\.png$'):
        main([str(tmp_path), str(made.config), str(made.checkpoint), '--out-dir', str(tmp_path / 'out'), '--device', 'cpu'])
    assert [path.name for path in (tmp_path / 'out').glob('*.json')] == ['whole.png.json']


def test_where_the_names_of_classes_come_from(capsys):
    model = nn.ModuleDict(dict(rpn=nn.Identity(), head=nn.Identity()))
    model['rpn'].num_classes, model['head'].num_classes = 1, 3
    own = dict(type='CocoDataset', metainfo=dict(classes=('x', 'y', 'z'), palette=[(1, 2, 3)] * 3), pipeline=[])
    with DefaultScope.overwrite_default_scope('mmdet'):
        assert find_classes(model, dict(dataset_meta=dict(CLASSES=('a', 'b', 'c'), palette=[[9, 9, 9]] * 3)), own) == (
            ['a', 'b', 'c'], [(9, 9, 9)] * 3)
        assert find_classes(model, dict(CLASSES=('a', 'b', 'c')), own)[0] == ['a', 'b', 'c']  # as MMDetection 2 wrote it
        assert find_classes(model, {}, own) == (['x', 'y', 'z'], [(1, 2, 3)] * 3)
        # The names of COCO, which nobody asked for.
        names, palette = find_classes(model, {}, dict(type='CocoDataset', pipeline=[]))
    assert names == ['0', '1', '2']
    assert len(palette) >= 3
    assert 'names the 3 classes of the model' in capsys.readouterr().out


@pytest.mark.parametrize(('words', 'message'), [
    (['--batch-size', '0'], 'error: --batch-size must be at least 1, got 0'),
    (['--device', 'gpu'], 'error: --device must be cpu, cuda, cuda:1 or the like, got gpu'),
    (['--device', 'cuda:99'], 'error: --device cuda:99 is not there: '),
    (['--cfg-options', 'default_scope=None'], 'must be mmdet, mmseg, mmpretrain, the library of the model, got None'),
    (['--cfg-options', 'test_dataloader=None'], 'has no test_dataloader'),
    (['--out-dir', __file__], 'test_infer.py/.trial cannot be written: File exists'),
])
def test_bad_options_end_with_one_line(untrained, images, tmp_path, words, message):
    made = untrained['mmseg']
    with pytest.raises(SystemExit) as error:
        main([str(images), str(made.config), str(made.checkpoint), '--out-dir', str(tmp_path), *words])
    assert message in str(error.value)
    assert '\n' not in str(error.value)


def test_bad_files_end_with_one_line(untrained, images, tmp_path):
    made = untrained['mmpretrain']
    torch.save(dict(state_dict={'layer1.weight': torch.zeros(3)}), tmp_path / 'other.pth')
    (tmp_path / 'none').mkdir()
    for (given, config, checkpoint), message in (
        ((tmp_path / 'nowhere', made.config, made.checkpoint), 'nowhere does not exist; name an image, or a folder'),
        ((tmp_path / 'none', made.config, made.checkpoint), 'none has no images in it; their names must end in .jpg'),
        ((images, tmp_path / 'nowhere.py', made.checkpoint), 'nowhere.py does not exist'),
        ((images, made.config, tmp_path / 'nowhere.pth'), 'nowhere.pth does not exist'),
        ((images, made.config, tmp_path / 'other.pth'), 'other.pth gives none of the'),
    ):
        with pytest.raises(SystemExit) as error:
            main([str(given), str(config), str(checkpoint), '--out-dir', str(tmp_path / 'out'), '--device', 'cpu'])
        assert message in str(error.value)
        assert '\n' not in str(error.value)


def test_a_checkpoint_of_another_model_is_refused_unless_a_part_will_do(untrained, images, tmp_path):
    """It may give most parameters, and what it lacks would be random."""
    made = untrained['mmpretrain']
    weights = torch.load(made.checkpoint)['state_dict']
    part = {name: value for name, value in weights.items() if not name.startswith('head.')}
    torch.save(dict(state_dict=part), tmp_path / 'part.pth')
    words = [str(images), str(made.config), str(tmp_path / 'part.pth'), '--out-dir', str(tmp_path / 'out'), '--device', 'cpu']
    with pytest.raises(SystemExit, match=rf'part.pth gives {len(part)} of the {len(weights)} parameters of ImageClassifier; 2 '
                                         r'missing \(head.fc.weight, head.fc.bias\); is it of this config\?.*--allow-partial'):
        main(words)
    assert not (tmp_path / 'out').exists() or not any((tmp_path / 'out').iterdir())
    main([*words, '--allow-partial'])
    assert len(list((tmp_path / 'out').rglob('*.json'))) == len([path for path in images.rglob('*') if path.is_file()])


def test_counts_of_batches_are_not_missed(untrained):
    model = MODELS.build(dict(type='mmdet.ResNet', depth=18))
    weights = {name: value for name, value in model.state_dict().items() if not name.endswith('num_batches_tracked')}
    assert match(model, weights).predicts and not match(model, weights).complete
    del weights['conv1.weight']
    assert not match(model, weights).predicts


def test_which_images_are_found(tmp_path):
    for name in ('b.PNG', 'a/c.jpg', 'a/.hidden.jpg', '.folder/d.jpg', 'e.txt', 'out/f.jpg', 'out/f.jpg.drawn.jpg',
                 'out/x/f.jpg.classes.png', 'a/g.drawn.jpg'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [name for _, name in find_images(tmp_path, tmp_path / 'out')] == ['a/c.jpg', 'a/g.drawn.jpg', 'b.PNG', 'out/f.jpg']
    assert find_images(tmp_path / 'a/c.jpg', tmp_path) == [(str(tmp_path / 'a/c.jpg'), 'c.jpg')]
    with pytest.raises(DataError, match='has no images in it'):
        find_images(tmp_path / 'out/x', tmp_path / 'out')
