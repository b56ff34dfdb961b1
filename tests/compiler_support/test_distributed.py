"""Two processes: they see each other's values, fine-tune to one result, and stop when one of them dies."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from svitc.errors import UsageError
from svitc.support.distributed import DistributedContext, RankError, current, world

TESTS = Path(__file__).resolve().parents[1]
TIMEOUT = 20.0

TOGETHER = """
import os, sys, time
from pathlib import Path
import torch
from support.families import warm
from support.finetuned import OPTIONS, Blobs, finetune, halved, small, weights_of
from svitc.support.distributed import RankError, current, world
from svitc.errors import InputError
from svitc.training.checkpoint import digest

folder = Path(sys.argv[1])
with world(timeout=TIMEOUT) as ranks:
    assert current() is ranks and ranks.size == 2 and ranks.is_writer == (ranks.rank == 0)
    assert ranks.gather({"rank": ranks.rank}) == [{"rank": 0}, {"rank": 1}]
    assert ranks.broadcast(ranks.rank + 5) == 5 and ranks.broadcast(ranks.rank + 5, source=1) == 6
    assert ranks.mean(float(ranks.rank)) == 0.5
    assert ranks.on_writer(lambda: (folder / "once").open("x").close() or 7) == 7

    def fail():
        raise InputError("unreadable", hint="Try another.")

    try:
        ranks.on_writer(fail)
        raise SystemExit("the writer's mistake went unnoticed")
    except InputError as error:
        assert str(error).splitlines() == ["unreadable", "  Try another."]
    ranks.barrier()
    teacher = small()
    options = {**OPTIONS, "epochs": 2, "augment": "auto"}
    done = finetune(halved(teacher), teacher, Blobs(), **options, checkpoint=folder / "tune.pt")
    assert done.report["ranks"] == 2 and done.report["images"] == 92 and done.report["held_out"] == 4
    ours = digest(weights_of(done.program))
    assert len(set(ranks.gather(ours))) == 1
    history = [{k: v for k, v in e.items() if k != "seconds"} for e in done.report["history"]]
    assert ranks.gather(history)[0] == history
    again = finetune(halved(teacher), teacher, Blobs(), **options, checkpoint=folder / "tune.pt", resume=True)
    assert digest(weights_of(again.program)) == ours
    print("same", flush=True)
    ranks.barrier()
    if ranks.rank == 1:
        os._exit(9)
    start = time.monotonic()
    try:
        ranks.gather(0)
    except RankError as error:
        assert time.monotonic() - start < TIMEOUT + 5
        print(f"stopped: {error}", flush=True)
# without the teardown of PyTorch's own threads, which now and then aborts once a peer is gone
os._exit(0)
""".replace("TIMEOUT", str(TIMEOUT))


def start(program: str, rank: int, port: int, *arguments: str) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": paths,
    }
    command = [sys.executable, "-P", "-c", program, *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.slow
def test_two_ranks_agree_and_stop_together(tmp_path):
    port = free_port()
    ranks = [start(TOGETHER, rank, port, str(tmp_path)) for rank in (0, 1)]
    try:
        texts = [each.communicate(timeout=240)[0] for each in ranks]
    finally:
        for each in ranks:
            each.kill()
    assert all("same" in text for text in texts), "\n".join(texts)
    assert [each.returncode for each in ranks] == [0, 9], "\n".join(texts)
    assert "stopped: rank 0 of 2 stops, because another rank stopped" in texts[0]
    assert (tmp_path / "tune.pt").is_file() and not list(tmp_path.glob(".svitc-*"))


def test_one_process_needs_no_group(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert current() == DistributedContext()
    with world() as alone:
        assert alone == DistributedContext() and alone.is_writer and not torch.distributed.is_initialized()
        assert alone.gather(3) == [3] and alone.broadcast(3) == 3 and alone.mean(3.0) == 3.0
        assert alone.on_writer(lambda: 3) == 3
        alone.barrier()
        with pytest.raises(RuntimeError, match="gloo"), alone.guard():
            raise RuntimeError("gloo is not what failed here")


def test_an_environment_that_is_not_torchruns(monkeypatch):
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="MASTER_ADDR, MASTER_PORT is not set"), world():
        pass
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UsageError, match="not a whole number"), world():
        pass


def test_ranks_that_never_come(monkeypatch):
    values = {
        "WORLD_SIZE": "2",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    threads, begin = torch.get_num_threads(), time.monotonic()
    with pytest.raises(RankError, match="rank 0 of 2 does not reach the others"), world(timeout=2):
        pass
    assert time.monotonic() - begin < 30
    assert torch.get_num_threads() == threads and current() == DistributedContext()
