"""How often promises of a drop are kept, and what they cost, beside a search that goes as far as its images allow.

    python benchmarks/promises.py measure spikformer-cifar10.pt --train cifar10-train.zip --work kept --seconds 180
    python benchmarks/promises.py report spikformer-cifar10.pt sdt-cifar10.pt --work kept

Plans from cautious to bold are made on images of their own: by ``auto`` (channels; channels and bits) and ``aq-greedy``
(bits). Each network, as it would be written, runs once on a pool of other training images, and its class probabilities
are kept in ``--work``; ``measure`` stops after ``--seconds`` and goes on where it stopped.

``report`` draws images from the pool, with replacement, so that the drop on the whole pool is the truth. Each of
``--splits`` draws is split, and a plan is chosen and confirmed, with the ladder and the tests of ``svitc compile
--max-drop``. "Bisection" chooses on 1,000 of the drawn images by counting right answers, and confirms nothing. A
network that is not pruned at all keeps its promise, and saves nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common import publish
from svitc import CompileOptions, Compiler, load, runtimes
from svitc import onnx as backend
from svitc.data.dataset import load_data
from svitc.errors import BudgetError
from svitc.evaluation.comparison import log_softmax
from svitc.evaluation.evaluator import Measurement
from svitc.evaluation.promise import Classes, confirm, split_images
from svitc.onnx.export import export
from svitc.passes.pipelines import quantize
from svitc.passes.policies import AQGreedy, Auto, Problem
from svitc.passes.policies.bitwidth.aq4svit import levels
from svitc.passes.policies.bitwidth.drift_gate import DriftGate
from svitc.passes.policies.bitwidth.search_space import BitSpace
from svitc.passes.policies.ladder import by_step
from svitc.planning.plan import Plan
from svitc.support.bisection import bisect

MODES = ("pruning", "bits", "joint")
SAVED = {  # shares of the bytes that the plans save
    "pruning": np.linspace(0.045, 0.6, 12),
    "joint": np.linspace(0.75, 0.95, 11),
}
BITS_DROP = 0.04  # that the search for bits may go to
BITS_LEVELS = ("network", "stages", "blocks")  # single layers take long, and save little more
TOLERANCES = (0.005, 0.01, 0.02)
CONFIDENCE = 0.95
BISECTION_IMAGES = 1000
BATCH = 50


@dataclass
class Pool:
    """Class probabilities of the original and of plans on the same images.

    Attributes:
        labels: the right classes, ``[N]``.
        logs: log-probabilities ``[plans + 1, N, classes]``; the first are the original's.
        saved: share of the original's bytes that each plan saves.
    """

    labels: np.ndarray
    logs: np.ndarray
    saved: list[float]

    def __post_init__(self) -> None:
        self.right = self.logs.argmax(axis=-1) == self.labels
        probabilities = np.exp(self.logs[0])
        chosen = np.stack([np.take_along_axis(probabilities, c[:, None], 1)[:, 0] for c in self.logs.argmax(axis=-1)])
        self.regret = probabilities.max(axis=-1) - chosen

    def classes(self, plan: int, images: np.ndarray) -> Classes:
        """Return what a plan, counted from 1, loses and gains on images."""
        before, now = self.right[0, images], self.right[plan, images]
        return Classes(len(images), int((before & ~now).sum()), int((now & ~before).sum()), int(before.sum()))

    def point(self, plan: int, images: np.ndarray) -> Measurement:
        """Return the measurement of a plan on images."""
        found = self.classes(plan, images)
        regret = float(self.regret[plan, images].mean())
        return Measurement(found.right, found.images, found.lost, found.gained, 0.0, 0.0, regret)


@dataclass
class Drawn:
    """A sweep that answers from the pool, on the images that choose."""

    pool: Pool
    plans: list[Plan]
    images: np.ndarray
    seconds_each: float = 0.0

    def __call__(self, plans: list[Plan], refit: str = "none", stage: str = "sweep") -> list[Measurement]:
        """Measure plans."""
        return [self.pool.point(1 + [id(p) for p in self.plans].index(id(plan)), self.images) for plan in plans]


def sources(args: argparse.Namespace, model: Path) -> tuple[Compiler, Any]:
    """Return a compiler that chooses on its own images, and the pool."""
    program = load(model)
    data = load_data(args.train, program.input, program.info, limit=args.choosing + args.pool)
    half = args.choosing // 2
    options = CompileOptions(
        train_data=data.subset(range(args.choosing)),
        sweep_images=half,
        calibration_images=half,
        sweep_file=args.work / f"{model.stem}-{args.modes[0]}.sweep.jsonl",
        resume=True,
    )
    return Compiler(program, Auto(), options), data.subset(range(args.choosing, len(data)))


def make_plans(compiler: Compiler, mode: str) -> list[tuple[Plan, float]]:
    """Return plans from cautious to bold, with the share of the original's bytes that each saves."""
    whole = compiler.workspace.original_bytes
    if mode == "bits":
        problem = compiler.problem(weights="mixed")
        problem.max_drop = BITS_DROP
        space = BitSpace(problem, policy := AQGreedy())
        gate, steps, units = DriftGate(space), [space.widest], levels(space)
        for level in BITS_LEVELS:
            steps += policy.descend(space, gate, steps[-1], level, units[level])
        distinct = {tuple(bits.values()): bits for bits in steps}
        return [(space.plan(bits), 1 - space.cost(bits) / whole) for bits in distinct.values()]
    found = []
    for saved in SAVED[mode].tolist():
        limit = int((1 - saved) * whole)
        try:
            found.append((Auto().plan(compiler.problem(limit, weights="mixed" if mode == "joint" else "fp32")), saved))
        except BudgetError:
            break
    return found


