import json
import re
import weakref
from importlib import import_module

import pytest
import torch

from mmsimvit import SimViT
from mmsimvit.analysis.benchmark import published_simvit
from mmsimvit.analysis.benchmark.measure import Candidate, measure, ratio
from mmsimvit.analysis.memory import saved_activations
from mmsimvit.cli.benchmark import main
from mmsimvit.ops import central_attention


def test_the_published_formulation_gives_the_same_numbers():
    torch.manual_seed(0)
    ours = SimViT('micro', drop_path_rate=0.0).double()
    theirs = published_simvit.formulate(SimViT('micro', drop_path_rate=0.0).double())
    theirs.load_state_dict(ours.state_dict())
    image = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    found = []
    for model in (ours, theirs):
        outs = model(image)
        sum(out.square().sum() for out in outs).backward()
        found.append([*outs, *(p.grad for p in model.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('kernel_size', [3, 5])
def test_the_published_operation_gives_the_same_numbers_and_keeps_copies(kernel_size):
    query = torch.randn(2, 5, 6, 12, dtype=torch.float64).requires_grad_()
    key_value = torch.randn(2, 5, 6, 24, dtype=torch.float64)
    saved = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.update({x.data_ptr(): x.numel()}) or x, lambda x: x):
        found = published_simvit.central_attention(query, key_value.requires_grad_(), 3, kernel_size)
    torch.testing.assert_close(found, central_attention(query, key_value, None, 3, kernel_size))
    assert sum(saved.values()) > 2 * kernel_size**2 * query.numel()


def run(*arguments):
    return main([*arguments, '--device', 'cpu'])


def candidate(call, *inputs):
    return Candidate('it', call, list(inputs), torch.device('cpu'))


def test_memory_is_counted_to_the_byte():
    x = torch.zeros(1 << 18, requires_grad=True)  # one MiB

    def call():
        y = x * 2
        y = y * y  # keeps its factor
        return y.sum()

    it = candidate(call, x)
    measure([it], ('forward', 'training'), 1, lambda line: None)
    mib = 1 << 20
    assert it.saved_bytes == pytest.approx(mib, abs=64)
    assert it.peak_bytes['forward'] == pytest.approx(2 * mib, abs=1024)
    assert it.peak_bytes['training'] == pytest.approx(3 * mib, abs=1024)  # the factor and two gradients


def test_counting_memory_leaves_nothing_behind():
    """Functions that keep their own results, such as exp and softmax, were never freed."""
    made = []
    saved_activations(lambda: made.append(weakref.ref(y := torch.ones(3, requires_grad=True).exp())) or y * 2,
                      torch.device('cpu'))
    assert made[0]() is None


def test_candidates_take_turns():
    order = []
    names = 'ab'
    candidates = [candidate(lambda name=name: order.append(name) or torch.zeros(1, requires_grad=True)) for name in names]
    measure(candidates, ('forward', ), 3, lambda line: None)
    assert ''.join(order) == 'ab' + 'ab' * 3 + 'ab'  # warm-up, rounds, memory
    assert [len(c.seconds['forward']) for c in candidates] == [3, 3]


def test_ratios_are_of_rounds_that_ran_together():
    assert ratio([1.0, 10.0, 2.0], [0.5, 5.0, 1.0]) == (2.0, 2.0, 2.0)
    assert ratio([1.0, 2.0, 4.0], [1.0, 1.0, 1.0]) == (2.0, 1.5, 3.0)


def test_an_operation_is_measured_drawn_and_written(tmp_path, capsys):
    rows = run('--op', 'central_attention', '--backends', 'published', 'eager', 'composite', '--shapes', '1,6,7,16,2',
               '--kernel-sizes', '3', '5', '--rounds', '2', '--out', str(tmp_path / 'new'))
    written = json.loads((tmp_path / 'new/benchmark.json').read_text())
    assert written['results'] == json.loads(json.dumps(rows))
    assert [(row['case'], row['step'], row['name']) for row in rows] == [
        (case, step, name) for case in ('1x6x7x16, 2 heads', '1x6x7x16, 2 heads, k=5') for step in ('forward', 'training')
        for name in ('published', 'eager', 'composite')]
    assert all(row['baseline'] == 'published' and len(row['seconds']) == 2 and row['times_floor'] > 0 for row in rows)
    saved = {row['name']: row['saved_ratio'] for row in rows if row['step'] == 'training' and row['case'].endswith('heads')}
    assert saved['published'] == 1
    assert saved['eager'] == pytest.approx(3 / 19.125, rel=0.05)  # q, k, v; q, 9 k, 9 v and 9 weights for 8 channels
    assert written['environment']['threads'] == torch.get_num_threads()
    assert (tmp_path / 'new/benchmark.png').stat().st_size > 10_000
    assert 'published' in capsys.readouterr().out


def test_backbones_are_measured(capsys):
    rows = run('SimViT:micro', 'published:SimViT:micro', 'SimViT:micro,recompute_ffn=True,out_indices=(0,)', 'resnet-50',
               'configs/maskrcnn_simvit_micro_shapes.py', '--sizes', '64x96', '--rounds', '1',
               '--baseline', 'published:SimViT:micro')
    assert {row['case'] for row in rows} == {'64x96, batch 1'}
    assert len(rows) == 10
    saved = {row['name']: row['saved_bytes'] for row in rows if row['step'] == 'training'}
    assert saved['SimViT:micro'] < 0.75 * saved['published:SimViT:micro']
    # But for the masks of drop path, which that config has not.
    assert saved['configs/maskrcnn_simvit_micro_shapes.py'] == pytest.approx(saved['SimViT:micro'], rel=1e-3)


def test_a_backbone_runs_with_the_backend_that_it_names(monkeypatch):
    """And the others with their own."""
    ran = []
    for name in ('composite', 'eager'):
        module = import_module(f'mmsimvit.ops.{name}')
        function = 'attention' if name == 'composite' else 'forward'
        original = getattr(module, function)
        monkeypatch.setattr(module, function, lambda *a, name=name, f=original: ran.append(name) or f(*a))
    attentions = 8  # of SimViT-micro, in stages 1 to 3
    run('composite:SimViT:micro,with_cp=True', 'SimViT:micro', '--sizes', '32x32', '--rounds', '1', '--steps', 'forward')
    assert ran == (['composite'] * attentions + ['eager'] * attentions) * 3
    ran.clear()
    run('composite:SimViT:micro,with_cp=True', '--sizes', '32x32', '--rounds', '1', '--steps', 'training')
    assert set(ran) == {'composite'}  # also what is recomputed in the backward pass


def test_a_candidate_that_differs_is_not_measured(monkeypatch, capsys):
    monkeypatch.setattr(published_simvit, 'central_attention', lambda query, kv, *others: query + 0 * kv[..., :16])
    with pytest.raises(SystemExit, match='published does not compute central attention: off by'):
        run('--op', 'central_attention', '--backends', 'published', 'eager', '--shapes', '1,6,7,16,2')


def test_running_out_of_memory_leaves_out_one_case(monkeypatch, capsys):
    def call(query, *others):
        if query.shape[1] == 11:
            raise torch.OutOfMemoryError('tried to allocate 2 GiB')
        return original(query, *others)

    original = published_simvit.central_attention
    monkeypatch.setattr(published_simvit, 'central_attention', call)
    rows = run('--op', 'central_attention', '--shapes', '1,11,7,16,2', '1,6,7,16,2', '--rounds', '1')
    assert {row['case'] for row in rows} == {'1x6x7x16, 2 heads'}
    assert '1x11x7x16, 2 heads: out of memory, left out: tried to allocate 2 GiB' in capsys.readouterr().err


@pytest.mark.parametrize(('arguments', 'message'), [
    ([], 'name backbones, or an operation with --op'),
    (['SimViT:tiny', '--op', 'central_attention'], 'name backbones, or an operation with --op'),
    (['SimViT:tiny', '--baseline', 'swin-t'], '--baseline must be one of the candidates SimViT:tiny, got swin-t'),
    (['SimViT:tiny', '--sizes', '512'], "must be 2 positive whole numbers separated by \"x\", got '512'"),
    (['SimViT:tiny', '--rounds', '0'], "must be positive whole numbers, got '0'"),
    (['SimViT:gigantic'], "SimViT has no arch 'gigantic'"),
    (['NoSuchNet'], "'NoSuchNet' names no backbone.*for example SimViT:tiny"),
    (['no/such.py'], 'config no/such.py does not exist'),
    (['SimViT:tiny,with_cp'], "'with_cp' in 'SimViT:tiny,with_cp' must be ARGUMENT=VALUE"),
    (['published:resnet-50'], "only SimViT has the form published, 'resnet-50' has not"),
    (['eager:resnet-50'], "only SimViT has the form eager, 'resnet-50' has not"),
    (['--op', 'central_attention', '--backends', 'magic'], 'not implemented as magic; known are reference'),
])
def test_bad_arguments_end_with_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        run(*arguments)
    text = f'{error.value}{capsys.readouterr().err}'
    assert re.search(message, text), text
