"""MMCV's operators out of torchvision give compiled MMCV's numbers, and those that it has not on a CPU their definitions'."""
import json
import subprocess
import sys

import mmcv
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmcv import ops
from torch.autograd import gradcheck

from mmsimvit.mmcv_ops import needs_compiled_mmcv
from tests.mmcv_ops import cases
from tests.mmcv_ops.cases import draw

TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-10}


def test_gives_the_numbers_of_compiled_operators(ours):
    expected = json.loads(cases.PATH.read_text())
    wrong = {}
    for name, results in cases.compute():
        for index, (result, known) in enumerate(zip(results, expected.pop(name), strict=True)):
            found = cases.record(result)
            assert found['shape'] == known['shape'], (name, index)
            if 'scale' not in known:
                if found['values'] != known['values']:
                    wrong[name, index] = found['values'], known['values']
            else:
                off = np.abs(np.subtract(found['values'], known['values'])).max(initial=0) / (known['scale'] or 1)
                if not off < TOLERANCES[result.dtype]:
                    wrong[name, index] = off
    assert not wrong
    assert not expected  # each was compared


@pytest.mark.skipif(not hasattr(mmcv._ext, '__file__'), reason='mmcv is not compiled')
def test_gives_the_numbers_of_the_compiled_operators_beside_it(request):
    compiled = dict(cases.compute(break_ties=True))
    request.getfixturevalue('ours')
    for name, results in cases.compute():
        for result, expected in zip(results, compiled[name], strict=True):
            scale = expected.abs().max() if expected.numel() else 1
            tolerance = TOLERANCES.get(result.dtype, 0)
            torch.testing.assert_close(result, expected, rtol=0, atol=float(scale * tolerance), msg=name)


ROIS = torch.tensor(cases.ROIS, dtype=torch.float64)


def test_roi_pool_takes_the_greatest_pixel_of_each_bin(ours):
    x, (rows, columns), scale = draw('map', 2, 3, 9, 13), (3, 2), 0.25
    expected = torch.zeros(len(ROIS), 3, rows, columns, dtype=torch.float64)
    for index, (image, x1, y1, x2, y2) in enumerate(ROIS.tolist()):
        left, top, right, bottom = x1 * scale, y1 * scale, (x2 + 1) * scale, (y2 + 1) * scale
        for row in range(rows):
            for column in range(columns):
                ends = [(int(np.clip(np.floor(start + length * place / count), 0, limit)),
                         int(np.clip(np.ceil(start + length * (place + 1) / count), 0, limit)))
                        for start, length, place, count, limit in (
                            (top, bottom - top, row, rows, 9), (left, right - left, column, columns, 13))]
                pixels = x[int(image), :, slice(*ends[0]), slice(*ends[1])]
                if pixels.numel():
                    expected[index, :, row, column] = pixels.amax((1, 2))
    assert ops.roi_pool(x, ROIS, (rows, columns), scale).equal(expected)
    assert gradcheck(lambda x: ops.roi_pool(x, ROIS, (rows, columns), scale), x.requires_grad_())


@pytest.mark.parametrize('ratio', [0, 2])
def test_deform_roi_pool_moves_the_bins(ours, ratio):
    x, gamma = draw('map', 2, 3, 9, 13), 0.1
    still = ops.deform_roi_pool(x, ROIS, torch.zeros(6, 2, 3, 2, dtype=torch.float64), (3, 2), 0.25, ratio, gamma)
    torch.testing.assert_close(still, ops.roi_align(x, ROIS, (3, 2), 0.25, ratio, 'avg', True))
    assert still.equal(ops.deform_roi_pool(x, ROIS, None, (3, 2), 0.25, ratio, gamma))
    # An offset that is the same for all bins moves the RoI, by gamma times its width to the right and its height down.
    offset = torch.tensor([0.7, -1.3], dtype=torch.float64)
    size = ROIS[:, 3:] - ROIS[:, 1:3]
    shift = gamma * offset * size
    moved = ops.deform_roi_pool(x, ROIS, offset.view(1, 2, 1, 1).expand(6, 2, 3, 2), (3, 2), 0.25, ratio, gamma)
    expected = ops.roi_align(x, ROIS + F.pad(shift.repeat(1, 2), (1, 0)), (3, 2), 0.25, ratio, 'avg', True)
    torch.testing.assert_close(moved, expected)
    leaves = x.requires_grad_(), draw('offset', 6, 2, 3, 2).requires_grad_()
    assert gradcheck(lambda x, offset: ops.deform_roi_pool(x, ROIS, offset, (3, 2), 0.25, ratio, gamma), leaves)


