"""Say what is installed, what of it does not fit together, what works, and which command mends what does not.

It is made for environments in which nothing else runs. This process uses the standard library alone; what imports torch
runs in processes of their own, so that a crash, an abort or a hang is found like an error. The exit status is 1 if
anything is wrong, else 0.
"""
import argparse
import importlib.metadata
import importlib.util
import inspect
import io
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from . import __version__
from .stacks import ONEDL, TORCH, name_of, stack_of

# What is imported, and the distribution that it usually comes from.
MODULES = {'torch': 'torch', 'torchvision': 'torchvision', 'numpy': 'numpy', 'triton': 'triton', 'setuptools': 'setuptools',
           'mmengine': 'mmengine', 'mmcv': 'mmcv', 'mmdet': 'mmdet', 'mmseg': 'mmsegmentation', 'mmpretrain': 'mmpretrain',
           'ftfy': 'ftfy', 'regex': 'regex'}
LIBRARIES = {'mmdet': ('MMDetection', 3), 'mmseg': ('MMSegmentation', 1), 'mmpretrain': ('MMPreTrain', 1)}
# Distributions whose name is not the module's.
OTHER_NAMES = {'cv2': 'opencv-python', 'PIL': 'pillow', 'yaml': 'pyyaml', 'pkg_resources': 'setuptools<81'}
PYTHON = shlex.quote(sys.executable)
MARK = 'mmsimvit.doctor: '


class Distribution(NamedTuple):
    """An installed distribution, as its metadata says."""
    name: str
    version: str  # empty if nothing says
    folder: Path  # in which its modules lie


class Finding(NamedTuple):
    """What was found, and the command that mends it."""
    text: str
    command: str = ''
    is_wrong: bool = True  # or else worth knowing


Found = dict[str, list[Distribution]]  # by module, in the order in which Python looks for them


class Check(NamedTuple):
    """Something to try in a process of its own."""
    title: str
    module: str  # which must be installed, and is at fault
    function: Callable[..., str]
    arguments: tuple = ()
    needs: tuple[str, ...] = ()  # titles of checks


