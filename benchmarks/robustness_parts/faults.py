"""``kill -9`` at random moments of a compilation with a sweep and fine-tuning; then ``--resume`` to the same bytes."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from campaign.faults import contents
from robustness_parts.log import Log
from support.paths import DIGITS
from svitc.cli.main import main

KINDS = ("compile", "sweep", "fine-tuning")
SAME = ("model.onnx", "model.safetensors", "model.py", "plan.json")
MOST_KILLS = 3  # of one run, before it may end


def arguments(kind: str, folder: Path, out: Path) -> list[str]:
    """The command of one kind, on the demo's network."""
    data = ["--data", str(folder / "d.npz"), "--sweep-images", "40", "--calibration-images", "16"]
    options = {
        "compile": ["--policy", "uniform", "--no-data", "uniform"],
        "sweep": ["--policy", "psvit", *data],
        "fine-tuning": ["--policy", "uniform", *data, "--finetune", "3", "--train-data", str(folder / "d.npz")],
    }
    return ["compile", str(DIGITS), "--budget", "0.5", "-o", str(out), "--no-html", *options[kind]]


def run(log: Log, options: argparse.Namespace) -> None:
    """Kill the runs that are left, each at moments that follow from its seed."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _data(folder / "d.npz")
        whole, seconds = {}, {}
        for kind in KINDS:
            start = time.perf_counter()
            assert _wait(_start(arguments(kind, folder, folder / kind))) == 0, kind
            seconds[kind] = time.perf_counter() - start
            whole[kind] = contents(folder / kind)
        while len(log.rows) < options.runs and not log.is_over:
            seed = len(log.rows)
            kind = KINDS[seed % len(KINDS)]
            log.add(seed=seed, kind=kind, **_killed(kind, seed, folder, seconds[kind], whole[kind]))


def _data(path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(path, images=rng.integers(0, 256, (96, 1, 8, 8), dtype=np.uint8), labels=np.arange(96) % 10)


def _start(command: list[str]) -> int:
    """Run the command line in a forked process, which has imported everything already."""
    process = os.fork()
    if not process:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        status = 1
        try:
            sys.argv = ["svitc"]
            status = main(command)
        finally:
            os._exit(status)
    return process


def _wait(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _killed(kind: str, seed: int, folder: Path, seconds: float, whole: dict[str, bytes]) -> dict:
    """Kill one run up to three times, look at what it leaves after each, resume it, and compare its files."""
    rng, out = random.Random(seed), folder / "killed" / "out"
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir()
    command, moments, result = arguments(kind, folder, out), [], "same files"
    for _ in range(rng.randint(1, MOST_KILLS)):
        process = _start([*command, "--resume"] if moments and kind != "compile" else command)
        moments.append(round(rng.uniform(0.05, 1.0) * seconds, 3))
        time.sleep(moments[-1])
        os.kill(process, signal.SIGKILL)
        status = _wait(process)
        left = contents(out) if out.is_dir() else {}
        visible = {name for name in left if not name.startswith(".svitc")}
        if visible and visible != set(whole) and not any(name.startswith(".svitc.complete") for name in left):
            result = f"half-written: {sorted(visible)}"
        if status == 0:
            break
    if _wait(_start([*command, "--resume"] if kind != "compile" else command)) != 0:
        result = "it cannot be resumed"
    elif {name: data for name, data in contents(out).items() if name in SAME} != {n: whole[n] for n in SAME}:
        result = "other files"
    rest = sorted(path.name for path in out.parent.iterdir() if path.name.startswith(".") or path.suffix == ".lock")
    return {"moments": moments, "result": result if not rest else f"{result}; left {rest}"}
