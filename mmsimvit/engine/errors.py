import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from ..backbones import PyramidBackbone
from ..checkpoints import CheckpointError
from ..config_files import ConfigError
from ..datasets import DataError
from .files import CANNOT_WRITE, WriteError


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
    unreadable = re.search(r'failed to load image: (.+)', last_line)  # mmcv.transforms.LoadImageFromFile
    if unreadable:
        return f'image {unreadable[1]} cannot be decoded; replace it, or take it out of the annotations'
    if isinstance(error, (CheckpointError, ConfigError, DataError)):
        return re.sub(r'^[\w.]*(CheckpointError|DataError): ', '', last_line)
    argument = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument ('\w+')", last_line)
    ours = {kind.__name__ for kind in PyramidBackbone.__subclasses__()}
    if isinstance(error, TypeError) and argument and argument[1] in ours and argument[2] == "'pretrained'":
        return (f"{argument[1]} has no argument 'pretrained', which MMSegmentation's bases set for the whole model: "
                'model=dict(pretrained=None, ...) takes it out; weights are init_cfg of the backbone')
    if isinstance(error, TypeError) and argument and argument[1] in ours:
        return (f'{argument[1]} has no argument {argument[2]}; if the config inherits it from another backbone, '
                f"backbone=dict(_delete_=True, type='{argument[1]}', ...) takes it out")
    palette = re.match(r"palette does not match classes as metainfo is (.{,300})", last_line)  # mmseg.datasets.BaseSegDataset
    if isinstance(error, ValueError) and palette:
        return ('the palette of the data set must have one colour for each of its classes, or be [] for colours at random; its '
                f'metainfo is {palette[1]}')
    if isinstance(error, ValueError) and (backbone := _backbone_of(error)):
        return last_line if backbone in last_line else f'{backbone}: {last_line}'
    if isinstance(error, OSError) and error.errno in CANNOT_WRITE:
        return str(WriteError(error.filename or 'a file', error))
    if isinstance(error, FileNotFoundError):
        path = re.search(r"'(.+)'", last_line)
        return f'{path[1] if path else last_line} does not exist; is the path in the config, or on the command line, right?'
    nothing = re.search(r'Found 0 files in subfolders of: (.+?)\.?$', last_line)  # mmpretrain.datasets.CustomDataset
    if nothing:
        return f'folder {nothing[1]} has no images in its subfolders, one for each class; put the data there'
    return None


def _backbone_of(error: Exception) -> str | None:
    """The class that refused its arguments, if it is one of our backbones and does so while it is made."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        made = frame.f_locals.get('self') if frame.f_code.co_name == '__init__' else None
        if isinstance(made, PyramidBackbone):
            return type(made).__name__
    return None
