"""Hostile files: every kind by seed, in forked processes, and a sample through the real command."""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import torch

from campaign import checkpoints, images, pickles, records
from campaign.worker import run as attempts
from robustness_parts.log import Log

KINDS = (*checkpoints.KINDS, *pickles.KINDS, *records.KINDS, *images.KINDS)
SLICE = 100  # inputs of a kind between two looks at the clock
COMMAND_EVERY = 500  # of the inputs of a kind, one goes through the real command
COMMAND_SECONDS = 60


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


def _slice(log: Log, kind, seeds: range) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "first").mkdir()
        kind.make(random.Random(0), folder / "first")
        for outcome in attempts(kind, seeds, folder):
            log.add(**asdict(outcome))
        for seed in seeds:
            if kind.command and seed % COMMAND_EVERY == 0:
                _command(log, kind, seed, folder)


def _command(log: Log, kind, seed: int, folder: Path) -> None:
    """Give one input to the real command, and look at its exit status and its message."""
    place = folder / f"command{seed}"
    place.mkdir()
    made = kind.make(random.Random(f"{kind.name} {seed}"), place)
    command = [sys.executable, "-m", "svitc", *(str(made.path) if part == "{}" else part for part in kind.command)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    expected = done.returncode in kind.statuses | {0}
    result = "accepted" if done.returncode == 0 else "refused" if expected else "wrong status"
    if "Traceback" in done.stderr or (done.returncode and "error:" not in done.stderr):
        result = "traceback"
    message = " ".join(done.stderr.split())[-300:]
    log.add(kind=kind.name, change=f"command: {made.change}", seed=seed, result=result, message=message)
