"""Compare the sweep with the plain method: how long sensitivity takes, and whether the accuracies are the same.

    python benchmarks/sweep_speed.py spikformer-cifar10.pt cifar10-train.zip --images 500

Plain: each pruned network in eager PyTorch over the same images, from the image on. Ours: exported, cut down to what
follows the neurons that fire as before, in ONNX Runtime, export and session included. Both take the same points in
turn, so that other load on the machine affects both alike. With `--ranks`, the whole command `svitc sensitivity` on
one core, on one process with two cores, and on two ranks with one core each.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import publish


def points(args: argparse.Namespace) -> list[dict[str, Any]]:
    from svitc import CompileOptions, Compiler, load
    from svitc.data.dataset import load_data
    from svitc.passes.policies.auto import Auto
    from svitc.passes.policies.search_space import Space
    from svitc.passes.policies.sensitivity import LADDER, sensitivity_curves

    rows: list[dict[str, Any]] = []
    program = load(args.model)
    data = load_data(args.data, program.input, program.info, limit=args.images + 128)
    options = CompileOptions(data=data, sweep_images=args.images, calibration_images=128)
    compiler = Compiler(program, Auto(), options)
    sweep = compiler.sweep
    ours = sweep.evaluator.__call__

    def both(candidate: Any) -> Any:
        twin = candidate.copy()
        start = time.perf_counter()
        point = ours(candidate)
        middle = time.perf_counter()
        right = 0
        for x, labels in sweep.evaluator.chunks:
            import torch

            out = twin(torch.from_numpy(x))
            right += int(((out.mean(0) if out.ndim == 3 else out).argmax(1).numpy() == labels).sum())
        rows.append({"ours": middle - start, "plain": time.perf_counter() - middle, "same": right - point.right})
        return point

    sweep.evaluator = Both(sweep.evaluator, both)
    problem = compiler.problem()
    sensitivity_curves(problem, Space(problem.program, Auto(), problem.calibrating), LADDER, "readers", "benchmark")
    return rows


class Both:
    """An evaluator that also measures with the plain method."""

    def __init__(self, inner: Any, call: Any) -> None:
        self.inner, self.call = inner, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, candidate: Any) -> Any:
        return self.call(candidate)


def ranks(args: argparse.Namespace) -> list[dict[str, Any]]:
    command = [
        str(args.model),
        "--data",
        str(args.data),
        "--sweep-images",
        str(args.images),
        "--calibration-images",
        "128",
    ]
    found = []
    for name, threads, prefix in (
        ("one process, one core", 1, [sys.executable, "-m"]),
        ("one process, two cores", 2, [sys.executable, "-m"]),
        ("two ranks, one core each", 1, ["torchrun", "--nproc-per-node", "2", "-m"]),
    ):
        with tempfile.TemporaryDirectory() as folder:
            env = os.environ | {"OMP_NUM_THREADS": str(threads)}
            start = time.perf_counter()
            whole = [*prefix, "svitc", "sensitivity", *command, "-o", f"{folder}/curves.json"]
            subprocess.run(whole, env=env, check=True, capture_output=True)
            found.append({"run": name, "seconds": round(time.perf_counter() - start, 1)})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--ranks", action="store_true")
    parser.add_argument("--name", default="sweep_speed")
    args = parser.parse_args()
    rows = points(args)
    ours, plain = (sum(row[key] for row in rows) for key in ("ours", "plain"))
    summary = {
        "points": len(rows),
        "images": args.images,
        "ours s": round(ours, 1),
        "plain s": round(plain, 1),
        "ratio": round(ours / plain, 3),
        "median ratio of a point": round(statistics.median(row["ours"] / row["plain"] for row in rows), 3),
        "largest difference, images": max(abs(row["same"]) for row in rows),
    }
    note = "Sensitivity of all groups, each point both ways; see the script."
    publish(args.name, [summary], note, points=rows, ranks=ranks(args) if args.ranks else None)


if __name__ == "__main__":
    main()
