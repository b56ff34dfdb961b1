"""The same bytes in other surroundings, and the same numbers from several threads and processes."""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

import svitc
from robustness_parts.log import Log
from support.paths import DIGITS, ROOT
from svitc import onnx as backend
from svitc import runtimes
from svitc.onnx.export import export

FILES = ("model.onnx", "model.safetensors", "model.py", "plan.json")
SURROUNDINGS: dict[str, dict[str, str]] = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "2 threads": {"OMP_NUM_THREADS": "2"},
    "4 threads": {"OMP_NUM_THREADS": "4"},
    "locale C": {"LC_ALL": "C"},
    "locale tr_TR": {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8"},
    "time zone": {"TZ": "Pacific/Kiritimati"},
    "hash seed 1": {"PYTHONHASHSEED": "1"},
    "hash seed 2": {"PYTHONHASHSEED": "2"},
    "another folder": {},
    "no home": {"HOME": "/nonexistent"},
    "from a wheel": {},
}
THREADS, FORKS, IMAGES = 8, 4, 64


def run(log: Log, _: argparse.Namespace) -> None:
    """Compile in each of the surroundings, and compare with the files of one thread."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (96, 1, 8, 8), dtype=np.uint8)
        np.savez(folder / "d.npz", images=images, labels=np.arange(96) % 10)
        shutil.copy(DIGITS, folder / "model.pt")
        for what, variables in SURROUNDINGS.items():
            if log.is_over:
                return
            if not log.has(what=what):
                log.add(what=what, **_digests(what, variables, folder))


def _digests(what: str, variables: dict[str, str], folder: Path) -> dict[str, str]:
    place = folder / what.replace(" ", "-")
    place.mkdir()
    python = str(_with_wheel(folder / "wheel")) if what == "from a wheel" else sys.executable
    data = ["--data", str(folder / "d.npz"), "--sweep-images", "40", "--calibration-images", "16"]
    options = ["--budget", "0.5", "--policy", "psvit", "--weights", "int8", "--no-html", *data]
    command = [python, "-m", "svitc", "compile", str(folder / "model.pt"), "-o", "out", *options]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    subprocess.run(command, cwd=place, env=variables, check=True, capture_output=True)
    return {name: hashlib.sha256((place / "out" / name).read_bytes()).hexdigest()[:16] for name in FILES}


def _with_wheel(folder: Path) -> Path:
    """Return the Python of an environment of its own, in which svitc comes from a wheel that is built here."""
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    source = folder / "source"
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)  # so that no earlier build gets into it
    subprocess.run([*pip, "wheel", str(source), "--no-deps", "--no-build-isolation", "-w", str(folder)], check=True)
    wheel = next(folder.glob("svitc-*.whl"))
    venv.create(folder / "venv")
    python = folder / "venv" / "bin" / "python"
    site = next((folder / "venv").glob("lib/python*/site-packages"))
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    # its other packages are those of this environment, whose own .pth files, such as that of a checkout, are not read
    (site / "packages.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")) + "\n")
    found = subprocess.run(
        [python, "-c", "import svitc; print(svitc.__file__)"], capture_output=True, text=True, check=True, cwd=folder
    )
    assert found.stdout.startswith(str(site)), found.stdout
    return python


def run_threads(log: Log, _: argparse.Namespace) -> None:
    """Run one session from several threads, and from forked processes, and compare with one after the other."""
    torch.set_num_threads(1)
    program = svitc.load(DIGITS)
    session = runtimes.session(export(program))
    images = np.random.default_rng(0).random((IMAGES, 1, 1, 16, 16), dtype=np.float32)

    def scores(index: int) -> bytes:
        return session.run(program.output_names, {backend.INPUT: images[index]})[0].tobytes()

    expected = [scores(index) for index in range(IMAGES)]
    with ThreadPoolExecutor(THREADS) as pool:
        for repeat in range(4):
            same = list(pool.map(scores, range(IMAGES))) == expected
            log.add(what=f"{THREADS} threads, one session, round {repeat}", result="same" if same else "others")
    for number in range(FORKS):
        process = os.fork()
        if not process:
            own = runtimes.session(export(program))
            same = all(
                own.run(program.output_names, {backend.INPUT: images[i]})[0].tobytes() == expected[i] for i in range(8)
            )
            os._exit(0 if same else 1)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        log.add(what=f"forked process {number}, its own session", result="others" if status else "same")
