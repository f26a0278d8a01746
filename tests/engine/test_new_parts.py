"""Rates of pretrained and of new parts."""
import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

from mmsimvit.engine import HoldPretrainedHook

CFG = dict(optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.05), constructor='NewPartsOptimWrapperConstructor',
           paramwise_cfg=dict(new_parts=['predictor', 'fast'], pretrained_lr_mult=0.01, bias_decay_mult=0., norm_decay_mult=0.,
                              custom_keys=dict(token=dict(lr_mult=0.))))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.ones(1, 1, 2))
        self.block = nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 2))
        self.predictor = nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 2))
        self.fast = nn.Linear(2, 2)


def build(**changes):
    model = Model()
    return model, build_optim_wrapper(model, {**CFG, 'paramwise_cfg': {**CFG['paramwise_cfg'], **changes}})


def options(model, wrapper, key):
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[group['params'][0]]: group[key] for group in wrapper.optimizer.param_groups}


def test_new_parts_learn_at_the_whole_rate():
    model, wrapper = build()
    found = options(model, wrapper, 'lr')
    assert found.pop('token') == 0  # neither pretrained nor new: it is not trained
    assert all(found[name] == pytest.approx(0.1 if 'predictor' in name or 'fast' in name else 0.001) for name in found)
    decays = options(model, wrapper, 'weight_decay')
    assert {name for name, decay in decays.items() if decay == 0} == {
        'block.0.weight', 'block.0.bias', 'block.1.bias', 'predictor.0.weight', 'predictor.0.bias', 'predictor.1.bias',
        'fast.bias'}
    assert {name for name, decay in decays.items() if decay == 0.05} == {
        'token', 'block.1.weight', 'predictor.1.weight', 'fast.weight'}


class Runner:
    """What the hook asks of mmengine's."""

    def __init__(self, wrapper):
        self.optim_wrapper, self.epoch = wrapper, 0


def test_pretrained_parts_are_held_in_the_first_epochs():
    """A schedule goes on meanwhile, and nothing that is held moves, by its momentum or weight decay either."""
    model, wrapper = build()
    runner, hook = Runner(wrapper), HoldPretrainedHook(epochs=2)
    hook.before_train(runner)
    schedule = torch.optim.lr_scheduler.LinearLR(wrapper.optimizer, 0.5, total_iters=4)
    for runner.epoch in range(4):
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        hook.before_train_iter(runner, 0)
        loss = sum((p - 3).square().sum() for p in model.parameters())
        wrapper.update_params(loss)
        hook.after_train_iter(runner, 0)
        moved = {name.partition('.')[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert moved == {'predictor', 'fast'} | ({'block'} if runner.epoch >= 2 else set())
        share = 0.5 + 0.125 * runner.epoch
        found = options(model, wrapper, 'lr')
        assert found['block.1.weight'] == pytest.approx(0.001 * share) and found['fast.bias'] == pytest.approx(0.1 * share)
        schedule.step()


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match=r"must have new_parts, such as \['predictors'\], and pretrained_lr_mult, .* None and"):
        build(new_parts=None)
    with pytest.raises(ValueError, match="no parameter of Model has 'slow' in its name, which paramwise_cfg has in new_parts"):
        build(new_parts=['fast', 'slow'])
    wrapper = build_optim_wrapper(Model(), dict(optimizer=dict(type='SGD', lr=0.1)))
    with pytest.raises(ValueError, match='HoldPretrainedHook holds groups of NewPartsOptimWrapperConstructor; set'):
        HoldPretrainedHook(epochs=1).before_train(Runner(wrapper))
