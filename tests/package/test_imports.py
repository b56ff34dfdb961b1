"""No source imports a second copy of svitc, or a package that svitc does without.

The order of the rooms and the absence of cycles are contracts in pyproject.toml, which ``make lint`` checks; here they
are checked once more, so that they hold wherever the tests run.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = {"compiler", "passes", "frontends", "torchvision", "timm"}
FOLDERS = ("compiler", "passes", "frontends", "benchmarks", "tests", "demo")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Return the first name of every absolute import in a file."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and not node.level:
            names.append(node.module or "")
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_imports_a_second_copy_or_a_forbidden_package(folder):
    for path in (ROOT / folder).rglob("*.py"):
        assert not imported(path) & FORBIDDEN, path


def test_no_test_imports_a_test():
    modules = {path.stem for path in SOURCES if path.name.startswith("test_")} | {"conftest"}
    for path in (ROOT / "tests").rglob("*.py"):
        assert not imported(path) & modules, path


def test_help_does_not_wait_for_torch():
    script = """
import sys
from svitc.cli.main import main
assert main(["--help"]) == 0 and main(["compile", "--help"]) == 0
sys.exit(sorted({"torch", "onnx", "onnxruntime", "spikingjelly", "numpy"} & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_imports_keep_to_the_contracts(tmp_path):
    """One tree of the three folders, as ``make types`` links it."""
    package = tmp_path / "svitc"
    package.mkdir()
    for path in (*(ROOT / "compiler").iterdir(), ROOT / "passes", ROOT / "frontends"):
        (package / path.name).symlink_to(path)
    command = "from importlinter.cli import lint_imports_command as main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command, "--no-cache", "--config", str(ROOT / "pyproject.toml")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout
