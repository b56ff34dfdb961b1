"""What weights of 16 bits cost in accuracy, and how fast their files are beside fp32, int8 and a plain export.

    python benchmarks/int16.py accuracy spikformer-cifar10.pt sdt-cifar10.pt --data cifar10-test.zip [--work DIR]
    python benchmarks/int16.py speed [--models spikformer_s …] [--rounds 9] [--threads 2] [--work DIR] [--prepare]

Accuracy: each checkpoint's fp32 file and its int16 file classify the images once; ``drop`` is in points,
with its paired 95% interval, ``other class`` the share of images that get another class than in fp32.

Speed: models of their published size whose neurons fire, unpruned, one image. All files run in turn in every round, and
ratios are medians over rounds of both times in one round; above 1, what stands behind "over" is faster. The plain
export is ``torch.onnx.export`` of the eager model. Files, and the rows of finished checkpoints, are kept in ``--work``;
``--prepare`` only writes the files.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from operator import truediv
from pathlib import Path

import numpy as np
import torch

import svitc
from common import FULL_SIZE, build, publish, warm
from svitc import onnx as backend
from svitc import runtimes
from svitc.bench.compare import exported
from svitc.bench.runners import Load, Source
from svitc.data.dataset import load_data
from svitc.data.inputs import random_inputs, top1
from svitc.driver.load import run_canonical_passes
from svitc.driver.weight_types import WeightTypes
from svitc.frontends.capture.capture import capture
from svitc.ir.program import Program
from svitc.onnx.export import export
from svitc.passes.pipelines import quantize
from svitc.support.confidence import paired
from svitc.verification.exact_check import verify_exact

WEIGHTS = ("fp32", "int8", "int16")
COMPARED = ("fp32", "int16")  # in accuracy; quantization.py has int8
RATIOS = (("naive", "int16"), ("fp32", "int16"), ("int16", "int8"), ("naive", "fp32"))  # of times
LIMIT_S = 600.0
PAUSE_S = 0.02  # threads of one session spin for a while after its run
BATCH = 100


def final_program(program: Program, weights: str) -> Program:
    """Return the program whose file is written."""
    if weights == "fp32":
        return program
    return quantize(program, WeightTypes(program, weights).same)[0]


def accuracy(checkpoint: Path, images: Path, limit: int | None) -> list[dict[str, object]]:
    """Return the rows of one checkpoint."""
    program = svitc.load(checkpoint)
    data = load_data(images, program.input, program.info, limit=limit)
    files = {weights: export(final_program(program, weights)) for weights in COMPARED}
    sessions = {weights: runtimes.session(file) for weights, file in files.items()}
    batches: dict[str, list[np.ndarray]] = {weights: [] for weights in COMPARED}
    labels = []
    for x, y in data.batches(BATCH):
        labels.append(y.numpy())
        for weights, session in sessions.items():
            batches[weights].append(top1(session.run(None, {backend.INPUT: x.numpy()})[0]))
    truth = np.concatenate(labels)
    classes = {weights: np.concatenate(each) for weights, each in batches.items()}
    rows = []
    for weights in COMPARED:
        right, original = classes[weights] == truth, classes["fp32"] == truth
        lost, gained = int((original & ~right).sum()), int((right & ~original).sum())
        low, high = paired(lost, gained, len(truth))
        rows.append(
            {
                "checkpoint": checkpoint.name,
                "weights": weights,
                "images": len(truth),
                "top-1": float(right.mean()),
                "drop": 100 * (lost - gained) / len(truth),
                "interval": f"{100 * low:+.2f} to {100 * high:+.2f}",
                "other class": float((classes[weights] != classes["fp32"]).mean()),
                "bytes of fp32": backend.weight_bytes(files[weights]) / backend.weight_bytes(files["fp32"]),
            }
        )
    return rows


def kept_rows(checkpoint: Path, images: Path, limit: int | None, work: Path | None) -> list[dict[str, object]]:
    """Return the rows of one checkpoint, from ``work`` if an earlier run has left them there."""
    kept = None if work is None else work / f"{checkpoint.stem}-accuracy.json"
    if kept is not None and kept.is_file():
        return list(json.loads(kept.read_text()))
    rows = accuracy(checkpoint, images, limit)
    if kept is not None:
        kept.write_text(json.dumps(rows))
    return rows


def write_files(name: str, threads: int, folder: Path) -> None:
    """Write those of a model's files that are missing; the int16 file is verified."""
    model, shape = build(name)
    model = warm(model, shape)
    program = capture(model, svitc.InputSpec(shape))
    run_canonical_passes(program)
    for weights in WEIGHTS:
        path = folder / f"{name}-{weights}.onnx"
        if path.is_file():
            continue
        final = final_program(program, weights)
        file = export(final)
        if weights == "int16":
            verdict = verify_exact(final, file, random_inputs(final, 1, 1, 0))
            assert verdict.passed, f"{name}: {verdict.first_divergence}"
        path.write_bytes(file)
    naive = folder / f"{name}-naive.onnx"
    if not naive.is_file():
        arch = f"spikingjelly.activation_based.model:{FULL_SIZE[name][0].__name__}"
        svitc.save(model, folder / f"{name}.pt", arch=arch, input_shape=shape)
        exported(Source(folder / f"{name}.pt"), Load(FULL_SIZE[name][1], 1, threads), naive, LIMIT_S)


