import math
from types import SimpleNamespace

import pytest
import torch
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn

from mmsimvit.engine import CheckpointMatchHook, NonFiniteLossHook
from mmsimvit.engine.hooks import check_order, check_validation, image_names
from mmsimvit.errors import CheckpointError, ModelError, NonFiniteLossError


class Numbers(BaseDataset):
    """Eight samples of one number each; the sixth is none."""

    def load_data_list(self):
        return [dict(value=math.nan if index == 5 else float(index), img_path=f'{index}.png') for index in range(8)]

    def prepare_data(self, index):
        info = self.get_data_info(index)
        sample = BaseDataElement(metainfo=dict(img_path=info['img_path']))
        return dict(inputs=torch.tensor([info['value']]), data_samples=sample)


class Line(BaseModel):

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return dict(loss_line=self.layer(torch.stack(inputs)).square().mean())


def runner(tmp_path, **settings):
    torch.manual_seed(0)
    return Runner(
        Line(), str(tmp_path),
        train_dataloader=dict(dataset=Numbers(), batch_size=2, sampler=dict(type='DefaultSampler', shuffle=False)),
        train_cfg=dict(by_epoch=True, max_epochs=2), optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-3)),
        custom_hooks=[NonFiniteLossHook(**settings)], default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        experiment_name=f'test_{tmp_path.name}', log_level='WARNING')


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    """As after gradients that overflow under a finite loss, or the loss of another process."""
    built = runner(tmp_path, skip=True)
    built.register_hook(Spoil())
    with pytest.raises(NonFiniteLossError, match=r'training stopped: 1 of 2 weights are not finite any more \(layer.weight\)'):
        built.train()
    assert not list(tmp_path.rglob('*.pth'))


class Spoil(Hook):

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if batch_idx == 3:
            runner.model.layer.weight.data.fill_(math.inf)


def test_skipping_ends_where_nothing_else_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr('mmsimvit.engine.hooks.MOST_SKIPPED_IN_A_ROW', 2)
    built = runner(tmp_path, skip=True)
    built.model.layer.bias.data.fill_(math.inf)
    with pytest.raises(NonFiniteLossError, match=r'2 batches in a row had no finite loss, so .* the weights .* 2.png, 3.png'):
        built.train()


def test_names_of_images_in_any_batch():
    samples = [BaseDataElement(metainfo=dict(img_path=f'{index}.png')) for index in range(3)]
    assert image_names(dict(inputs=0, data_samples=samples[:2])) == '0.png, 1.png'
    assert image_names(dict(data_samples=dict(sup=samples[:1], unsup=samples[1:]))) == '0.png, 1.png, 2.png'  # semi-supervised
    assert image_names(dict(data_samples=[BaseDataElement(metainfo=dict(img_id=5)), BaseDataElement()])) == '5, unknown'
    for batch in (None, dict(data_samples=None), dict(inputs=[1, 2]), [torch.zeros(1)]):
        assert image_names(batch) == 'unknown'


def test_a_loss_that_is_no_number_stops_the_training_with_the_images(tmp_path):
    with pytest.raises(NonFiniteLossError, match=r'training stopped at iteration 3: loss is \[nan\], loss_line is \[nan\], on '
                                                 r'the images 4.png, 5.png\. Look at .*--non-finite-loss skip'):
        runner(tmp_path).train()
    assert not list(tmp_path.rglob('*.pth'))


def test_or_the_batch_is_left_out(tmp_path, caplog):
    built = runner(tmp_path, skip=True)
    before = built.model.layer.weight.clone()
    built.train()
    assert built.iter == 8
    hook = next(hook for hook in built.hooks if isinstance(hook, NonFiniteLossHook))
    assert hook.skipped == 2
    log = next(tmp_path.rglob('*.log')).read_text()
    assert 'batch 3 is skipped, the first so far: its loss is nan on the images 4.png, 5.png' in log
    assert 'batch 7 is skipped, 2 so far: ' in log
    assert built.model.layer.weight.isfinite().all()
    assert not torch.equal(built.model.layer.weight, before)
    # What is trained is what would be without that batch.
    torch.manual_seed(0)
    alone = Line()
    optimizer = torch.optim.SGD(alone.parameters(), 1e-3)
    for batch in ((0, 1), (2, 3), (6, 7)) * 2:
        optimizer.zero_grad()
        alone([torch.tensor([float(value)]) for value in batch])['loss_line'].backward()
        optimizer.step()
    torch.testing.assert_close(built.model.layer.weight, alone.layer.weight)


def checkpoint_of(classes):
    return dict(meta=dict(dataset_meta=dict(classes=classes)))


