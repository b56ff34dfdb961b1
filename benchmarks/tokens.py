"""Fewer tokens: what they cost on trained networks, and how much faster int8 files of 224x224 images become.

    python benchmarks/tokens.py accuracy spikformer-cifar10.pt sdt-cifar10.pt --train train.zip --test test.zip
    python benchmarks/tokens.py files                        # int8 files at 224x224, in the folder --work
    python benchmarks/tokens.py speed                        # times them, a round of each in turn

Tokens are chosen on training images; test images are used once for each row. The networks of 224x224 have random
weights with fitted batch norms, and ``files`` compares on synthetic images how far the file of 22% fewer channels
(``auto``) and those of fewer tokens diverge from the original. Finished parts are kept in ``--work``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import build, publish, warm
from svitc import runtimes
from svitc.data.dataset import Dataset, load_data, unlabeled_dataset
from svitc.data.synthetic_images import SyntheticImages
from svitc.driver.apply import apply_plan, prune_and_round
from svitc.driver.compiler import Compiler
from svitc.driver.load import load, run_canonical_passes
from svitc.driver.options import CompileOptions
from svitc.driver.plan_search import search_plan
from svitc.frontends.capture.capture import capture
from svitc.ir.graph import InputSpec
from svitc.ir.program import Program
from svitc.onnx.export import export
from svitc.passes.pipelines import quantize
from svitc.passes.policies import make
from svitc.passes.policies.tokens import choose_tokens
from svitc.planning.plan import Plan

SHARES = (1.0, 0.75, 0.5, 0.25)
LARGE = ("spikformer_s", "qkformer_10_384")
LARGE_SHARES = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
CALIBRATION_IMAGES = 256
DRAWN = (12, 12)  # synthetic images to choose on, and to measure on
BATCH_IMAGES = 50


def scores_of(file: bytes, batches: Sequence[np.ndarray]) -> np.ndarray:
    """Return the class scores of a file, ``[images, classes]``."""
    session = runtimes.session(file)
    return np.concatenate([session.run(None, {"image": x})[0] for x in batches])


def divergence(reference: np.ndarray, scores: np.ndarray) -> float:
    """Return the mean Kullback-Leibler divergence of the class probabilities, in nats."""
    p, q = (torch.from_numpy(s).double().log_softmax(1) for s in (reference, scores))
    return float((p.exp() * (p - q)).sum(1).mean())


def int8_of(program: Program, share: float, images: torch.Tensor) -> bytes:
    """Return the int8 file of a share of the tokens."""
    plan = Plan({}, tokens=choose_tokens(program, images, share))
    return export(quantize(prune_and_round(program, plan))[0])


def accuracy(args: argparse.Namespace) -> None:
    """Measure int8 files of fewer tokens on test images."""
    rows: list[dict[str, Any]] = []
    for model in args.models:
        done = args.work / f"{model.stem}.json"
        if not done.is_file():
            done.write_text(json.dumps(accuracy_rows(model, args), indent=1))
        rows += json.loads(done.read_text())
    note = (
        f"int8 files on {args.limit or 'all'} test images. Tokens chosen on {CALIBRATION_IMAGES} training images. "
        "Divergence is from the original's class probabilities, in nats, lost are points of top-1 against fp32."
    )
    publish("tokens_accuracy", rows, note)


def accuracy_rows(model: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each share of the tokens."""
    program = load(model)
    train = load_data(args.train, program.input, program.info, limit=CALIBRATION_IMAGES)
    images = torch.cat([x for x, _ in train.batches(BATCH_IMAGES)])
    test = list(load_data(args.test, program.input, program.info, limit=args.limit).batches(BATCH_IMAGES))
    batches, labels = [x.numpy() for x, _ in test], np.concatenate([y.numpy() for _, y in test])
    original = scores_of(export(program), batches)
    right = float((original.argmax(1) == labels).mean())
    rows = []
    for share in SHARES:
        scores = scores_of(int8_of(program, share, images), batches)
        top1 = float((scores.argmax(1) == labels).mean())
        rows.append(
            {
                "model": model.stem,
                "tokens": share,
                "images": len(labels),
                "top-1": f"{top1:.2%}",
                "lost": f"{100 * (right - top1):+.2f}",
                "same class": f"{(scores.argmax(1) == original.argmax(1)).mean():.2%}",
                "divergence": divergence(original, scores),
            }
        )
    return rows


def large(name: str) -> tuple[Program, Dataset]:
    """Return a network at its published size with random weights, and synthetic images."""
    model, shape = build(name)
    program = capture(warm(model, shape, 1), InputSpec(shape))
    run_canonical_passes(program)
    images = SyntheticImages(program.input, 0)
    return program, unlabeled_dataset("synthetic images", images, sum(DRAWN), program.input, {})


