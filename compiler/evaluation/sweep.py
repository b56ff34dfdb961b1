"""The sweep: measures plans, stores every measurement on disk, and shares the work among ranks.

A measurement is stored under a key of what was measured (the plan's masks and bits, and the refit), in a file that
identifies the model, images and settings. Later requests for the same plan (for another budget, by another policy, or
by the same command after it was interrupted) are answered from the file.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from svitc.analysis.calibration import Calibration
from svitc.data.dataset import Dataset, sample, split
from svitc.errors import InputError
from svitc.evaluation.drift import Drift
from svitc.evaluation.evaluator import Evaluator, Measurement, Running
from svitc.evaluation.metric import Metric
from svitc.evaluation.single_changes import SingleChanges
from svitc.evaluation.store import Store, key_of
from svitc.ir.program import Program
from svitc.passes import LowRank, Prune, ReestimateBatchNorm, RefitConsumers, RoundWeights
from svitc.passes.pipelines import quantize
from svitc.planning.plan import Plan
from svitc.support import human
from svitc.support.distributed import DistributedContext, current
from svitc.support.reporter import Reporter
from svitc.support.types import JsonDict

SINGLE_RANK = DistributedContext()
DRIFT_IMAGES = 16
MEASURED_IMAGES = 200  # of images without labels; with fewer beside the calibration images, all are used for both
FEW_IMAGES = 64
BATCH_IMAGES = 5  # larger batches do not fit into the processor's caches
JOINED = 2  # batches whose figures are summed up together: those of files that were written with 10 images in a batch
METRIC_BATCH_IMAGES = 50  # a metric of the user's is a mean over batches
AHEAD = 1  # rounds that run while the next one's networks are built
TURN_S = 0.0005  # a batch may take a millisecond, so that its thread must not wait for Python's 5 until it goes on


@dataclass(frozen=True)
class SweepSettings:
    """Which images plans are chosen on.

    Attributes:
        images: number of images that plans are measured on.
        calibration_images: number of other images, which refits and criteria use.
        seed: seed of the samples.
        seen: whether these are the images that accuracies are reported on.
        metric: the user's metric, or None.
    """

    images: int = 1000
    calibration_images: int = 256
    seed: int = 0
    seen: bool = False
    metric: Metric | None = None


class Sweep:
    """Measures plans.

    Args:
        program: the original.
        evaluator: measures networks on the images that plans are chosen on.
        calibration: statistics on the images that refits use.
        store: where finished measurements go.
        world: ranks to share the work with.
        reporter: told about progress.
        seen: whether plans are chosen on the images that accuracies are reported on.

    Attributes:
        shared: whether plans are measured on the calibration images as well.
        remarks: what the images mean for the plans, for the user to read.
        measured: number of evaluations, without those that were answered from the store.
        seconds: time that the evaluations took.
        silent: layers whose inputs never fired in calibration, so that their weights were rounded without data.
        alone: the measurements of plans that change one thing alone.
    """

    def __init__(
        self,
        program: Program,
        evaluator: Evaluator,
        calibration: Calibration,
        store: Store,
        world: DistributedContext = SINGLE_RANK,
        reporter: Reporter | None = None,
        seen: bool = False,
    ) -> None:
        self.seen, self.shared = seen, False
        self.remarks: list[str] = []
        self.program, self.evaluator, self.calibration = program, evaluator, calibration
        self.store, self.world, self.reporter = store, world, reporter or Reporter()
        store.points = world.broadcast(store.points)  # only the writer has read the file
        self.measured, self.seconds = 0, 0.0
        self.silent: set[str] = set()
        self.alone = SingleChanges()
        self._glances: dict[str, Measurement] = {}
        self._drifts: dict[str, float] = {}
        self._drift: Drift | None = None
        self._rounded: dict[tuple[str, int], torch.Tensor] = {}

    @property
    def original(self) -> Measurement:
        """The measurement of the original."""
        return self.evaluator.original

    @property
    def seconds_each(self) -> float:
        """Upper bound of the time of one evaluation: that of the original on all images, divided by the ranks."""
        return self.evaluator.seconds / self.world.size

    def pending(self, plans: Sequence[Plan], refit: str) -> int:
        """Return how many of these plans are not measured yet."""
        return len({key_of(plan, refit) for plan in plans} - self.store.points.keys())

    def to_json(self) -> JsonDict:
        """Return the images that plans were chosen on and the number and time of evaluations, as JSON values."""
        return {
            "images": self.evaluator.images,
            "calibration_images": self.calibration.images,
            "calibration_images_measured": self.shared,
            "labels": self.evaluator.labeled,
            "on_reported_images": self.seen,
            "evaluations": self.measured,
            "points": len(self.store.points),
            "seconds": round(self.seconds, 3),
            "original": self.original.to_json(),
            "curves": self.alone.curves(),
            "bit_curves": self.alone.bit_curves(),
        }

    def build(self, plan: Plan, refit: str) -> Program:
        """Return the pruned program, refitted, with weights rounded to the plan's bits on the calibration images.

        Layers of a low rank are still whole: SplitLowRank makes two of each.

        Args:
            plan: what to keep.
            refit: ``none``, ``batch-norm`` (statistics are re-estimated), ``readers`` (the weights of consumers are
                solved in closed form) or ``full`` (both).
        """
        pruned = self._build(plan, refit)
        pruned.module.recompile()
        return pruned

    def _build(self, plan: Plan, refit: str) -> Program:
        """Return the same program, which cannot be run before it is recompiled."""
        pruned = self.program.copy(retype=False)
        Prune(plan)(pruned, recompile=False)
        if refit in ("readers", "full"):
            RefitConsumers(self.program, plan, self.calibration)(pruned)
        elif plan.ranks:
            LowRank(plan.ranks)(pruned)
        if plan.bits:
            self._round(pruned, plan)
        if refit in ("batch-norm", "full"):
            spec, inputs = self.program.input, self.calibration.inputs
            # all intermediate values are in memory at the same time
            batch = inputs.narrow(spec.batch_dim, 0, spec.at_once(self.calibration.images))
            ReestimateBatchNorm(self.program, plan, batch)(pruned)
        return pruned

    def _final(self, plan: Plan, refit: str) -> Program:
        """Return the program that would be exported; for a plan with bits, the integer network."""
        built = self._build(plan, refit)
        return quantize(built, plan.bits)[0] if plan.bits else built

    def _round(self, pruned: Program, plan: Plan) -> None:
        """Round weights by moments of the pruned program; rounded weights of the unpruned program are cached."""
        pruned_channels = any(not mask.all() for mask in plan.keep.values())
        calibration: Calibration | None = self.calibration
        if pruned_channels:  # 8 bits lose so little that a calibration run is not worth its time
            images, labels, seed = self.calibration.inputs, self.calibration.labels, self.calibration.seed
            calibration = Calibration(pruned, images, labels, seed) if min(plan.bits.values()) < 8 else None
        rounding = RoundWeights(plan.bits, calibration, {} if pruned_channels else self._rounded)
        rounding(pruned)
        self.silent.update(rounding.silent)

    def __call__(self, plans: Sequence[Plan], refit: str = "none", stage: str = "sweep") -> list[Measurement]:
        """Measure plans and return their measurements in the same order; plans in the store are not measured again.

        Args:
            plans: what to measure.
            refit: how to refit the pruned networks, as in ``build``.
            stage: name of the stage for progress reports.
        """
        keys = [key_of(plan, refit) for plan in plans]
        todo = [(k, p) for k, p in dict(zip(keys, plans, strict=True)).items() if k not in self.store.points]
        size, rank, start_time = self.world.size, self.world.rank, time.perf_counter()
        running: list[tuple[str, Running, JsonDict] | None] = []  # this rank's of each round that has begun
        try:
            with _short_turns():
                for start in range(0, len(todo), size):
                    self.reporter.progress(stage, len(plans) - len(todo) + max(0, start - AHEAD * size), len(plans))
                    batch = todo[start : start + size]
                    begun = None
                    if rank < len(batch):
                        key, plan = batch[rank]
                        about = {"refit": refit, **_widths(plan)}
                        begun = (key, self.evaluator.start(self._final(plan, refit), plan=plan), about)
                    running.append(begun)
                    if len(running) > AHEAD:
                        self._finish(running.pop(0))
                while running:
                    self._finish(running.pop(0))
        except BaseException:
            for entry in running:
                if entry is not None:
                    entry[1].cancel()
            raise
        self.seconds += time.perf_counter() - start_time
        if todo:
            self.reporter.progress(stage, len(plans), len(plans))
        points = [self.store.points[key] for key in keys]
        for plan, point in zip(plans, points, strict=True):
            self.alone.add(plan, refit, point)
        return points

    def _finish(self, entry: tuple[str, Running, JsonDict] | None) -> None:
        """Wait for this rank's measurement of a round, if it has one, and keep those of all ranks."""
        own = None if entry is None else (entry[0], entry[1].result(), entry[2])
        for result in self.world.gather(own):
            if result is not None:
                self._keep(result, writer=self.world.rank == 0)
                self.measured += 1

    def glance(self, plan: Plan, images: int) -> Measurement:
        """Measure a plan on the first images only. Each rank does so for itself; the result is cached in memory."""
        key = f"{key_of(plan, 'none')}@{images}"
        if key not in self._glances:
            self._glances[key] = self.evaluator(self._final(plan, "none"), images, plan)
        return self._glances[key]

    def drift(self, plan: Plan) -> float:
        """Return the drift of the membrane potentials of a plan that removes no channels, in thresholds (``Drift``)."""
        key = f"{key_of(plan, 'none')}~"
        if key not in self._drifts:
            if self._drift is None:
                spec = self.program.input
                inputs = self.calibration.inputs.narrow(
                    spec.batch_dim, 0, min(self.calibration.images, spec.at_once(DRIFT_IMAGES))
                )
                self._drift = Drift(self.program, inputs)
            self._drifts[key] = self._drift(self.build(plan, "none"))
        return self._drifts[key]

    def _keep(self, result: tuple[str, Measurement, JsonDict], writer: bool) -> None:
        key, point, about = result
        if writer:
            self.store.add(key, point, about)
        else:
            self.store.points[key] = point