def test_roi_align_and_deform_conv_have_right_gradients(ours):
    x = draw('map', 2, 4, 9, 13).requires_grad_()
    for mode in ('avg', 'max'):
        assert gradcheck(lambda x: ops.roi_align(x, ROIS, (3, 2), 0.25, 0, mode, True), x)  # noqa: B023
    x, offset, weight = draw('map', 2, 4, 5, 4), 2 * draw('offset', 2, 18, 5, 4), draw('weight', 6, 4, 3, 3)
    mask, bias = draw('mask', 2, 9, 5, 4), draw('bias', 6)
    assert gradcheck(lambda *leaves: ops.deform_conv2d(*leaves, 1, 1), [y.requires_grad_() for y in (x, offset, weight)])
    assert gradcheck(lambda *leaves: ops.modulated_deform_conv2d(*leaves, 1, 1),
                     [y.requires_grad_() for y in (x, offset, mask, weight, bias)])


def test_the_weight_alone_has_a_gradient_in_a_frozen_deform_conv(ours):
    x, offset, weight = draw('map', 2, 4, 5, 4), draw('offset', 2, 18, 5, 4), draw('weight', 6, 4, 3, 3).requires_grad_()
    ops.deform_conv2d(x, offset, weight, 1, 1).sum().backward()
    alone, weight.grad = weight.grad, None
    ops.deform_conv2d(x.requires_grad_(), offset, weight, 1, 1).sum().backward()
    torch.testing.assert_close(alone, weight.grad)


def test_focal_losses_are_those_of_the_paper(ours):
    logits, target = 3 * draw('logits', 7, 4), torch.tensor([0, 3, 4, 1, 4, 2, 0])  # 4 is the background
    gamma, alpha, weight = 1.5, 0.3, torch.tensor([0.5, 2, 1, 3], dtype=torch.float64)
    is_target = F.one_hot(target, 5)[:, :4].double()
    p = torch.where(is_target == 1, logits.sigmoid(), 1 - logits.sigmoid())
    expected = -torch.where(is_target == 1, alpha, 1 - alpha) * (1 - p) ** gamma * p.log()
    torch.testing.assert_close(ops.sigmoid_focal_loss(logits, target, gamma, alpha, None, 'none'), expected)
    factors = torch.tensor([0.5, 2, 1, 3, 1], dtype=torch.float64)[target][:, None]
    torch.testing.assert_close(ops.sigmoid_focal_loss(logits, target, gamma, alpha, weight, 'none'), expected * factors)
    assert gradcheck(lambda x: ops.sigmoid_focal_loss(x, target, gamma, alpha, weight, 'mean'), logits.requires_grad_())
    target = torch.tensor([0, 3, -1, 1, 3, 2, 0])  # -1 is ignored
    p = logits.detach().softmax(1)[range(7), target]
    expected = (-alpha * (1 - p) ** gamma * p.log()).masked_fill(target < 0, 0)
    torch.testing.assert_close(ops.softmax_focal_loss(logits, target, gamma, alpha, None, 'none'), expected)
    torch.testing.assert_close(ops.softmax_focal_loss(logits, target, gamma, alpha, weight, 'none'), expected * weight[target])
    assert gradcheck(lambda x: ops.softmax_focal_loss(x, target, gamma, alpha, weight, 'sum'), logits)


