"""Say which versions are installed, what does not work, and which command mends it.

This process imports the standard library alone. What imports torch runs in processes of their own, so that a crash or a hang is
found like an error. The exit status is 1 if anything is wrong, else 0.
"""
import argparse
import importlib.metadata
import importlib.util
import inspect
import platform
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .. import __version__
from ..stacks import ONEDL, TORCH, UPSTREAM, name_of, stack_of

TORCH_INDEX = 'https://download.pytorch.org/whl'
LIBRARIES = 'mmdet', 'mmseg', 'mmpretrain'
# The first version that is supported and the first that is not. Upstream mmdet and mmseg refuse mmcv 2.2; the forks go on.
SUPPORTED = {'torch': ((2, 6), (3, )), 'torchvision': ((0, 21), (1, )), 'mmengine': ((0, 10), (1, )), 'mmcv': ((2, 0), (2, 2)),
             'mmdet': ((3, ), (4, )), 'mmseg': ((1, ), (2, )), 'mmpretrain': ((1, ), (2, ))}
NAMES = {module: {name_of(UPSTREAM[module]), name_of(ONEDL[module])} for module in SUPPORTED}
NAMES['mmcv'] |= {'mmcv', 'mmcv-full'}
CURES = (  # of errors that do not name the distribution they want: a command, or what to install
    (r'lib(GL|gthread|glib)[\w.-]*\.so', 'sudo apt install libgl1 libglib2.0-0'),  # of OpenCV
    (r"No module named '(pkg_resources|distutils)", ['setuptools<81']),
    (r"No module named '(ftfy|regex)'", ['ftfy', 'regex']),  # mmseg imports them without asking for them
    (r"No module named 'cv2'", ['opencv-python']), (r"No module named 'PIL'", ['pillow']),
    (r"No module named 'yaml'", ['pyyaml']), ('needs torch 2.6', TORCH.values()),
    ('not see what the driver has', ['--force-reinstall', *TORCH.values(), '--index-url', f'{TORCH_INDEX}/cu126']),
    ('(?i)triton', 'export MMSIMVIT_BACKEND=composite'))
Findings = list[tuple[str, str]]  # what was found, and the command that mends it


class Check(NamedTuple):
    """Something to try in a process of its own."""
    title: str
    module: str  # which must be installed, and is at fault
    function: Callable[..., None]  # its source is run by itself; it prints what to tell and raises what is wrong
    arguments: tuple = ()
    needs: tuple[str, ...] = ()  # titles of checks


