"""A system's clock that jumps by hours while svitc runs: the same bytes, no negative duration, and runs that go on."""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from robustness_parts.log import Log
from robustness_parts.runs import KINDS, Whole, arguments, left_behind, resumed, said

SHIM = Path(__file__).with_name("clock_shim.c")
TRIES = 4  # of each kind of run; every second one is killed once and resumed
SEEN = "import time; times = [time.time() for _ in range(50)]; print(max(times) - min(times) > 3600)"


def run(log: Log, options: argparse.Namespace) -> None:
    """Run each kind with a clock that jumps."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        folder = Path(name).resolve()
        library = _built(folder)
        whole = Whole.of(folder)
        for seed in range(TRIES * len(KINDS)):
            if log.is_over:
                return
            if not log.has(seed=seed):
                log.add(seed=seed, **_tried(seed, whole, library))


def _built(folder: Path) -> Path:
    """Compile the shim, and see that Python's clock jumps with it."""
    library = folder / "clock.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("a C compiler is needed, to build what makes the clock jump")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SHIM, "-ldl"], check=True)
    variables = {**os.environ, "LD_PRELOAD": str(library)}
    seen = subprocess.run([sys.executable, "-c", SEEN], env=variables, capture_output=True, text=True, check=True)
    if seen.stdout.strip() != "True":
        raise SystemExit("this Python's clock does not jump with LD_PRELOAD; it is linked in another way")
    return library


def _tried(seed: int, whole: Whole, library: Path) -> dict:
    kind, is_killed, rng = KINDS[seed % len(KINDS)], seed // len(KINDS) % 2 == 1, random.Random(seed)
    out, log = whole.folder / "clock" / "out", whole.folder / "log"
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir()
    command = [sys.executable, "-m", "svitc", *arguments(kind, whole.data, out)]
    variables = {**os.environ, "LD_PRELOAD": str(library), "CLOCK_SEED": str(seed), "OMP_NUM_THREADS": "1"}
    row = {"kind": kind, "killed": is_killed}
    if is_killed:
        with log.open("w") as file:
            process = subprocess.Popen(command, env=variables, stdout=file, stderr=file)
        time.sleep(rng.uniform(4, 6 + whole.seconds[kind]))
        process.send_signal(signal.SIGKILL)
        process.wait()
        command = resumed(kind, command)
    with log.open("w") as file:
        row["status"] = subprocess.run(command, env=variables, stdout=file, stderr=file, check=False).returncode
    message = said(log)
    if row["status"] != 0 or "Traceback" in message:
        return {**row, "result": f"failed: {message[-300:]}"}
    odd = [f"{key} {value}" for key, value in _durations(out) if not 0 <= value < 600]
    shown = re.findall(r"-\d[\d.:]* ?(?:s|ms|min|h)\b", message)
    if odd or shown:
        return {**row, "result": f"odd durations: {odd[:3]} {shown[:3]}"}
    if left_behind(out):
        return {**row, "result": f"left {left_behind(out)}"}
    return {**row, "result": "same files" if whole.has_same(kind, out) else "other files"}


def _durations(out: Path) -> Iterator[tuple[str, float]]:
    """Every number of seconds in the report, with its place."""
    waiting = [("", json.loads((out / "report.json").read_text()), False)]
    while waiting:
        place, value, is_time = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{place}/{key}", each, is_time or "seconds" in key) for key, each in value.items()]
        elif isinstance(value, list):
            waiting += [(place, each, is_time) for each in value]
        elif is_time and isinstance(value, int | float):
            yield place, value