def test_certain_logits_give_finite_losses(ours):
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    for loss in (ops.sigmoid_focal_loss, ops.softmax_focal_loss):
        out = loss(logits, torch.tensor([1]), 2.0, 0.25, None, 'sum')
        gradient, = torch.autograd.grad(out, logits)
        assert out > 10
        assert gradient.isfinite().all()


@pytest.mark.parametrize('operator', [ops.carafe, ops.carafe_naive])
def test_carafe_sums_weighted_windows(ours, operator):
    features, masks, kernel, groups, factor = draw('map', 2, 4, 3, 5), draw('masks', 2, 18, 6, 10), 3, 2, 2
    padded = F.pad(features, (1, 1, 1, 1))
    expected = torch.zeros(2, 4, 6, 10, dtype=torch.float64)
    for row in range(6):
        for column in range(10):
            window = padded[:, :, row // factor:row // factor + kernel, column // factor:column // factor + kernel]
            weights = masks[:, :, row, column].view(2, groups, 1, 3, 3).expand(-1, -1, 2, -1, -1).flatten(1, 2)
            expected[:, :, row, column] = (window * weights).sum((2, 3))
    torch.testing.assert_close(operator(features, masks, kernel, groups, factor), expected)
    if operator is ops.carafe:  # MMCV's carafe_naive asserts that its gradients are asked for on a GPU
        leaves = features.requires_grad_(), masks.requires_grad_()
        assert gradcheck(lambda *leaves: operator(*leaves, kernel, groups, factor), leaves)


@pytest.mark.parametrize(('operator', 'shape'), [
    (lambda x: ops.carafe(x, draw('masks', 1, 9, 6, 10, dtype=x.dtype), 3, 1, 2), (1, 4, 3, 5)),
    (lambda x: ops.psa_mask.psa_mask(x, 0, (3, 3)), (1, 9, 4, 5)),
    (lambda x: ops.softmax_focal_loss(x, torch.tensor([1, 0]), 2.0, 0.25, None, 'sum'), (2, 3)),
    (lambda x: ops.roi_align(x, torch.tensor([[0., 1, 1, 9, 9]]), (2, 2), 0.25, 0, 'avg', True), (1, 3, 9, 13))],
    ids=['carafe', 'psa_mask', 'softmax_focal_loss', 'roi_align'])
def test_second_derivatives_are_refused(ours, operator, shape):
    """They would be zero: with MMCV alone, of those whose functions are not marked as once differentiable."""
    def penalty():
        x = draw('map', *shape, dtype=torch.float32).requires_grad_()
        gradient, = torch.autograd.grad(operator(x).square().sum(), x, create_graph=True)
        gradient.square().sum().backward()
    with pytest.raises(RuntimeError, match=r'has no second derivatives|once_differentiable'):
        penalty()


def test_masked_conv_is_a_convolution_at_some_pixels(ours):
    x, weight, bias = draw('map', 1, 3, 6, 7), draw('weight', 5, 3, 3, 3), draw('bias', 5)
    mask = torch.zeros(1, 6, 7)
    mask[0, [0, 2, 5], [0, 3, 6]] = 1
    torch.testing.assert_close(ops.masked_conv2d(x, mask, weight, bias, 1, 1), F.conv2d(x, weight, bias, padding=1) * mask)
    assert not ops.masked_conv2d(x, 0 * mask, weight, bias, 1, 1).any()


def test_multi_scale_deformable_attention_is_mmcvs_plain_form(ours):
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction, multi_scale_deformable_attn_pytorch
    shapes, starts = torch.tensor([[4, 5], [2, 3]]), torch.tensor([0, 20])
    leaves = [draw(name, *shape).requires_grad_() for name, shape in dict(
        value=(2, 26, 2, 3), locations=(2, 7, 2, 2, 4, 2), weights=(2, 7, 2, 2, 4)).items()]
    ours, plain = (function(leaves[0], shapes, *rest) for function, rest in (
        (lambda *words: MultiScaleDeformableAttnFunction.apply(*words, 64), (starts, *leaves[1:])),
        (multi_scale_deformable_attn_pytorch, leaves[1:])))
    torch.testing.assert_close(ours, plain)
    gradient = draw('gradient', *plain.shape)
    for a, b in zip(*(torch.autograd.grad(out, leaves, gradient) for out in (ours, plain))):
        torch.testing.assert_close(a, b)


def test_synchronised_batch_norm_of_one_process_is_batch_norm(ours):
    from mmcv.ops.sync_bn import SyncBatchNormFunction
    norm = torch.nn.BatchNorm2d(4, momentum=0.3)
    with torch.no_grad():
        norm.weight.copy_(draw('weight', 4) + 2)
        norm.bias.copy_(draw('bias', 4))
    x = draw('map', 3, 4, 5, 6, dtype=torch.float32)
    leaves = [y.detach().clone().requires_grad_() for y in (x, norm.weight, norm.bias)]
    running = torch.zeros(4), torch.ones(4)
    out = SyncBatchNormFunction.apply(leaves[0], *running, *leaves[1:], 0.3, norm.eps, None, 1, 'default')
    x.requires_grad_()
    expected = norm(x)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(running, (norm.running_mean, norm.running_var))
    gradient = draw('gradient', *x.shape, dtype=torch.float32)
    for a, b in zip(torch.autograd.grad(out, leaves, gradient),
                    torch.autograd.grad(expected, (x, norm.weight, norm.bias), gradient)):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def narrow_cases(dtype):
    """Operators on numbers of 16 bits."""
    x, rois = draw('map', 2, 4, 9, 13, dtype=dtype), ROIS.to(dtype)
    yield 'roi_align', lambda: ops.roi_align(x, rois, (3, 2), 0.25, 0, 'avg', True)
    yield 'roi_align max', lambda: ops.roi_align(x, rois, (3, 2), 0.25, 0, 'max', True)
    yield 'roi_pool', lambda: ops.roi_pool(x, rois, (3, 2), 0.25)
    yield 'deform_roi_pool', lambda: ops.deform_roi_pool(x, rois, None, (3, 2), 0.25, 2)
    weight, offset, mask = (draw(name, *shape, dtype=dtype) for name, shape in (
        ('weight', (6, 4, 3, 3)), ('offset', (2, 18, 9, 13)), ('mask', (2, 9, 9, 13))))
    yield 'deform_conv', lambda: ops.deform_conv2d(x, offset, weight, 1, 1)
    yield 'modulated_deform_conv', lambda: ops.modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1)
    yield 'focal_loss', lambda: ops.sigmoid_focal_loss(draw('logits', 7, 4, dtype=dtype), torch.arange(7) % 5, 2.0, 0.25, None,
                                                       'none')
    yield 'carafe', lambda: ops.carafe(x, draw('masks', 2, 9, 18, 26, dtype=dtype), 3, 1, 2)
    boxes, scores = cases.draw_boxes('boxes', 9)
    yield 'nms', lambda: ops.nms(boxes, scores.to(dtype), 0.5)[1]  # boxes of float32, scores of an autocast layer


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_numbers_of_16_bits_are_computed_with_in_float32(ours, dtype):
    for (name, narrow), (_, wide) in zip(narrow_cases(dtype), narrow_cases(torch.float64)):
        with torch.autocast('cpu', torch.bfloat16):  # which would narrow products again
            out = narrow()
        assert out.dtype == (torch.long if name == 'nms' else dtype)
        tolerance = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(out.double(), wide().double(), atol=tolerance, rtol=tolerance, msg=name)


