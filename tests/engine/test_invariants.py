"""What must not depend on how a training is run: in one process or two, at once or cut and resumed."""

import gc
import logging
import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing
from mmengine.optim import OptimWrapper
from mmengine.structures import BaseDataElement
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmsimvit import LIT, CheckpointError, SimViT
from mmsimvit.cli.launch import cleanup_dist
from mmsimvit.engine import CheckpointMatchHook, NonFiniteLossHook
from mmsimvit.stacks import ONEDL, installed_stack
from tests.backbones.table import BACKBONES
from tests.conftest import ROOT, flatten, options, run

ARCH = dict(embed_dims=(8, 16, 24, 32), depths=(1, 2, 1, 1), num_heads=(1, 2, 3, 4), mlp_ratios=(2, 2, 2, 2))
CASES = {
    'plain': {},
    'recomputed blocks': dict(with_cp=True),
    'recomputed FFN': dict(recompute_ffn=True),
    **{f'{number} frozen': dict(frozen_stages=number) for number in range(5)},
    **{f'stages {"".join(map(str, stages))}': dict(out_indices=stages) for stages in ((0, ), (3, ), (1, 2), (0, 3), (1, ))},
    'GC ViT': dict(build=BACKBONES['GCViT'].build),
    'GC ViT, recomputed': dict(build=BACKBONES['GCViT'].build, with_cp=True, out_indices=(1, 2)),
}


class Pyramid(nn.Module):
    """A backbone, and a layer for each of its maps as a neck has it."""

    def __init__(self, build=None, **changes):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = (build or partial(SimViT, ARCH))(drop_path_rate=0.0, **changes)
        self.backbone.init_weights()
        self.neck = nn.ModuleList(nn.Conv2d(channels, 4, 1) for channels in self.backbone.out_channels)

    def forward(self, image):
        return sum(layer(feature).square().mean() for layer, feature in zip(self.neck, self.backbone(image)))


def images():
    return torch.randn(4, 3, 48, 40, generator=torch.Generator().manual_seed(1))


def step(model, batch):
    loss = model(batch)
    loss.backward()
    return loss.detach()


def join(rank, function, folder):
    """Run a function in one of two processes. A group that a model still holds would abort them while Python shuts down."""
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    function(rank, folder)
    gc.collect()
    cleanup_dist()


def train_half(rank, folder):
    """What one of two processes does."""
    torch.set_num_threads(1)
    found = {}
    for name, changes in CASES.items():
        model = DistributedDataParallel(Pyramid(**changes), find_unused_parameters=False)
        losses = [step(model, images()[2 * rank:2 * rank + 2]) for _ in range(2)]  # twice: an unused one is noticed then
        torch.distributed.all_reduce(losses[0])
        found[name] = losses[0] / 2, {key: p.grad for key, p in model.module.named_parameters() if p.grad is not None}
    if rank == 0:
        torch.save(found, f'{folder}/found.pth')


@pytest.fixture(scope='module')
def halves(tmp_path_factory):
    """Loss and gradients of two steps in two processes with half of the batch each, for all cases."""
    folder = tmp_path_factory.mktemp('gloo')
    torch.multiprocessing.spawn(join, (train_half, str(folder)), nprocs=2)
    return torch.load(folder / 'found.pth')


@pytest.mark.parametrize('name', CASES)
def test_two_halves_are_a_whole(name, halves):
    model = Pyramid(**CASES[name])
    losses = [step(model, images()) for _ in range(2)]
    loss, gradients = halves[name]
    torch.testing.assert_close(loss, losses[0], rtol=1e-6, atol=0)
    whole = {key: p.grad for key, p in model.named_parameters() if p.requires_grad}
    assert gradients.keys() == whole.keys(), 'each parameter that is not frozen has a gradient'
    frozen = CASES[name].get('frozen_stages', -1)
    assert {int(key.split('.')[2]) for key in whole if key.startswith('backbone.stages')} == {
        stage for stage in range(model.backbone.num_built) if stage >= frozen}
    for key, gradient in whole.items():
        torch.testing.assert_close(gradients[key], gradient, rtol=1e-4, atol=1e-6 * gradient.abs().max().item() + 1e-9,
                                   msg=lambda text, key=key: f'{key}: {text}')


