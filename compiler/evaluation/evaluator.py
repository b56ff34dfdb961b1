"""The evaluator: the accuracy of many pruned networks on the same images, each run from the first layer that differs.

Images without labels count as right where a network chooses the class that the original chooses.

The original runs once, and its spikes are kept, one bit each. A candidate is exported as it would be written, reduced
to the layers behind the neurons whose spikes cannot have changed (onnx/surgery/suffix.py), and run in ONNX Runtime.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import onnx
import torch

from svitc import onnx as backend
from svitc import runtimes
from svitc.evaluation.candidate_files import CandidateFile, CandidateFiles
from svitc.evaluation.comparison import OutputReader, RelativeError
from svitc.evaluation.metric import BatchMetric, Metric
from svitc.evaluation.packed import Packed
from svitc.ir.program import Program, Stage
from svitc.onnx.export import export_proto
from svitc.onnx.surgery import suffix
from svitc.planning.plan import Plan
from svitc.support.confidence import paired, wilson
from svitc.support.types import JsonDict

CACHE_BYTES = 2_000_000_000

Outputs: TypeAlias = tuple[list[np.ndarray], list[np.ndarray]]  # as read, and for a metric as they are


@dataclass(frozen=True)
class Measurement:
    """The accuracy of a network, compared with the original's on the same images.

    Where images have no labels, the label of each is the class that the original chooses: ``right`` counts the images
    of the same class, ``drop`` is the share of the others, and the original's own accuracy is 1.

    Where no output scores classes, or there is a metric of the user's, ``quality`` is the accuracy: the metric, or else
    the share of the original's squared outputs that remains.

    Attributes:
        right: number of images that it classifies correctly.
        images: number of images in total.
        lost: number of images that only the original classifies correctly.
        gained: number of images that only this network classifies correctly.
        loss: mean cross-entropy, in nats.
        divergence: mean Kullback-Leibler divergence of the class probabilities from the original's, in nats; of other
            outputs the relative squared error, and of several outputs the mean of the two.
        regret: mean of how much less probable, by the original, the chosen class is than the original's own choice. If
            the original is as often right as it is confident, that is the accuracy that is lost, and needs no labels.
        quality: the metric, or 1 less the relative squared error of the outputs; None where classes are counted.
        original_quality: that of the original.
    """

    right: int
    images: int
    lost: int
    gained: int
    loss: float
    divergence: float
    regret: float = 0.0
    quality: float | None = None
    original_quality: float = 1.0

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy, a share; or the quality."""
        return self.right / self.images if self.quality is None else self.quality

    @property
    def drop(self) -> float:
        """Accuracy or quality lost compared with the original."""
        return (self.lost - self.gained) / self.images if self.quality is None else self.original_quality - self.quality

    @property
    def expected_drop(self) -> float:
        """The drop that is to be expected on other images.

        Where classes are counted and the original is not always right, that is the regret, which hardly depends on
        which images happen to be right. Without labels the original counts as right, and all that differs is lost.
        """
        return self.drop if self.quality is not None or self.right + self.lost == self.images else self.regret

    def to_json(self) -> JsonDict:
        """Return JSON values, with 95% confidence intervals; those of a quality are not known."""
        low, high = wilson(self.right, self.images)
        less, more = paired(self.lost, self.gained, self.images)
        if self.quality is not None:
            low = high = self.accuracy
            less = more = self.drop
        return {
            **self.fields(),
            "accuracy": self.accuracy,
            "interval": [low, high],
            "drop": self.drop,
            "drop_interval": [less, more],
        }

    @classmethod
    def from_fields(cls, values: Any) -> Measurement:
        """Return a measurement from what ``fields`` returned and a file kept.

        Raises:
            TypeError, ValueError: it is none.
        """
        point = cls(**values)
        counts = (point.right, point.images, point.lost, point.gained)
        real = [point.loss, point.divergence, point.regret, point.original_quality]
        real += [] if point.quality is None else [point.quality]
        if any(type(n) is not int or n < 0 for n in counts) or point.images < max(1, *counts):
            raise ValueError(f"{counts} are no counts of images")
        if any(type(x) not in (int, float) for x in real) or not np.isfinite(point.original_quality):
            raise ValueError(f"{real} are no numbers")
        return point

    def fields(self) -> JsonDict:
        """Return the fields as JSON values, without those on a quality where classes are counted."""
        values = asdict(self)
        return values if self.quality is not None else {k: v for k, v in values.items() if "quality" not in k}


