"""Exporting to ONNX: what ONNX Runtime computes from the files, at sizes that they were not traced at."""
import json
import sys

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmsimvit.analysis.export import Exportable, _adaptive_average_pool, export_onnx
from mmsimvit.cli.export_onnx import main
from mmsimvit.errors import ModelError
from tests.conftest import ROOT, exports, run

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

WIDTHS = [8, 16, 24, 32]
ARCH = dict(_delete_=True, embed_dims=WIDTHS, depths=[1] * 4, num_heads=[1, 2, 3, 4], mlp_ratios=[2] * 4)
# config -> part, changes of the model; with fewer stages where that tests as much in less time.
CASES = {
    'retinanet': ('neck', dict(backbone=dict(out_indices=[0, 1, 2]), neck=dict(in_channels=WIDTHS[:3]))),
    # The level that FPN pools from the last; the sizes of its map are odd and even.
    'maskrcnn': ('neck', dict(backbone=dict(out_indices=[0, 1, 2]), neck=dict(in_channels=WIDTHS[:3], num_outs=4))),
    'classifier': ('model', dict(head=dict(in_channels=32))),
    'semfpn': ('model', dict(
        backbone=dict(out_indices=[0, 1]), neck=dict(in_channels=WIDTHS[:2], num_outs=2),
        decode_head=dict(in_channels=[64, 64], in_index=[0, 1], feature_strides=[4, 8]))),
    'upernet': ('model', dict(
        backbone=dict(out_indices=[0, 1]), decode_head=dict(in_channels=WIDTHS[:2], in_index=[0, 1]), auxiliary_head=None)),
}


def config_of(case, folder):
    """A config with a small backbone, which inherits from the repository's."""
    base = ROOT / f'configs/{"" if case == "classifier" else case + "_"}simvit_micro_shapes.py'
    path = folder / f'{case}.py'
    model = CASES[case][1]
    model = dict(model, backbone=dict(model.get('backbone', {}), arch=ARCH))
    path.write_text(f'_base_ = {str(base)!r}\nmodel = {model!r}\n')
    return path


def build(path):
    """The model, with statistics of batch norms that do something."""
    cfg = Config.fromfile(path)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    return model


def image(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@exports
@pytest.mark.parametrize('case', CASES)
@pytest.mark.full
def test_files_hold_for_other_sizes(case, tmp_path):
    model = build(config_of(case, tmp_path)).eval()
    exportable = Exportable(model, CASES[case][0]).eval()
    export_onnx(exportable, tmp_path / 'model.onnx', (96, 130))
    assert [path.name for path in tmp_path.glob('model*')] == ['model.onnx']
    session = onnxruntime.InferenceSession(tmp_path / 'model.onnx')
    assert [(i.name, i.shape) for i in session.get_inputs()] == [('images', ['batch', 3, 'height', 'width'])]
    for size in ((2, 3, 64, 64), (1, 3, 71, 225), (2, 3, 160, 35)):
        images = image(*size)
        with torch.no_grad():  # the libraries' own way to the numbers
            if case in ('semfpn', 'upernet'):
                expected = (model.encode_decode(images, [dict(img_shape=size[2:])]), )
                assert expected[0].shape == (size[0], 7, *size[2:])
            else:
                expected = model(images, mode='tensor') if case == 'classifier' else model.extract_feat(images)
                expected = (expected, ) if case == 'classifier' else expected
        outs = session.run(None, {'images': images.numpy()})
        for a, b in zip(outs, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(a), b, rtol=0, atol=1e-4 * b.std().item())
    names = ['logits'] if CASES[case][0] == 'model' else [f'features_{i}' for i in range(4)]
    assert [out.name for out in session.get_outputs()] == names


@exports
def test_the_tool_exports_a_backbone_of_a_checkpoint(tmp_path):
    config = config_of('retinanet', tmp_path)
    with config.open('a') as file:
        file.write("model['backbone']['out_indices'] = [0]\nmodel['neck'].update(in_channels=[8], start_level=0)\n"
                   "model['bbox_head'] = dict(anchor_generator=dict(strides=[4, 8, 16, 32]))\n")
    model = build(config)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=['a', 'b']))), tmp_path / 'all.pth')
    torch.save(dict(state_dict=model.backbone.state_dict()), tmp_path / 'backbone.pth')
    out = run(ROOT / 'tools/export_onnx.py', config, tmp_path / 'all.pth', '--part', 'backbone', '--out', 'new/b.onnx',
              '--shape', 64, 64, cwd=tmp_path)
    assert '64 x 64 pixels, batch 2: ONNX Runtime differs from PyTorch by at most ' in out
    assert '101 x 114 pixels, batch 1: ONNX Runtime differs from PyTorch by at most ' in out
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['b.onnx']
    metadata = {item.key: item.value for item in onnx.load(tmp_path / 'new/b.onnx').metadata_props}
    assert metadata['part'] == 'backbone' and metadata['config'] == 'retinanet.py' and metadata['channels'] == 'RGB'
    assert json.loads(metadata['mean']) == [127.5] * 3 and json.loads(metadata['std']) == [64.] * 3
    assert json.loads(metadata['classes']) == ['a', 'b']
    # A checkpoint of the backbone alone gives the same file, here for one size alone.
    main([str(config), str(tmp_path / 'backbone.pth'), '--part', 'backbone', '--out', str(tmp_path / 's.onnx'), '--static',
          '--shape', '64', '64'])
    sessions = [onnxruntime.InferenceSession(path) for path in (tmp_path / 'new/b.onnx', tmp_path / 's.onnx')]
    assert sessions[1].get_inputs()[0].shape == [1, 3, 64, 64]
    dynamic, static = (session.run(None, {'images': image(1, 3, 64, 64).numpy()}) for session in sessions)
    for a, b, c in zip(dynamic, static, model.eval().backbone(image(1, 3, 64, 64)), strict=True):
        torch.testing.assert_close(torch.from_numpy(a), c.detach(), rtol=0, atol=1e-4)
        torch.testing.assert_close(torch.from_numpy(b), c.detach(), rtol=0, atol=1e-4)


