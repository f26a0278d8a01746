"""What compiled MMCV computes on a CPU; written to ``tests/golden/mmcv_ops.json`` by

    python -m tests.mmcv_ops.cases

in an environment whose mmcv is compiled (``OPS=compiled make setup``). Inputs depend on the cases' names alone.
"""
import json
from itertools import product
from pathlib import Path

import torch

from tests.golden import noise

PATH = Path(__file__).parent.parent / 'golden/mmcv_ops.json'
# Without area, outside of the map, larger than it, of a single pixel, and two ordinary ones; of a map of 9 x 13 at a quarter.
ROIS = [[0, 10, 10, 10, 10], [1, 80, 90, 99, 99], [1, -30, -20, 90, 70], [0, 4, 4, 8, 8], [0, 3.3, 1.7, 40.1, 20.9],
        [1, 17, 9.5, 30, 35]]


def draw(name, *shape, dtype=torch.float64):
    count = 1
    for size in shape:
        count *= size
    return torch.from_numpy(noise(name, count)).view(shape).to(dtype)


def draw_boxes(name, count, step=None):
    """Boxes in an image of 100 x 100, and scores; with a step, in such steps, so that many overlaps and scores are equal."""
    numbers = draw(name, count, 5, dtype=torch.float32) / 2 + 0.5
    if step:
        numbers = (numbers / step).floor() * step
    corner, sides, scores = numbers[:, :2] * 70, numbers[:, 2:4] * 30 + 5, numbers[:, 4].contiguous()
    return torch.cat([corner, corner + sides], 1), scores