def test_nan_in_places_comes_out_as_nan_and_ends_no_process(ours):
    """torchvision takes NaN as the index of a pixel on a CPU, and the process dies."""
    x, rois, offset = draw('map', 2, 4, 9, 13), ROIS.clone(), draw('offset', 1, 2, 3, 2).repeat(6, 1, 1, 1)
    rois[1, 3] = torch.nan
    offset[2, 0, 1, 1] = torch.nan
    pools = [lambda x, mode=mode: ops.roi_align(x, rois, (3, 2), 0.25, 0, mode, True) for mode in ('avg', 'max')]
    pools += [lambda x: ops.roi_pool(x, rois, (3, 2), 0.25), lambda x: ops.deform_roi_pool(x, rois, None, (3, 2), 0.25)]
    for pool in pools:
        out = pool(x.requires_grad_())
        assert out.isnan().flatten(1).any(1).tolist() == [False, True, False, False, False, False]
        assert out[1].isnan().all()
        gradient, = torch.autograd.grad(out[0].sum(), x)
        assert gradient.isfinite().all()
    out = ops.deform_roi_pool(x, ROIS, offset, (3, 2), 0.25)
    assert out.isnan().flatten(1).any(1).tolist() == [False, False, True, False, False, False]
    offset, weight, mask = draw('offset', 2, 18, 9, 13), draw('weight', 6, 4, 3, 3), draw('mask', 2, 9, 9, 13)
    offset[1, 4, 2, 3] = torch.nan
    offset.requires_grad_()
    for conv, *others in ((ops.deform_conv2d, weight), (ops.modulated_deform_conv2d, mask, weight, None)):
        out = conv(x, offset, *others, 1, 1)
        assert out.isnan().any(1).nonzero().tolist() == [[1, 2, 3]]
        gradient, = torch.autograd.grad(out[0].sum(), offset)
        assert gradient.isfinite().all()
        assert gradient[0].any()


