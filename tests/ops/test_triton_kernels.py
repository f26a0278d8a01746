"""The numbers are compared in test_central_attention.py, with all other backends."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('triton', '3.3', reason='compiles where no GPU is in the way of Triton 3.3 and later')


def test_the_kernels_compile_without_spills_and_load_128_bits():
    """For sm_80 and sm_90, which need not be there: a spilled register or a narrow load costs a multiple of the time."""
    result = subprocess.run([sys.executable, Path(__file__).with_name('compile_triton_kernels.py')], check=True, text=True,
                            stdout=subprocess.PIPE, env={**os.environ, 'TRITON_INTERPRET': '0'})
    kernels = json.loads(result.stdout)
    assert len(kernels) == 18
    for name, found in kernels.items():
        assert found['spilled_bytes'] == 0, (name, found)
        # Of the nine neighbours, of two maps; with shifted windows in a loop.
        assert found['wide_loads'] >= (4 if name.startswith('shifted') else 18), (name, found)
        assert found['registers'] <= 168, (name, found)  # three blocks of 128 threads on a multiprocessor, at least
