"""Which implementation of an operation runs."""
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from logging import WARNING

import torch
from mmengine.logging import print_log

BACKENDS = ('auto', 'reference', 'composite', 'eager', 'triton')
VARIABLE = 'MMSIMVIT_BACKEND'
_preferred: str | None = None


def set_backend(backend: str) -> None:
    """Choose what ``backend='auto'`` means from now on, before the environment variable ``MMSIMVIT_BACKEND``.

    Args:
        backend: ``auto`` (Triton on CUDA devices, ``eager`` on the CPU, ``composite`` elsewhere), ``reference``,
            ``composite``, ``eager`` or ``triton``.

    Raises:
        ValueError: if there is no backend of that name.
    """
    global _preferred
    _preferred = _known(backend, 'set_backend')


@contextmanager
def use_backend(backend: str | None) -> Iterator[None]:
    """``set_backend`` for the length of a ``with`` block; nothing for None."""
    global _preferred
    previous = _preferred
    if backend:
        set_backend(backend)
    try:
        yield
    finally:
        _preferred = previous


def chosen(backend: str) -> str:
    """The backend that a call asks for, by its argument, ``set_backend`` or the environment; perhaps still ``auto``."""
    if _known(backend, 'backend') != 'auto':
        return backend
    return _preferred or _known(os.environ.get(VARIABLE, 'auto'), VARIABLE)


@torch.compiler.assume_constant_result  # a trace need not look into it
def automatic(device: torch.device) -> str:
    """The fastest backend on a device."""
    if device.type in ('cpu', 'meta'):
        return 'eager'
    reason = why_not_triton(device)
    if reason is None:
        return 'triton'
    warn_once(f'central and neighborhood attention run without their Triton kernels, several times slower: {reason}')
    return 'composite'


@cache
def why_not_triton(device: torch.device) -> str | None:
    """What keeps the Triton kernels from running on a device, or None."""
    if not find_spec('triton'):
        return "Triton is not installed; it comes with torch's CUDA builds for Linux (on Windows: pip install triton-windows)"
    if device.type == 'cuda':
        capability = torch.cuda.get_device_capability(device)
        if torch.version.cuda and capability < (7, 0):
            return f'Triton needs compute capability 7.0 or later, {torch.cuda.get_device_name(device)} has {capability}'
        # It compiles what launches its kernels when they first run.
        if not any(map(shutil.which, (os.environ.get('CC', ''), 'gcc', 'clang'))):
            return 'Triton needs a C compiler, and neither $CC nor gcc or clang was found'
        return None
    # As Triton reads it; older ones have no other place to ask.
    interpreted = os.environ.get('TRITON_INTERPRET', '').lower() in ('1', 'true', 'on', 'yes', 'y')
    return None if interpreted else f'Triton needs a CUDA device, the tensors are on {device}'


@cache
def warn_once(message: str) -> None:
    """Log a warning the first time that it is given."""
    print_log(message, 'current', WARNING)


def _known(backend: str, source: str) -> str:
    if backend not in BACKENDS:
        raise ValueError(f'{source} must be one of {", ".join(BACKENDS)}, got {backend!r}')
    return backend


def is_exporting() -> bool:
    """Whether a graph is made that is not for ``torch.compile``: by ``torch.export`` (``strict=False``) and the ONNX exporter.

    torch 2.6 has no ``torch.compiler.is_exporting``, and under ``torch.compile`` that of torch 2.11 says yes.
    """
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