@contextlib.contextmanager
def _short_turns() -> Iterator[None]:
    """Let a thread go on soon after ONNX Runtime has run its batch, while this one builds the next network."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, TURN_S))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def _widths(plan: Plan) -> JsonDict:
    """Return what a plan keeps, in the form of a line of the store."""
    keeps = {name: f"{int(mask.sum())}/{mask.size}" for name, mask in plan.keep.items() if not mask.all()}
    return {"keeps": keeps} | ({"bits": plan.bits} if plan.bits else {}) | ({"ranks": plan.ranks} if plan.ranks else {})


def open_sweep(program: Program, data: Dataset, store: Store, settings: SweepSettings, reporter: Reporter) -> Sweep:
    """Return a sweep on two samples of a data set: one to measure plans on, one for calibration.

    The samples are class-balanced where there are labels. A few images without labels are used for both: without labels
    there is less to overfit to, and each image counts more.

    Args:
        program: the original.
        data: images to choose plans on.
        store: where finished measurements go.
        settings: sizes and seed of the samples.
        reporter: told about progress.

    Raises:
        InputError: the data set is too small, or no image can be read.
    """
    total = min(len(data), settings.images + settings.calibration_images)
    if total < 4:
        raise InputError(
            f"{data.name} has {human.counted(len(data), 'image')}, too few to choose a plan on", hint="Give more."
        )
    shared = not data.labeled and len(data) < settings.calibration_images + MEASURED_IMAGES
    if data.labeled:
        # classes alternate in a balanced sample, so that a part of it is balanced as well
        chosen = split(data, total if total < len(data) else total - 1, settings.seed)[0]
    else:
        chosen = sample(data, total, settings.seed)
    dim = program.input.batch_dim
    together = program.input.at_once(BATCH_IMAGES * JOINED if settings.metric is None else METRIC_BATCH_IMAGES)
    joined = JOINED if settings.metric is None and together % JOINED == 0 else 1
    batches = list(chosen.batches(together))
    x = torch.cat([x for x, _ in batches], dim=dim)
    y = torch.cat([y for _, y in batches])
    calibration = min(settings.calibration_images, total if shared else total // 2, len(y))
    first = 0 if shared else calibration
    measured_images = min(settings.images, len(y)) if shared else len(y) - calibration
    # ranks and other callers with several sweeps have set the number of threads to their share of the cores
    threads = torch.get_num_threads()
    batch = together // joined
    with reporter.stage("run the original", measured_images) as step:
        images = x.narrow(dim, first, measured_images).split(batch, dim)
        chunks = list(zip(images, y[first : first + measured_images].split(batch), strict=True))
        evaluator = Evaluator(program, chunks, threads=threads, progress=step, metric=settings.metric, joined=joined)
    with reporter.stage("calibrate"):
        statistics = Calibration(program, x.narrow(dim, 0, calibration), y[:calibration], settings.seed)
    sweep = Sweep(program, evaluator, statistics, store, current(), reporter, settings.seen)
    sweep.shared, sweep.remarks = shared, _remarks(data, measured_images, evaluator)
    return sweep


def _remarks(data: Dataset, images: int, evaluator: Evaluator) -> list[str]:
    """Return what the user should know about the images that plans are measured on."""
    remarks = []
    if evaluator.metric is not None:
        remarks.append(f"a point lost is 0.01 of the metric {evaluator.metric.name}")
    elif evaluator.reader.scores is None:
        remarks.append(
            "no single output scores classes, so that a point lost is 1% of relative squared error of the outputs"
        )
    elif not data.labeled:
        remarks.append(
            f"{data.name}: no labels, so that a point lost is 1% of them in another class than the "
            "original's, right or wrong"
        )
    if images < FEW_IMAGES:
        remarks.append(f"the plan is unsure: {images} images are few to choose it on, some hundreds are better")
    return remarks