def main(argv: list[str] | None = None) -> None:
    """Print what is installed, what works and what to do, and exit with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog='python -m mmsimvit doctor', description=__doc__)
    parser.add_argument('--timeout', type=float, default=300, metavar='SECONDS',
                        help='after which a check counts as hanging (%(default)s by default)')
    timeout = parser.parse_args(argv).timeout
    print('versions')
    row('mmsimvit', f'{__version__} in {Path(__file__).parent.parent}')
    row('python', f'{platform.python_version()} ({sys.executable}), {platform.platform()}')
    found = {module: find_versions(module) for module in SUPPORTED}
    stack = stack_of({name for versions in found.values() for name in versions})
    notes, wrong = judge_versions(found, stack)
    print('\nchecks')
    worked: set[str] = set()
    for check in CHECKS:
        if not found.get(check.module, True):
            continue
        if unmet := [title for title in check.needs if title not in worked]:
            row(check.title, f'not tried  {unmet[0]} must work first')
            continue
        works, told = run_check(check, timeout)
        row(check.title, f'{"works" if works else "FAILS":<11}' + told.replace('\n', f'\n{"":35}'))
        if works:
            worked.add(check.title)
        else:
            wrong.append((f'{check.title}: {told}', find_cure(check.module, told, stack)))
    for heading, findings in (('to know', notes), ('wrong', wrong)):
        for number, (text, command) in enumerate(findings):
            print(f'\n{heading}\n' * (number == 0) + f'  {text}\n    $ {command}')
    print('\nafter a change, run this again' if wrong else '\nnothing is wrong')
    sys.exit(bool(wrong))


def row(title: str, text: str) -> None:
    """Print a line of a list."""
    print(f'  {title:<22}{text}', flush=True)


def find_versions(module: str) -> dict[str, str]:
    """The versions of the distributions that bring a module, by their names; empty if there is no such module."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:  # a folder of that name is no package
        return {}
    found = {}
    for name in sorted(NAMES[module]):
        try:
            found[name] = str(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            continue
        except Exception as error:  # whatever a file that was cut short leads to
            found[name] = f'of unknown version ({type(error).__name__})'
    return found or {name_of(UPSTREAM[module]): f'of unknown version in {Path(spec.origin).parent}'}


def judge_versions(found: dict[str, dict[str, str]], stack: dict[str, str]) -> tuple[Findings, Findings]:
    """Print the versions beside those that are supported; give what is worth knowing and what is wrong."""
    notes: Findings = []
    wrong: Findings = []
    needed = {'torch', 'mmengine'} | ({'torchvision', 'mmcv'} if any(map(found.get, LIBRARIES)) else set())
    for module, (first, end) in SUPPORTED.items():
        end = (3, ) if module == 'mmcv' and stack is ONEDL else end
        wanted = f'from {".".join(map(str, first))} on, before {".".join(map(str, end))}'
        told, versions = ', '.join(' '.join(pair) for pair in found[module].items()), sorted(set(found[module].values()))
        row(module, f'{told or "not installed"} (supported: {wanted})')
        if not versions:
            (wrong if module in needed else notes).append((f'{module} is not installed', pip('install', stack[module])))
        elif len(versions) > 1:
            wrong.append((f'{module} comes from {told}; one overwrites the other', find_cure(module, '', stack)))
        elif versions[0][0].isdigit() and not first <= tuple(map(int, re.findall(r'\d+', versions[0])[:3])) < end:
            wrong.append((f'{told} is not supported, {module} {wanted} is', find_cure(module, '', stack)))
    return notes, wrong


def pip(*words: str) -> str:
    """A command of this Python's pip, quoted for a shell."""
    return shlex.join([sys.executable, '-m', 'pip', *words])


def find_cure(module: str, reason: str, stack: dict[str, str]) -> str:
    """The command against what the check of a module ended with."""
    for pattern, cure in CURES:
        if re.search(pattern, reason):
            return cure if isinstance(cure, str) else pip('install', *cure)
    missing = re.search(r"No module named '(\w+)", reason)
    if missing and missing[1] != module:
        module = missing[1]
    elif 'MMCV==' in reason:  # mmdet and mmseg refuse it
        module = 'mmcv'
    if module == 'mmsimvit':
        return pip('install', '--force-reinstall', '--no-deps', '.') + '  # in a clone of mmsimvit'
    if module in TORCH:  # which go together
        return pip('install', '--force-reinstall', *TORCH.values())
    if module == 'mmcv':  # distributions of several names have the same files
        return f'{pip("uninstall", "-y", *sorted(NAMES[module]))}; {pip("install", stack[module])}'
    return pip('install', '--force-reinstall', '--no-deps', stack.get(module, module))


def run_check(check: Check, timeout: float) -> tuple[bool, str]:
    """Whether a check passes in a process of its own, and what it has to tell or died of."""
    code = f'{inspect.getsource(check.function)}\n{check.function.__name__}(*{check.arguments!r})'
    try:
        result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, errors='replace', timeout=timeout)
    except subprocess.TimeoutExpired:
        return False, f'hangs, stopped after {timeout:g} s'
    if result.returncode == 0:
        return True, result.stdout.strip()
    last = ([line.strip() for line in result.stderr.splitlines() if line.strip()] or ['nothing'])[-1][:500]
    if not re.match(r'[\w.]*(Error|Exception|Exit|Interrupt)\b', last):
        status = -result.returncode
        killed = f'killed by signal {status}, {signal.strsignal(status)}' if status > 0 else f'ended with status {-status}'
        return False, f'{killed}; its last words: {last}'
    places = re.findall(r'File "([^<].*)", line (\d+)', result.stderr)
    return False, last + (f' ({":".join(places[-1])})' if places else '')


# What works; the source of these functions runs in processes of their own