def main(argv: list[str] | None = None) -> None:
    """Print what is installed, what works and what to do, and exit with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog='python -m mmsimvit.doctor', description=__doc__)
    parser.add_argument('--timeout', type=float, default=300, metavar='SECONDS',
                        help='after which a check counts as hanging (%(default)s by default)')
    timeout = parser.parse_args(argv).timeout
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='replace')  # a terminal may not know the letters of a path
    found, findings = find_installed()
    print('versions')
    row('mmsimvit', f'{__version__} in {Path(__file__).parent}')
    row('python', f'{platform.python_version()} ({sys.executable})')
    row('system', platform.platform())
    gpus, told = find_gpus()
    row('NVIDIA driver', *told)
    for module in MODULES:
        row(module, *describe(module, found.get(module, [])))
    findings += find_conflicts(found)
    print('\nchecks')
    findings += run_checks(found, gpus, timeout)
    report(findings)
    sys.exit(any(finding.is_wrong for finding in findings))


def row(title: str, *lines: str) -> None:
    """Print lines below one another, the title before the first."""
    for line in lines:
        print(f'  {title:<22}{line}', flush=True)
        title = ''


def report(findings: list[Finding]) -> None:
    """Print what was found, what one command mends together."""
    for is_wrong, heading in ((False, 'to know'), (True, 'wrong')):
        by_command: dict[str, list[str]] = {}
        for finding in findings:
            if finding.is_wrong == is_wrong:
                by_command.setdefault(finding.command, []).append(finding.text)
        for number, (command, texts) in enumerate(by_command.items(), 1):
            if number == 1:
                print(f'\n{heading}')
            print('\n'.join(f'{f"  {number}. " if text is texts[0] else "     "}{text}' for text in texts))
            if command:
                print(f'     $ {command}')
    print('\nafter a change, run this again' if any(finding.is_wrong for finding in findings) else '\nnothing is wrong')


# What is installed


def find_installed() -> tuple[Found, list[Finding]]:
    """The distributions that bring the ``MODULES``, and those of them whose metadata is broken."""
    found: Found = {}
    findings = []
    for distribution in importlib.metadata.distributions():
        path = Path(str(getattr(distribution, '_path', 'unknown')))
        try:
            name, version = distribution.metadata['Name'].lower(), distribution.version
            top_level = (distribution.read_text('top_level.txt') or '').split()
            brought = set(top_level or [file.parts[0] for file in distribution.files or ()])
            if not number(version):
                raise ValueError(f'version {version!r}')
        except Exception as error:  # whatever a file that was cut short, or written by something else, leads to
            name = path.name.split('-')[0]
            if name in MODULES.values():
                findings.append(Finding(f'the metadata of {name} is broken ({type(error).__name__}): {path}',
                                        f'rm -r {shlex.quote(str(path))}'))
            continue
        for module, usual in MODULES.items():
            here = Distribution(name, version, path.parent.resolve())
            if (module in brought or name == usual) and here not in found.setdefault(module, []):
                found[module].append(here)
    found = {module: distributions for module, distributions in found.items() if distributions}
    for module in MODULES:
        folder = imported_from(module)
        if folder and module not in found:
            found[module] = [Distribution(MODULES[module], '', folder)]
    return found, findings


def imported_from(module: str) -> Path | None:
    """The folder in which Python finds a package, without importing it."""
    try:
        spec = importlib.util.find_spec(module)
    except Exception:  # editable installations bring finders of their own
        return None
    return Path(spec.origin).parent.parent.resolve() if spec and spec.origin else None


def describe(module: str, distributions: list[Distribution]) -> list[str]:
    """What to say of a module: versions, and where they lie if there are several or another one is imported."""
    if not distributions:
        return ['not installed']
    lines = []
    folder = imported_from(module)
    for distribution in distributions:
        words = [distribution.version or 'of unknown version']
        if distribution.name != MODULES[module]:
            words.append(f'of {distribution.name}')
        if len(distributions) > 1 or not distribution.version:
            words.append(f'in {distribution.folder}')
        lines.append(' '.join(words))
    if folder not in [distribution.folder for distribution in distributions]:
        lines.append(f'imported from {folder}' if folder else 'but there is no such module')
    return lines


def find_gpus() -> tuple[list[str], list[str]]:
    """The GPUs that the driver sees, and what to say of it."""
    tool = shutil.which('nvidia-smi')
    if not tool:
        return [], ['no nvidia-smi']
    status, out, _ = execute([tool, '--query-gpu=name,driver_version', '--format=csv,noheader'], timeout=60)
    gpus = out.strip().splitlines() if status == 0 else []
    return gpus, gpus or [f'nvidia-smi found no GPU: {" ".join(out.split())[:200]}']


# What does not fit together


def find_conflicts(found: Found) -> list[Finding]:
    """What is known not to fit, judged by versions alone."""
    version = {module: number(distributions[0].version) for module, distributions in found.items()}
    text = {module: distributions[0].version for module, distributions in found.items()}
    # The onedl-* forks go on where the versions of the same modules end here.
    usual = {module for module, distributions in found.items() if distributions[0].name == MODULES[module]}
    findings = []

    def wrong(module: str, problem: str, command: str | None = None) -> None:
        findings.append(Finding(problem, command or reinstall(module, found)))

    for module, distributions in found.items():
        same_place = {distribution for distribution in distributions if distribution.folder == distributions[0].folder}
        names = {distribution.name for distribution in distributions}
        if names == {'mmcv', 'mmcv-lite'} and len({one.version for one in distributions}) == 1:
            findings.append(Finding(f'mmcv and mmcv-lite {text[module]} are both installed, and share their files: '
                                    'uninstalling one damages the other', is_wrong=False))
        elif len(names) > 1 or len(same_place) > 1:
            several = ' and '.join(sorted(f'{one.name} {one.version}' for one in distributions))
            wrong(module, f'{module} comes from {several}, of which one hides or overwrites the other',
                  f'{pip("uninstall", "-y", *sorted(names))}; {reinstall(module, {**found, module: []})}')
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        findings.append(Finding(f'Python {platform.python_version()} was not tried with mmsimvit, 3.10 to 3.13 are meant',
                                is_wrong=False))
    if 'torch' not in found:
        wrong('torch', 'torch is not installed')
    elif () < version['torch'] < (2, 6):
        wrong('torch', f'mmsimvit refuses torch {text["torch"]}: from 2.6 on, checkpoints are loaded safely')
    elif (version['torch'][:1] == (2, ) and version.get('torchvision')
          and version['torchvision'][:2] != (0, version['torch'][1] + 15)
          and not (version['torch'] >= (2, 14) and version['torchvision'] >= (0, 29, 1))):  # its first that is for later ones
        wrong('torchvision', f'torchvision {text["torchvision"]} is not made for torch {text["torch"]}')
    if 'mmengine' not in found:
        wrong('mmengine', 'mmengine is not installed')
    absent = [module for module in LIBRARIES if module not in found]
    for module, use in (('torchvision', 'LIT and mmcv'), ('mmcv', 'the configs')):
        if module not in found and len(absent) < len(LIBRARIES):
            wrong(module, f'{module} is not installed')
        elif module not in found:
            findings.append(Finding(f'{module} is not installed; {use} alone would need it', reinstall(module, found),
                                    is_wrong=False))
    if 'mmengine' in usual and not () < version.get('setuptools', ()) < (81, ):
        wrong('setuptools', f'mmengine {text["mmengine"]} needs pkg_resources, which setuptools has before 81; this is '
              f'{text.get("setuptools", "not installed")}')
    if () < version.get('mmcv', ()) < (2, ):
        wrong('mmcv', f'mmcv {text["mmcv"]} is of the time before MMDetection 3.x and its contemporaries')
    for module, last in (('mmdet', (3, 3, 0)), ('mmseg', (1, 2, 2))):
        if module in usual and () < version[module] <= last and version.get('mmcv', ()) >= (2, 2):
            wrong('mmcv', f'{MODULES[module]} {text[module]} refuses mmcv {text["mmcv"]}: it takes versions before 2.2')
    for module, (title, major) in LIBRARIES.items():
        if module in found and () < version[module] < (major, ):
            wrong(module, f'mmsimvit is for {title} {major}.x, this is {text[module]}')
    lacking = [module for module in ('ftfy', 'regex') if module not in found]
    if 'mmseg' in found and lacking:
        wrong('mmseg', f'mmsegmentation imports {" and ".join(lacking)} without asking for it', pip('install', *lacking))
    findings += [Finding(f'{LIBRARIES[module][0]} is not installed; its configs alone need it', reinstall(module, found),
                         is_wrong=False) for module in absent]
    return findings


def number(version: str) -> tuple[int, ...]:
    """The first three numbers of a version, without what a build adds to it (+cu130)."""
    return tuple(int(digits) for digits in re.findall(r'\d+', version.split('+')[0])[:3])


# What mends it


def pip(*words: str) -> str:
    """A command of this Python's pip, quoted for a shell."""
    return f'{PYTHON} -m pip {shlex.join(words)}'


