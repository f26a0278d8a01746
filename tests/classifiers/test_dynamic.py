"""Training of classifiers that drop patches does what its paper says; numbers are worked out here from the definitions."""
from copy import deepcopy
from math import log

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample

from mmsimvit import CheckpointError
from mmsimvit.classifiers import DynamicClassifier, TokenClsHead
from mmsimvit.classifiers.dynamic import divergence, score, squared_distance
from mmsimvit.layers import ratio_loss

DEIT = dict(type='DynamicViT', arch='deit_256', embed_dims=24, depth=3, num_heads=3, predictors=(1, 2), out_type='raw')
LVVIT = dict(type='DynamicViT', arch='lvvit_s', embed_dims=24, depth=3, num_heads=3, predictors=(1, 2), stem_dims=4,
             out_type='raw')

SMALL = dict(embed_dims=(8, 16, 32, 64), depths=(1, 1, 3, 1), mlp_ratios=(4, 4, 4, 4), predictors=(1, 2))
CONVNEXT = dict(type='DynamicConvNeXt', arch=dict(**SMALL, map_norms=()), out_indices=(3, ), drop_path_rate=0.)
SWIN = dict(type='DynamicSwin', arch=dict(**SMALL, num_heads=(1, 2, 4, 8), window_size=7, map_norms=(3, )),
            out_indices=(3, ), drop_path_rate=0.)
OF_MAPS = dict(type='LinearClsHead', num_classes=3, in_channels=64)
THEIRS = {  # what of MMPreTrain is the same network
    'DeiT': dict(
        backbone=dict(type='VisionTransformer', arch=dict(
            embed_dims=24, num_layers=3, num_heads=3, feedforward_channels=96)),
        head=dict(type='VisionTransformerClsHead', num_classes=3, in_channels=24)),
    'ConvNeXt': dict(
        backbone=dict(type='ConvNeXt', arch=dict(depths=[1, 1, 3, 1], channels=[8, 16, 32, 64])), head=OF_MAPS),
    'Swin': dict(
        backbone=dict(type='SwinTransformer', arch=dict(embed_dims=8, depths=[1, 1, 3, 1], num_heads=[1, 2, 4, 8])),
        neck=dict(type='GlobalAveragePooling'), head=OF_MAPS),
}
OURS = {
    'DeiT': dict(),
    'ConvNeXt': dict(backbone=CONVNEXT, neck=dict(type='NormedPooling', in_channels=64), head=OF_MAPS),
    'Swin': dict(backbone=SWIN, neck=dict(type='GlobalAveragePooling'), head=OF_MAPS),
}


def classifier(backbone=DEIT, has_aux=False, neck=None, head=None, **settings):
    torch.manual_seed(0)
    head = head or dict(type='TokenClsHead', num_classes=3, in_channels=24, has_aux=has_aux)
    return DynamicClassifier(dict(backbone), neck, head, **settings).train()


@pytest.fixture(params=[False, True], ids=['DeiT', 'LV-ViT'])
def taught(request, tmp_path):
    """A student and its teacher's file. Weights are large, so that features differ."""
    kind = dict(backbone=LVVIT if request.param else DEIT, has_aux=request.param)
    base = classifier(**kind)
    for parameter in base.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    torch.save(dict(state_dict=base.state_dict()), tmp_path / 'base.pth')
    model = classifier(**kind, teacher=str(tmp_path / 'base.pth'), ratio_weight=2., logit_weight=0.5, feature_weight=0.25)
    model.init_weights()
    for predictor in model.backbone.predictors:
        predictor.gate.noise = False
        torch.nn.init.normal_(predictor.out_conv[4].weight)
    return model, base


def batch(number=4, size=64):
    torch.manual_seed(1)
    samples = [DataSample().set_gt_label(index % 3) for index in range(number)]
    return {'inputs': [torch.randint(256, (3, size, size)) for _ in range(number)], 'data_samples': samples}


def test_ratio_loss_by_hand():
    """Of each image and predictor the square of what is kept too much, then the mean."""
    first = torch.tensor([[1., 1, 1, 0], [1, 1, 0, 0]])  # 0.75 and 0.5, of 0.7
    second = torch.tensor([[1., 0, 0, 0], [0, 0, 0, 0]])  # 0.25 and 0, of 0.49
    expected = ((0.75 - 0.7)**2 + (0.5 - 0.7)**2 + (0.25 - 0.49)**2 + 0.49**2) / 4
    assert ratio_loss([first, second], (0.7, 0.49)).item() == pytest.approx(expected)