def measure(args: argparse.Namespace, model: Path, end: float) -> bool:
    """Run the original and all plans of the modes on the pool; return False where the time is up."""
    compiler, pool = sources(args, model)
    folder = args.work / model.stem
    folder.mkdir(parents=True, exist_ok=True)
    index = compiler.program.output_names.index("logits") if "logits" in compiler.program.output_names else 0

    def run(path: Path, exported: Callable[[], bytes]) -> bool:
        if path.is_file():
            return True
        if time.monotonic() > end:
            return False
        session = runtimes.session(exported(), 1)
        logs, labels = [], []
        for x, y in pool.batches(BATCH):
            logs.append(log_softmax(session.run(None, {backend.INPUT: x.numpy()})[index]).astype(np.float32))
            labels.append(y.numpy())
        np.savez(path.with_suffix(".part.npz"), logs=np.concatenate(logs), labels=np.concatenate(labels))
        path.with_suffix(".part.npz").rename(path)
        return True

    if not run(folder / "original.npz", lambda: compiler.workspace.original):
        return False
    for mode in args.modes:
        stored = folder / f"{mode}.json"
        if not stored.is_file():
            made = make_plans(compiler, mode)
            stored.write_text(json.dumps([{"plan": plan.to_json(), "saved": saved} for plan, saved in made]))
        rows = json.loads(stored.read_text())
        refit = "batch-norm" if mode == "bits" else "full"
        for i, row in enumerate(rows):
            plan = Plan.from_json(row["plan"])

            def exported(plan: Plan = plan, refit: str = refit) -> bytes:
                built = compiler.sweep.build(plan, refit)
                return export(quantize(built, plan.bits)[0] if plan.bits else built)

            if not run(folder / f"{mode}-{i}.npz", exported):
                print(f"{model.stem}: {mode}, {i} of {len(rows)} plans done")
                return False
    return True


def read(folder: Path, mode: str) -> tuple[Pool, list[Plan]]:
    """Return the pool with what was measured on it, and the plans."""
    rows = [
        row
        for i, row in enumerate(json.loads((folder / f"{mode}.json").read_text()))
        if (folder / f"{mode}-{i}.npz").is_file()
    ]
    paths = [folder / "original.npz", *(folder / f"{mode}-{i}.npz" for i in range(len(rows)))]
    each = [np.load(path)["logs"] for path in paths]
    logs = np.stack([log[: min(map(len, each))] for log in each])
    plans = [Plan.from_json(row["plan"]) for row in rows]
    return Pool(np.load(paths[0])["labels"][: logs.shape[1]], logs, [0.0, *(row["saved"] for row in rows)]), plans


