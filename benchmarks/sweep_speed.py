"""Compare the sweep with the plain method: how long sensitivity takes, and whether the accuracies are the same.

    python benchmarks/sweep_speed.py spikformer-cifar10.pt cifar10-train.zip --images 200 1000 --rates 0.125 0.5

Plain: each pruned network in eager PyTorch over the same images, from the image on. Ours: `Sweep`, as policies call
it. Both build the same networks, and take the groups of one pruning ratio in turn, so that other load on the machine
affects both alike. With `--ranks`, the whole command `svitc sensitivity` on one core, on one process with two cores,
and on two ranks with one core each.

A row is kept in the results until its model, number of images and ratios are run again.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import RESULTS, publish

PLAIN_BATCH_IMAGES = 50
CALIBRATION_IMAGES = 128


def points(args: argparse.Namespace, images: int) -> list[dict[str, Any]]:
    """Return the time and the number of right images of every plan, in both ways."""
    from svitc import CompileOptions, Compiler, load
    from svitc.data.dataset import load_data
    from svitc.passes.policies.auto import Auto
    from svitc.passes.policies.search_space import Space
    from svitc.passes.policies.sensitivity import ladder

    rows: list[dict[str, Any]] = []
    program = load(args.model)
    data = load_data(args.data, program.input, program.info, limit=images + CALIBRATION_IMAGES)
    options = CompileOptions(data=data, sweep_images=images, calibration_images=CALIBRATION_IMAGES)
    compiler = Compiler(program, Auto(), options)
    sweep = compiler.sweep
    space = Space(compiler.problem().program, Auto(), compiler.problem().calibrating)
    for rate in args.rates:
        plans = []
        for i, choice in enumerate(space.choices):
            for at in ladder(choice, [rate]):
                plans.append(space.plan([*space.full[:i], at, *space.full[i + 1 :]]))
        plans = plans[:: args.every]
        start = time.perf_counter()
        measured = sweep(plans, "readers")
        ours = (time.perf_counter() - start) / len(plans)
        for plan, point in zip(plans, measured, strict=True):
            start = time.perf_counter()
            network, right = sweep.build(plan, "readers"), 0
            for x, labels in batches(sweep.evaluator.chunks, program.input.batch_dim):
                out = network(torch.from_numpy(x))
                right += int(((out.mean(0) if out.ndim == 3 else out).argmax(1).numpy() == labels).sum())
            plain = time.perf_counter() - start
            rows.append({"rate": rate, "ours": ours, "plain": plain, "differ": abs(right - point.right)})
    return rows


def batches(chunks: list[tuple[np.ndarray, np.ndarray]], dim: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the images of a sweep in batches of the plain method's own size."""
    x, labels = np.concatenate([x for x, _ in chunks], axis=dim), np.concatenate([y for _, y in chunks])
    for start in range(0, len(labels), PLAIN_BATCH_IMAGES):
        chosen = slice(start, start + PLAIN_BATCH_IMAGES)
        yield x.take(range(len(labels))[chosen], axis=dim), labels[chosen]


def ranks(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the time of the whole command on cores and ranks."""
    command = [str(args.model), "--data", str(args.data), "--sweep-images", str(args.images[0])]
    command += ["--calibration-images", str(CALIBRATION_IMAGES)]
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


def row_of(args: argparse.Namespace, images: int) -> dict[str, Any]:
    """Measure with one number of images, and return the row of the table."""
    found = points(args, images)
    ours, plain = (sum(point[key] for point in found) for key in ("ours", "plain"))
    return {
        "model": args.model.name,
        "points": len(found),
        "images": images,
        "ratios": " ".join(f"{rate:g}" for rate in args.rates),
        "threads": torch.get_num_threads(),
        "ours s": round(ours, 1),
        "plain s": round(plain, 1),
        "ratio": round(ours / plain, 3),
        "median ratio of a point": round(statistics.median(point["ours"] / point["plain"] for point in found), 3),
        "largest difference, images": max(point["differ"] for point in found),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=[200])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875])
    parser.add_argument("--every", type=int, default=1, help="take one of so many groups, for large numbers of images")
    parser.add_argument("--ranks", action="store_true")
    parser.add_argument("--name", default="sweep_speed")
    args = parser.parse_args()
    stored = RESULTS / f"{args.name}.json"
    rows = json.loads(stored.read_text())["rows"] if stored.is_file() else []
    for images in args.images:
        row = row_of(args, images)
        key = ("model", "images", "ratios", "threads")
        rows = [*(old for old in rows if any(old.get(name) != row[name] for name in key)), row]
    note = "Sensitivity of all groups, each point both ways; see the script."
    publish(args.name, rows, note, ranks=ranks(args) if args.ranks else None)


if __name__ == "__main__":
    main()