def _check_torch() -> None:
    import os
    import shutil
    import subprocess

    import torch
    build = f'{torch.__version__}, ' + (f'CUDA {torch.version.cuda}' if torch.version.cuda else 'a build without CUDA')
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    for device in ['cpu'] + ['cuda'] * bool(gpus):
        torch.ones(2, 2, device=device).matmul(torch.ones(2, 2, device=device)).tolist()
    if torch.version.cuda and not gpus and 'CUDA_VISIBLE_DEVICES' not in os.environ and shutil.which('nvidia-smi'):
        listed = subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True).stdout.strip()
        if 'GPU' in listed:
            raise RuntimeError(f'torch {build} does not see what the driver has, which may be too old for it: {listed}')
    print(f'{build}, {", ".join(gpus) or "no GPU"}')


def _check_mmengine() -> None:
    import mmengine.runner  # noqa: F401
    from mmengine.utils.dl_utils import collect_env
    left_out = 'PyTorch compiling details', 'MUSA available', 'numpy_random_seed'
    print('\n'.join(f'{name}: {value}' for name, value in collect_env().items() if name not in left_out))


def _check_simvit() -> None:
    import sys

    import torch
    from mmengine.registry import MODELS

    import mmsimvit  # noqa: F401
    from mmsimvit.ops import central_attention
    from mmsimvit.ops.backends import automatic
    for device in ['cpu'] + ['cuda'] * torch.cuda.is_available():
        backend = automatic(torch.device(device))
        print(f'{backend} on {device}', file=sys.stderr)  # the last words, should it crash
        query, key = (torch.rand(1, 5, 6, width, device=device).requires_grad_() for width in (64, 128))
        outs = [central_attention(query, key, None, num_heads=2, backend=name) for name in (backend, 'reference')]
        ours, theirs = ([out, *torch.autograd.grad(out.square().sum(), (query, key))] for out in outs)
        if not (off := max((a - b).abs().max().item() for a, b in zip(ours, theirs))) < 1e-3:
            raise RuntimeError(f'attention by {backend} is off by {off:.2g} from the reference on {device}')
        model = MODELS.build(dict(type='SimViT', arch='micro')).to(device)
        maps = model(torch.rand(1, 3, 65, 64, device=device))
        torch.stack([x.square().mean() for x in maps]).sum().backward()
        torch.optim.AdamW(model.parameters()).step()
        if not all(x.isfinite().all() for x in [*maps, *model.parameters()]):
            raise RuntimeError(f'a training step gives numbers that are not finite on {device}')
        print(f'forward and training step on {device}, attention by {backend}')


def _check_operators(module: str) -> None:
    import importlib.util

    import torch
    if module == 'mmcv':
        if importlib.util.find_spec('mmcv._ext') is None:
            import mmsimvit  # noqa: F401  # brings it
        print('operators', getattr(importlib.import_module('mmcv._ext'), '__file__', 'of torchvision, by mmsimvit'))
    for device in ['cpu'] + ['cuda'] * torch.cuda.is_available():
        boxes, scores = torch.rand(9, 4, device=device), torch.rand(9, device=device)
        importlib.import_module(f'{module}.ops').nms(boxes, scores, 0.5)
        print(f'nms on {device}')


def _check_library(module: str) -> None:
    import importlib

    from mmengine.registry import init_default_scope

    import mmsimvit
    importlib.import_module(f'{module}.apis')
    init_default_scope(module)
    models = importlib.import_module(f'{module}.registry').MODELS
    for name in ('SimViT', 'mmsimvit.SimViT'):
        if type(built := models.build(dict(type=name, arch='micro'))) is not mmsimvit.SimViT:
            raise RuntimeError(f'{name} is {type(built)}, not that of mmsimvit')
    print('builds SimViT and mmsimvit.SimViT')


CHECKS = (
    Check('torch', 'torch', _check_torch),
    Check('mmengine', 'mmengine', _check_mmengine, (), ('torch', )),
    Check('torchvision', 'torchvision', _check_operators, ('torchvision', ), ('torch', )),
    Check('SimViT-micro', 'mmsimvit', _check_simvit, (), ('torch', 'mmengine')),
    Check('mmcv', 'mmcv', _check_operators, ('mmcv', ), ('torchvision', 'SimViT-micro')),
    *(Check(module, module, _check_library, (module, ), ('SimViT-micro', 'mmcv')) for module in LIBRARIES),
)

if __name__ == '__main__':
    main()
