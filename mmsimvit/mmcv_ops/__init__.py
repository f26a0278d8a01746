"""The operators of MMCV out of torchvision and torch, for environments in which MMCV was not compiled.

MMCV's Python half (``mmcv.ops``) calls a compiled module, ``mmcv._ext``, for which a C++ compiler and, for GPUs, a CUDA
toolkit are needed. ``install`` puts a module in its place where there is none (mmcv-lite, or mmcv built with
``MMCV_WITH_OPS=0``). A compiled one is found first and stays in charge.

The functions have the names and arguments that MMCV calls: results are written into tensors that it made. They run on the CPU
and on CUDA devices. Numbers of 16 bits are computed with in float32, as torchvision does under autocast. There are no second
derivatives, as MMCV has none, and who asks for them gets an error.
"""
import importlib.abc
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

from ..stacks import installed_stack, name_of

NAME = 'mmcv._ext'


class Finder:
    """Finds ``mmcv._ext`` after all other finders of ``sys.meta_path``."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """What Python asks for each module that the finders before have not found."""
        return ModuleSpec(name, Loader(), origin='mmsimvit.mmcv_ops') if name == NAME else None


class Loader(importlib.abc.Loader):
    """Fills the module in, when MMCV asks for it."""

    def exec_module(self, module: ModuleType) -> None:
        """Set the operators, and what stands for all others."""
        # Here, for they import torchvision, which not every environment has.
        import torch

        from . import common, deform_conv, focal_loss, multi_scale_deform_attn, nms, psamask, roi, sync_bn, upsample
        for part in (deform_conv, focal_loss, multi_scale_deform_attn, nms, psamask, roi, sync_bn, upsample):
            for function in part.OPERATORS:
                name = function.__name__
                # As with a compiled module: torch.compile would trace these, and lose what they write within MMCV's functions.
                setattr(module, name, torch.compiler.disable(common.once(function) if 'backward' in name else function))
        vars(module).update(get_compiler_version=lambda: 'none, operators of mmsimvit.mmcv_ops',
                            get_compiling_cuda_version=lambda: 'none', __getattr__=needs_compiled_mmcv)


def install() -> None:
    """Bring MMCV's operators to environments in which it was not compiled; again, it changes nothing."""
    if Finder not in sys.meta_path:
        sys.meta_path.append(Finder)


def needs_compiled_mmcv(name: str) -> Callable[..., NoReturn]:
    """What stands for an operator that detectors, segmentors and classifiers do without.

    Raises:
        AttributeError: for names that Python looks for in every module.
        NotImplementedError: when it is called.
    """
    if name.startswith('_'):
        raise AttributeError(f'module {NAME!r} has no attribute {name!r}')

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        import mmcv
        distribution = name_of(installed_stack()['mmcv']).removesuffix('-lite')
        raise NotImplementedError(
            f"MMCV's operator {name} needs a compiled mmcv, which takes a C++ compiler and, for GPUs, a CUDA toolkit: "
            'MMCV_WITH_OPS=1 pip install --force-reinstall --no-deps --no-build-isolation --no-cache-dir '
            f'{distribution}=={mmcv.__version__}')
    refuse.__name__ = name
    return refuse
