"""Compare how long two commits take to load and to compile the known families, in turn on the same machine.

    python benchmarks/compile_time.py 5c1a129          # that commit against the working tree
    python benchmarks/compile_time.py 5c1a129 HEAD --rounds 9 --only spikformer,spikformer_ti

Each commit has a process of its own that stays; both take the same checkpoint one after the other, and who is first
alternates. Times are CPU seconds of one thread, so that other load counts little. The first round warms up and does not
count. ``load`` is reading, capture, the check against the eager model and the canonical passes; ``compile`` the rest:
policy uniform, budget 0.78, no data. ``first load`` is that of the first round, in which memory is new.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from common import publish
from same_files import make_models, package, without_images

SMALL = (
    "spikformer",
    "sdt",
    "qkformer-token",
    "maxformer",
    "published-sdt",
    "published-meta",
    "published-espikeformer",
)
LARGE = "spikformer_ti"
PHASES = ("load", "compile")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before")
    parser.add_argument("after", nargs="?", help="a commit; by default the working tree")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="names of models, separated by commas")
    arguments = parser.parse_args()
    names = [name for name in arguments.only.split(",") if name] or [*SMALL, LARGE]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        paths = [package(commit, work) for commit in (arguments.before, arguments.after)]
        make_models(work / "models", names, paths[1])
        workers = [start(path) for path in paths]
        rows, raw = [], {}
        for name in names:
            raw[name] = pairs = []
            for i in range(arguments.rounds + 1):
                answers: dict[int, dict[str, float]] = {}
                for side in (0, 1) if i % 2 else (1, 0):
                    answers[side] = ask(workers[side], work / "models" / f"{name}.pt")
                pairs.append((answers[0], answers[1]))
            rows.append(row(name, pairs))
            print(rows[-1], flush=True)
        for worker in workers:
            worker.communicate()
    if not arguments.only:
        note = "\n\n".join(paragraph for paragraph in (__doc__ or "").split("\n\n") if not paragraph.startswith(" "))
        publish("compile_time", rows, f"{note.strip()} Medians of {arguments.rounds} rounds.", raw=raw)


def start(path: Path) -> subprocess.Popen:
    """Start a process that times the ``svitc`` in a folder."""
    return subprocess.Popen(
        [sys.executable, __file__, "--worker"],
        env={**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def ask(worker: subprocess.Popen, checkpoint: Path) -> dict[str, float]:
    """Return the CPU seconds of each phase for a checkpoint."""
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write(f"{checkpoint}\n")
    worker.stdin.flush()
    return json.loads(worker.stdout.readline())


def work() -> None:
    """Answer with times for each checkpoint that is asked for."""
    import svitc

    torch.set_num_threads(1)
    options = {"no_data": "uniform"} if without_images() else {}
    for line in sys.stdin:
        start = time.process_time()
        program = svitc.load(line.strip())
        loaded = time.process_time()
        svitc.compile(program, 0.78, policy=svitc.Uniform(), **options)
        print(json.dumps({"load": loaded - start, "compile": time.process_time() - loaded}), flush=True)


def row(name: str, pairs: list[tuple[dict[str, float], dict[str, float]]]) -> dict[str, Any]:
    """Return medians of both sides, and the median of the ratios of the pairs."""
    result: dict[str, Any] = {"model": name}
    for phase in PHASES:
        for side, label in enumerate(("before", "after")):
            result[f"{phase} {label} s"] = round(statistics.median(pair[side][phase] for pair in pairs[1:]), 3)
        result[f"{phase} ratio"] = round(statistics.median(b[phase] / a[phase] for a, b in pairs[1:]), 3)
    result["ratio"] = round(statistics.median(sum(b.values()) / sum(a.values()) for a, b in pairs[1:]), 3)
    result["first load ratio"] = round(pairs[0][1]["load"] / pairs[0][0]["load"], 3)
    return result


if __name__ == "__main__":
    if sys.argv[1:] == ["--worker"]:
        work()
    else:
        main()
