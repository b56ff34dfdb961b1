"""Stopping early on a trained model: steps saved, top-1 lost on test images, and how often promises hold.

    python benchmarks/anytime.py spikformer-cifar10.pt --train cifar10-train.zip --test cifar10-test.zip --work scores

The network is the int8 file. Its scores after each step are computed once for all images, and kept in ``--work``. Then:

- A rule is chosen and confirmed on training images, as ``svitc compile --anytime`` does, and measured once on the test
  images. The network has seen the training images, so that a promise on them is not one for test images: the difference
  is in the table. The row "test" chooses and confirms on half of the test images and is measured on the other half.
- Promises: the test images are a pool, and its own drop is the truth. Each of ``--splits`` draws takes images from the
  pool at random, with replacement, chooses and confirms on them, and is kept where the pool's drop is at most the
  tolerance.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from common import RESULTS, environment, made_with, table
from svitc import load
from svitc.data.dataset import load_data
from svitc.evaluation.early_exit import Outcome, choose_path, outcome_of
from svitc.evaluation.promise import Promise, confirm, split_images
from svitc.evaluation.running_scores import running_scores
from svitc.onnx.export import export_step
from svitc.passes.pipelines import quantize

TOLERANCES = (0.0025, 0.005, 0.01, 0.02)
CONFIDENCE = 0.95


def scores_of(args: argparse.Namespace, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return running scores ``[T, N, classes]`` and labels ``[N]`` of the training or the test images."""
    kept = args.work / f"{args.model.stem}-{part}.npz"
    if not kept.is_file():
        program = load(args.model)
        limit = args.train_images if part == "train" else None
        data = load_data(getattr(args, part), program.input, program.info, limit=limit)
        quantized = quantize(program)[0]
        batches = list(running_scores(quantized, export_step(quantized), data))
        running = np.concatenate([scores for scores, _ in batches], axis=1)
        args.work.mkdir(parents=True, exist_ok=True)
        np.savez(kept, running=running, labels=np.concatenate([labels for _, labels in batches]))
    with np.load(kept) as arrays:
        return arrays["running"], arrays["labels"]


def promises(running: np.ndarray, labels: np.ndarray, seed: int) -> dict[float, Promise[Outcome]]:
    """Choose and confirm on images, as a compilation does; return what is promised for each tolerance."""
    chosen, others = split_images(len(labels), seed)
    path = choose_path(running[:, chosen])
    outcomes = [outcome_of(rule, running[:, others], labels[others]) for rule in path]
    return {drop: confirm(outcomes, drop, CONFIDENCE) for drop in TOLERANCES}


def row(name: str, drop: float, promise: Promise[Outcome], running: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Return a row: what was promised, and what the rule does on other images."""
    cells: dict[str, Any] = {"chosen on": name, "may lose": f"{100 * drop:g}"}
    if promise.outcome is None:
        return {
            **cells,
            "confirmed on": 0,
            "lost there": "-",
            "bound": "-",
            "mean steps": "-",
            "saved": "-",
            "lost": "-",
        }
    other = outcome_of(promise.outcome.rule, running, labels)
    steps = len(running)
    return {
        **cells,
        "confirmed on": promise.outcome.images,
        "lost there": f"{100 * promise.outcome.drop:+.2f}",
        "bound": f"{100 * promise.outcome.bound(CONFIDENCE):.2f}",
        "mean steps": f"{other.mean_steps:.2f} of {steps}",
        "saved": f"{1 - other.mean_steps / steps:.1%}",
        "lost": f"{100 * other.drop:+.2f}",
    }


def resampled(running: np.ndarray, labels: np.ndarray, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return for each tolerance how many of the promises hold for the whole pool."""
    kept: dict[float, list[bool]] = {drop: [] for drop in TOLERANCES}
    steps: dict[float, list[float]] = {drop: [] for drop in TOLERANCES}
    for seed in range(args.splits):
        drawn = np.random.default_rng(seed).integers(0, len(labels), args.split_images)
        for drop, promise in promises(running[:, drawn], labels[drawn], seed).items():
            if promise.outcome is None:
                kept[drop].append(True)  # inference never stops early
                steps[drop].append(len(running))
                continue
            truth = outcome_of(promise.outcome.rule, running, labels)
            kept[drop].append(truth.drop <= drop)
            steps[drop].append(truth.mean_steps)
    return [
        {
            "may lose": f"{100 * drop:g}",
            "promises kept": f"{sum(kept[drop])} of {args.splits}",
            "mean steps": f"{np.mean(steps[drop]):.2f}",
            "never stopped": int(np.sum(np.array(steps[drop]) == len(running))),
        }
        for drop in TOLERANCES
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--train-images", type=int, default=40_000)
    parser.add_argument("--splits", type=int, default=100)
    parser.add_argument("--split-images", type=int, default=5000, help="images of each draw")
    parser.add_argument("--work", type=Path, default=Path("anytime-work"))
    args = parser.parse_args()
    (train, train_labels), (test, test_labels) = scores_of(args, "train"), scores_of(args, "test")
    rows = []
    for drop, promise in promises(train, train_labels, 0).items():
        rows.append(row(f"{len(train_labels):,} training images", drop, promise, test, test_labels))
    half, rest = np.split(np.random.default_rng(0).permutation(len(test_labels)), 2)
    for drop, promise in promises(test[:, half], test_labels[half], 0).items():
        rows.append(row(f"{len(half):,} test images", drop, promise, test[:, rest], test_labels[rest]))
    full = [f"{(scores.argmax(-1) == test_labels).mean():.2%}" for scores in test]
    held = resampled(test, test_labels, args)
    env = environment()
    name = f"anytime-{args.model.stem.split('-')[0]}"
    note = (
        f"Top-1 of the int8 file on {len(test_labels):,} test images after each step: {', '.join(full)}; on the "
        f"training images after all: {(train[-1].argmax(-1) == train_labels).mean():.2%}. Points of top-1; confidence "
        f'{CONFIDENCE:.0%}. "Lost there" and "bound" are of the images that confirmed the rule; what follows was '
        "measured on test images that neither chose nor confirmed it."
    )
    pool = (
        f"Promises: {args.splits} draws of {args.split_images:,} images with replacement from the test images, whose "
        "own drop is the truth. A draw that never stops early keeps its promise."
    )
    text = f"# Stopping early: {args.model.name}\n\n{note}\n\n{table(rows)}\n{pool}\n\n{table(held)}\n"
    text += f"`{env['command']}`, {made_with(env)}\n"
    RESULTS.mkdir(exist_ok=True)
    record = {"environment": env, "rows": rows, "promises": held}
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
