"""The order of imports, and the one name of every class."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    p
    for folder in ("compiler", "passes", "frontends", "benchmarks", "tests", "demo")
    for p in (ROOT / folder).rglob("*.py")
)

# each layer may import from itself and from those before it
LAYERS = [
    {"errors", "axes", "ops", "program", "files", "statistics", "clock", "quantized", "processor", "bits"},
    {"infer", "coupling", "check", "views", "dump", "grid"},
    {"pass_base", "plan", "budget", "stats", "serialize", "source", "patches", "calibration"},
    {"frontends", "passes"},
    {"onnx", "rounding", "verification"},
    {
        "exporting",
        "drift",
        "energy",
        "weight_types",
        "quantization",
        "verification_exact",
        "evaluate",
        "sweep",
        "report",
        "distributed",
        "finetune",
        "latency",
    },
    {"compilation"},
    {"driver", "bench"},
    {"console", "cli", "__main__"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def layer_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    if parts[0] in ("passes", "frontends"):
        return parts[0]
    return parts[1] if len(parts) > 2 else path.stem


def imported(path: Path):
    """(first component below svitc, whether at module level) of every import of ours."""
    tree = ast.parse(path.read_text())
    inner = {id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.If)) for n in ast.walk(f)}
    depth = len(path.relative_to(ROOT).parts) - 1
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or id(node) in inner:
            continue
        if node.level == 0 and (node.module or "").split(".")[0] == "svitc":
            rest = (node.module or "").split(".")[1:]
            yield from [rest[0]] if rest else [alias.name for alias in node.names]
        elif node.level and path.relative_to(ROOT).parts[0] == "compiler" and node.level == depth:
            yield from [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]


@pytest.mark.parametrize(
    "path",
    [p for p in SOURCES if p.relative_to(ROOT).parts[0] in ("compiler", "passes", "frontends")],
    ids=str,
)
def test_imports_follow_the_flow(path):
    own = layer_of(path)
    if own == "__init__":
        return  # the package's front door imports lazily
    rank = RANK.get(own, RANK.get(own.split("_")[0]))
    assert rank is not None, f"{own} has no place in the order"
    for name in imported(path):
        if name in RANK:
            assert RANK[name] <= rank, f"{own} imports {name}"
    if own == "passes":
        assert "frontends" not in set(imported(path))
    if own == "frontends":
        assert "passes" not in set(imported(path))


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_nothing_imports_a_second_copy_or_a_forbidden_package(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            assert name.split(".")[0] not in {"compiler", "passes", "frontends", "torchvision", "timm"}, (
                f"{path}: {name}"
            )


def test_the_package_is_what_is_installed():
    spec = importlib.util.find_spec("svitc")
    assert spec is not None and Path(str(spec.origin)).name == "__init__.py"
    import svitc

    assert {"load", "compile", "save", "Pass"} <= set(dir(svitc))


def test_the_front_door_gives_functions_and_classes_whatever_is_imported():
    import svitc
    import svitc.cli.main

    for name in svitc.__all__:
        assert callable(getattr(svitc, name)), name
