"""The table of parameters, FLOPs and activations, and bad input; tests/analysis/test_flops.py has the numbers."""
import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmsimvit.analysis.flops import count_complexity
from mmsimvit.cli.get_flops import main
from tests.conftest import ROOT, run


def test_the_table(capsys):
    main([str(ROOT / 'configs/upernet_simvit_micro_shapes.py'), '--shape', '96', '128'])
    out = capsys.readouterr().out
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(Config.fromfile(ROOT / 'configs/upernet_simvit_micro_shapes.py').model)
    total = count_complexity(model, (96, 128)).total
    line = next(line for line in out.splitlines() if 'EncoderDecoder' in line)
    assert [cell.strip() for cell in line.strip('│ ').split('│')] == [
        'EncoderDecoder', f'{sum(p.numel() for p in model.parameters()):,}', f'{total.macs / 1e9:.4f}',
        f'{2 * total.macs / 1e9:.4f}', f'{total.activations / 1e6:.4f}']
    assert 'one image of 96 x 128 pixels' in out and '1 MAC (multiply-accumulate) = 2 FLOPs' in out
    assert 'Not run outside of training: auxiliary_head.' in out


def test_bad_input_ends_with_one_line(tmp_path, capsys):
    config = str(ROOT / 'configs/simvit_micro_shapes.py')
    for words, message in (
        ([config, '--shape', '224'], 'argument --shape: expected 2 arguments'),
        ([config, '--shape', '224', '0'], "argument --shape: must be positive whole numbers, got '0'"),
        ([config, '--shape', '224', '-8'], "argument --shape: must be positive whole numbers, got '-8'"),
        ([config, '--shape', '2.5', '8'], "argument --shape: must be positive whole numbers, got '2.5'"),
    ):
        with pytest.raises(SystemExit, match='2'):
            main(words)
        assert message in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(SystemExit, match=r'error: .*1x.py has no model; name the config of a detector'):
        main([str(ROOT / 'configs/_base_/schedules/1x.py')])
    (tmp_path / 'no_base.py').write_text("model = dict(backbone=dict(type='SimViT'))\n")
    with pytest.raises(SystemExit, match=r"error: the model of .*no_base.py has no type; is the config's line _base_ = "):
        main([str(tmp_path / 'no_base.py')])
    with pytest.raises(SystemExit, match='error: neck.fc takes 99 channels, but gets 20480'):
        broken = tmp_path / 'broken.py'
        broken.write_text(f"_base_ = {config!r}\nmodel = dict(neck=dict(type='LinearNeck', in_channels=99, out_channels=8))\n")
        main([str(broken)])
    with pytest.raises(SystemExit, match='error: head.fc takes 99 channels, but gets 256'):
        main([config, '--cfg-options', 'model.head.in_channels=99'])
    out = run(ROOT / 'tools/get_flops.py', tmp_path / 'nowhere.py', cwd=tmp_path, code=1)
    assert out.startswith(f'error: config {tmp_path}/nowhere.py does not exist, neither as a file nor among the ')
    assert len(out.splitlines()) == 1
