import re
import signal

import pytest
import torch

from mmsimvit.cli.train import configure, main, parse_args
from tests.conftest import ROOT, options, refusal, run

CONFIG = ROOT / 'configs/maskrcnn_simvit_micro_shapes.py'
TRAIN = ROOT / 'tools/train.py'
THREE_EPOCHS = options(**{'train_cfg.max_epochs': 3, 'train_cfg.val_interval': 3, 'train_dataloader.batch_size': 2,
                          'default_hooks.logger.interval': 1})

KILL_IN_EPOCH = '''
from mmengine.runner import EpochBasedTrainLoop as Loop
run_iter = Loop.run_iter
def run_iter_or_die(self, *arguments):
    if self._iter == 6:  # the third of four in the second epoch
        os.kill(os.getpid(), signal.SIGKILL)
    run_iter(self, *arguments)
Loop.run_iter = run_iter_or_die
'''
KILL_IN_CHECKPOINT = '''
from pathlib import Path
replace = Path.replace
def replace_or_die(self, target):
    if Path(target).name == 'epoch_2.pth':
        self.write_bytes(self.read_bytes()[:1000])
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
Path.replace = replace_or_die
'''


@pytest.mark.parametrize('kill', [KILL_IN_EPOCH, KILL_IN_CHECKPOINT], ids=['in an epoch', 'in a checkpoint'])
@pytest.mark.full
def test_killed_training_goes_on_from_the_last_whole_checkpoint(kill, workspace, tmp_path):
    arguments = [CONFIG, '--resume', '--work-dir', tmp_path, *THREE_EPOCHS]
    code = f'import os, signal\n{kill}\nfrom mmsimvit.train import main\nmain({[str(a) for a in arguments]!r})'
    out = run('-c', code, cwd=workspace, code=-signal.SIGKILL)
    assert 'nothing to resume from' in out
    assert [path.name for path in tmp_path.glob('epoch_*.pth')] == ['epoch_1.pth']
    assert len(list(tmp_path.glob('.*.epoch_2.pth'))) == (kill == KILL_IN_CHECKPOINT)

    out = run(TRAIN, *arguments, cwd=workspace)
    assert 'resumed epoch: 1, iter: 4' in out
    assert not list(tmp_path.glob('.*')), 'nothing is left of what was not finished'
    assert re.findall(r'Epoch\(train\) +\[(\d)\]\[4/4\]', out) == ['2', '3']
    assert 'coco/segm_mAP' in out
    finished = torch.load(tmp_path / 'epoch_3.pth')
    assert finished['meta']['iter'] == 12
    assert finished['optimizer']['state'][0]['step'] == 12


def test_an_interrupted_training_says_how_to_go_on(workspace, tmp_path):
    # Where the tests run in the background, a shell has them and their children ignore it.
    interrupt = 'signal.signal(signal.SIGINT, signal.default_int_handler)' + KILL_IN_EPOCH.replace('SIGKILL', 'SIGINT')
    arguments = [str(word) for word in (CONFIG, '--work-dir', tmp_path, *THREE_EPOCHS)]
    out = run('-c', f'import os, signal\n{interrupt}\nfrom mmsimvit.train import main\nmain({arguments!r})', cwd=workspace,
              code=130)
    assert out.splitlines()[-1] == f'interrupted; --resume goes on from the last checkpoint in {tmp_path}, if there is one'
    assert 'Traceback' not in out
    assert [path.name for path in tmp_path.glob('epoch_*.pth')] == ['epoch_1.pth']


