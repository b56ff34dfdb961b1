"""The command line as a test runs it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from svitc.cli.main import main

STEP_S = 300


def run(capsys, *args: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr, in which there is never a traceback."""
    status = main([str(a) for a in args])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return status, captured.out, captured.err


def environment_apart() -> dict[str, str]:
    """The environment without the settings that would lead back to the checkout."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}


def run_apart(*command: object, cwd: Path) -> str:
    """Return what a command prints, run without the settings that would lead back to the checkout."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment_apart(), capture_output=True, text=True, timeout=STEP_S)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout
