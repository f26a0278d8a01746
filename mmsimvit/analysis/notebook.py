"""What the tutorials show of a training and of pictures, as notebooks and as scripts."""
import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from matplotlib.figure import Figure

SHOWN = re.compile(r'Epoch\S+ [\[\]/ \d]+\]|\bloss: \S+|\b(?:mIoU|bbox_mAP|segm_mAP): \S+|predictions on .*')


@contextmanager
def brief_log() -> Iterator[None]:
    """Of all that is printed inside, show how far a training is, its loss and its scores.

    MMEngine logs some hundred lines a minute; all of them are in a ``.log`` file in the work dir anyway.
    """
    screen = sys.stdout

    class Brief(io.TextIOBase):
        def write(self, text: str) -> int:
            if found := SHOWN.findall(text):
                print(*found, sep='  ', file=screen, flush=True)
            return len(text)

    with redirect_stdout(Brief()):
        yield


def show(picture: Path | Figure, path: Path | None = None) -> None:
    """Show a picture in a notebook; elsewhere, say where it is.

    Args:
        picture: a file, or a figure.
        path: the file that a figure is saved as.
    """
    if isinstance(picture, Figure):
        assert path is not None
        picture.savefig(path, dpi=100)
    else:
        path = picture
    if 'ipykernel' in sys.modules:
        from IPython import display
        display.display(display.Image(filename=str(path)))
    else:
        print(f'picture: {path}')
