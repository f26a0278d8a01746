"""What is wrong with a user's files or settings: one line, with a cause and a cure. A command line ends with it."""
import errno
import logging
from pathlib import Path

from mmengine.logging import print_log

CANNOT_WRITE: dict[int | None, str] = {  # an OSError may lack a number
    errno.ENOSPC: 'make room', errno.EDQUOT: 'make room within the quota', errno.EFBIG: 'raise the limit of file sizes',
    errno.EACCES: 'allow it', errno.EPERM: 'allow it', errno.EROFS: 'allow it', errno.ENOTDIR: 'remove the file in its way',
    errno.EEXIST: 'remove the file in its way'}


class UserError(ValueError):
    """What a user can put right; the message says what is wrong and what to do."""


class CheckpointError(UserError):
    """A checkpoint that cannot be read or does not fit; the message names the file and what to do."""


class ConfigError(UserError):
    """A config that does not exist, or would be written over; the message says what is near."""


class DataError(UserError):
    """Data that cannot be trained or evaluated on; the message names the file and what to do."""


class ModelError(UserError):
    """A model that cannot be run, counted or exported as asked; the message says what to do."""


class NonFiniteLossError(UserError):
    """A loss that is infinite or no number; the message names it and the batch's images."""


class WriteError(UserError):
    """A file that could not be written; the message names it, the reason and what to do."""

    def __init__(self, path: str | Path, error: OSError) -> None:
        super().__init__(f'{path} cannot be written: {error.strerror}; {CANNOT_WRITE[error.errno]}, or name another folder. '
                         'What was written before is whole')


def warn_user(line: str) -> None:
    """Print what a user should know before a run that goes on; mmengine's logger is not there yet."""
    print_log(f'WARNING: {line}', level=logging.WARNING)
