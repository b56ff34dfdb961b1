"""Kills of runs of several processes: the whole job under torchrun, and one rank, with and without torchrun's agent.

Where one rank is killed the other must end by itself, with a message and another exit status than 0, and ``--resume``
must go on to the bytes of an undisturbed run of two ranks. Without the agent nobody tells the other rank.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from campaign.faults import contents
from robustness_parts.log import Log
from robustness_parts.runs import (
    OLD_BUDGET,
    Whole,
    arguments,
    ended_within,
    left_behind,
    resumed,
    said,
    start,
    wait,
    write_images,
)

RANKS = 2
TURNS = (
    "torchrun, the whole job",
    "one rank, no agent",
    "torchrun, one rank",
    "one rank, no agent",
    "one rank, no agent",
)
KINDS = ("sweep", "fine-tuning")  # which divide their work
MOST_SECONDS = 60  # that a rank may go on after the other is gone
EARLIEST = 0.4  # of the time of a run under torchrun, most of which its processes import


def run(log: Log, options: argparse.Namespace) -> None:
    """Kill until there are as many kills as asked for."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.work) as name:
        whole = _whole(Path(name).resolve())
        launched = {kind: _seconds_of_torchrun(kind, whole) for kind in KINDS}
        while len(log.rows) < options.rank_kills and not log.is_over:
            seed = len(log.rows)
            turn, kind = TURNS[seed % len(TURNS)], KINDS[seed // len(TURNS) % len(KINDS)]
            log.add(seed=seed, kind=kind, turn=turn, **_killed(turn, kind, seed, whole, launched[kind]))


def _whole(folder: Path) -> Whole:
    """Run each kind once, in two ranks: sums of gradients are added in another order than in one process."""
    whole = Whole(folder)
    write_images(whole.data)
    for kind in KINDS:
        begin = time.perf_counter()
        assert _both(arguments(kind, whole.data, folder / kind), folder) == [0, 0], said(folder / "rank0.log")
        whole.seconds[kind] = time.perf_counter() - begin
        whole.files[kind] = contents(folder / kind)
    assert wait(start(arguments("compile", whole.data, folder / "old", OLD_BUDGET))) == 0
    whole.old = contents(folder / "old")
    return whole


def _started(command: list[str], folder: Path) -> list[int]:
    """Start the ranks without an agent; they print into ``rank0.log`` and so on."""
    port = _free_port()
    return [
        start(command, folder / f"rank{rank}.log", lambda rank=rank: os.environ.update(_variables(rank, port)))
        for rank in range(RANKS)
    ]


def _both(command: list[str], folder: Path) -> list[int]:
    """Run all ranks to their end; return their exit statuses."""
    return [wait(process) for process in _started(command, folder)]


def _seconds_of_torchrun(kind: str, whole: Whole) -> float:
    begin = time.perf_counter()
    command = _launcher(arguments(kind, whole.data, whole.folder / "launched" / kind))
    subprocess.run(command, check=True, capture_output=True)
    assert whole.has_same(kind, whole.folder / "launched" / kind), "torchrun gives other files"
    return time.perf_counter() - begin


def _launcher(command: list[str]) -> list[str]:
    agent = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS)]
    return [*agent, "--master-port", str(_free_port()), "-m", "svitc", *command]


def _killed(turn: str, kind: str, seed: int, whole: Whole, launched: float) -> dict:
    out, rng = whole.folder / "killed" / "out", random.Random(seed)
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir()
    if rng.random() < 0.5:
        whole.put_old(out)
    command = arguments(kind, whole.data, out)
    if turn.startswith("torchrun"):
        row = _under_torchrun(command, turn.endswith("one rank"), rng, whole, launched)
    else:
        row = _by_hand(command, rng, whole, kind)
    if row["result"] == "ended" and (fault := whole.fault_of(kind, out)):
        row["result"] = fault
    if _both(resumed(kind, command), whole.folder) != [0, 0]:
        row["resumed"] = f"it cannot be resumed: {said(whole.folder / 'rank0.log')[-300:]}"
    elif not whole.has_same(kind, out):
        row["resumed"] = "other files"
    else:
        row["resumed"] = "same files" if not left_behind(out) else f"left {left_behind(out)}"
    return row


