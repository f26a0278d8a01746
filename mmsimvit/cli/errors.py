"""What a command line ends with: one line for what a user can put right, a stack trace for all else."""
import difflib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine import registry
from mmengine.registry import MODELS

from ..backbones import Backbone
from ..errors import CANNOT_WRITE, UserError, WriteError

LIBRARIES = 'mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'mmseg', 'torch'
# Errors of libraries whose text says all: the exception, a pattern of its last line, and what is told instead.
REWORDED: tuple[tuple[type[Exception], str, str], ...] = (
    (Exception, r'failed to load image: (.+)',  # mmcv.transforms.LoadImageFromFile
     'image {0} cannot be decoded; replace it, or take it out of the annotations'),
    (Exception, r'Found 0 files in subfolders of: (.+?)\.?$',  # mmpretrain.datasets.CustomDataset
     'folder {0} has no images in its subfolders, one for each class; put the data there'),
    (ValueError, r'^palette does not match classes as metainfo is (.{,300})',  # mmseg.datasets.BaseSegDataset
     'the palette of the data set must have one colour for each of its classes, or be [] for colours at random; its metainfo '
     'is {0}'),
    (ValueError, r'^Expected more than 1 value per channel',  # torch.nn.functional.batch_norm
     'this batch has one image, of which a batch norm of single pixels has no variance: take two or more on each GPU, '
     'train_dataloader.batch_size=2 (get_memory: --batch-size 2); or, if it is the last of an epoch, leave that out, '
     'train_dataloader.drop_last=True'),
)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End a command line with one line, not a stack trace, for what is wrong with a user's files.

    The environment variable ``MMSIMVIT_TRACEBACK=1`` brings the stack trace back.
    """
    try:
        yield
    except Exception as error:
        message = explain(error)
        if message is None or os.environ.get('MMSIMVIT_TRACEBACK') == '1':
            raise
        sys.exit(f'error: {message}')


def explain(error: Exception) -> str | None:
    """One line for an error that comes from a user's files, None for any other.

    An error in a data-loading worker arrives with the worker's stack trace as its text; its last line counts.
    """
    last_line = str(error).strip().splitlines()[-1] if str(error).strip() else ''
    for kind, pattern, told in REWORDED:
        if isinstance(error, kind) and (found := re.search(pattern, last_line)):
            return told.format(*found.groups())
    if isinstance(error, UserError):
        return re.sub(r'^mmsimvit[\w.]*: ', '', last_line)
    if isinstance(error, OSError) and error.errno in CANNOT_WRITE:
        return str(WriteError(error.filename or 'a file', error))
    if isinstance(error, FileNotFoundError):
        return _missing_file(last_line)
    if isinstance(error, ImportError):
        return _failed_import(error)
    if isinstance(error, TypeError):
        return _unexpected_argument(error, last_line)
    if isinstance(error, KeyError):
        return _missing_type(error) or _unknown_type(last_line)
    if isinstance(error, ValueError) and (backbone := _backbone_of(error)):
        return last_line if backbone in last_line else f'{backbone}: {last_line}'
    return _refused_by_library(error)


def _refused_by_library(error: Exception) -> str | None:
    """What a constructor of the libraries says of the settings that a config gives it."""
    if not isinstance(error, (AssertionError, ValueError)) or not str(error).strip():
        return None
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    built = [frame.f_locals.get('obj_cls') for frame in frames if frame.f_code.co_name == 'build_from_cfg']
    if not built or frames[-1].f_globals.get('__name__', '').split('.')[0] not in LIBRARIES:
        return None
    text = ' '.join(str(error).split())[:500]
    return f'{getattr(built[-1], "__name__", "a part")} refuses its settings in the config: {text}'


def _unexpected_argument(error: TypeError, line: str) -> str | None:
    """For an argument that a config gives, or our backbones get; a library's own mistake is none of the user's."""
    found = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", line)
    if not found:
        return None
    refusing, argument = found.groups()
    args: dict[str, Any] = {}
    kind: Any = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == 'build_from_cfg':  # of mmengine; the innermost counts
            args, kind = frame.f_locals.get('args', {}), frame.f_locals.get('obj_cls')
    if argument == '_delete_':
        return (f'the config says _delete_ for {refusing}, but inherits nothing there that could be deleted; is its line '
                "_base_ = '...' missing?")
    known = MODELS.module_dict.get(refusing)
    ours = isinstance(known, type) and issubclass(known, Backbone)
    if ours and argument == 'pretrained':
        return (f"{refusing} has no argument 'pretrained', which MMSegmentation's bases set for the whole model: "
                'model=dict(pretrained=None, ...) takes it out; weights are init_cfg of the backbone')
    if ours:
        return (f"{refusing} has no argument '{argument}'; if the config inherits it from another backbone, "
                f"backbone=dict(_delete_=True, type='{refusing}', ...) takes it out; {line.partition('; ')[2]}")
    of_the_config = isinstance(kind, type) and argument in args and refusing in {base.__name__ for base in kind.__mro__}
    if of_the_config and argument not in inspect.signature(kind.__init__).parameters:  # or else the class hands it on wrongly
        return (f"{kind.__name__} has no argument '{argument}'; is it spelt right? If the config inherits it from another "
                f"class, dict(_delete_=True, type='{kind.__name__}', ...) in that place takes it out, with all others")
    return None


def _failed_import(error: ImportError) -> str | None:
    """Of custom_imports, with Python's reason, which mmengine's last line leaves out."""
    failed = error.__context__
    cause = failed.__context__ if failed else None
    if cause is None or not str(error).startswith('Failed to import custom modules'):
        return None
    module = str(failed).removeprefix('Failed to import ')
    told = f'{module} of custom_imports in the config cannot be imported: {" ".join(str(cause).split())}'
    if isinstance(cause, ModuleNotFoundError) and f'{module}.'.startswith(f'{cause.name}.'):
        return f'{told}; is the name right, and is what has it installed here, or its folder in PYTHONPATH?'
    where = [frame for frame in traceback.extract_tb(cause.__traceback__) if not frame.filename.startswith('<frozen ')][-1]
    return f'{told} ({where.filename}, line {where.lineno})'


def _missing_type(error: KeyError) -> str | None:
    if 'must contain the key "type"' not in str(error):
        return None
    part = str(error.args[0]).split('but got ')[-1].splitlines()[0]
    return f"a part of the config has no type; is the line _base_ = '...' missing? It is {part[:200]}"


def _unknown_type(line: str) -> str | None:
    found = re.match(r"""["']?(\S+) is not in the (.+?) registry\.""", line)
    return not_registered(*found.groups()) if found else None