@pytest.mark.parametrize('size', [3, (2, 5), (None, 4)])
def test_pooling_by_matrix_products_is_that_of_torch(size):
    pool, x = torch.nn.AdaptiveAvgPool2d(size), torch.rand(2, 3, 7, 9)  # None keeps a length
    torch.testing.assert_close(_adaptive_average_pool(pool, x), pool(x))


@exports
def test_a_file_that_computes_something_else_is_not_left(tmp_path, monkeypatch):
    config = config_of('classifier', tmp_path)
    monkeypatch.setattr('mmsimvit.cli.export_onnx.compare', lambda *_: [float('nan')])
    with pytest.raises(SystemExit, match=r'error: .*m\.onnx is not written: ONNX Runtime computes other numbers than PyTorch'):
        main([str(config), '--out', str(tmp_path / 'm.onnx'), '--static', '--shape', '32', '32'])
    assert [path.name for path in tmp_path.iterdir()] == ['classifier.py']


@exports
def test_without_onnxruntime_the_file_is_written_unseen(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    main([str(config_of('classifier', tmp_path)), '--out', str(tmp_path / 'm.onnx'), '--static', '--shape', '32', '32'])
    out = capsys.readouterr().out
    assert 'not compared with PyTorch: onnxruntime is not installed; pip install onnxruntime' in out
    assert 'no checkpoint is given, so the weights are those that training starts from' in out
    onnx.checker.check_model(tmp_path / 'm.onnx')


def test_what_cannot_be_exported_ends_with_one_line(tmp_path, monkeypatch):
    detector, classifier, segmentor = (str(config_of(case, tmp_path)) for case in ('retinanet', 'classifier', 'upernet'))
    out = ['--out', str(tmp_path / 'm.onnx')]
    torch.save(dict(state_dict={'backbone.stages.0.norm.weight': torch.ones(8)}), tmp_path / 'other.pth')
    for words, message in (
        ([detector, *out], 'RetinaNet is no segmentor or classifier: .*--part neck .* use MMDeploy'),
        ([segmentor, *out, '--part', 'neck'], 'EncoderDecoder has no neck; --part exports one of backbone, neck, model'),
        ([classifier, *out, '--shape', '32', '40'], 'at least 35 x 35 pixels, got 32 x 40; .*--static'),
        ([classifier, str(tmp_path / 'other.pth'), *out], r'other.pth gives 1 of the \d+ parameters of the model of Image'),
        ([classifier, str(tmp_path / 'no.pth'), *out], 'no.pth does not exist'),
        ([classifier, '--out', 'model.pb'], r'must end in \.onnx, got model.pb'),
    ):
        with pytest.raises(SystemExit, match=f'^error: .*{message}'):
            main(words)
    exportable = Exportable(build(classifier), 'model').eval()
    exportable.model.backbone.forward = lambda x: (x * x.mean().item(), )
    with pytest.raises(ModelError, match='ImageClassifier cannot be exported for images of any size; try --static: '):
        export_onnx(exportable, tmp_path / 'm.onnx', (64, 64))
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(SystemExit, match='^error: .* not installed; pip install onnx onnxruntime onnxscript'):
        main([classifier, *out])
    assert not list(tmp_path.glob('m.onnx*'))
