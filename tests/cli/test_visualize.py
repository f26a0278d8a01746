"""Feature maps, attention and Grad-CAM: their numbers against the modules', their places in the pictures."""
import sys
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from mmsimvit import SimViT
from mmsimvit.analysis.feature_maps import (
    View,
    draw_feature_maps,
    draw_pixel_attention,
    find_pixel,
    get_feature_maps,
    get_grad_cam,
    get_pixel_attention,
    get_principal_components,
    get_token_weights,
    read_image,
)
from mmsimvit.cli.visualize import main
from mmsimvit.datasets import DataError
from mmsimvit.ops import central_attention
from tests.backbones.table import BACKBONES
from tests.conftest import ROOT, run

CONFIGS = {name: ROOT / f'configs/{name}_micro_shapes.py' for name in ('maskrcnn_simvit', 'upernet_simvit', 'simvit')}
DETECTION, SEGMENTATION, CLASSIFICATION = CONFIGS.values()


def build(path):
    cfg = Config.fromfile(path)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return cfg, MODELS.build(cfg.model).eval()


def read(cfg, model, path):
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return read_image(cfg, model, str(path))


@pytest.fixture(scope='module')
def backbone():
    """SimViT-micro in float64, with attention that differs much from token to token."""
    torch.manual_seed(0)
    model = SimViT('micro').double().eval()
    for module in model.modules():
        if hasattr(module, 'kv'):
            torch.nn.init.normal_(module.q.weight, std=0.3)
            torch.nn.init.normal_(module.kv.bias)
    for stage in model.stages:
        torch.nn.init.normal_(stage.norm.weight)  # else the mean over the channels is 0
    return model


@pytest.fixture(scope='module')
def view():
    """70 x 90 pixels, padded to 72 x 96."""
    image = np.random.RandomState(0).randint(0, 256, (70, 90, 3), np.uint8)
    inputs = F.pad(torch.from_numpy(image).permute(2, 0, 1)[None].double() / 64 - 2, (0, 6, 0, 2))
    y, x = np.mgrid[:70, :90]
    return View(inputs, image, np.stack([x, y], -1).astype(float), (90, 70))


def record(network, inputs, module):
    """What a module takes."""
    taken = []
    handle = module.register_forward_pre_hook(lambda module, args: taken.append(args[0]))
    with torch.no_grad():
        network(inputs)
    handle.remove()
    return taken[0]