def reinstall(module: str, found: Found) -> str:
    """The command that brings a module to what mmsimvit works with.

    What pip installs would go unseen behind PYTHONPATH and the current folder; a module in these is taken out of the way.
    """
    stack = stack_of({one.name for others in found.values() for one in others})
    present = found.get(module)
    folders = [imported_from(module), present[0].folder] if present else []

    def holds_it(path: str) -> bool:
        return any(os.path.samefile(path, folder) for folder in folders if folder and folder.exists() and os.path.exists(path))

    if any(map(holds_it, os.environ.get('PYTHONPATH', '').split(os.pathsep))):
        return 'unset PYTHONPATH'
    if holds_it('.'):
        return 'cd /'
    replace = ['--force-reinstall', '--no-deps'] if present else []
    if module in ('torch', 'torchvision', 'triton'):
        return pip('install', *replace[:1], *matching_torch(found))
    if module == 'mmcv':
        others = [one.name for one in present or () if one.name != name_of(stack['mmcv'])]
        # pip's cache may hold a fork that was compiled for another torch.
        install = pip('install', *['--no-cache-dir'] * (stack is ONEDL), *replace, stack['mmcv'])
        return ' && '.join([pip('uninstall', '-y', *others)] * bool(others) + [install])
    if module == 'setuptools':
        return pip('install', 'setuptools<81')
    # MMSegmentation imports two packages that it does not ask for.
    beside = [name for name in ('ftfy', 'regex') if module == 'mmseg' and name not in found]
    return pip('install', *replace, stack.get(module, MODULES[module]), *beside)


