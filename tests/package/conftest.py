"""The wheel of this checkout, and an environment that it is installed in."""

from __future__ import annotations

import os
import sys
import venv
from pathlib import Path

import pytest

from support.shell import run_apart as run

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("compiler", "passes", "frontends")


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
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