@pytest.mark.parametrize('kernel_size', [3, 5])
@pytest.mark.parametrize('stage', [0, 1, 2])
def test_window_weights_give_the_attention_of_the_module_and_of_the_reference(stage, kernel_size, backbone, view, monkeypatch):
    attention = backbone.stages[stage].blocks[-1].attn
    monkeypatch.setattr(attention, 'kernel_size', kernel_size)
    x, out = (record(backbone, view.inputs, module) for module in (attention, attention.proj))
    key, value = attention.kv(x).chunk(2, -1)
    heads = attention.num_heads
    reference = central_attention(attention.q(x), key, value, heads, kernel_size, backend='reference')
    padded = F.pad(value[0], (0, 0) + (kernel_size // 2, ) * 4)
    for row, column in ((0, 0), (x.shape[1] - 1, x.shape[2] - 1), (2, 1), (0, 3)):
        weights = get_token_weights(attention, x, row, column)
        assert weights.shape == (heads, kernel_size, kernel_size)
        assert weights.sum((1, 2)).tolist() == pytest.approx([1] * heads, abs=1e-12)
        values = padded[row:row + kernel_size, column:column + kernel_size].unflatten(-1, (heads, -1))
        summed = torch.einsum('nij,ijnd->nd', weights, values).flatten()
        torch.testing.assert_close(summed, out[0, row, column], rtol=0, atol=1e-6)
        torch.testing.assert_close(summed, reference[0, row, column], rtol=0, atol=1e-12)
    assert weights.amax((1, 2)).mean() > 1.5 / kernel_size**2  # far from all alike


def test_token_weights_give_the_attention_of_stage_4(backbone, view):
    attention = backbone.stages[3].blocks[-1].attn
    x, out = (record(backbone, view.inputs, module) for module in (attention, attention.proj))
    value = attention.kv(x[0]).chunk(2, -1)[1].unflatten(-1, (8, -1))
    for row, column in ((0, 0), (2, 1)):
        weights = get_token_weights(attention, x, row, column)
        assert weights.shape == (8, *x.shape[1:3])
        summed = torch.einsum('nij,ijnd->nd', weights, value).flatten()
        torch.testing.assert_close(summed, out[0, row, column], rtol=0, atol=1e-6)


def test_attention_of_a_pixel_is_found_at_its_token(backbone, view):
    found = get_pixel_attention(backbone, view, 41, 69)
    # Strides 4, 8, 16, 32 of a map of 72 x 96: 18, 9, 5 and 3 rows; the windows begin one token before.
    assert [(a.stage, a.block, a.stride, a.row, a.column, a.top, a.left) for a in found] == [
        (1, 2, 4, 17, 10, 16, 9), (2, 3, 8, 8, 5, 7, 4), (3, 3, 16, 4, 2, 3, 1), (4, 2, 32, 2, 1, 0, 0)]
    assert [a.weights.shape for a in found] == [(1, 3, 3), (2, 3, 3), (5, 3, 3), (8, 3, 3)]
    for a in found[:3]:
        assert a.inside.tolist() == [[True] * 3] * 2 + [[False] * 3]
        assert a.weights[:, :2].sum((1, 2)) + a.outside == pytest.approx(1)
        assert (a.outside > 0).all()
    assert found[3].inside.all() and (found[3].outside == 0).all()
    other, = get_pixel_attention(backbone, view, 41, 69, [2], 1)
    assert (other.stage, other.block) == (2, 1) and not np.allclose(other.weights, found[1].weights)


def test_share_outside_of_the_map_where_all_weights_are_equal(view):
    model = SimViT('micro').double().eval()
    for stage in model.stages:
        for block in stage.blocks:
            block.attn.q.requires_grad_(False).apply(lambda q: (q.weight.zero_(), q.bias.zero_()))
    for pixel, outside in {(0, 0): 5, (40, 3): 3, (40, 40): 0, (95, 71): 5}.items():
        found, = get_pixel_attention(model, view, *pixel, [2])
        assert found.outside == pytest.approx([outside / 9] * 2)


def test_what_has_no_such_attention_is_refused(backbone, view):
    for arguments, message in ((([5], None), 'no stage 5: this SimViT has stages 1 to 4'),
                               (([0], None), 'no stage 0'),
                               (([2, 1], 3), 'no block 3 in stage 1, which has blocks 1 to 2')):
        with pytest.raises(DataError, match=message):
            get_pixel_attention(backbone, view, 0, 0, *arguments)
    with pytest.raises(DataError, match='Sequential has no central attention'):
        get_pixel_attention(torch.nn.Sequential(), view, 0, 0)


def spot(tmp_path, size, pixel):
    """A black image with a white pixel."""
    image = np.zeros((size[1], size[0], 3), np.uint8)
    image[pixel[1], pixel[0]] = 255
    Image.fromarray(image).save(tmp_path / 'spot.png')
    return tmp_path / 'spot.png'


@pytest.mark.parametrize(('steps', 'size', 'pixel', 'expected'), [
    ([dict(type='Resize', scale=(128, 128), keep_ratio=True)], (32, 20), (30, 3), (120, 12)),  # each is 4 x 4 of the input's
    ([dict(type='Resize', scale=(40, 40), keep_ratio=True)], (80, 60), (31, 40), (15, 20)),
    ([dict(type='RandomFlip', prob=1.)], (50, 40), (7, 9), (42, 9)),
    ([dict(type='Resize', scale=(100, 80)), dict(type='Pad', size=(96, 128), pad_val=dict(img=20))],
     (50, 40), (20, 20), (40, 40)),
    ([dict(type='mmpretrain.ResizeEdge', scale=64, edge='short', backend='pillow', interpolation='bicubic'),
      dict(type='mmpretrain.CenterCrop', crop_size=48)], (48, 32), (20, 9), (16, 10)),
])
def test_pixels_are_followed_through_the_pipeline(steps, size, pixel, expected, tmp_path):
    """The network sees the spot where it is said to be: the brightest of its input, or one of the brightest."""
    cfg, model = build(DETECTION)
    cfg.test_dataloader.dataset.dataset.pipeline = [dict(type='LoadImageFromFile'), *steps, dict(type='PackDetInputs')]
    view = read(cfg, model, spot(tmp_path, size, pixel))
    column, row = find_pixel(view, *pixel)
    assert abs(column - expected[0]) <= 1 and abs(row - expected[1]) <= 1
    grey = view.image.astype(int).sum(-1)
    assert grey[row, column] > 0.85 * grey.max() > 0
    assert view.inputs.shape[2] % 32 == 0 and view.inputs.shape[3] % 32 == 0


def test_the_picture_has_the_colours_of_the_file(image):
    cfg, model = build(DETECTION)
    cfg.test_dataloader.dataset.dataset.pipeline[1:2] = []
    view = read(cfg, model, image)
    assert (view.image == np.asarray(Image.open(image))).all()
    # And what the network takes is this, normalised: RGB, mean 127.5, standard deviation 64.
    assert view.inputs[0].permute(1, 2, 0).numpy() * 64 + 127.5 == pytest.approx(view.image, abs=1e-4)


def test_pixels_that_are_not_there_are_refused(tmp_path):
    cfg, model = build(CLASSIFICATION)
    cfg.test_dataloader.dataset.dataset.pipeline[1:3] = [dict(type='CenterCrop', crop_size=(32, 64))]
    view = read(cfg, model, spot(tmp_path, (64, 64), (16, 0)))  # columns 16 to 47 are left
    assert [find_pixel(view, x, 9) for x in (16, 47)] == [(0, 9), (31, 9)]
    for x in (15, 48):
        with pytest.raises(DataError, match=r'is cut away by the pipeline.*left are 16 0 to 47 63'):
            find_pixel(view, x, 9)
    for pixel in ((64, 0), (0, -1)):
        with pytest.raises(DataError, match='outside of the image, which is 64 pixels wide and 64 high'):
            find_pixel(view, *pixel)


def test_heat_is_drawn_where_the_window_lies(view):
    """On a black image: what is coloured on the left is the window, but for its part outside of the map."""
    model = SimViT('micro').double().eval()
    black = view._replace(image=np.zeros_like(view.image))
    found, = get_pixel_attention(model, black, 50, 3, [3])  # row 0, column 3: x 32 to 79, y 0 to 31
    figure = draw_pixel_attention(black, (50, 3), found)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
    left = figure.subfigs[0].axes[0]

    def colour(ax, x, y):
        across, up = ax.transData.transform((x, y))
        return drawn[len(drawn) - 1 - int(up), int(across)]

    coloured = np.array([[np.ptp(colour(left, x, y)) > 10 for x in range(4, 90, 8)] for y in range(4, 70, 8)])
    expected = np.zeros_like(coloured)
    expected[:4, 4:10] = True
    assert (coloured == expected).all()
    assert left.get_xlim() == (-0.5, 95.5) and left.get_ylim() == (71.5, -0.5)  # with the padding
    panel = figure.subfigs[1].axes[1]  # after the mean
    assert panel.get_title() == f'head 1, {found.outside[0]:.1%} outside'
    assert [text.get_text() for text in panel.texts] == [f'{weight:.3f}' for weight in found.weights[0].ravel()]
    assert panel.get_xlim() == (31.5, 79.5) and panel.get_ylim() == (31.5, -16.5)
    assert [np.ptp(colour(panel, 35, y)) > 10 for y in (-14, 2, 20)] == [False, True, True]  # zeros outside have no colour


@pytest.mark.parametrize('other', ['LIT', 'LIT-Ti', 'GCViT', 'DWNet'])
def test_feature_maps_of_siblings_are_those_that_are_returned(other, view):
    backbone = BACKBONES[other].build().eval().to(view.inputs.dtype)
    maps = get_feature_maps(backbone, view)
    assert [stride for stride, _ in maps] == [4, 8, 16, 32]
    with torch.no_grad():
        outs = backbone(view.inputs)
    for (_, found), expected in zip(maps, outs, strict=True):
        torch.testing.assert_close(found, expected[0])


@pytest.mark.parametrize('out_type', ['featmap', 'cls_token'])
def test_feature_maps_of_plain_backbones_are_maps(out_type, view):
    build = partial(BACKBONES['ResFormer'].build, out_indices=(0, 2))
    reader = build(out_type=out_type).eval().to(view.inputs.dtype)
    whole = build().eval().to(view.inputs.dtype)
    whole.load_state_dict(reader.state_dict())
    maps = get_feature_maps(reader, view)
    assert [stride for stride, _ in maps] == [16, 16]
    with torch.no_grad():
        for (_, found), expected in zip(maps, whole(view.inputs), strict=True):
            assert torch.equal(found, expected[0])


def test_feature_maps_are_those_of_the_backbone(backbone, view):
    maps = get_feature_maps(backbone, view)
    assert [stride for stride, _ in maps] == [4, 8, 16, 32]
    for (_, found), expected in zip(maps, backbone(view.inputs)):
        assert torch.equal(found, expected[0])
    figure = draw_feature_maps(view, maps)
    pictures = [ax.images[0].get_array() for ax in figure.axes if ax.images]
    assert len(pictures) == 9
    assert {picture.shape for picture in pictures} == {(70, 90, 3)}
    # The mean is drawn over the image: 40 % of this, 60 % of blue for the least and of dark red for the highest token, which
    # rounding may put one step of 4 below the end of the colours.
    mean = maps[1][1].mean(0).detach()
    row, column = divmod(int(mean[:9, :12].argmax()), 12)
    tile = (slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8))
    assert np.abs(np.asarray(pictures[2])[tile] - (0.4 * view.image[tile] + 0.6 * np.array([128, 0, 0]))).max() <= 1.5 + 0.6 * 4


def test_rounding_errors_are_not_drawn(view):
    maps = get_feature_maps(SimViT('micro').double().eval(), view)
    assert maps[0][1].mean(0).abs().max() < 1e-12
    axes = draw_feature_maps(view, maps).axes
    assert axes[1].get_title().endswith('mean of 32 channels: the same everywhere')
    assert (axes[1].images[0].get_array() == view.image).all()


def test_principal_components():
    """Of a map along three orthogonal directions of falling spread, they are these directions, and -1 makes no difference."""
    torch.manual_seed(0)
    directions = torch.linalg.qr(torch.randn(8, 3))[0].T
    spreads = torch.randn(3, 20, 30) * torch.tensor([9., 3., 1.])[:, None, None]
    spreads = spreads - spreads.mean((1, 2), keepdim=True)
    features = 5 + torch.einsum('chw,cd->dhw', spreads, directions)
    found = get_principal_components(features)
    assert found.shape == (20, 30, 3) and found.min() == 0 and found.max() == 1
    for component, spread in zip(found.reshape(-1, 3).T, spreads.flatten(1)):
        assert abs(np.corrcoef(component, spread.numpy())[0, 1]) > 0.99
    assert np.allclose(found[..., 0], 1 - get_principal_components(-features)[..., 0])
    assert get_principal_components(torch.randn(2, 4, 5))[..., 2].max() == 0  # two channels have no third component


@pytest.fixture(scope='module')
def image(workspace):
    return workspace / 'data/shapes/images/validation/000000.png'


def test_the_tool_draws_a_detector(workspace, image, tmp_path):
    _, model = build(DETECTION)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'untrained.pth')
    out = run(ROOT / 'tools/visualize.py', DETECTION, image, '--checkpoint', tmp_path / 'untrained.pth', '--pixel', 3, 60,
              '--out-dir', tmp_path / 'out', cwd=workspace)
    names = ['features', *(f'pixel_3_60_stage{stage}_block{block}' for stage, block in ((1, 2), (2, 3), (3, 3), (4, 2)))]
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [f'000000_{name}.png' for name in names]
    # 64 pixels become 128, so that 3 60 is 6 120, in token 0 15 of stage 2, whose window has 3 of 9 tokens outside.
    assert 'stage 2, block 3: token 0 15 of stride 8; weight on zeros outside of the map, head by head: ' in out