def matching_torch(found: Found) -> list[str]:
    """What to install for the torch that is there, if mmsimvit can use it, and its torchvision."""
    version = found['torch'][0].version if found.get('torch') else ''
    if not (2, 6) <= number(version) < (3, ):
        return [*TORCH.values()]
    public, _, build = version.partition('+')
    index = ['--index-url', f'https://download.pytorch.org/whl/{build}'] if re.fullmatch(r'cpu|cu\d+', build) else []
    return [f'torch=={public}', f'torchvision<0.{number(version)[1] + 16}', *index]  # pip finds the newest that fits


def mend(check: Check, reason: str, found: Found) -> str:
    """The command against what a check ended with."""
    if re.search(r'lib(GL|gthread|glib)[\w.-]*\.so', reason):
        return 'sudo apt install libgl1 libglib2.0-0'  # of OpenCV
    missing = re.search(r"No module named '(\w+)", reason)
    if missing and missing[1] != check.module:
        module = missing[1]
        return reinstall(module, found) if module in MODULES else pip('install', OTHER_NAMES.get(module, module))
    if check.module != 'mmengine':
        return reinstall(check.module, found)
    if 'triton' in reason.lower():
        return 'export MMSIMVIT_BACKEND=composite'
    return reinstall('mmengine' if 'mmengine' in reason else 'torch', found)


# What works; the source of these functions runs in processes of their own


def devices() -> list[str]:
    """The CPU, and a GPU if torch has one."""
    import torch
    return ['cpu', 'cuda'] if torch.cuda.is_available() else ['cpu']


def explain(error: BaseException) -> str:
    """One line, with the file and line that raised it if it is in none of these checks."""
    import traceback
    place = traceback.extract_tb(error.__traceback__)[-1]
    line = f'{type(error).__name__}: {" ".join(str(error).split())[:500]}'
    return line if place.filename == '<string>' else f'{line} ({place.filename}:{place.lineno})'


def check_torch() -> str:
    """Multiply on each device; tell the build and the GPUs."""
    import torch
    for device in devices():
        torch.ones(2, 2, device=device).matmul(torch.ones(2, 2, device=device)).tolist()
    names = [f'{torch.cuda.get_device_name(index)} {torch.cuda.get_device_capability(index)}'
             for index in range(torch.cuda.device_count())]
    build = f'CUDA {torch.version.cuda}' if torch.version.cuda else 'a build without CUDA'
    return f'{torch.__version__}, {build}, {", ".join(names) or "no CUDA device"}'


