import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='looks for processes as Linux shows them')
def test_a_terminated_demo_leaves_no_training_behind(tmp_path):
    """Which would go on in the folder that the next one trains in."""
    demo = subprocess.Popen([sys.executable, ROOT / 'tools/demo.py', '--work-dir', 'work'], cwd=tmp_path, text=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not (training := trainings_of(demo.pid)):
            assert demo.poll() is None, demo.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(0.5)  # the demo may not be waiting for it yet
        demo.send_signal(signal.SIGTERM)
        assert 'the same command goes on from the last whole epoch' in demo.communicate(timeout=60)[1]
        assert demo.returncode == 1
        assert not Path('/proc', training[0]).exists()
    finally:
        if demo.poll() is None:
            os.killpg(demo.pid, signal.SIGKILL)


def trainings_of(parent):
    children = Path(f'/proc/{parent}/task/{parent}/children').read_text().split()
    return [child for child in children if b'mmsimvit.train' in Path('/proc', child, 'cmdline').read_bytes()]
