import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.conftest import ROOT


def test_a_terminated_demo_leaves_no_training_behind(tmp_path):
    """Which would go on in the folder that the next one trains in."""
    demo = subprocess.Popen([sys.executable, ROOT / 'tools/demo.py', '--work-dir', 'work'], cwd=tmp_path,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    children = Path(f'/proc/{demo.pid}/task/{demo.pid}/children')
    deadline = time.monotonic() + 120
    while not children.read_text().split():
        assert demo.poll() is None, demo.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    training, = children.read_text().split()
    demo.send_signal(signal.SIGTERM)
    assert demo.communicate(timeout=60)[1].strip().splitlines()[-1] == 'terminated'
    assert demo.returncode == 1
    assert not Path('/proc', training).exists()