def not_registered(name: str, searched: str) -> str:
    """One line with the names near to one that is unknown, in all libraries that are imported.

    Args:
        name: what was sought.
        searched: the registry's name, behind its scope if it has one: ``model``, ``mmdet::model``.
    """
    here, _, kind = searched.rpartition('::')
    roots = {known.name: known for known in vars(registry).values() if isinstance(known, registry.Registry)}
    names: dict[str, str] = {}  # in small letters
    if root := roots.get(kind):
        for scope, part in {root.scope: root, **root.children}.items():
            prefix = '' if scope in (here, root.scope) else f'{scope}.'
            names |= {word.lower(): prefix + word for word in part.module_dict if not (prefix and word.lower() in names)}
    near = [names[word] for word in difflib.get_close_matches(name.split('.')[-1].lower(), names, n=3)]
    return (f'{name} is not in the {searched} registry; '
            + (f'near to it: {", ".join(near)}' if near else 'is it spelt right, and is what defines it imported, by '
               "custom_imports=dict(imports=['...']) in the config?"))


def _missing_file(line: str) -> str:
    quoted = re.search(r"""(["'])(.+?)\1(?!\w)""", line)
    path = quoted[2] if quoted else line
    near = _near_configs(Path(path))
    return (f'{path} does not exist; is the path in the config, or on the command line, right?'
            + (f' Near to it: {", ".join(near)}' if near else ''))


def _near_configs(path: Path) -> list[str]:
    """Of the library in whose folder of configs a missing one is sought."""
    folder = next((parent for parent in path.parents if parent.name == 'configs' and parent.parent.name == '.mim'), None)
    known = {found.stem: found.relative_to(folder).as_posix() for found in sorted(folder.rglob('*.py'))} if folder else {}
    return [known[stem] for stem in difflib.get_close_matches(path.stem, known, n=3)]


def _backbone_of(error: Exception) -> str | None:
    """The class that refused its arguments or its images, if it is one of our backbones."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in frames:
        made = frame.f_locals.get('self') if frame.f_code.co_name == '__init__' or frame is frames[-1] else None
        if isinstance(made, Backbone):
            return type(made).__name__
    return None
