"""Mutated files, a few for each reader; `python tests/fuzz.py` takes 2,000."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzz.py")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited by what Linux tells")
def test_a_mutated_file_gives_the_right_value_or_an_error_that_names_it():
    """In a process of its own, whose memory is limited."""
    command = [sys.executable, str(FUZZ), "--files", "40", "--seed", "1"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": str(FUZZ.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count("refused") == 9 and "FAULTS" not in done.stdout
