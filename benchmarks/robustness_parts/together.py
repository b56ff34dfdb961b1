"""Several commands on one folder: two compilations at once, and readers while another writes."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import tempfile
import time
from pathlib import Path

import torch

from robustness_parts.log import Log
from robustness_parts.runs import KINDS, OLD_BUDGET, SAME, Whole, arguments, left_behind, said, start, wait
from svitc.errors import OutputError

PAIRS, WRITINGS, READERS = 18, 10, 2


def run(log: Log, options: argparse.Namespace) -> None:
    """Try what is left."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        whole = Whole.of(Path(name).resolve())
        for seed in range(PAIRS):
            if log.is_over:
                return
            if not log.has(what="two compilations", seed=seed):
                log.add(what="two compilations", seed=seed, **_two(seed, whole))
        for seed in range(WRITINGS):
            if log.is_over:
                return
            if not log.has(what="two readers, one writer", seed=seed):
                log.add(what="two readers, one writer", seed=seed, **_readers(whole))


def _two(seed: int, whole: Whole) -> dict:
    """Start two compilations into one folder: one is refused by name, or comes after the other."""
    kind, rng = KINDS[seed % len(KINDS)], random.Random(seed)
    out = whole.folder / "two" / "out"
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir()
    logs = [whole.folder / f"{number}.log" for number in range(2)]
    first = start(arguments(kind, whole.data, out), logs[0])
    delay = rng.choice((0.0, rng.uniform(0, whole.seconds[kind])))
    time.sleep(delay)
    second = start(arguments(kind, whole.data, out), logs[1])
    statuses = [wait(first), wait(second)]
    told = [log for log, status in zip(logs, statuses, strict=True) if status == OutputError.exit_status]
    row = {"kind": kind, "after": round(delay, 2), "statuses": statuses}
    if set(statuses) - {0, OutputError.exit_status} or 0 not in statuses:
        return {**row, "result": f"wrong status: {said(logs[0])[-200:]} {said(logs[1])[-200:]}"}
    if any("another svitc (process" not in said(log) for log in told):
        return {**row, "result": f"wrong message: {said(told[0])[-200:]}"}
    if not whole.has_same(kind, out) or left_behind(out):
        return {**row, "result": f"other files; left {left_behind(out)}"}
    return {**row, "result": "one was refused" if told else "one after the other"}


def _readers(whole: Whole) -> dict:
    """Verify a folder all the time while compilations of two budgets are written into it in turn."""
    out = whole.folder / "read" / "out"
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir()
    whole.put_old(out)
    logs = [whole.folder / f"reader{number}.log" for number in range(READERS)]
    writer = start(arguments("compile", whole.data, out))
    budgets, counts, result = ["0.5"], 0, "each reader saw one compilation"
    while True:
        readers = [start(["verify", str(out)], log) for log in logs]
        for reader, log in zip(readers, logs, strict=True):
            status = wait(reader)
            counts += 1
            if status != 0:
                result = f"status {status}: {said(log)[-300:]}"
        done, status = os.waitpid(writer, os.WNOHANG)
        if done:
            if status or len(budgets) == 2:
                result = f"the writer failed: {status}" if status else result
                break
            budgets.append(OLD_BUDGET)
            writer = start(arguments("compile", whole.data, out, OLD_BUDGET))
    if any((out / name).read_bytes() != whole.old[name] for name in SAME):
        result = "other files at the end"
    return {"readings": counts, "writings": len(budgets), "result": result}
