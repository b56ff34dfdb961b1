"""The memory that a compilation takes."""

import subprocess
import sys
from pathlib import Path

MOST = 7.0  # times the bytes of the weights; 11.6 when each stage kept its copies


def test_a_compilation_holds_few_copies_of_the_weights():
    script = Path(__file__).with_name("peak_of_compile.py")
    run = subprocess.run([sys.executable, script, "2048"], capture_output=True, text=True)
    assert not run.returncode, run.stderr
    assert float(run.stdout.split()[-1]) < MOST