def test_boxes_without_area_stay_in_soft_nms(ours):
    """0 / 0 is no overlap; compiled MMCV makes NaN of their scores, for which no comparison holds."""
    boxes, scores = torch.tensor([[1.0, 1, 1, 1]]).repeat(3, 1), torch.tensor([0.5, 0.9, 0.7])
    for method in ('naive', 'linear', 'gaussian'):
        dets, kept = ops.soft_nms(boxes, scores, 0.3, method=method)
        assert dets[:, 4].tolist() == pytest.approx([0.9, 0.7, 0.5])
        assert kept.tolist() == [1, 2, 0]


def test_other_operators_say_what_they_need(ours):
    with pytest.raises(NotImplementedError, match='operator knn_forward needs a compiled mmcv.*MMCV_WITH_OPS=1 pip install'):
        ours.knn_forward(1, 2)
    with pytest.raises(AttributeError):
        needs_compiled_mmcv('__wrapped__')
    assert 'mmcv_ops' in ops.get_compiler_version()


@pytest.mark.parametrize('is_compiled', [True, False])
def test_a_compiled_mmcv_stays_in_charge(tmp_path, is_compiled):
    package = tmp_path / 'mmcv'
    package.mkdir()
    (package / '__init__.py').touch()
    if is_compiled:
        (package / '_ext.py').write_text('nms = "compiled"')
    code = 'import mmsimvit, mmcv._ext; print(getattr(mmcv._ext, "__file__", None), mmcv._ext.nms)'
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    assert ('_ext.py compiled' in out) == is_compiled
    assert ('None <function nms' in out) != is_compiled


@pytest.mark.skipif(hasattr(mmcv._ext, '__file__'), reason='mmcv is compiled')
def test_the_libraries_import_before_mmsimvit():
    """MMDetection's tools/test.py and mmdet.apis ask for operators before a config's custom_imports are read."""
    code = 'import mmdet.apis, mmseg.apis, sys; print("mmcv._ext" in sys.modules)'
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert out.endswith('True\n')


