"""The sweep: plans measured in numbers, every finished point on disk, the work shared among ranks.

A point is stored under what was measured (the plan's masks and the refit) in a file that says what it was measured
on. Whoever asks again, another budget, another policy or the same command after a kill, gets it from there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from svitc.analysis.calibration import Calibration
from svitc.data.dataset import Dataset, split
from svitc.errors import InputError
from svitc.evaluation.drift import Drift
from svitc.evaluation.evaluator import Evaluator, Measurement
from svitc.evaluation.store import Store, key_of
from svitc.ir.program import Program
from svitc.passes import Prune, ReestimateBatchNorm, RefitConsumers, RoundWeights
from svitc.passes.pipelines import quantize
from svitc.planning.plan import Plan
from svitc.support.distributed import DistributedContext, current
from svitc.support.reporter import Reporter

ALONE = DistributedContext()
FEW = 16  # images that drift is measured on
BATCH = 50  # images at once: larger batches leave the processor's caches


@dataclass(frozen=True)
class SweepSettings:
    """Which images plans are chosen on.

    Attributes:
        images: how many plans are measured on.
        calibration_images: how many others refits and criteria look at.
        seed: of the samples.
        seen: the images are those that accuracies are reported on.
    """

    images: int = 1000
    calibration_images: int = 256
    seed: int = 0
    seen: bool = False


class Sweep:
    """Measures plans.

    Args:
        program: the original.
        evaluator: of the images that plans are chosen on.
        calibration: of the images that refits use.
        store: where finished points go.
        world: ranks to share the work with.
        reporter: told how far the measuring is.

    Attributes:
        measured: evaluations made now, those from the store not counted.
        seconds: they took.
        seen: the images are those that accuracies are reported on.
        silent: layers whose inputs never fired in calibration, so that their weights were rounded without data.
    """

    def __init__(
        self,
        program: Program,
        evaluator: Evaluator,
        calibration: Calibration,
        store: Store,
        world: DistributedContext = ALONE,
        reporter: Reporter | None = None,
        seen: bool = False,
    ) -> None:
        self.seen = seen
        self.program, self.evaluator, self.calibration = program, evaluator, calibration
        self.store, self.world, self.reporter = store, world, reporter or Reporter()
        store.points = world.broadcast(store.points)  # only the writer has read the file
        self.measured, self.seconds = 0, 0.0
        self.silent: set[str] = set()
        self._glances: dict[str, Measurement] = {}
        self._drifts: dict[str, float] = {}
        self._drift: Drift | None = None
        self._rounded: dict[tuple[str, int], torch.Tensor] = {}

    @property
    def original(self) -> Measurement:
        return self.evaluator.original

    @property
    def seconds_each(self) -> float:
        """What one evaluation takes at most: the whole original on all images, shared by the ranks."""
        return self.evaluator.seconds / self.world.size

    def pending(self, plans: Sequence[Plan], refit: str) -> int:
        """How many of these plans are not measured yet."""
        return len({key_of(plan, refit) for plan in plans} - self.store.points.keys())

    def to_json(self) -> dict[str, Any]:
        """What the plans were chosen on, and the work it took."""
        return {
            "images": self.evaluator.images,
            "calibration_images": self.calibration.images,
            "on_reported_images": self.seen,
            "evaluations": self.measured,
            "points": len(self.store.points),
            "seconds": round(self.seconds, 3),
            "original": self.original.to_json(),
        }

    def build(self, plan: Plan, refit: str) -> Program:
        """The pruned program, refitted: ``none``, ``batch-norm``, ``readers`` (closed form) or ``full``, both.

        Weights that the plan gives bits are rounded, looking at the calibration images.
        """
        pruned = self.program.copy()
        Prune(plan)(pruned)
        if refit in ("readers", "full"):
            RefitConsumers(self.program, plan, self.calibration)(pruned)
        if plan.bits:
            self._round(pruned, plan)
        if refit in ("batch-norm", "full"):
            spec, inputs = self.program.input, self.calibration.inputs
            some = inputs.narrow(spec.batch_dim, 0, spec.at_once(self.calibration.images))  # all values live at once
            ReestimateBatchNorm(self.program, plan, some)(pruned)
        return pruned

    def _final(self, plan: Plan, refit: str) -> Program:
        """What would be exported: of a plan with bits the integer network."""
        built = self.build(plan, refit)
        return quantize(built, plan.bits)[0] if plan.bits else built

    def _round(self, pruned: Program, plan: Plan) -> None:
        """Round weights; moments are the pruned program's own, and what is rounded of the whole one is kept."""
        cut = any(not mask.all() for mask in plan.keep.values())
        seen: Calibration | None = self.calibration
        if cut:  # 8 bits lose so little that looking at images is not worth a run over them
            images, labels, seed = self.calibration.inputs, self.calibration.labels, self.calibration.seed
            seen = Calibration(pruned, images, labels, seed) if min(plan.bits.values()) < 8 else None
        rounding = RoundWeights(plan.bits, seen, {} if cut else self._rounded)
        rounding(pruned)
        self.silent.update(rounding.silent)

    def __call__(self, plans: Sequence[Plan], refit: str = "none", stage: str = "sweep") -> list[Measurement]:
        """Measure plans, in order; those that the store has are not measured again."""
        keys = [key_of(plan, refit) for plan in plans]
        todo = [(k, p) for k, p in dict(zip(keys, plans, strict=True)).items() if k not in self.store.points]
        size, rank = self.world.size, self.world.rank
        for start in range(0, len(todo), size):
            self.reporter.progress(stage, len(plans) - len(todo) + start, len(plans))
            batch = todo[start : start + size]
            begun = time.perf_counter()
            mine = None
            if rank < len(batch):
                key, plan = batch[rank]
                mine = (key, self.evaluator(self._final(plan, refit)), {"refit": refit, **_widths(plan)})
            for each in self.world.gather(mine):
                if each is not None:
                    self._keep(each, writer=rank == 0)
            self.measured += len(batch)
            self.seconds += time.perf_counter() - begun
        if todo:
            self.reporter.progress(stage, len(plans), len(plans))
        return [self.store.points[key] for key in keys]

    def glance(self, plan: Plan, images: int) -> Measurement:
        """A plan measured on the first images only, every rank for itself; kept in memory."""
        key = f"{key_of(plan, 'none')}@{images}"
        if key not in self._glances:
            self._glances[key] = self.evaluator(self._final(plan, "none"), images)
        return self._glances[key]

    def drift(self, plan: Plan) -> float:
        """How far the membranes of a plan that cuts nothing are from the original's, in thresholds, on a few images."""
        key = f"{key_of(plan, 'none')}~"
        if key not in self._drifts:
            if self._drift is None:
                spec = self.program.input
                few = self.calibration.inputs.narrow(spec.batch_dim, 0, min(self.calibration.images, spec.at_once(FEW)))
                self._drift = Drift(self.program, few)
            self._drifts[key] = self._drift(self.build(plan, "none"))
        return self._drifts[key]

    def _keep(self, found: tuple[str, Measurement, dict[str, Any]], writer: bool) -> None:
        key, point, about = found
        if writer:
            self.store.add(key, point, about)
        else:
            self.store.points[key] = point


