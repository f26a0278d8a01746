"""Writing a file whole or not at all."""
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .errors import CANNOT_WRITE, WriteError


def atomic_write(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a hidden file beside ``path``, of the same suffix, that then takes its name.

    Raises:
        WriteError: if there is no room, or no permission.
    """
    path = Path(path)
    unfinished = path.with_name(f'.{os.getpid()}.{path.name}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(unfinished)
        unfinished.replace(path)
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        raise WriteError(path, error) from error
    finally:
        with suppress(NotADirectoryError):  # where a file is in the folder's way
            unfinished.unlink(missing_ok=True)
