"""Hostile files: every kind by seed, in forked processes, and a sample through the real command."""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import torch

from campaign import checkpoints, images, pickles, records
from campaign.cases import Kind, Made
from campaign.worker import MEMORY
from campaign.worker import run as attempts
from robustness_parts.log import Log
from robustness_parts.runs import ended_within, said, start, wait

KINDS = (*checkpoints.KINDS, *pickles.KINDS, *records.KINDS, *images.KINDS)
SLICE = 100  # inputs of a kind between two looks at the clock
COMMAND_EVERY = 50  # of the inputs of a kind, one goes through the command line as well
COMMAND_SECONDS = 60
WIDTH = "100000"  # of the terminal, so that no message is wrapped


def run(log: Log, options: argparse.Namespace) -> None:
    """Try the inputs that are left, the kinds in turn."""
    torch.set_num_threads(1)  # threads do not survive a fork
    done = Counter(row["kind"] for row in log.rows if not row["change"].startswith("command"))
    shares = sum(kind.share for kind in KINDS)
    for first in range(0, options.inputs, SLICE):
        for kind in KINDS:
            wanted = range(max(first, done[kind.name]), min(first + SLICE, -(-options.inputs * kind.share // shares)))
            if log.is_over:
                return
            if wanted:
                _slice(log, kind, wanted)


def _slice(log: Log, kind: Kind, seeds: range) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "first").mkdir()
        kind.make(random.Random(0), folder / "first")
        for outcome in attempts(kind, seeds, folder):
            log.add(**asdict(outcome))
        for seed in seeds:
            if kind.command and seed % COMMAND_EVERY == 0:
                _command(log, kind, seed, folder)


def _command(log: Log, kind: Kind, seed: int, folder: Path) -> None:
    """Give one input to the command line, and look at its exit status and its message."""
    place = folder / f"command{seed}"
    place.mkdir()
    made = kind.make(random.Random(f"{kind.name} {seed}"), place)
    command = ["--max-memory", f"{MEMORY}B", *(str(made.path) if part == "{}" else part for part in kind.command)]
    begin, printed = time.perf_counter(), folder / f"command{seed}.log"
    process = start(command, printed, lambda: os.environ.update(COLUMNS=WIDTH))
    status = ended_within(process, COMMAND_SECONDS)
    if status is None:
        os.kill(process, signal.SIGKILL)
        wait(process)
    message, seconds = said(printed), round(time.perf_counter() - begin, 3)
    log.add(
        kind=kind.name,
        change=f"command: {made.change}",
        seed=seed,
        result=_judged(kind, made, status, message),
        message=message[-300:],
        seconds=seconds,
    )


def _judged(kind: Kind, made: Made, status: int | None, message: str) -> str:
    """What the command came to, by its exit status and by what it printed."""
    if status is None:
        return "time"
    if "Traceback" in message or (status and "error:" not in message):
        return "traceback"
    if status == 0:
        return "accepted though hostile" if made.must_fail else "accepted"
    if made.must_pass:
        return "refused though good"
    if status not in kind.statuses:
        return "wrong status"
    return "refused" if re.search(made.keyword, message) else "wrong message"