def _by_hand(command: list[str], rng: random.Random, whole: Whole, kind: str) -> dict:
    """Start two ranks without an agent, kill one, and see how the other ends."""
    ranks = _started(command, whole.folder)
    killed, moment = rng.randrange(RANKS), rng.uniform(0.2, 1.0) * whole.seconds[kind]
    time.sleep(moment)
    os.kill(ranks[killed], signal.SIGKILL)
    if wait(ranks[killed]) == 0:
        return {"killed": "none: it was done before", "result": "ended", "status": wait(ranks[1 - killed])}
    begin = time.monotonic()
    status = ended_within(ranks[1 - killed], MOST_SECONDS)
    row = {"killed": f"rank {killed}", "after": round(moment, 2), "status": status}
    row |= {
        "the other ended after": round(time.monotonic() - begin, 2),
        "message": said(whole.folder / f"rank{1 - killed}.log")[-300:],
    }
    if status is None:
        os.kill(ranks[1 - killed], signal.SIGKILL)
        wait(ranks[1 - killed])
        return {**row, "result": "hangs"}
    return {**row, "result": _ending(status, row["message"])}


def _ending(status: int, message: str) -> str:
    """Judge how a rank ends whose other is gone: with a message, or with its own work done before that."""
    if status == 0:
        return "ended"  # it needed the other no more
    if status < 0:
        return f"ended by signal {-status}"
    return "ended" if "another rank stopped" in message and "Traceback" not in message else "wrong message"


def _variables(rank: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(RANKS),
        "LOCAL_WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _under_torchrun(command: list[str], one: bool, rng: random.Random, whole: Whole, seconds: float) -> dict:
    """Kill one rank of a job, or all of it; the agent must end, and no process may be left."""
    log = whole.folder / "log"
    with log.open("w") as file:
        job = subprocess.Popen(_launcher(command), stdout=file, stderr=file, start_new_session=True)
    moment = rng.uniform(EARLIEST, 1.0) * seconds
    end = time.monotonic() + moment
    while time.monotonic() < end and job.poll() is None:
        time.sleep(0.05)
    if job.poll() is not None:
        return {
            "killed": "none: it was done before",
            "status": job.returncode,
            "result": "ended",
            "message": said(log)[-300:],
        }
    family = descendants(job.pid)
    ranks = [process for process in family if _is_rank(process)]
    chosen = [rng.choice(ranks)] if one and ranks else family
    for process in chosen:
        _kill(process)
    row = {"killed": "one rank" if one else "all", "processes": len(chosen), "after": round(moment, 2)}
    begin = time.monotonic()
    try:
        row["status"] = job.wait(MOST_SECONDS)
    except subprocess.TimeoutExpired:
        row["status"] = None
    row["the other ended after"] = round(time.monotonic() - begin, 2)
    alive = [process for process in family if Path(f"/proc/{process}").is_dir()]
    for process in alive:
        _kill(process)
    job.wait()
    row["message"] = said(log)[-300:]
    return {**row, "result": "hangs" if row["status"] is None else "ended" if not alive else f"{len(alive)} are left"}


def descendants(process: int) -> list[int]:
    """The processes that a process started, they and theirs, and itself first."""
    found = [process]
    for parent in found:
        for thread in Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(number) for number in thread.read_text().split()]
    return found


def _is_rank(process: int) -> bool:
    """Whether a process is a rank, not torchrun's agent."""
    try:
        return b"\0-m\0svitc\0" in Path(f"/proc/{process}/cmdline").read_bytes().replace(b"-u\0", b"") and (
            b"torch.distributed.run" not in Path(f"/proc/{process}/cmdline").read_bytes()
        )
    except OSError:
        return False


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