def promised(pool: Pool, plans: list[Plan], images: np.ndarray, drop: float, seed: int) -> int:
    """Return the plan that is promised, counted from 1; 0 for none."""
    chosen, others = (images[part] for part in split_images(len(images), seed))
    problem = Problem(None, None, None, measuring=lambda: Drawn(pool, plans, chosen), max_drop=drop)
    position = {id(plan): 1 + i for i, plan in enumerate(plans)}
    ladder = [position[id(plan)] for plan in by_step(problem, plans, "none", "promises")]
    tested = confirm((pool.classes(plan, others) for plan in ladder), drop, CONFIDENCE).tested
    return ([0, *ladder])[sum(outcome.within(drop, CONFIDENCE) for outcome in tested)]


def bisected(pool: Pool, images: np.ndarray, drop: float) -> int:
    """Return the last plan, counted from 1, that bisection over the plans finds within a drop; 0 for none."""
    chosen = images[:BISECTION_IMAGES]
    return bisect(0, len(pool.saved), lambda plan: pool.point(plan, chosen).drop <= drop)


def rows_of(pool: Pool, plans: list[Plan], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for each number of drawn images and each tolerance."""
    every = np.arange(len(pool.labels))
    truth = [pool.classes(plan, every).drop for plan in range(len(pool.saved))]
    rows = []
    for count in args.draws:
        for drop in TOLERANCES:
            draws = [np.random.default_rng(seed).integers(0, len(every), count) for seed in range(args.splits)]
            ours = [promised(pool, plans, images, drop, seed) for seed, images in enumerate(draws)]
            before = [bisected(pool, images, drop) for images in draws]
            rows.append(
                {
                    "images": count,
                    "may lose": f"{100 * drop:g}",
                    "kept": f"{sum(truth[plan] <= drop for plan in ours)} of {args.splits}",
                    "nothing promised": sum(plan == 0 for plan in ours),
                    "saved": f"{np.mean([pool.saved[plan] for plan in ours]):.1%}",
                    "lost": f"{100 * np.mean([truth[plan] for plan in ours]):.2f}",
                    "bisection: kept": f"{sum(truth[plan] <= drop for plan in before)} of {args.splits}",
                    "bisection: saved": f"{np.mean([pool.saved[plan] for plan in before]):.1%}",
                    "bisection: lost": f"{100 * np.mean([truth[plan] for plan in before]):.2f}",
                    "the pool allows": f"{max(s for s, t in zip(pool.saved, truth, strict=True) if t <= drop):.1%}",
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "report"))
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--train", type=Path, help="training images, for measure")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--choosing", type=int, default=600, help="images that plans are made on")
    parser.add_argument("--pool", type=int, default=1000)
    parser.add_argument("--draws", type=int, nargs="+", default=[3000, 10_000], help="images of each draw")
    parser.add_argument("--splits", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no network after this time")
    args = parser.parse_args()
    if args.what == "measure":
        end = time.monotonic() + args.seconds
        print("done" if all([measure(args, model, end) for model in args.models]) else "not done")
        return
    rows = []
    for model in args.models:
        for mode in args.modes:
            pool, plans = read(args.work / model.stem, mode)
            about = {"network": model.stem.split("-")[0], "plan": mode}
            rows += [{**about, **row} for row in rows_of(pool, plans, args)]
    note = (
        f"{args.splits} draws for each row, with replacement, from a pool of training images that made no plan; the "
        "drop on the whole pool is the truth. Drops in points of top-1, savings in bytes, means over the draws. 30% of "
        "the drawn images choose, the others confirm. A draw that promises nothing keeps its promise and saves "
        'nothing. "Bisection" is the search before: on 1,000 drawn images, by counts, without confirmation. "The pool '
        'allows" is the most that a plan saves whose true drop is within the tolerance.'
    )
    publish("promises", rows, note)


if __name__ == "__main__":
    main()
