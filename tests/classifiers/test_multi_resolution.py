"""Multi-resolution training does what its paper says; numbers are worked out here from the definitions."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from mmpretrain.structures import DataSample

from mmsimvit.classifiers import MultiResolutionClassifier, MultiResolutionPreprocessor
from mmsimvit.classifiers.multi_resolution import scale_consistency

SIZES = (48, 32, 16)
NO_MIXING = dict(type='MultiResolutionPreprocessor', sizes=SIZES, num_classes=3)
RESFORMER = dict(
    type='ResFormer', arch='tiny', depth=2, embed_dims=24, num_heads=3, drop_path_rate=0., out_type='cls_token')
CMT = dict(type='CMT', arch='ti', image_size=(32, 32), depths=(1, 1, 1, 1), out_indices=(3, ), drop_path_rate=0.)


def classifier(backbone=RESFORMER, channels=24, neck=None, preprocessor=NO_MIXING, **settings):
    torch.manual_seed(0)
    head = dict(type='LinearClsHead', num_classes=3, in_channels=channels)
    return MultiResolutionClassifier(dict(backbone), neck, head, data_preprocessor=dict(preprocessor), **settings).train()


def batch(number=4, size=48):
    torch.manual_seed(1)
    samples = [DataSample().set_gt_label(index % 3) for index in range(number)]
    return {'inputs': [torch.randint(256, (3, size, size)) for _ in range(number)], 'data_samples': samples}


def views(data, sizes=SIZES):
    """What MultiView and the loader of mmengine give."""
    torch.manual_seed(2)
    return {'inputs': [[torch.randint(256, (3, size, size)) for _ in data['inputs']] for size in sizes],
            'data_samples': data['data_samples']}


def test_consistency_of_each_form():
    student, teacher = torch.tensor([[3., 1., 0., 0.]]), torch.tensor([[1., 0., 2., 5.]], requires_grad=True)
    white = (teacher - 2) / (3.5 + 1e-6)**0.5  # mean 2, mean square of differences 3.5
    difference = (student - white).abs()
    assert torch.allclose(scale_consistency(student, teacher, 'smooth_l1'),
                          torch.where(difference < 1, difference**2 / 2, difference - 0.5).mean())
    assert scale_consistency(student, teacher, 'l2') == (4 + 1 + 4 + 25) / 4
    assert torch.isclose(scale_consistency(student, teacher, 'cosine'), torch.tensor(1 - 3 / (10 * 30)**0.5))
    p, q = (teacher / 2).softmax(1), (student / 2).softmax(1)
    assert torch.isclose(scale_consistency(student, teacher, 'soft', 2.), 4 * (p * (p / q).log()).sum())
    student.requires_grad_()
    for form in ('smooth_l1', 'l2', 'cosine', 'soft'):
        gradient = torch.autograd.grad(scale_consistency(student, teacher, form), [student, teacher], allow_unused=True)
        assert gradient[0].abs().sum() > 0 and gradient[1] is None


def test_resizes_the_one_image_of_a_pipeline():
    preprocessor = MultiResolutionPreprocessor(SIZES, mean=[100., 110., 120.], std=[50., 60., 70.], to_rgb=True, num_classes=3)
    data = batch()
    out = preprocessor(data, training=True)
    first = (torch.stack(data['inputs']).flip(1) - torch.tensor([100., 110., 120.])[:, None, None]) / torch.tensor(
        [50., 60., 70.])[:, None, None]
    torch.testing.assert_close(out['inputs'][0], first)
    torch.testing.assert_close(out['inputs'][2], F.interpolate(first, (16, 16), mode='bilinear', antialias=True))
    assert [sample.gt_label.item() for sample in out['data_samples'][2]] == [0, 1, 2, 0]
    evaluated = preprocessor(batch())
    torch.testing.assert_close(evaluated['inputs'], first)


@pytest.mark.parametrize('collated', [False, True])
def test_takes_the_views_of_a_pipeline(collated):
    data = views(batch())
    if collated:
        data['inputs'] = [torch.stack(view) for view in data['inputs']]
    out = MultiResolutionPreprocessor(SIZES, num_classes=3)(data, training=True)
    for found, given in zip(out['inputs'], data['inputs'], strict=True):
        assert torch.equal(found, torch.stack(list(given)).float())


def test_all_resolutions_are_mixed_alike():
    """Images of one colour each, so that a mixed one tells its partner and share."""
    def colours(**augments):
        np.random.seed(3)
        torch.manual_seed(3)
        data = {'inputs': [[torch.full((3, size, size), 40. * (index + 1)) for index in range(3)] for size in SIZES],
                'data_samples': batch(3)['data_samples']}
        return MultiResolutionPreprocessor(SIZES, num_classes=3, **augments)(data, training=True)

    out = colours(batch_augments=dict(augments=[dict(type='Mixup', alpha=0.8)]))
    for view, samples in zip(out['inputs'], out['data_samples'], strict=True):
        assert torch.equal(view[:, :, 0, 0], out['inputs'][0][:, :, 0, 0])
        shares = torch.stack([sample.gt_score for sample in samples])
        assert shares.max() < 0.99  # else nothing is mixed
        torch.testing.assert_close(view[:, 0, 0, 0], shares @ torch.tensor([40., 80., 120.]))
    out = colours(batch_augments=dict(augments=[dict(type='CutMix', alpha=1.0)]))
    whole = out['inputs'][0][:, 0] != torch.tensor([40., 80., 120.])[:, None, None]
    assert whole.any()
    for view, samples in zip(out['inputs'], out['data_samples'], strict=True):
        cut = view[:, 0] != torch.tensor([40., 80., 120.])[:, None, None]
        part = F.interpolate(whole[:, None].float(), view.shape[2:], mode='nearest-exact')[:, 0] > 0
        assert (cut != part).float().mean() < 0.13  # a border of one pixel
        for image, sample in zip(out['inputs'][0], samples, strict=True):
            torch.testing.assert_close(image[0].mean(), sample.gt_score @ torch.tensor([40., 80., 120.]))
    out = colours(batch_augments=dict(augments=[dict(type='Mixup', alpha=0.8)]), mixes_alike=False)
    scores = [torch.stack([sample.gt_score for sample in samples]) for samples in out['data_samples']]
    assert not torch.allclose(scores[0], scores[1]) and not torch.allclose(scores[1], scores[2])
    for view, score in zip(out['inputs'], scores, strict=True):
        torch.testing.assert_close(view[:, 0, 0, 0], score @ torch.tensor([40., 80., 120.]))


@pytest.mark.parametrize(('target', 'out_type'), [('cls', 'cls_token'), ('gap', 'raw'), ('logit', 'cls_token'), ('cls', 'raw')])
def test_loss_is_the_mean_over_resolutions(target, out_type):
    model = classifier({**RESFORMER, 'out_type': out_type}, target=target, weight=0.5)
    data = model.data_preprocessor(views(batch()), training=True)
    losses = model(**data, mode='loss')
    base, features = [], []
    for view in data['inputs']:
        tokens, _, _ = model.backbone.forward_tokens(view)
        logits = model.head.fc(tokens[-1][:, 0])
        base.append(F.cross_entropy(logits, torch.tensor([0, 1, 2, 0])))
        features.append({'cls': tokens[-1][:, 0], 'gap': tokens[-1][:, 1:].mean(1), 'logit': logits}[target])
    torch.testing.assert_close(losses['loss'], sum(base) / 3)
    expected = sum(scale_consistency(features[index], features[index - 1], 'smooth_l1') for index in (1, 2))
    torch.testing.assert_close(losses['loss_consistency'], 0.5 * expected / 3)


def test_steps_of_iter_mode_slide_over_the_resolutions():
    model, seen = classifier(mode='iter', views_per_step=2), []
    model.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[2]))
    data = model.data_preprocessor(views(batch()), training=True)
    hub = MessageHub.get_current_instance()
    for iteration in range(3):
        hub.update_info('iter', iteration)
        model(**data, mode='loss')
    hub.pop_info('iter')
    assert seen == [48, 32, 32, 16, 48, 32]


def count_kept(model, data):
    """The loss, and how many tensors are kept for its gradients."""
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        return sum(model(**data, mode='loss').values()), len(kept)


@pytest.mark.parametrize('settings', [
    dict(), dict(backbone=CMT, channels=368, neck=dict(type='GlobalAveragePooling'), target='gap')], ids=['ResFormer', 'CMT'])
def test_recomputation_keeps_one_resolution_and_changes_nothing(settings):
    """Neither gradients nor, of batch norms, running statistics."""
    results, lengths = [], []
    for with_cp in (False, True):
        model = classifier(**settings, with_cp=with_cp)
        data = model.data_preprocessor(views(batch()), training=True)
        loss, length = count_kept(model, data)
        lengths.append(length)
        loss.backward()
        results.append((loss.detach(), [p.grad for p in model.parameters()], dict(model.named_buffers())))
    torch.testing.assert_close(*results)
    assert lengths[1] < lengths[0] / 5


def test_two_batches_make_one_step_under_autocast():
    model = classifier()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), accumulative_counts=2)
    wrapper.initialize_count_status(model, 0, 2)
    before = model.head.fc.weight.clone()
    with torch.autocast('cpu', torch.bfloat16):
        model.train_step(views(batch()), wrapper)
        assert torch.equal(before, model.head.fc.weight)
        losses = model.train_step(views(batch()), wrapper)
    assert not torch.equal(before, model.head.fc.weight)
    assert set(losses) == {'loss', 'loss_consistency'} and losses['loss_consistency'].dtype == torch.float32


def test_is_an_ordinary_classifier_where_it_is_not_trained():
    model = classifier().eval()
    data = batch()
    logits = model.head.fc(model.backbone(torch.stack(data['inputs']).float())[-1])
    predictions = model.test_step(data)
    torch.testing.assert_close(torch.stack([prediction.pred_score for prediction in predictions]), logits.softmax(1))


@pytest.mark.parametrize(('build', 'told'), [
    (lambda: MultiResolutionPreprocessor((32, 48)), r'sizes must fall .* got \(32, 48\)'),
    (lambda: MultiResolutionPreprocessor(()), r'sizes must fall .* got \(\)'),
    (lambda: MultiResolutionPreprocessor(SIZES, num_classes=3, batch_augments=dict(augments=dict(type='ResizeMix', alpha=1.))),
     'must be Mixup or CutMix, got ResizeMix'),
    (lambda: MultiResolutionPreprocessor((48, 32), num_classes=3)(views(batch()), True),
     r'sizes are \(48, 32\), but the views of the pipeline have \[\(48, 48\), \(32, 32\), \(16, 16\)\]'),
    (lambda: classifier(target='token'), "target must be one of cls, gap, logit, got 'token'"),
    (lambda: classifier(form='l1'), "form must be one of .* got 'l1'"),
    (lambda: classifier(mode='one'), "mode must be one of co, iter, got 'one'"),
    (lambda: classifier(mode='iter', views_per_step=4), 'views_per_step must be between 1 and the 3 of sizes, got 4'),
    (lambda: classifier(preprocessor=dict(type='ClsDataPreprocessor')), 'must be a MultiResolutionPreprocessor, got ClsData'),
])
def test_names_settings_that_do_not_go_together(build, told):
    with pytest.raises(ValueError, match=told):
        build()
