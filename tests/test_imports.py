"""What import-linter cannot say of imports: the order of the rooms stands in pyproject.toml."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import svitc
import svitc.cli.main

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("compiler", "passes", "frontends", "benchmarks", "tests", "demo")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
FORBIDDEN = {"compiler", "passes", "frontends", "torchvision", "timm"}


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


def test_the_package_is_what_is_installed():
    spec = importlib.util.find_spec("svitc")
    assert spec is not None and Path(str(spec.origin)).name == "__init__.py"
    assert {"load", "compile", "save", "Pass"} <= set(dir(svitc))


def test_the_front_door_gives_functions_and_classes_whatever_is_imported():
    for name in svitc.__all__:
        assert callable(getattr(svitc, name)), name


def test_help_does_not_wait_for_torch():
    script = """
import sys
from svitc.cli.main import main
assert main(["--help"]) == 0 and main(["compile", "--help"]) == 0
sys.exit(sorted({"torch", "onnx", "onnxruntime", "spikingjelly", "numpy"} & set(sys.modules)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