@pytest.mark.parametrize('config', [SEGMENTATION, CLASSIFICATION], ids=lambda path: path.stem)
def test_the_tool_draws_segmentors_and_classifiers(config, image, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for x in (2, 40):
        main([str(config), str(image), '--pixel', str(x), '30', '--stage', '1', '4', '--block', '1'])
    assert 'the weights are random' in capsys.readouterr().out
    folder = tmp_path / f'work_dirs/{config.stem}/visualized'
    pictures = {path.name: np.asarray(Image.open(path).convert('RGB')) for path in folder.iterdir()}
    assert set(pictures) == {'000000_features.png',
                             *(f'000000_pixel_{x}_30_stage{stage}_block1.png' for x in (2, 40) for stage in (1, 4))}
    for stage in (1, 4):
        first, second = (pictures[f'000000_pixel_{x}_30_stage{stage}_block1.png'] for x in (2, 40))
        assert first.shape != second.shape or (first != second).any(-1).mean() > 0.001


def test_mistakes_end_with_one_line_and_without_a_picture(image, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, 'pytorch_grad_cam', None)
    torch.save(dict(state_dict=dict(layer=torch.zeros(1))), 'other.pth')
    (tmp_path / 'text.png').write_text('text')
    for words, message in (
        ([DETECTION, 'nowhere.png'], 'nowhere.png does not exist'),
        ([DETECTION, 'text.png'], 'text.png cannot be decoded'),
        (['nowhere.py', image], 'nowhere.py does not exist'),
        ([DETECTION, image, '--checkpoint', 'nowhere.pth'], 'nowhere.pth does not exist'),
        ([DETECTION, image, '--checkpoint', 'other.pth'], 'gives none of the'),
        ([DETECTION, image, '--pixel', 64, 0], 'pixel 64 0 lies outside of the image, which is 64 pixels wide'),
        ([DETECTION, image, '--grad-cam'], 'for classifiers and segmentors with a pyramid of mmsimvit, not for MaskRCNN'),
        ([CLASSIFICATION, image, '--grad-cam'], 'pytorch-grad-cam, which is not installed; pip install '),
    ):
        with pytest.raises(SystemExit) as error:
            main([*map(str, words), '--out-dir', 'out'])
        assert str(error.value).startswith('error: ') and message in str(error.value)
    with pytest.raises(SystemExit):
        main([str(DETECTION), str(image), '--stage', '1'])
    assert not (tmp_path / 'out').exists()


def spoken_gradients(model, view, score):
    """Grad-CAM by its definition, at the size of the map: the channels, weighted with their mean gradient, where positive."""
    norm, kept = model.backbone.stages[-1].norm, []
    handle = norm.register_forward_hook(lambda module, args, out: kept.append(out))
    value = score(model(view.inputs.clone().requires_grad_(), mode='tensor')[0])
    handle.remove()
    gradient, = torch.autograd.grad(value, kept[0])
    heat = (gradient.mean((1, 2), keepdim=True) * kept[0])[0].sum(-1).clamp(min=0).detach()
    return ((heat - heat.min()) / (heat.max() - heat.min())).numpy()


def test_grad_cam_of_a_classifier(image, tmp_path, monkeypatch, capsys):
    pytest.importorskip('pytorch_grad_cam')
    cfg, model = build(CLASSIFICATION)
    cfg.test_dataloader.dataset.dataset.pipeline[1:3] = []
    torch.nn.init.normal_(model.head.fc.weight)
    view = read(cfg, model, image)
    classes = list('abcdef')
    name, heat = get_grad_cam(model, view, classes, None)
    scores = model(view.inputs, mode='tensor')[0]
    assert name == classes[int(scores.argmax())]
    assert heat.shape == (64, 64)
    for wanted in ('b', '1'):
        name, heat = get_grad_cam(model, view, classes, wanted)
        assert name == 'b'
        expected = spoken_gradients(model, view, lambda scores: scores[1])
        assert expected.shape == (2, 2) and expected.max() == 1
        # cv2.resize keeps the corners of a map that it enlarges.
        assert heat[::63, ::63] == pytest.approx(expected, abs=1e-3)
    with pytest.raises(DataError, match='there is no class g; there are a, b, c, d, e, f'):
        get_grad_cam(model, view, classes, 'g')
    main([str(CLASSIFICATION), str(image), '--grad-cam', '3', '--out-dir', str(tmp_path)])
    assert (tmp_path / '000000_grad_cam_3.png').is_file() and 'grad_cam_3.png' in capsys.readouterr().out


def test_grad_cam_of_a_segmentor_is_of_the_pixels_of_the_class(image):
    pytest.importorskip('pytorch_grad_cam')
    cfg, model = build(SEGMENTATION)
    torch.nn.init.normal_(model.decode_head.conv_seg.weight)
    model.backbone.requires_grad_(False)
    view = read(cfg, model, image)
    labels = model(view.inputs, mode='tensor')[0].argmax(0)
    found, counts = labels.unique(return_counts=True)
    classes = list('abcdefg')
    name, heat = get_grad_cam(model, view, classes, None)
    label = int(found[counts.argmax()])
    assert name == classes[label]
    expected = spoken_gradients(model, view, lambda scores: scores[label][labels == label].sum())
    assert heat.shape == (128, 128)
    assert heat[::127, ::127] == pytest.approx(expected[::3, ::3], abs=0.01)
    torch.nn.init.constant_(model.decode_head.conv_seg.bias, 0)
    model.decode_head.conv_seg.bias.data[5] = -1e4
    with pytest.raises(DataError, match='the model finds f in no pixel of the image; it finds [a-eg]'):
        get_grad_cam(model, view, classes, 'f')