def check_nms(module: str) -> str:
    """Run the ``nms`` of a module on each device; tell whose that of mmcv is.

    Raises:
        RuntimeError: if it keeps other boxes than it should.
    """
    import importlib
    import importlib.util

    import torch
    whose = ''
    if module == 'mmcv':
        if importlib.util.find_spec('mmcv._ext') is None:
            import mmsimvit  # noqa: F401  which brings it
        compiled = hasattr(importlib.import_module('mmcv._ext'), '__file__')
        whose = ', compiled operators of mmcv' if compiled else ", torchvision's operators by mmsimvit"
    nms = importlib.import_module(f'{module}.ops').nms
    for device in devices():
        boxes = torch.tensor([[0., 0., 10., 10.], [1., 1., 11., 11.], [20., 20., 30., 30.]], device=device)
        kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), 0.5)
        kept = (kept if torch.is_tensor(kept) else kept[1]).tolist()  # mmcv's gives the boxes first
        if kept != [0, 2]:
            raise RuntimeError(f'on {device} nms keeps boxes {kept}, it should keep [0, 2]')
    return ', '.join(devices()) + whose


def check_attention() -> str:
    """Outputs and gradients of each backend against the reference.

    Raises:
        RuntimeError: if they differ.
    """
    import sys

    import torch

    from mmsimvit.ops import central_attention
    from mmsimvit.ops.backends import why_not_triton

    def run(backend: str, device: str) -> tuple[torch.Tensor, ...]:
        random = torch.Generator().manual_seed(0)
        query, key, value = (torch.randn(1, 5, 6, 64, generator=random).to(device).requires_grad_() for _ in range(3))
        out = central_attention(query, key, value, num_heads=2, backend=backend)
        return out, *torch.autograd.grad(out.square().sum(), (query, key, value))

    lines = []
    for device in devices():
        expected, worked = run('reference', device), []
        try:
            reason = why_not_triton(torch.device(device)) if device == devices()[-1] else 'there is a GPU'
        except ImportError as error:
            reason = str(error)
        for backend in ['composite', 'eager'] + ['triton'] * (reason is None):
            print(f'{backend} on {device}', file=sys.stderr)  # the last words, should it crash
            off = max((ours - theirs).abs().max().item() for ours, theirs in zip(run(backend, device), expected))
            if not off < 1e-3:
                raise RuntimeError(f'{backend} is off by {off:.2g} from the reference on {device}')
            worked.append(backend)
        lines.append(f'{", ".join(worked)} on {device}{f" (no triton: {reason})" if reason else ""}')
    return '; '.join(lines)


def check_backbone() -> str:
    """Run SimViT-micro on each device.

    Raises:
        RuntimeError: if its maps have other shapes than they should, or are not finite.
    """
    import torch
    from mmengine.registry import MODELS

    import mmsimvit  # noqa: F401
    for device in devices():
        model = MODELS.build(dict(type='SimViT', arch='micro')).to(device).eval()
        with torch.no_grad():
            maps = model(torch.rand(1, 3, 65, 64, device=device))
        if [tuple(x.shape[1:]) for x in maps] != [(32, 17, 16), (64, 9, 8), (160, 5, 4), (256, 3, 2)]:
            raise RuntimeError(f'wrong shapes on {device}: {[tuple(x.shape) for x in maps]}')
        if not all(x.isfinite().all() for x in maps):
            raise RuntimeError(f'the maps are not finite on {device}')
    return ', '.join(devices())


def check_library(module: str) -> str:
    """Build SimViT by a library's registry.

    Raises:
        RuntimeError: if the name stands for another class.
    """
    import importlib

    from mmengine.registry import init_default_scope

    import mmsimvit
    importlib.import_module(f'{module}.apis')
    init_default_scope(module)
    models = importlib.import_module(f'{module}.registry').MODELS
    for name in ('SimViT', 'mmsimvit.SimViT'):
        built = models.build(dict(type=name, arch='micro'))
        if not isinstance(built, mmsimvit.SimViT):
            raise RuntimeError(f'{name} is {type(built)}, not that of mmsimvit')
    return 'builds SimViT and mmsimvit.SimViT'