def test_divergence_by_hand():
    """Teacher (1/2, 1/2) and (1/4, 3/4), student (1/3, 2/3) and (1/4, 3/4)."""
    teacher, student = torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log() + 2, torch.tensor([[1 / 3, 2 / 3], [0.25, 0.75]]).log()
    first = 0.5 * log(0.5 / (1 / 3)) + 0.5 * log(0.5 / (2 / 3))
    assert divergence(student, teacher).item() == pytest.approx(first / 2)
    assert divergence(student[None], teacher[None], torch.tensor([[1., 0]])).item() == pytest.approx(first)
    assert divergence(student.half(), teacher.half()).dtype == torch.float32


def test_squared_distance_by_hand():
    """Over the dropped token nothing is said; the number of those that are kept in the batch divides."""
    student, teacher = torch.tensor([[[1., 2.], [3., 3.]], [[0., 0.], [9., 9.]]]), torch.zeros(2, 2, 2)
    assert squared_distance(student, teacher).item() == (1 + 4 + 9 + 9 + 81 + 81) / 8
    kept = torch.tensor([[1., 1.], [1., 0.]], requires_grad=True)
    student.requires_grad_()
    loss = squared_distance(student, teacher, kept)
    assert loss.item() == pytest.approx((1 + 4 + 9 + 9) / 6)
    gradient, none = torch.autograd.grad(loss, [student, kept], allow_unused=True)
    assert none is None and not gradient[1, 1].any()  # what is kept is not moved by how well it is learnt
    assert squared_distance(student, teacher, torch.zeros(2, 2)).item() == 0


def test_half_the_largest_score_of_kept_tokens_is_added():
    head = TokenClsHead(num_classes=2, in_channels=2, has_aux=True)
    with torch.no_grad():
        head.fc.weight.copy_(torch.eye(2)), head.fc.bias.copy_(torch.tensor([0., 1.]))
        head.aux.weight.copy_(2 * torch.eye(2)), head.aux.bias.zero_()
    tokens = torch.tensor([[[1., 1.], [5., 0.], [2., 3.], [0., 4.]]])
    torch.testing.assert_close(head((tokens, )), torch.tensor([[1. + 5., 2. + 4.]]))
    torch.testing.assert_close(head((tokens, ), torch.tensor([[0., 1., 0.]])), torch.tensor([[1. + 2., 2. + 3.]]))
    torch.testing.assert_close(head((tokens, ), torch.zeros(1, 3)), head((tokens, )))  # of none there is no largest
    torch.testing.assert_close(head((tokens[:, :1], )), torch.tensor([[1., 2.]]))
    assert TokenClsHead(num_classes=2, in_channels=2).aux is None


def test_losses_are_the_published(taught):
    model, base = taught
    data = model.data_preprocessor(batch(), training=True)
    losses = model(**data, mode='loss')
    outs, decisions = model.backbone.forward_decisions(data['inputs'])
    teacher = base.backbone.eval()
    teacher.keep_ratio = 1
    kept = decisions[-1] > 0
    assert kept.any() and not kept.all()
    tokens, targets = outs[0], teacher(data['inputs'])[0]
    logits, target_logits = model.head.fc(tokens[:, 0]), base.head.fc(targets[:, 0])
    if model.head.aux is None:
        features = (tokens[:, 1:][kept] - targets[:, 1:][kept]).square().mean()
    else:
        scores, target_scores = model.head.aux(tokens[:, 1:]), base.head.aux(targets[:, 1:])
        features = F.kl_div(scores[kept].log_softmax(-1), target_scores[kept].softmax(-1), reduction='batchmean')
        best = [score[row].max(0).values for score, row in zip(scores, kept)]
        logits, target_logits = logits + torch.stack(best) / 2, target_logits + target_scores.max(1).values / 2
    torch.testing.assert_close(losses['loss'], F.cross_entropy(logits, torch.tensor([0, 1, 2, 0])))
    parts = torch.stack([decision.mean(1) for decision in decisions])
    expected = 2 * ((parts[0] - 0.7).square() + (parts[1] - 0.7**2).square()).mean() / 2
    torch.testing.assert_close(losses['loss_ratio'], expected)
    divergences = F.kl_div(logits.log_softmax(-1), target_logits.softmax(-1), reduction='batchmean')
    torch.testing.assert_close(losses['loss_logits'], 0.5 * divergences)
    torch.testing.assert_close(losses['loss_features'], 0.25 * features)
    assert losses['kept'] == kept.float().mean() and not losses['kept'].requires_grad


