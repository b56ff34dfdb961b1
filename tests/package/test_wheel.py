"""The wheel: what it holds, and that it works where there is no checkout."""

from __future__ import annotations

import zipfile
from email.parser import Parser
from importlib.metadata import version
from pathlib import Path

import pytest

from support.shell import run_apart as run

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {"compiler": "svitc", "passes": "svitc/passes", "frontends": "svitc/frontends"}

pytestmark = pytest.mark.slow


def modules() -> dict[Path, str]:
    """The Python files of the three folders, and what each is called in the wheel."""
    return {
        path: f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, package in SOURCES.items()
        for path in (ROOT / folder).rglob("*.py")
    }


def test_it_holds_every_module_and_what_goes_with_them(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        facts = Parser().parsestr(archive.read(metadata).decode())
    missing = sorted(set(modules().values()) - names)
    assert not missing, f"not in the packages of setup.cfg: {missing}"
    tables = {f"svitc/energy/energy_tables/{p.name}" for p in ROOT.glob("compiler/energy/energy_tables/*.yaml")}
    assert tables and tables <= names
    templates = {f"svitc/html_report/templates/{p.name}" for p in ROOT.glob("compiler/html_report/templates/*")}
    assert templates and templates <= names
    assert "svitc/py.typed" in names
    assert any(name.endswith("/LICENSE") and ".dist-info/" in name for name in names)
    assert facts["License-Expression"] == "Apache-2.0"
    strays = {name for name in names if not name.startswith("svitc/") and ".dist-info/" not in name}
    assert not strays, f"outside the package: {sorted(strays)}"


def test_it_is_the_installed_package_that_answers(scripts, tmp_path):
    code = (
        "import svitc, svitc.passes, svitc.frontends; print(svitc.__file__, svitc.passes.__file__, svitc.__version__)"
    )
    package, passes, number = run(scripts / "python", "-c", code, cwd=tmp_path).split()
    for path in (package, passes):
        assert Path(path).is_relative_to(scripts.parent), f"{path} is not in the fresh environment"
    assert number == version("svitc")
    assert run(scripts / "svitc", "--version", cwd=tmp_path).startswith(f"svitc {number} (Python ")


def test_it_compiles_away_from_the_checkout(scripts, tmp_path):
    run(
        scripts / "svitc",
        "compile",
        ROOT / "demo" / "digits.pt",
        "--budget",
        "0.5",
        "--no-data",
        "uniform",
        "-o",
        "out",
        cwd=tmp_path,
    )
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {
        "model.onnx",
        "model.py",
        "model.safetensors",
        "plan.json",
        "check.npz",
        "check.py",
        "predict.py",
        "report.json",
        "report.html",
    }
