"""The wheel: what it holds, and that it works where there is no checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from email.parser import Parser
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {"compiler": "svitc", "passes": "svitc/passes", "frontends": "svitc/frontends"}
STEP_S = 300

pytestmark = pytest.mark.slow


def run(*command: object, cwd: Path) -> str:
    """Return what a command prints, run without the settings that would lead back to the checkout."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=STEP_S)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def modules() -> dict[Path, str]:
    """The Python files of the three folders, and what each is called in the wheel."""
    return {
        path: f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, package in SOURCES.items()
        for path in (ROOT / folder).rglob("*.py")
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build from a copy of the sources: a build folder that lies in the checkout would get into the wheel."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    files = [ROOT / name for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")]
    for folder in SOURCES:
        files += [p for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    for path in files:
        target = source / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", ".", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", out, cwd=source)
    (path,) = out.glob("svitc-*.whl")
    return path


@pytest.fixture(scope="module")
def scripts(wheel, tmp_path_factory) -> Path:
    """Install the wheel into a fresh environment that sees the other packages of this one; the folder of its commands.

    A path in a .pth file is only added: .pth files that lie there, such as that of an editable svitc, are not read.
    """
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder)
    packages = next(folder.glob("[Ll]ib/**/site-packages"))  # "Lib" on Windows
    places = [place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]
    (packages / "dependencies.pth").write_text("\n".join(places) + "\n")
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", scripts / "python")
    run(*pip, "install", "--no-deps", "--no-index", "--ignore-installed", wheel, cwd=folder)
    return scripts


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
