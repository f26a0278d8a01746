"""What is checked and measured on a GPU: generators of results, one a step, for ``mmsimvit.cli.gpu_check``."""
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple


class Settings(NamedTuple):
    """What a step is told."""
    device: str
    rehearse: bool  # tiny inputs on the CPU: the numbers mean nothing, the lines run
    folder: Path  # where it may write
    data: Path | None  # real images in COCO's layout
    ends: float  # of time.monotonic(): no new case after it


def stop(process: subprocess.Popen, seconds: float = 5) -> None:
    """End a process that has a session of its own, and what it started; after some seconds without giving it a choice."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