def test_options_that_cannot_be_met_end_with_one_line(workspace, tmp_path):
    if not torch.cuda.is_available():
        assert run(TRAIN, CONFIG, '--amp', cwd=workspace, code=1) == (
            'error: --amp needs a GPU, and none was found; train without it\n')
    assert refusal(main, CONFIG, '--resume', 'nowhere.pth', cwd=workspace) == 'error: checkpoint nowhere.pth does not exist'
    (tmp_path / 'cut.pth').write_bytes(b'PK\x03\x04 cut')
    out = refusal(main, CONFIG, '--cfg-options', f'load_from={tmp_path}/cut.pth', cwd=workspace)
    assert f'error: checkpoint {tmp_path}/cut.pth cannot be read; it may have been cut short' in out
    (tmp_path / 'bare.py').write_text(f'_base_ = {str(CONFIG)!r}\nauto_scale_lr = dict(_delete_=True)\n')
    out = refusal(main, tmp_path / 'bare.py', '--auto-scale-lr', cwd=workspace)
    assert 'needs auto_scale_lr.base_batch_size' in out
    assert refusal(main, 'nowhere.py', cwd=workspace).startswith('error: config nowhere.py')


def test_missing_pretrained_weights_stop_the_training_at_once(workspace, tmp_path):
    out = run(TRAIN, CONFIG, '--work-dir', tmp_path, *options(
        **{'model.backbone.init_cfg.type': 'Pretrained', 'model.backbone.init_cfg.checkpoint': 'simvit.pth'}),
        cwd=workspace, code=1)
    assert out.splitlines()[-1].startswith('error: checkpoint simvit.pth does not exist; published weights: https://')
    assert list(tmp_path.rglob('*.pth')) == []


@pytest.mark.full
def test_weights_that_a_resumed_training_does_not_need_may_be_gone(workspace, tmp_path):
    weights = {'model.backbone.init_cfg.type': 'Pretrained', 'model.backbone.init_cfg.checkpoint': 'gone.pth'}
    once = {'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 5}
    run(TRAIN, CONFIG, '--work-dir', tmp_path, *options(**once), cwd=workspace)
    out = run(TRAIN, CONFIG, '--resume', tmp_path / 'epoch_1.pth', '--work-dir', tmp_path / 'named',
              *options(**once, **weights), cwd=workspace)
    assert 'resumed epoch: 1' in out
    assert f'nothing is left to train: {tmp_path}/epoch_1.pth is of iteration 2 of 2' in out
    again = configure(parse_args([*map(str, [CONFIG, '--work-dir', tmp_path, '--resume']), *options(**once, **weights)]))
    assert (again.load_from, again.model.backbone.get('init_cfg')) == (str(tmp_path / 'epoch_1.pth'), None)
    out = refusal(main, CONFIG, '--work-dir', tmp_path / 'new', *options(**once, **weights, resume=True), cwd=workspace)
    assert out.startswith('error: checkpoint gone.pth does not exist')
    part = torch.load(tmp_path / 'epoch_1.pth')
    del part['state_dict']['backbone.stages.3.norm.weight']
    torch.save(part, tmp_path / 'part.pth')
    out = refusal(main, CONFIG, '--work-dir', tmp_path, '--resume', tmp_path / 'part.pth', *options(**once), cwd=workspace)
    assert re.match(r'error: cannot resume from checkpoint .*part.pth: .* 1 missing \(backbone.stages.3.norm.weight\)', out)


@pytest.mark.parametrize(('words', 'expected'), [
    (['--amp'], dict(dtype='float16')),
    (['--amp', '--amp-dtype', 'bfloat16'], dict(dtype='bfloat16', loss_scale=dict(enabled=False))),
    (['--amp', '--cfg-options', 'optim_wrapper.dtype=bfloat16'], dict(dtype='bfloat16', loss_scale=dict(enabled=False))),
])
def test_mixed_precision_in_both_types(words, expected, monkeypatch):
    monkeypatch.setattr('mmsimvit.cli.train.is_cuda_available', lambda: True)
    found = configure(parse_args([*words[:1], str(CONFIG), *words[1:]])).optim_wrapper
    assert found.type == 'AmpOptimWrapper'
    assert {key: found[key] for key in ('dtype', 'loss_scale') if key in found} == expected


def test_auto_scale_lr_scales(workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(workspace)
    main([str(CONFIG), '--auto-scale-lr', '--work-dir', str(tmp_path), *options(
        **{'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 5, 'train_dataloader.batch_size': 8})])
    log, = tmp_path.glob('*/*.log')
    assert 'Scaling the original LR by 2.0.' in log.read_text()