class Running:
    """A measurement under way.

    Args:
        batches: the outputs of each batch, as they will be.
        finish: makes the measurement of them.
    """

    def __init__(self, batches: Sequence[Future[Outputs]], finish: Callable[[list[Outputs]], Measurement]) -> None:
        self._batches, self._finish = batches, finish

    def result(self) -> Measurement:
        """Wait for all batches, and return the measurement."""
        try:
            return self._finish([batch.result() for batch in self._batches])
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Leave out the batches that have not begun."""
        for batch in self._batches:
            batch.cancel()


class Evaluator:
    """Measures pruned or quantized copies of one program on one set of images.

    Args:
        program: the original, at a stage that can be trained.
        batches: images in the program's input layout with their labels, -1 where they have none; all are kept in
            memory.
        threads: threads of ONNX Runtime, by default all cores.
        cache_bytes: largest size of the cached spikes; those of the first layers are left out first.
        progress: called with the number of images that the original has classified.
        metric: the user's function of outputs and targets: the labels, or without any the original's outputs.
        joined: number of batches over which figures are summed up at a time, so that they do not depend on how many
            images run together.

    Attributes:
        original: the measurement of the original.
        seconds: time that the original took for all images.
        spikes: for each batch, neuron -> cached spikes of the original.
        labeled: whether the images have labels, and an output scores classes.
        reader: reads what is compared of the outputs.
        files: makes the files of candidates.
    """

    def __init__(
        self,
        program: Program,
        batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
        *,
        threads: int | None = None,
        cache_bytes: int = CACHE_BYTES,
        progress: Callable[[int], None] | None = None,
        metric: Metric | None = None,
        joined: int = 1,
    ) -> None:
        self.joined = joined
        self.program, self.threads = program, threads
        self.chunks = [(x.numpy(), y.numpy()) for x, y in batches]
        self.images = sum(len(y) for _, y in self.chunks)
        self.reader, self.names = OutputReader(program), program.output_names
        self.metric = None if metric is None else BatchMetric(metric, program)
        has_labels = all((y >= 0).all() for _, y in self.chunks)
        self.labeled = has_labels and (self.reader.scores is not None or metric is not None)
        self.spikes: list[dict[str, Packed]] = []
        self._outputs: list[list[np.ndarray]] = []  # of the original, as read, batch by batch
        self._targets: list[Any] = [torch.from_numpy(y) for _, y in self.chunks] if has_labels else []
        workers = min(threads or os.cpu_count() or 1, len(self.chunks))
        self._session_threads = max(1, (threads or os.cpu_count() or 1) // workers)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="evaluator")
        self._run_original(cache_bytes, progress, has_labels)
        scores = self.reader.scores
        if scores is not None and not has_labels:
            pairs = zip(self.chunks, self._outputs, strict=True)
            self.chunks = [(x, read[scores.index].argmax(axis=-1)) for (x, _), read in pairs]
        self.original = self._point(self._outputs, self._qualities)

    def _run_original(self, cache_bytes: int, progress: Callable[[int], None] | None, has_labels: bool) -> None:
        """Run the original on all images, and keep its outputs and spikes."""
        model = export_proto(self.program.copy())
        self.files = CandidateFiles(self.program, model)
        exposed = suffix.expose(model, self._cacheable(model, cache_bytes))
        session = self._session(model)
        names = [*self.names, *(spike.value for spike in exposed)]
        count = len(self.names)

        def run(x: np.ndarray) -> tuple[Outputs, dict[str, Packed]]:
            values = session.run(names, {backend.INPUT: x})
            packed = {e.path: Packed(v) for e, v in zip(exposed, values[count:], strict=True)}
            return self._read(values[:count]), packed

        done, start = 0, time.perf_counter()
        self._qualities: list[float] = []
        for (read, values), packed in self._pool.map(run, [x for x, _ in self.chunks]):
            self.spikes.append(packed)
            self._outputs.append(read)
            if self.metric is not None:
                if not has_labels:
                    self._targets.append(self.metric.tensors(values))
                self._qualities.append(self.metric(values, self._targets[len(self._qualities)]))
            done += len(self.chunks[len(self.spikes) - 1][1])
            if progress is not None:
                progress(done)
        self.seconds = time.perf_counter() - start

    def _session(self, model: onnx.ModelProto | bytes) -> runtimes.Session:
        """Load a model so that the pool's threads, each with a batch of its own, use all threads together."""
        file = model if isinstance(model, bytes) else model.SerializeToString()
        return runtimes.session(file, self._session_threads)

    def _read(self, values: list[np.ndarray]) -> Outputs:
        """Return what networks are compared by, and where there is a metric the outputs themselves."""
        return self.reader(values), values if self.metric is not None else []

    def _cacheable(self, model: onnx.ModelProto, cache_bytes: int) -> set[str]:
        """Return the neurons whose spikes are cached: the last ones that fit, by their size for one image."""
        probe = onnx.ModelProto()
        probe.CopyFrom(model)
        exposed = suffix.expose(probe, {spike.path for spike in suffix.spikes(model)})
        x = self.chunks[0][0]
        batch = self.program.input.batch_dim
        values = self._session(probe).run(
            [spike.value for spike in exposed], {backend.INPUT: np.take(x, [0], axis=batch)}
        )
        kept: set[str] = set()
        for spike, value in reversed(list(zip(exposed, values, strict=True))):
            cache_bytes -= value.size * self.images // (8 if value.max(initial=0) <= 1 else 1)
            if cache_bytes < 0:
                break
            kept.add(spike.path)
        return kept

    def __call__(self, candidate: Program, images: int | None = None, plan: Plan | None = None) -> Measurement:
        """Measure a pruned or quantized copy of the program, as ``start`` does, and wait for the result."""
        return self.start(candidate, images, plan).result()

    def start(self, candidate: Program, images: int | None = None, plan: Plan | None = None) -> Running:
        """Begin to measure a pruned or quantized copy of the program; the copy is consumed.

        Args:
            candidate: the copy.
            images: measure on this many images only, rounded up to whole batches.
            plan: the channels that were kept, where that is known: the neurons of pruned channels are not run again.
        """
        if candidate.stage >= Stage.QUANTIZED:  # all spikes may differ, so that the whole file has to run
            file = CandidateFile(export_proto(candidate), {}, [])
        else:
            file = self.files(candidate, plan, self.spikes[0])
        takes_image = any(value.name == backend.INPUT for value in file.model.graph.input)
        # beside the next candidate's export, as loading holds no lock of Python; the pool begins it before the batches
        opened = self._pool.submit(self._session, file.model)

        def run(number: int) -> Outputs:
            spikes = self.spikes[number]
            feed = {spike.value: spikes[spike.path].unpack(file.known[spike.path].of) for spike in file.fed}
            if takes_image:
                feed[backend.INPUT] = self.chunks[number][0]
            return self._read(opened.result().run(self.names, feed))

        return self._submit(run, images)

    def measure_file(self, exported: bytes) -> Measurement:
        """Measure an exported file of a network with the program's input and classes."""
        session = self._session(exported)
        return self._submit(
            lambda number: self._read(session.run(self.names, {backend.INPUT: self.chunks[number][0]}))
        ).result()

    def _submit(self, run: Callable[[int], Outputs], images: int | None = None) -> Running:
        """Run the first batches in the pool.

        Args:
            run: returns the outputs of a batch, by its number.
            images: number of images, rounded up to whole batches; None for all.
        """
        before = np.cumsum([0, *(len(labels) for _, labels in self.chunks)])[:-1]
        first_of = [before[i - i % self.joined] for i in range(len(before))]
        numbers = [i for i, first in enumerate(first_of) if images is None or first < images]

        def finish(outputs: list[Outputs]) -> Measurement:
            qualities = []
            if self.metric is not None:
                qualities = [self.metric(o, t) for (_, o), t in zip(outputs, self._targets, strict=False)]
            return self._point([read for read, _ in outputs], qualities)

        return Running([self._pool.submit(run, number) for number in numbers], finish)

    def _point(self, read: list[list[np.ndarray]], qualities: list[float]) -> Measurement:
        """Compare outputs, batch by batch, with the labels and with the original's.

        Args:
            read: what was read of the outputs.
            qualities: the metric, where there is one.
        """
        scores, images = self.reader.scores, sum(len(y) for _, y in self.chunks[: len(read)])
        errors = self._relative_errors(read)
        error = sum(errors.values()) / len(errors) if errors else 0.0
        quality, original_quality = None, 1.0
        if self.metric is not None:
            quality, original_quality = self._mean(qualities), self._mean(self._qualities[: len(qualities)])
        if scores is None:
            quality = 1 - error if quality is None else quality
            return Measurement(images, images, 0, 0, 0.0, error, 0.0, quality, original_quality)
        counted = self._counted([outputs[scores.index] for outputs in read], scores.index)
        divergence = (counted.divergence + sum(errors.values())) / len(self.names)
        return replace(counted, divergence=divergence, quality=quality, original_quality=original_quality)

    def _mean(self, qualities: list[float]) -> float:
        """Return the mean over images of a metric, given for each batch."""
        sizes = [len(labels) for _, labels in self.chunks[: len(qualities)]]
        return sum(q * n for q, n in zip(qualities, sizes, strict=True)) / sum(sizes)

    def _relative_errors(self, read: list[list[np.ndarray]]) -> dict[int, float]:
        """Return the relative squared error of each output that does not score classes."""
        errors = {}
        for i in range(len(self.names)):
            if self.reader.scores is None or self.reader.scores.index != i:
                total = RelativeError()
                values, originals = (self._together([x[i] for x in every]) for every in (read, self._outputs))
                for value, original in zip(values, originals, strict=False):
                    total.add(value, original)
                errors[i] = total.share
        return errors

    def _counted(self, logs: list[np.ndarray], index: int) -> Measurement:
        """Compare log-probabilities, batch by batch, with the labels and with the original's, of output ``index``."""
        logs = self._together(logs)
        originals = self._together([outputs[index] for outputs in self._outputs])
        targets = self._together([labels for _, labels in self.chunks])
        right = lost = gained = 0
        loss = divergence = regret = 0.0
        images = 0
        for log, reference, labels in zip(logs, originals, targets, strict=False):
            images += len(labels)
            right_now, right_before = log.argmax(axis=-1) == labels, reference.argmax(axis=-1) == labels
            right += int(right_now.sum())
            lost += int((right_before & ~right_now).sum())
            gained += int((right_now & ~right_before).sum())
            loss -= float(np.take_along_axis(log, labels[:, None], axis=-1).sum())
            probabilities = np.exp(reference)
            divergence += float((probabilities * (reference - log)).sum())
            chosen = np.take_along_axis(probabilities, log.argmax(axis=-1)[:, None], axis=-1)[:, 0]
            regret += float((probabilities.max(axis=-1) - chosen).sum())
        return Measurement(right, images, lost, gained, loss / images, divergence / images, regret / images)

    def _together(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Join the arrays of batches whose figures are summed up at a time."""
        return [np.concatenate(values[i : i + self.joined]) for i in range(0, len(values), self.joined)]