@pytest.mark.parametrize('name', THEIRS)
def test_checkpoints_of_mmpretrain_are_teachers_as_they_are(name, tmp_path):
    """Theirs and ours give the same logits."""
    torch.manual_seed(0)
    theirs = ImageClassifier(**THEIRS[name])
    for key, parameter in theirs.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3 if parameter.dim() > 1 else 0.1)
        if parameter.dim() == 1 and key.endswith(('weight', 'gamma')):
            parameter.data += 1
    torch.save(dict(state_dict=theirs.state_dict()), tmp_path / 'theirs.pth')
    model = classifier(**OURS[name], teacher=str(tmp_path / 'theirs.pth'))
    model.init_weights()
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs.eval()(x)
        torch.testing.assert_close(score(model.teacher.model, model.teacher.model.backbone(x)), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1


@pytest.mark.parametrize('name', ['ConvNeXt', 'Swin'])
def test_maps_are_compared_at_all_positions(name, tmp_path):
    base = classifier(**OURS[name])
    for parameter in base.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.save(base.state_dict(), tmp_path / 'base.pth')
    model = classifier(**OURS[name], teacher=str(tmp_path / 'base.pth'), ratio_weight=10.)
    model.init_weights()
    for predictor in model.backbone.stages[2].predictors:
        predictor.gate.noise = False
    model.backbone.stages[2].blocks[1].fast.fc.weight.data.normal_()
    data = model.data_preprocessor(batch(size=96), training=True)
    losses = model(**data, mode='loss')
    (student, ), decisions = model.backbone.forward_decisions(data['inputs'])
    teacher, = model.teacher.model.backbone(data['inputs'])
    if name == 'ConvNeXt':
        norm = model.neck.norm
        student, teacher = (F.layer_norm(x.permute(0, 2, 3, 1), (64, ), norm.weight, norm.bias, 1e-6)
                            for x in (student, teacher))
    difference = (student - teacher).square().mean()
    assert difference > 1e-9
    torch.testing.assert_close(losses['loss_features'], 0.5 * difference)
    parts = torch.stack([decision.mean(1) for decision in decisions])
    expected = ((parts[0] - 0.7).square() + (parts[1] - 0.5).square()).mean() / 2
    torch.testing.assert_close(losses['loss_ratio'], 10 * expected)


def test_soft_labels_of_mixup_are_learnt_and_the_teacher_sees_the_mixed_images(tmp_path):
    preprocessor = dict(num_classes=3, batch_augments=dict(augments=dict(type='Mixup', alpha=0.8)))
    torch.save(classifier().state_dict(), tmp_path / 'base.pth')
    model = classifier(teacher=str(tmp_path / 'base.pth'), data_preprocessor=preprocessor)
    model.init_weights()
    np.random.seed(0)
    seen = []
    for backbone in (model.backbone, model.teacher.model.backbone):
        backbone.patch_embed.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    data = model.data_preprocessor(batch(), training=True)
    scores = torch.stack([sample.gt_score for sample in data['data_samples']])
    assert ((scores > 0) & (scores < 1)).any()
    logits = []
    model.head.register_forward_hook(lambda module, args, out: logits.append(out))
    losses = model(**data, mode='loss')
    assert seen[0] is seen[1] is data['inputs']
    torch.testing.assert_close(losses['loss'], -(scores * logits[0].log_softmax(1)).sum(1).mean())


def test_the_teacher_is_no_part_of_the_student(taught):
    model, _ = taught
    assert not any('teacher' in name for name in [*model.state_dict(), *dict(model.named_modules())])
    teacher = model.teacher.model
    ours = {id(parameter) for parameter in model.parameters()}
    assert not ours & {id(parameter) for parameter in teacher.parameters()}
    assert not any(parameter.requires_grad for parameter in teacher.parameters()) and len(teacher.backbone.predictors) == 0
    model.train()
    assert not any(module.training for module in teacher.modules())
    assert deepcopy(model).teacher.model is teacher  # as averaged weights are made, on the same device
    before = deepcopy(teacher.state_dict())
    model.train_step(batch(), OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1)))
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name])
    model.to(torch.float64)
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float64}


def test_the_student_begins_as_its_teacher(taught):
    model, base = taught
    given = {name: tensor for name, tensor in base.state_dict().items() if 'predictors' not in name}
    for name, tensor in given.items():
        assert torch.equal(model.state_dict()[name], tensor), name
    new = model.state_dict().keys() - given.keys()
    assert new and all(name.startswith('backbone.predictors') for name in new)
    assert not any(torch.equal(model.state_dict()[name], base.state_dict()[name]) for name in new if 'weight' in name
                   and model.state_dict()[name].dim() > 1)