def channels_file(program: Program, data: Dataset, path: Path) -> bytes:
    """Return the int8 file with 22% fewer parameters, as ``auto`` removes channels; its work is kept in files."""
    options = CompileOptions(
        data=data,
        weights="int8",
        sweep_images=DRAWN[1],
        calibration_images=DRAWN[0],
        sweep_file=path.with_suffix(".jsonl"),
        resume=True,
    )
    compiler = Compiler(program, make("auto", criterion="l2"), options)
    if not path.is_file():
        task = compiler.task("params=0.78", None, compiler.reporter)
        plan = search_plan(compiler.workspace, compiler.policy, task, compiler.reporter).plan
        path.write_text(json.dumps(plan.to_json()))
    plan = Plan.load(path)
    prepared = compiler.task(None, plan, compiler.reporter).prepared
    pruned = apply_plan(compiler.workspace, prepared, plan, str(plan.provenance.get("refit", "none")))
    return export(quantize(pruned, plan.bits)[0])


def files(args: argparse.Namespace) -> None:
    """Write the int8 files of both networks, and measure how far they diverge."""
    for name in map(str, args.models or LARGE):
        write_files(name, args.work)


def write_files(name: str, work: Path) -> None:
    """Write the int8 files of one network, and ``NAME.json`` with how far each diverges; what is there stays."""
    program, data = large(name)
    x = torch.cat([x for x, _ in data.batches(DRAWN[0])])
    held = [x[i : i + 1].numpy() for i in range(DRAWN[0], sum(DRAWN))]
    original = scores_of(export(program), held)
    done = work / f"{name}.json"
    rows: dict[str, float] = json.loads(done.read_text()) if done.is_file() else {}
    for label in [label for label in (*map("{:g}".format, (1.0, *LARGE_SHARES)), "channels") if label not in rows]:
        if label == "channels":
            file = channels_file(program, data, work / f"{name}-plan.json")
        else:
            file = int8_of(program, float(label), x[: DRAWN[0]])
        (work / f"{name}-{label}.onnx").write_bytes(file)
        rows[label] = divergence(original, scores_of(file, held))
        done.write_text(json.dumps(rows, indent=1))
        print(name, label, rows[label], flush=True)


def speed(args: argparse.Namespace) -> None:
    """Time the files: the network, 22% fewer channels, and the fewest tokens that diverge no more than these."""
    rows = []
    for name in map(str, args.models or LARGE):
        found = json.loads((args.work / f"{name}.json").read_text())
        within = [share for share in LARGE_SHARES if found[f"{share:g}"] <= found["channels"]]
        shares = sorted({0.5, min(within, default=LARGE_SHARES[0])}, reverse=True)
        labels = ["1", "channels", *map("{:g}".format, shares)]
        times = paired([(args.work / f"{name}-{label}.onnx").read_bytes() for label in labels], args)
        for label, each in zip(labels, times, strict=True):
            rows.append(
                {
                    "network": name,
                    "int8 file": {"1": "all", "channels": "22% fewer channels"}.get(label, f"tokens {label}"),
                    "ms": 1e3 * float(np.median(each)),
                    "times faster": float(np.median(times[0] / each)),
                    "divergence": found[label],
                    "diverges no more than fewer channels": "yes" if found[label] <= found["channels"] else "no",
                }
            )
    note = (
        f"One image of 224x224 at T=4, {args.threads} threads, medians of {args.rounds} paired rounds. Random weights "
        f"with fitted batch norms; divergence from the fp32 file in nats, on {DRAWN[1]} synthetic images. Of the "
        f"shares {', '.join(map('{:g}'.format, LARGE_SHARES))} the fewest tokens that diverge no more than 22% fewer "
        f"channels are timed, or {LARGE_SHARES[0]:g} where all diverge more; and half of the tokens."
    )
    every = {row["network"]: json.loads((args.work / f"{row['network']}.json").read_text()) for row in rows}
    publish("tokens_speed", rows, note, divergences=every)


def paired(files: Sequence[bytes], args: argparse.Namespace) -> np.ndarray:
    """Return the seconds of each file in each round, ``[files, rounds]``."""
    sessions = [runtimes.session(file, threads=args.threads) for file in files]
    x = np.random.default_rng(0).random((1, 3, 224, 224), dtype=np.float32)
    seconds = np.zeros((len(files), args.rounds + 1))
    for r in range(args.rounds + 1):  # the first one warms up
        for i, session in enumerate(sessions):
            start = time.perf_counter()
            session.run(None, {"image": x})
            seconds[i, r] = time.perf_counter() - start
    return seconds[:, 1:]


def main() -> None:
    """Run one of the parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["accuracy", "files", "speed"])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--limit", type=int, help="number of test images")
    parser.add_argument("--work", type=Path, default=Path("tokens-work"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    {"accuracy": accuracy, "files": files, "speed": speed}[args.part](args)


if __name__ == "__main__":
    main()
