"""Of the errors that docs/errors.md quotes, those that can be met here: they are so, and their cures cure."""
import re

import pytest
import torch
from mmengine.logging import HistoryBuffer

from tests.conftest import ROOT, run

PAGE = ' '.join((ROOT / 'docs/errors.md').read_text().split())


@pytest.mark.parametrize('library', ['mmdet', 'mmseg', 'mmpretrain'])
def test_a_backbone_that_nothing_imported(library, tmp_path):
    config = tmp_path / 'config.py'
    config.write_text("model = dict(type='SimViT', arch='micro')\n")
    build = ('from mmengine.config import Config\n'
             f'from {library}.registry import MODELS\n'
             f"print(type(MODELS.build(Config.fromfile('{config}').model)).__name__)")
    out = run('-c', build, cwd=tmp_path, code=1)
    error = out.strip().splitlines()[-1].replace('`', '')
    quoted = re.search(r"`(KeyError: 'SimViT is not in the mmdet::model registry\. .*?)'`", PAGE)[1]
    assert error.startswith(quoted.replace('mmdet::', f'{library}::'))
    assert f'{library}::model' in PAGE
    config.write_text("custom_imports = dict(imports=['mmsimvit'])\n" + config.read_text())
    assert run('-c', build, cwd=tmp_path).strip().splitlines()[-1] == 'SimViT'


def test_a_training_checkpoint_in_a_process_without_mmsimvit(tmp_path):
    torch.save(dict(history=HistoryBuffer([1.0], [1])), tmp_path / 'epoch_1.pth')
    load = "import torch; print(torch.load('epoch_1.pth').keys())"
    out = run('-c', load, cwd=tmp_path, code=1)
    for words in ('Weights only load failed. This file can still be loaded, to do so you have two options', 'weights_only'):
        assert words in out
        assert words in PAGE
    assert 'history' in run('-c', f'import mmsimvit; {load}', cwd=tmp_path)
