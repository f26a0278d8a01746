"""Checkpoints from strangers: each tool that reads one refuses a file that would run code, and the code does not run."""
import io
import pickle

import pytest
import torch

from mmsimvit.cli import convert_checkpoint, export_onnx, infer, test, train, visualize
from tests.conftest import ROOT

CONFIG = str(ROOT / 'configs/semfpn_simvit_micro_shapes.py')
PRETRAINED = ['model.backbone.init_cfg.type=Pretrained', 'model.backbone.init_cfg.checkpoint=stranger.pth']
TOOLS = {
    'train, resuming': lambda: train.main([CONFIG, '--resume', 'stranger.pth']),
    'train, resuming from a work dir': lambda: train.main([CONFIG, '--resume', '--work-dir', 'work']),
    'train, from its weights': lambda: train.main([CONFIG, '--cfg-options', 'load_from=stranger.pth']),
    'train, from a pretrained backbone': lambda: train.main([CONFIG, '--cfg-options', *PRETRAINED]),
    'test': lambda: test.main([CONFIG, 'stranger.pth']),
    'infer': lambda: infer.main(['image.png', CONFIG, 'stranger.pth']),
    'visualize': lambda: visualize.main([CONFIG, 'image.png', '--checkpoint', 'stranger.pth']),
    'export': lambda: export_onnx.main([CONFIG, 'stranger.pth', '--out', 'model.onnx']),
    'export, a pretrained backbone': lambda: export_onnx.main([CONFIG, '--out', 'model.onnx', '--cfg-options', *PRETRAINED]),
    'convert': lambda: convert_checkpoint.main(['stranger.pth', 'converted.pth', '--system', 'simvit']),
}


class Payload:
    """Loading it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, 'w')


@pytest.fixture
def proof(workspace, tmp_path, monkeypatch):
    """A folder with a stranger's checkpoint in it, and the file that would be there, had its code been run."""
    proof = tmp_path / 'proof'
    content = dict(state_dict={'backbone.stages.0.norm.bias': torch.zeros(32)}, meta=dict(epoch=1, iter=4),
                   extra=Payload(str(proof)))
    torch.save(content, tmp_path / 'stranger.pth')
    (tmp_path / 'work').mkdir()
    torch.save(content, tmp_path / 'work/epoch_1.pth')
    (tmp_path / 'image.png').write_bytes(next((workspace / 'data/shapes/images/validation').iterdir()).read_bytes())
    (tmp_path / 'data').symlink_to(workspace / 'data')
    monkeypatch.chdir(tmp_path)
    return proof


@pytest.mark.parametrize('tool', TOOLS)
def test_code_in_a_checkpoint_is_refused_and_not_run(tool, proof):
    with pytest.raises(SystemExit, match=r'error: checkpoint .*(stranger|epoch_1).pth is refused: it holds more than tensors'):
        TOOLS[tool]()
    assert not proof.exists()


def test_the_code_would_run_otherwise(proof):
    torch.load('stranger.pth', weights_only=False)
    assert proof.exists()


def test_no_tool_reads_another_pickle(proof):
    """A checkpoint of before torch 1.6 is a bare pickle."""
    content = io.BytesIO()
    pickle.dump(dict(extra=Payload(str(proof))), content)
    (proof.parent / 'stranger.pth').write_bytes(content.getvalue())
    for tool in ('test', 'convert', 'infer'):
        with pytest.raises(SystemExit, match='is refused'):
            TOOLS[tool]()
    assert not proof.exists()
