"""What is checked and measured on a GPU: generators of results, one a step, for ``mmsimvit.cli.gpu_check``."""
from pathlib import Path
from typing import NamedTuple


class Settings(NamedTuple):
    """What a step is told."""
    device: str
    rehearse: bool  # tiny inputs on the CPU: the numbers mean nothing, the lines run
    folder: Path  # where it may write
    data: Path | None  # real images in COCO's layout
    ends: float  # of time.monotonic(): no new case after it