@pytest.mark.parametrize(('rename', 'place'), [('head.layers.head', 'MMPreTrain'), ('head', 'published')])
def test_other_checkpoints_with_heads_will_do(rename, place, tmp_path):
    base = classifier()
    names = {name.replace('head.fc', rename): tensor for name, tensor in base.state_dict().items()}
    if place == 'published':
        table, token = (names.pop(f'backbone.pos_embed.{name}') for name in ('table', 'class_token'))
        names = {name.removeprefix('backbone.').replace('.ffn.', '.mlp.').replace('norms.2', 'norm'): tensor
                 for name, tensor in names.items() if 'predictors' not in name}
        names['pos_embed'] = torch.cat([token, table], 1)
    torch.save(names, tmp_path / 'base.pth')
    model = classifier(teacher=str(tmp_path / 'base.pth'))
    model.init_weights()
    assert torch.equal(model.head.fc.weight, base.head.fc.weight)
    assert torch.equal(model.backbone.pos_embed.table, base.backbone.pos_embed.table)
    assert torch.equal(model.backbone.norms['2'].weight, base.backbone.norms['2'].weight)


def test_predictors_learn_to_keep_as_many_as_they_shall(tmp_path):
    """And everything has a gradient."""
    torch.save(classifier().state_dict(), tmp_path / 'base.pth')
    model = classifier(teacher=str(tmp_path / 'base.pth'), ratio_weight=100.)
    model.init_weights()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    data = model.data_preprocessor(batch(), training=True)
    kept = []
    for _ in range(40):
        losses = model(**data, mode='loss')
        kept.append(losses['kept'].item())
        optimizer.zero_grad()
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
    assert sum(kept[:3]) / 3 < 0.35 and abs(sum(kept[-10:]) / 10 - 0.49) < 0.07


def test_two_batches_make_one_step_under_autocast(taught):
    model, _ = taught
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), accumulative_counts=2)
    wrapper.initialize_count_status(model, 0, 2)
    before = model.head.fc.weight.clone()
    with torch.autocast('cpu', torch.bfloat16):
        model.train_step(batch(), wrapper)
        assert torch.equal(before, model.head.fc.weight)
        losses = model.train_step(batch(), wrapper)
    assert not torch.equal(before, model.head.fc.weight)
    assert {losses[name].dtype for name in ('loss_ratio', 'loss_logits', 'loss_features')} == {torch.float32}
    assert all(value.isfinite() for value in losses.values())


def test_processes_train_together(taught, tmp_path):
    """Everything has a gradient in each step, or the second would stop."""
    model, _ = taught
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/meeting', rank=0, world_size=1)
    try:
        parallel = MMDistributedDataParallel(model)
        wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
        for _ in range(2):
            losses = parallel.train_step(batch(), wrapper)
    finally:
        torch.distributed.destroy_process_group()
    assert losses['loss_features'].isfinite() and 'loss_logits' in losses


def test_is_an_ordinary_classifier_where_it_is_not_trained():
    """It needs no file of its teacher, and the ratio can be another one than it was trained with."""
    model = classifier(teacher='gone.pth').eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    data, found = batch(), []
    for ratio in (0.7, 0.5):
        model.backbone.keep_ratio = ratio
        predictions = model.test_step(data)
        found.append(torch.stack([prediction.pred_score for prediction in predictions]))
        tokens = model.backbone(torch.stack(data['inputs']).float())[-1]
        assert tokens.shape[1] == 1 + int(16 * ratio**2)
        torch.testing.assert_close(found[-1], model.head.fc(tokens[:, 0]).softmax(1))
    assert not torch.allclose(*found)


def test_without_a_teacher_two_losses_are_left_out():
    model = classifier()
    losses = model(**model.data_preprocessor(batch(), training=True), mode='loss')
    assert set(losses) == {'loss', 'loss_ratio', 'kept'}


def test_what_does_not_go_together_is_named(tmp_path):
    with pytest.raises(ValueError, match='backbone must be one with decisions, .* got ResFormer'):
        classifier(dict(type='ResFormer', arch='tiny'))
    with pytest.raises(CheckpointError, match='checkpoint gone.pth does not exist; .* instead: .* model.teacher=None'):
        classifier(teacher='gone.pth').init_weights()
    weights = classifier().state_dict()
    torch.save({name: tensor for name, tensor in weights.items() if 'head' not in name}, tmp_path / 'headless.pth')
    with pytest.raises(CheckpointError, match=r'headless.pth of a teacher must have head.fc.weight .*, found nothing'):
        classifier(teacher=str(tmp_path / 'headless.pth')).init_weights()
    torch.save({**weights, 'head.fc.weight': torch.zeros(5, 24)}, tmp_path / 'five.pth')
    with pytest.raises(CheckpointError, match=r'head.fc.weight of shape \(3, 24\), found \(5, 24\); .* of the same classes'):
        classifier(teacher=str(tmp_path / 'five.pth')).init_weights()
    torch.save(weights, tmp_path / 'base.pth')
    model = classifier(teacher=str(tmp_path / 'base.pth'))
    with pytest.raises(RuntimeError, match='DynamicClassifier has no teacher yet: call init_weights'):
        model(**model.data_preprocessor(batch(), training=True), mode='loss')