def _widths(plan: Plan) -> dict[str, Any]:
    keeps = {name: f"{int(mask.sum())}/{mask.size}" for name, mask in plan.keep.items() if not mask.all()}
    return {"keeps": keeps} | ({"bits": plan.bits} if plan.bits else {})


def open_sweep(program: Program, data: Dataset, store: Store, settings: SweepSettings, reporter: Reporter) -> Sweep:
    """Return a sweep on two class-balanced samples of a data set: plans are measured on one, refits look at the other.

    Raises:
        InputError: no image can be read.
    """
    total = min(len(data), settings.images + settings.calibration_images)
    if total < 4:
        raise InputError(f"{data.name} has {len(data)} images, too few to choose a plan on", hint="Give more.")
    calibration = min(settings.calibration_images, total // 2)
    # classes take turns in a balanced sample, so that a part of it is balanced, too
    sample = split(data, total if total < len(data) else total - 1, settings.seed)[0]
    batch = program.input.at_once(BATCH)
    batches = list(sample.batches(batch))
    x = torch.cat([x for x, _ in batches], dim=program.input.batch_dim)
    y = torch.cat([y for _, y in batches])
    dim = program.input.batch_dim
    rest = len(y) - calibration
    threads = torch.get_num_threads()  # ranks, and whoever runs several of these, have set it to their share
    with reporter.stage("run the original", rest) as step:
        chunks = list(
            zip(x.narrow(dim, calibration, rest).split(batch, dim), y[calibration:].split(batch), strict=True)
        )
        evaluator = Evaluator(program, chunks, threads=threads, progress=step)
    with reporter.stage("calibrate"):
        statistics = Calibration(program, x.narrow(dim, 0, calibration), y[:calibration], settings.seed)
    return Sweep(program, evaluator, statistics, store, current(), reporter, settings.seen)
