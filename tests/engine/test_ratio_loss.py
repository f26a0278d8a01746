"""The loss that keeps the ratio of dynamic sparsification, in models that know nothing of it."""
from types import SimpleNamespace

import pytest
import torch
from mmengine.model import BaseModel

from mmsimvit.engine import RatioLossHook
from mmsimvit.errors import ModelError
from mmsimvit.layers import ratio_loss
from tests.backbones.table import BACKBONES


class Model(BaseModel):

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, inputs, data_samples=None, mode='tensor'):
        outs = self.backbone(inputs)
        return dict(loss_map=outs[0].mean()) if mode == 'loss' else outs


@pytest.mark.parametrize('name', ['DynamicConvNeXt', 'DynamicSwin'])
def test_the_loss_joins_those_of_the_model(name):
    torch.manual_seed(0)
    model = Model(BACKBONES[name].build(drop_path_rate=0.))
    runner, hook = SimpleNamespace(model=model), RatioLossHook()
    hook.before_train(runner)
    x = torch.randn(2, 3, 64, 96)
    torch.manual_seed(1)
    losses = model(x, mode='loss')
    torch.manual_seed(1)
    expected = 10 * ratio_loss(model.backbone.forward_decisions(x)[1], model.backbone.keep_ratios)
    assert set(losses) == {'loss_map', 'loss_ratio'}
    torch.testing.assert_close(losses['loss_ratio'], expected)
    losses['loss_ratio'].backward()
    assert all(p.grad.any() for p in model.backbone.predictors[0].parameters())
    model.eval()
    assert set(model(x, mode='loss')) == {'loss_map'}  # evaluation draws nothing
    hook.after_train(runner)
    assert set(model.train()(x, mode='loss')) == {'loss_map'}


def test_the_ratio_is_learnt():
    torch.manual_seed(0)
    model = Model(BACKBONES['DynamicConvNeXt'].build(drop_path_rate=0., keep_ratio=(0.9, 0.3)))
    RatioLossHook().before_train(SimpleNamespace(model=model))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x = torch.randn(4, 3, 128, 128)
    for _ in range(30):
        optimizer.zero_grad()
        sum(model(x, mode='loss').values()).backward()
        optimizer.step()
    first, second = (decision.mean().item() for decision in model.backbone.forward_decisions(x)[1])
    assert abs(first - 0.9) < 0.1 and abs(second - 0.3) < 0.1


def test_a_frozen_stage_has_no_such_loss():
    model = Model(BACKBONES['DynamicSwin'].build(frozen_stages=3))
    RatioLossHook().before_train(SimpleNamespace(model=model))
    assert set(model.train()(torch.randn(1, 3, 64, 64), mode='loss')) == {'loss_map'}


def test_refuses_models_without_predictors():
    with pytest.raises(ModelError, match='DynamicConvNeXt and DynamicSwin, and Model has none'):
        RatioLossHook().before_train(SimpleNamespace(model=Model(torch.nn.Identity())))
