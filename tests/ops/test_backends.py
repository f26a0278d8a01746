import logging

import pytest
import torch

from mmsimvit.ops import backends, central_attention, set_backend
from mmsimvit.ops import central_attention as attend
from mmsimvit.ops.backends import is_exporting


@pytest.fixture(autouse=True)
def nothing_preferred(monkeypatch):
    monkeypatch.setattr(backends, '_preferred', None)
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    caches = backends.warn_once, backends.why_not_triton  # themselves, for tests that replace them
    for function in caches:
        function.cache_clear()
    yield
    for function in caches:
        function.cache_clear()


@pytest.fixture
def logged(monkeypatch):
    lines = []
    monkeypatch.setattr(backends, 'print_log', lambda message, logger, level: lines.append((level, message)))
    return lines


@pytest.fixture
def ran(monkeypatch):
    """The backends that ran."""
    pytest.importorskip('triton')
    names = []
    for name in ('reference', 'composite'):
        module = __import__(f'mmsimvit.ops.{name}', fromlist=['_'])
        original = module.attention
        monkeypatch.setattr(module, 'attention', lambda *a, name=name, f=original: names.append(name) or f(*a))
    for name in ('eager', 'triton_kernels'):
        module = __import__(f'mmsimvit.ops.{name}', fromlist=['_'])
        original = module.forward
        monkeypatch.setattr(module, 'forward', lambda *a, name=name, f=original: names.append(name) or f(*a))
    return names


def call(**keywords):
    x = torch.randn(1, 3, 3, 4)
    return attend(x, x, x, 1, **keywords)


@pytest.mark.skipif(torch.cuda.is_available(), reason='Triton runs on the CPU in its interpreter alone')
def test_the_argument_goes_before_the_setting_and_that_before_the_environment(ran, monkeypatch):
    call()
    monkeypatch.setenv(backends.VARIABLE, 'reference')
    call()
    set_backend('composite')
    call()
    call(backend='triton')
    set_backend('auto')
    call()
    assert ran == ['eager', 'reference', 'composite', 'triton_kernels', 'eager']


@pytest.mark.parametrize('arguments', [dict(dropout_p=0.1), dict(dropout_p=0.1, backend='eager')])
def test_dropout_takes_the_composite_and_says_so_once(ran, logged, arguments):
    call(**arguments)
    call(**arguments)
    assert ran == ['composite'] * 2
    assert [level for level, _ in logged] == [logging.WARNING]
    assert 'attention dropout (0.1)' in logged[0][1]


def test_second_derivatives_are_logged_once(logged):
    x = torch.randn(1, 2, 2, 4, requires_grad=True)
    for _ in range(2):
        gradient, = torch.autograd.grad(central_attention(x, x, x, 1).sum(), x, create_graph=True)
        gradient.sum().backward()
    assert ['second derivatives' in message for _, message in logged] == [True]


def test_a_device_without_triton_takes_the_composite_and_says_so_once(logged, monkeypatch):
    monkeypatch.setattr(backends, 'why_not_triton', lambda device: 'Triton is not installed')
    assert [backends.automatic(torch.device('cuda')) for _ in range(2)] == ['composite'] * 2
    assert [message for _, message in logged] == [
        'central and neighborhood attention run without their Triton kernels, several times slower: Triton is not installed']


@pytest.mark.parametrize('compiler', ['gcc', 'clang', None])
def test_a_gpu_takes_triton_if_it_can_compile(compiler, logged, monkeypatch):
    monkeypatch.setattr(backends, 'find_spec', lambda name: True)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (9, 0))
    monkeypatch.setattr(backends.shutil, 'which', lambda name: name if name == compiler else None)
    assert backends.automatic(torch.device('cuda')) == ('triton' if compiler else 'composite')
    assert ['needs a C compiler' in message for _, message in logged] == ([] if compiler else [True])


@pytest.mark.parametrize(('patch', 'device', 'message'), [
    (lambda m: m.setattr(backends, 'find_spec', lambda name: None), 'cpu', 'Triton is not installed'),
    (lambda m: m.setenv('TRITON_INTERPRET', '0'), 'cpu', 'needs a CUDA device, the tensors are on cpu'),
])
def test_what_cannot_run_says_why(patch, device, message, monkeypatch):
    patch(monkeypatch)
    with pytest.raises(RuntimeError, match=f"backend 'triton' cannot run central attention here: .*{message}"):
        call(backend='triton')


def test_a_preference_ends_with_its_block():
    set_backend('composite')
    with pytest.raises(KeyError), backends.use_backend('reference'):
        assert backends.chosen('auto') == 'reference'
        raise KeyError
    assert backends.chosen('auto') == 'composite'


def test_an_old_gpu_is_named(monkeypatch):
    monkeypatch.setattr(backends, 'find_spec', lambda name: True)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: (6, 1))
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device: 'NVIDIA GeForce GTX 1080')
    monkeypatch.setattr(torch.version, 'cuda', '12.6')
    assert backends.why_not_triton(torch.device('cuda')) == (
        'Triton needs compute capability 7.0 or later, NVIDIA GeForce GTX 1080 has (6, 1)')


def test_unknown_names_are_refused_with_where_they_come_from(monkeypatch):
    with pytest.raises(ValueError, match="set_backend must be one of auto, .*, got 'cudnn'"):
        set_backend('cudnn')
    monkeypatch.setenv(backends.VARIABLE, 'fast')
    with pytest.raises(ValueError, match="MMSIMVIT_BACKEND must be one of auto, .*, got 'fast'"):
        call()


def test_an_export_is_told_from_a_compilation():
    said = []

    class Model(torch.nn.Module):

        def forward(self, x):
            said.append(is_exporting())
            return x + 1

    Model()(torch.zeros(1))
    torch.export.export(Model(), (torch.zeros(1), ), strict=False)
    assert said == [False, True]
    compiled = torch.compile(lambda x: x + is_exporting(), fullgraph=True, backend='eager')
    assert compiled(torch.zeros(1)) == 0
