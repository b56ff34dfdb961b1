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
SOURCES = sorted(
    path
    for folder in ("compiler", "passes", "frontends", "benchmarks", "tests", "demo")
    for path in (ROOT / folder).rglob("*.py")
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_imports_a_second_copy_or_a_forbidden_package(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            assert name.split(".")[0] not in FORBIDDEN, f"{path}: {name}"


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