def small_cases():
    """Differentiable operators on (B, C, H, W), with what they are called on."""
    for psa_type in (0, 1):
        yield (f'psa_mask {psa_type}', lambda x, psa_type=psa_type: ops.psa_mask.psa_mask(x, psa_type, (3, 5)),
               [draw('x', 2, 15, 4, 3)])
    yield ('sigmoid_focal_loss', lambda x: ops.sigmoid_focal_loss(x.flatten(1), torch.tensor([1, 3]), 2.0, 0.25, None, 'none'),
           [draw('x', 2, 3, 1, 1)])
    x, offset, mask, weight = (draw(name, *shape) for name, shape in dict(
        map=(2, 4, 5, 4), offset=(2, 18, 5, 4), mask=(2, 9, 5, 4), weight=(6, 4, 3, 3)).items())
    yield 'deform_conv', lambda *leaves: ops.deform_conv2d(*leaves, 1, 1), [x, offset, weight]
    yield ('modulated_deform_conv', lambda *leaves: ops.modulated_deform_conv2d(*leaves, None, 1, 1), [x, offset, mask, weight])
    yield ('modulated_deform_conv of a larger map', lambda *leaves: ops.modulated_deform_conv2d(*leaves, None, 2, 1),
           [x, offset, mask, weight])  # as MMDetection's DyHead does
    yield 'carafe', lambda *leaves: ops.carafe(*leaves, 3, 1, 2), [x, draw('masks', 2, 9, 10, 8)]
    for mode in ('avg', 'max'):
        yield f'roi_align {mode}', lambda x, mode=mode: ops.roi_align(x, ROIS, (3, 2), 0.25, 0, mode, True), [x]
    yield 'roi_pool', lambda x: ops.roi_pool(x, ROIS, (3, 2), 0.25), [x]
    yield 'deform_roi_pool', lambda x: ops.deform_roi_pool(x, ROIS, None, (3, 2), 0.25), [x]


@pytest.mark.parametrize('name', [name for name, *_ in small_cases()])
def test_layouts_and_torch_compile_change_no_gradient(ours, name):
    """torch.compile would trace the operators and lose what they write; a channels-last gradient is no view of its numbers."""
    function, inputs = next((function, inputs) for known, function, inputs in small_cases() if known == name)

    def differentiate(call, layout):
        leaves = [x.clone(memory_format=layout).requires_grad_() for x in inputs]
        out = call(*leaves)
        return [out, *torch.autograd.grad(out, leaves, draw('gradient', *out.shape))]

    expected = differentiate(function, torch.contiguous_format)
    assert all(gradient.any() for gradient in expected)
    torch._dynamo.reset()
    for found in (differentiate(function, torch.channels_last),
                  differentiate(torch.compile(function, backend='eager'), torch.contiguous_format)):
        torch.testing.assert_close(found, expected)


def test_rois_of_no_size_and_no_rois_give_zeros(ours):
    x = draw('map', 2, 4, 9, 13).requires_grad_()
    for rois in (ROIS[:0], ROIS[:1], torch.tensor([[0, 20.0, 20, 10, 10]], dtype=torch.float64)):
        for pool in (lambda: ops.roi_align(x, rois, (3, 2), 0.25, 0, 'avg', True),  # noqa: B023
                     lambda: ops.deform_roi_pool(x, rois, None, (3, 2), 0.25, 0)):  # noqa: B023
            out = pool()
            gradient, = torch.autograd.grad(out.sum(), x)
            assert out.shape == (len(rois), 4, 3, 2)
            assert not out.any()
            assert not gradient.any()
    assert not ops.roi_pool(x, rois, (3, 2), 0.25).any()  # its corners are in the wrong order


def test_an_empty_batch_leaves_running_statistics(ours):
    running = torch.tensor([1.0, 2.0])
    x, ones = torch.zeros(0, 2, 3), torch.ones(2)
    ours.sync_bn_forward_output(x, 0 * ones, ones, ones, 0 * ones, torch.zeros(2), running, x.clone(), ones.clone(), x.clone(),
                                eps=1e-5, momentum=torch.tensor([0.5]), group_size=1)
    assert running.tolist() == [1.0, 1.5]  # towards the other processes' variance


def test_modes_of_torch_are_as_before(ours):
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        ops.roi_align(draw('map', 2, 4, 9, 13), ROIS, (3, 2), 0.25)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