def with_gradients(name, function, *tensors):
    """The result, and its gradients for a gradient of noise."""
    leaves = [tensor.requires_grad_() for tensor in tensors]
    out = function(*leaves)
    out.backward(draw(f'{name} gradient', *out.shape, dtype=out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def compute(break_ties=False):
    """Yield the name of each case and its results, by the operators that ``mmcv.ops`` has.

    Which of two boxes of equal scores compiled NMS takes first depends on the processor. The first is right, as in
    torchvision, which compiled NMS takes where ties are broken so.
    """
    from mmcv import ops

    for count, step, threshold, offset in product((0, 1, 2, 60), (None, 0.25), (0.1, 0.5), (0, 1)):
        boxes, scores = draw_boxes('boxes', count, step)
        case = f'{count} boxes, step {step}, threshold {threshold}, offset {offset}'
        for method in ('naive', 'linear', 'gaussian'):
            for min_score in (0.001, 0.4):
                yield (f'soft_nms: {case}, {method}, min_score {min_score}',
                       [*ops.soft_nms(boxes, scores, threshold, 0.5, min_score, method, offset)])
        if break_ties and step:
            scores = scores - 1e-6 * torch.arange(count)
        yield f'nms: {case}', [ops.nms(boxes, scores, threshold, offset)[1]]
        if count and not offset:
            yield f'nms_match: {case}', ops.nms_match(torch.cat([boxes, scores[:, None]], 1), threshold)
            yield f'batched_nms: {case}', [ops.batched_nms(boxes, scores, torch.arange(count) % 3,
                                                           dict(type='nms', iou_threshold=threshold))[1]]
    for (rows, columns), mode, offset in product(((5, 7), (1, 4), (6, 6), (0, 3)), ('iou', 'iof'), (0, 1)):
        first, second = draw_boxes('first', rows)[0], draw_boxes('second', columns)[0]
        case = f'{rows} x {columns}, {mode}, offset {offset}'
        yield f'bbox_overlaps: {case}', [ops.bbox_overlaps(first, second, mode, False, offset)]
        if rows == columns:
            yield f'bbox_overlaps: {case}, aligned', [ops.bbox_overlaps(first, second, mode, True, offset)]
    for dtype, mode, aligned, ratio, count in product((torch.float32, torch.float64), ('avg', 'max'), (True, False), (0, 2),
                                                      (0, 1, 6)):
        case = f'roi_align: {dtype}, {mode}, {"aligned" if aligned else "not aligned"}, ratio {ratio}, {count} RoIs'
        rois = torch.tensor(ROIS[6 - count:], dtype=dtype).view(-1, 5)
        yield case, with_gradients('roi', lambda x: ops.roi_align(x, rois, (3, 2), 0.25, ratio, mode, aligned),  # noqa: B023
                                   draw('map', 2, 3, 9, 13, dtype=dtype))
    for dtype, groups, deform_groups, (stride, padding, dilation), kernel in product(
            (torch.float32, torch.float64), (1, 2), (1, 2), ((1, 1, 1), (2, 0, 1), ((1, 2), (2, 1), (2, 1))), (3, (1, 2))):
        kernel_size = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        settings = dict(stride=stride, padding=padding, dilation=dilation, groups=groups, deform_groups=deform_groups)
        x, weight = draw('map', 2, 4, 7, 9, dtype=dtype), draw('weight', 6, 4 // groups, *kernel_size, dtype=dtype)
        height, width = torch.nn.functional.conv2d(x, weight, None, stride, padding, dilation, groups).shape[2:]
        taps = deform_groups * kernel_size[0] * kernel_size[1]
        offset, mask = (draw(name, 2, many * taps, height, width, dtype=dtype) for name, many in (('offset', 2), ('mask', 1)))
        case = f'{dtype}, kernel {kernel_size}, {settings}'
        yield (f'deform_conv: {case}',
               with_gradients('conv', lambda x, offset, weight: ops.deform_conv2d(  # MMCV's has no names for its arguments
                   x, offset, weight, *settings.values()), x, 3 * offset, weight))  # noqa: B023
        for bias in (False, True):
            yield (f'modulated_deform_conv: {case}, bias {bias}',
                   with_gradients('conv', lambda x, offset, mask, weight, *bias: ops.modulated_deform_conv2d(
                       x, offset, mask, weight, *(bias or [None]), *settings.values()),  # noqa: B023
                       *(y.detach() for y in (x, 3 * offset, mask, weight)),
                       *[draw('bias', 6, dtype=dtype)] * bias))
    # MMDetection's DyHead gives offsets and masks of a larger map than the output; a batch of 2.
    yield ('modulated_deform_conv: offsets of a larger map',
           with_gradients('conv', lambda x, offset, mask, weight: ops.modulated_deform_conv2d(
               x, offset, mask, weight, None, 1, 1), *(draw(name, *shape) for name, shape in dict(
                   map=(2, 4, 5, 4), offset=(2, 18, 10, 7), mask=(2, 9, 10, 7), weight=(6, 4, 3, 3)).items())))
    for psa_type, mask_size in product(('collect', 'distribute'), ((3, 3), (7, 5), (11, 13))):
        yield (f'psa_mask: {psa_type}, {mask_size}',
               with_gradients('psa', lambda x: ops.psa_mask.psa_mask(x, int(psa_type == 'distribute'), mask_size),  # noqa: B023
                              draw('map', 2, mask_size[0] * mask_size[1], 4, 5, dtype=torch.float32)))


def record(tensor):
    """All whole numbers, and up to 15 others at even distances, with the greatest, in units of which differences count."""
    flat = tensor.flatten()
    if not flat.is_floating_point():
        return dict(shape=list(tensor.shape), values=flat.tolist())
    digits = 9 if flat.dtype == torch.float32 else 13
    values = [float(f'{value:.{digits}g}') for value in flat[::len(flat) // 8 or 1].tolist()]
    return dict(shape=list(tensor.shape), values=values, scale=flat.abs().max().item() if len(flat) else 0)


def main():
    import mmcv._ext
    if not hasattr(mmcv._ext, '__file__'):
        raise SystemExit('these are to be the numbers of compiled operators, and this mmcv is not compiled')
    lines = [f'{json.dumps(name)}: {json.dumps([record(result) for result in results])}'
             for name, results in compute(break_ties=True)]
    PATH.write_text('{' + ',\n'.join(lines) + '}\n')


if __name__ == '__main__':
    main()