def skip_where_one_loss_is_no_number(rank, folder):
    """What one of two processes does; the second's first loss is no number."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(1, 1))
    optim_wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), 0.1))
    hook = NonFiniteLossHook(skip=True)
    lines = []
    hook.before_train(SimpleNamespace(optim_wrapper=optim_wrapper, logger=SimpleNamespace(warning=lines.append), iter=0))
    hook.before_train_iter(None, 0, dict(data_samples=[BaseDataElement(metainfo=dict(img_path=f'{rank}.png'))]))
    before = model.module.weight.item()
    for value in (float('nan') if rank else 1.0, 2.0 + rank):
        optim_wrapper.update_params(model(torch.tensor([[value]])).square().mean())
    torch.save((hook.skipped, before, model.module.weight.item(), lines), f'{folder}/{rank}.pth')


def test_all_processes_leave_out_what_one_cannot_use(tmp_path):
    torch.multiprocessing.spawn(join, (skip_where_one_loss_is_no_number, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f'{rank}.pth') for rank in range(2))
    assert first == second, 'both skipped, and then both stepped, together'
    skipped, before, after, lines = first
    assert lines == ['batch 1 is skipped, the first so far: its loss is nan on the images 1.png'], "the second's, in both logs"
    assert skipped == 1
    assert before != after


def begin(rank, folder):
    """What one of two processes does that have found different checkpoints."""
    CheckpointMatchHook().before_train(SimpleNamespace(iter=7, max_iters=8, work_dir='work'))
    with pytest.raises(CheckpointError, match=r'processes begin at the iterations \[0, 100\]: .* work is not the same folder'):
        CheckpointMatchHook().before_train(SimpleNamespace(iter=100 * rank, work_dir='work'))


def test_processes_that_would_begin_apart_stop(tmp_path):
    torch.multiprocessing.spawn(join, (begin, str(tmp_path)), nprocs=2)


def gather_and_leave(rank, folder):
    """What one of two processes does, over and over."""
    for again in range(20):
        torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/store_{again}', rank=rank, world_size=2)
        torch.distributed.all_gather_object([None, None], rank)
        cleanup_dist()


def test_leaving_right_after_gathering_does_not_wait_for_ever(tmp_path):
    """As it does with torch 2.6 where nothing lets gloo's threads finish."""
    context = torch.multiprocessing.spawn(gather_and_leave, (str(tmp_path), ), nprocs=2, join=False)
    deadline, left = time.monotonic() + 100, False
    while not left and time.monotonic() < deadline:
        left = context.join(timeout=1)
    for process in context.processes:
        process.kill()
    assert left


@pytest.mark.parametrize('resume', [True, False])
def test_tables_of_another_size_are_loaded_but_not_resumed(resume):
    """An optimizer's state does not fit what was resampled."""
    arch, = BACKBONES['LIT'].build.args
    trained, other = (LIT({**arch, 'bias_grids': grids}) for grids in ((4, 3), (5, 3)))
    runner = SimpleNamespace(model=other, logger=logging.getLogger('test'), _load_from='last.pth', _resume=resume)
    check = partial(CheckpointMatchHook().after_load_checkpoint, runner, dict(state_dict=trained.state_dict()))
    if not resume:
        check()
        return
    with pytest.raises(CheckpointError, match=r'cannot resume from checkpoint last.pth: stages.2.blocks.0.attn.position_bias'
                                              '.table and 0 others were trained in another size'):
        check()


FIRST = 'backbone.stages.0.patch_embed.proj.weight'
EPOCHS = '''
_base_ = {base!r}
custom_hooks = [dict(type='EMAHook', momentum=0.1)]
train_dataloader = dict(batch_size=2)
train_cfg = dict(max_epochs=2, val_interval=1)
randomness = dict(seed=7, deterministic=True)
default_hooks = dict(logger=dict(interval=1))
'''
ITERATIONS = '''
_base_ = {base!r}
custom_hooks = [dict(type='EMAHook', momentum=0.1)]
train_dataloader = dict(batch_size=2, sampler=dict(type='InfiniteSampler', shuffle=True))
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=6, val_interval=2)
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=6)]
log_processor = dict(by_epoch=False)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(by_epoch=False, interval=3))
randomness = dict(seed=7, deterministic=True)
'''


@pytest.mark.parametrize(('text', 'base', 'cut', 'end', 'said', 'number'), [
    (EPOCHS, 'maskrcnn_simvit_micro_shapes.py', 'epoch_1.pth', 'epoch_2.pth', 'resumed epoch: 1, iter: 4', 1),
    (ITERATIONS, 'semfpn_simvit_micro_shapes.py', 'iter_3.pth', 'iter_6.pth', 'resumed epoch: 0, iter: 3', 1),
    (ITERATIONS, 'semfpn_simvit_micro_shapes.py', 'iter_3.pth', 'iter_6.pth', 'resumed epoch: 0, iter: 3', 0),
], ids=['detector, cut after an epoch', 'segmentor, cut in an epoch', 'segmentor without workers'])
@pytest.mark.full
def test_cut_and_resumed_ends_as_uncut(text, base, cut, end, said, number, workspace, tmp_path):
    """With augmentation, drop path, workers that load data or none, averaged weights and a schedule."""
    config = tmp_path / 'config.py'
    config.write_text(text.format(base=str(ROOT / 'configs' / base)))
    workers = options(**{'train_dataloader.num_workers': number})

    def train(name, *words):
        return run(ROOT / 'tools/train.py', config, '--work-dir', tmp_path / name, *words, *workers, cwd=workspace)

    train('uncut')
    uncut = torch.load(tmp_path / 'uncut' / end)
    if text is EPOCHS:  # the second training reads its batches as the first does; of one kind of loop that is enough
        train('again')
        assert_equal(uncut, torch.load(tmp_path / 'again' / end))
    assert said in train('resumed', '--resume', tmp_path / 'uncut' / cut)
    resumed = torch.load(tmp_path / 'resumed' / end)
    # The fork goes past images without loading them, so that augmentation is another random draw.
    assert_equal(uncut, resumed, PARTS[-1:] if installed_stack() is ONEDL and text is ITERATIONS else PARTS)
    averaged = {key.removeprefix('module.'): value for key, value in uncut['ema_state_dict'].items()}
    assert not torch.equal(uncut['state_dict'][FIRST], averaged[FIRST]), 'there is something to average'


PARTS = 'state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers'


def assert_equal(first, second, parts=PARTS):
    """Weights, averaged weights, optimizer and schedule, bit for bit."""
    for part in parts:
        ours, theirs = flatten(first[part]), flatten(second[part])
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            same = torch.equal(value, theirs[key]) if isinstance(value, torch.Tensor) else value == theirs[key]
            assert same, f'{part} {key}'