def loader_of(classes):
    return SimpleNamespace(dataset=SimpleNamespace(metainfo=dict(classes=classes)))


def test_classes_of_checkpoint_and_data(monkeypatch):
    lines = []
    monkeypatch.setattr('mmsimvit.engine.hooks.print_log', lambda line, *_: lines.append(line))
    for given in (('cat', 'dog'), ['cat', 'dog'], None):
        check_order(checkpoint_of(('cat', 'dog')), loader_of(given), 'a.pth')
    check_order({}, loader_of(('dog', )), 'a.pth')  # of other tools, which keep no names
    assert not lines
    for given in (('dog', 'cat'), ('cow', 'cat', 'dog')):
        with pytest.raises(CheckpointError, match=r"a.pth was trained with the classes 'cat', 'dog', but those of the data are "
                                                  rf".*label 0 is 'cat' to the one and '{given[0]}' to the other"):
            check_order(checkpoint_of(('cat', 'dog')), loader_of(given), 'a.pth')
    check_order(checkpoint_of(('cat', 'dog')), loader_of(('Katze', 'Hund')), 'a.pth')
    assert "label 0 is 'cat' to the one and 'Katze' to the other" in lines[0]


def test_classes_of_training_and_validation():
    def of(*classes):
        return SimpleNamespace(metainfo=dict(classes=classes))
    check_validation(of('cat', 'dog'), of('cat', 'dog'))
    check_validation(of('cat', 'dog'), None)
    with pytest.raises(ModelError, match=r"data of the training have the classes 'cat', 'dog', but those of the validation are "
                                         r"'dog', 'cat': label 0 is 'cat' to the one and 'dog' to the other"):
        check_validation(of('cat', 'dog'), of('dog', 'cat'))


def test_a_batch_size_that_is_not_the_resumed_one_is_said(tmp_path):
    def train(batch_size, load_from=None, **settings):
        built = Runner(
            Line(), str(tmp_path), train_dataloader=dict(dataset=Numbers(indices=4), batch_size=batch_size, sampler=dict(
                type='DefaultSampler', shuffle=False)), train_cfg=dict(by_epoch=True, max_epochs=2 if load_from else 1),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-3), **settings), custom_hooks=[CheckpointMatchHook()],
            load_from=load_from, resume=load_from is not None, log_level='WARNING',
            experiment_name=f'test_{tmp_path.name}_{batch_size}_{len(settings)}_{bool(load_from)}')
        lines = []
        built.logger.warning = lines.append
        built.train()
        return [line for line in lines if 'a step takes' in line]

    train(2)
    checkpoint = str(tmp_path / 'epoch_1.pth')
    assert not train(2, checkpoint)
    assert train(4, checkpoint)[0].startswith('a step takes 4 images, but took 2 in the training that is resumed from')
    assert not train(1, checkpoint, accumulative_counts=2)


@pytest.mark.parametrize(('changes', 'named'), [
    ({}, []),
    (dict(schedule=dict(end=6, T_max=6)), ['T_max of CosineAnnealingLR (2, not 6)', 'end of CosineAnnealingLR (2, not 6)']),
    (dict(optimizer=dict(lr=0.5)), ['initial_lr of the optimizer (0.1, not 0.5)']),
    (dict(optimizer=dict(weight_decay=0.5)), ['weight_decay of the optimizer (0, not 0.5)']),
])
def test_settings_that_a_resumed_checkpoint_overrules_are_named(changes, named, tmp_path, caplog):
    def train(epochs, load_from=None, optimizer=None, schedule=None):
        built = Runner(
            Line(), str(tmp_path), train_dataloader=dict(dataset=Numbers(indices=4), batch_size=2, sampler=dict(
                type='DefaultSampler', shuffle=False)), train_cfg=dict(by_epoch=True, max_epochs=epochs),
            optim_wrapper=dict(optimizer={**dict(type='SGD', lr=0.1), **(optimizer or {})}),
            param_scheduler=[{**dict(type='CosineAnnealingLR', T_max=2, end=2), **(schedule or {})}],
            custom_hooks=[CheckpointMatchHook()], load_from=load_from, resume=load_from is not None,
            experiment_name=f'test_{tmp_path.name}_{epochs}', log_level='WARNING')
        lines = []
        built.logger.warning = lines.append
        built.train()
        return [line for line in lines if 'goes on with settings' in line]

    assert not train(2)
    lines = train(3, str(tmp_path / 'epoch_2.pth'), **changes)
    assert len(lines) == bool(named)
    assert all(word in lines[0] for word in named)