def speed(name: str, rounds: int, threads: int, folder: Path) -> dict[str, object]:
    """Return the times of one model's files."""
    kinds = ("naive", *WEIGHTS)
    sessions = {kind: runtimes.session((folder / f"{name}-{kind}.onnx").read_bytes(), threads) for kind in kinds}
    x = torch.randn(1, *FULL_SIZE[name][1], generator=torch.Generator().manual_seed(0)).numpy()
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(rounds):
        turn = number % len(kinds)
        for kind in (*kinds[turn:], *kinds[:turn]):
            time.sleep(PAUSE_S)
            sessions[kind].run(None, {sessions[kind].input_names[0]: x})
            start = time.perf_counter()
            sessions[kind].run(None, {sessions[kind].input_names[0]: x})
            times[kind].append(1e3 * (time.perf_counter() - start))
    return {
        "model": name,
        **{f"{kind} ms": round(statistics.median(times[kind]), 1) for kind in kinds},
        **{f"{a} over {b}": round(statistics.median(map(truediv, times[a], times[b])), 3) for a, b in RATIOS},
        "lowest naive over int16": round(min(map(truediv, times["naive"], times["int16"])), 3),
        "int16 bytes of fp32": round(
            backend.weight_bytes((folder / f"{name}-int16.onnx").read_bytes())
            / backend.weight_bytes((folder / f"{name}-fp32.onnx").read_bytes()),
            4,
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    accurate = commands.add_parser("accuracy")
    accurate.add_argument("checkpoints", type=Path, nargs="+")
    accurate.add_argument("--data", type=Path, required=True)
    accurate.add_argument("--limit", type=int)
    accurate.add_argument("--work", type=Path)
    fast = commands.add_parser("speed")
    models = ["spikformer_s", "sdt_8_384", "qkformer_10_384", "maxformer_10_384"]
    fast.add_argument("--models", nargs="+", default=models, choices=FULL_SIZE)
    fast.add_argument("--rounds", type=int, default=9)
    fast.add_argument("--threads", type=int, default=2)
    fast.add_argument("--work", type=Path)
    fast.add_argument("--prepare", action="store_true")
    args = parser.parse_args()
    if args.command == "accuracy":
        rows = [row for path in args.checkpoints for row in kept_rows(path, args.data, args.limit, args.work)]
        publish("int16_accuracy", rows, __doc__ or "")
        return
    with tempfile.TemporaryDirectory() as place:
        folder = args.work or Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        for name in args.models:
            if any(not (folder / f"{name}-{kind}.onnx").is_file() for kind in ("naive", *WEIGHTS)):
                write_files(name, args.threads, folder)
        if not args.prepare:
            rows = [speed(name, args.rounds, args.threads, folder) for name in args.models]
            publish("int16_speed", rows, __doc__ or "", threads=args.threads)


if __name__ == "__main__":
    main()