NMS = 'torchvision.ops.nms', 'mmcv.ops.nms'
CHECKS = (
    Check('torch', 'torch', check_torch),
    Check(NMS[0], 'torchvision', check_nms, ('torchvision', ), ('torch', )),
    Check('central attention', 'mmengine', check_attention, (), ('torch', )),
    Check('SimViT-micro', 'mmengine', check_backbone, (), ('torch', 'central attention')),
    Check(NMS[1], 'mmcv', check_nms, ('mmcv', ), ('torch', NMS[0], 'SimViT-micro')),
    *(Check(module, module, check_library, (module, ), ('torch', *NMS)) for module in LIBRARIES),
)


def run_checks(found: Found, gpus: list[str], timeout: float) -> list[Finding]:
    """Run and print all checks whose needs are met."""
    findings, worked = [], set()
    for check in CHECKS:
        unmet = [title for title in check.needs if title not in worked]
        if check.module not in found:
            row(check.title, f'not tried  {check.module} is not installed')
        elif unmet:
            row(check.title, f'not tried  {unmet[0]} must work first')
        else:
            works, told = run_check(check, timeout)
            row(check.title, *(('works      ' if works else 'FAILS      ') + told).splitlines())
            if not works:
                folder = imported_from(check.module)
                place = f' (imported from {folder})' if folder not in [one.folder for one in found[check.module]] else ''
                findings.append(Finding(f'{check.title}{place}: {told}', mend(check, told, found)))
                continue
            worked.add(check.title)
            if check.title == 'torch':
                findings += judge_gpus(gpus, told)
    return findings


def judge_gpus(gpus: list[str], told: str) -> list[Finding]:
    """What to say if the driver has a GPU and torch finds none."""
    if not gpus or 'no CUDA device' not in told or 'CUDA_VISIBLE_DEVICES' in os.environ:
        return []
    pair = TORCH.values()
    if 'without CUDA' in told:
        return [Finding(f'torch does not use the GPU, it is a build without CUDA: {gpus[0]}',
                        pip('install', '--force-reinstall', *pair), is_wrong=False)]
    return [Finding(f'torch does not find the GPU ({gpus[0]}); its driver may be too old for this build of torch',
                    pip('install', '--force-reinstall', *pair, '--index-url', 'https://download.pytorch.org/whl/cu126'))]


def run_check(check: Check, timeout: float) -> tuple[bool, str]:
    """Whether a check passes in a process of its own, and what it has to tell or died of."""
    code = '\n'.join([inspect.getsource(function) for function in (devices, explain, check.function)] + [
        'import os', 'try:', f'    told, status = {check.function.__name__}(*{check.arguments!r}), 0',
        'except BaseException as error:', '    told, status = explain(error), 1',
        f'print({MARK!r} + told, flush=True)', 'os._exit(status)'])
    status, out, err = execute([sys.executable, '-c', code], timeout)
    if MARK in out:
        return status == 0, out.rpartition(MARK)[2].strip()
    if status is None:
        ended = f'hangs, stopped after {timeout:g} s'
    else:
        ended = f'killed by signal {-status}, {signal.strsignal(-status)}' if status < 0 else f'ended with status {status}'
    last = [line.strip() for line in err.splitlines() if line.strip()][-1:]
    return False, '; its last words: '.join([ended, *last])


def execute(command: list[str], timeout: float) -> tuple[int | None, str, str]:
    """Exit status (None after the timeout), output and errors of a command."""
    # Into files: pipes would be waited for as long as a process that the command left behind holds them.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
            status = process.wait(timeout)
        except OSError as error:
            return 127, '', str(error)
        except subprocess.TimeoutExpired:
            process.kill()  # and no waiting for its end, which one that hangs in a driver never comes to
            status = None
        out.seek(0)
        err.seek(0)
        return status, out.read().decode(errors='replace'), err.read().decode(errors='replace')


if __name__ == '__main__':
    main()
