"""``kill -9`` at random moments, and while files are written; then ``--resume`` to the same bytes."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

import torch

from robustness_parts.log import Log
from robustness_parts.runs import (
    KINDS,
    OLD_BUDGET,
    Steps,
    Whole,
    arguments,
    left_behind,
    resumed,
    start,
    wait,
)
from svitc.support.atomic_files import COMPLETE

TURNS = (*KINDS, "writing")  # the last: a run of any kind, killed when a file is on its way
MOST_KILLS = 3  # of one run, before it may end
LAST_STEPS = 24  # changes of files at the end of a run, in which the output folder is written
WRITING_SECONDS = 0.003  # a file of the output folder is written within


def run(log: Log, options: argparse.Namespace) -> None:
    """Kill until there are as many kills as asked for, each at a moment that follows from its seed."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        whole = Whole.of(Path(name))
        while sum(len(row["moments"]) for row in log.rows) < options.kills and not log.is_over:
            seed = len(log.rows)
            log.add(seed=seed, **_killed(seed, whole))


def _killed(seed: int, whole: Whole) -> dict:
    """Kill one run up to three times, look at what it leaves after each, resume it, and compare its files."""
    turn, rng = TURNS[seed % len(TURNS)], random.Random(seed)
    kind = rng.choice(("compile", *KINDS)) if turn == "writing" else turn
    out = whole.folder / "killed" / "out"
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir()
    has_old = rng.random() < 0.5
    if has_old:
        whole.put_old(out)
    command, kills, result = arguments(kind, whole.data, out), [], "same files"
    for _ in range(rng.randint(1, MOST_KILLS)):
        kill = _while_writing if turn == "writing" else _any_time
        moment, status = kill(rng, resumed(kind, command) if kills else command, out, whole, kind)
        if status != -signal.SIGKILL:
            break  # it was done before
        kills.append({**moment, "on its way": _on_its_way(out)})
        result = whole.fault_of(kind, out) or result
    if wait(start(resumed(kind, command))) != 0:
        result = "it cannot be resumed"
    elif not whole.has_same(kind, out):
        result = "other files"
    rest = left_behind(out)
    return {
        "kind": turn,
        "run": kind,
        "over": f"files of budget {OLD_BUDGET}" if has_old else "nothing",
        "moments": kills,
        "result": result if not rest else f"{result}; left {rest}",
    }


def _any_time(rng: random.Random, command: list[str], _: Path, whole: Whole, kind: str) -> tuple[dict, int]:
    """Kill a run at any moment; return it and the exit status."""
    moment = rng.uniform(0.05, 1.0) * whole.seconds[kind]
    process = start(command)
    time.sleep(moment)
    os.kill(process, signal.SIGKILL)
    return {"after": round(moment, 3)}, wait(process)


def _while_writing(rng: random.Random, command: list[str], out: Path, whole: Whole, kind: str) -> tuple[dict, int]:
    """Let a run kill itself as it opens, makes, moves or removes a file, or a moment after that."""
    steps, delay = Steps(out.parent), rng.choice((0.0, rng.uniform(0, WRITING_SECONDS)))
    number = whole.steps[kind] - 1 - rng.randrange(min(LAST_STEPS, whole.steps[kind]))
    if rng.random() < 1 / 3:
        number = rng.randrange(whole.steps[kind])
    status = wait(start(command, prepare=lambda: steps.kill_at(number, delay)))
    return {"at change": number, "of": whole.steps[kind], "and ms": round(1e3 * delay, 2)}, status


def _on_its_way(out: Path) -> list[str]:
    """Which hidden folders there are, in an output folder and beside it, in which files wait for their places."""
    names = [path.name for place in (out, out.parent) if place.is_dir() for path in place.glob(".svitc*")]
    return sorted({"complete" if name == COMPLETE else "not complete" for name in names})
