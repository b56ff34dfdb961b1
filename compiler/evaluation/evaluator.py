"""The evaluator: the accuracy of many pruned networks on the same images, each run from the first layer that differs.

Images without labels count as right where a network chooses the class that the original chooses.

The original runs once, and its spikes are kept, one bit each. A candidate is exported as it would be written, reduced
to the layers behind the neurons whose spikes cannot have changed (onnx/surgery/suffix.py), and run in ONNX Runtime.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx
import torch
from torch import fx

from svitc import onnx as backend
from svitc import runtimes
from svitc.evaluation.comparison import OutputReader, RelativeError
from svitc.evaluation.metric import BatchMetric, Metric
from svitc.ir.program import Program, Stage
from svitc.onnx.export import export_proto
from svitc.onnx.surgery import suffix
from svitc.support.confidence import paired, wilson
from svitc.support.types import JsonDict

CACHE_BYTES = 2_000_000_000


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

    def fields(self) -> JsonDict:
        """Return the fields as JSON values, without those on a quality where classes are counted."""
        values = asdict(self)
        return values if self.quality is not None else {k: v for k, v in values.items() if "quality" not in k}


class Packed:
    """A spike tensor, stored as bits, or as bytes where a neuron may emit several spikes in one time step.

    Args:
        values: whole numbers from 0 to 255, of any shape.
    """

    def __init__(self, values: np.ndarray) -> None:
        self.shape, self.binary = values.shape, bool(((values == 0) | (values == 1)).all())
        small = values.astype(np.uint8)
        assert self.binary or (small == values).all()
        self.data = np.packbits(small.reshape(-1)) if self.binary else small.reshape(-1)

    def unpack(self) -> np.ndarray:
        """Return the tensor in float32."""
        count = int(np.prod(self.shape))
        flat = np.unpackbits(self.data, count=count) if self.binary else self.data
        return flat.astype(np.float32).reshape(self.shape)


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

    Attributes:
        original: the measurement of the original.
        seconds: time that the original took for all images.
        spikes: for each batch, neuron -> cached spikes of the original.
        labeled: whether the images have labels, and an output scores classes.
        reader: reads what is compared of the outputs.
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
    ) -> None:
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
        self._state = {name: value.clone() for name, value in program.module.state_dict().items()}
        model = export_proto(program.copy())
        exposed = suffix.expose(model, self._cacheable(model, cache_bytes))
        session = runtimes.session(model.SerializeToString(), threads)
        done, start = 0, time.perf_counter()
        qualities: list[float] = []
        for x, labels in self.chunks:
            values = session.run([*self.names, *(e.value for e in exposed)], {backend.INPUT: x})
            outputs, values = values[: len(self.names)], values[len(self.names) :]
            self.spikes.append({e.path: Packed(v) for e, v in zip(exposed, values, strict=True)})
            self._outputs.append(self.reader(outputs))
            if self.metric is not None:
                if not has_labels:
                    self._targets.append(self.metric.tensors(outputs))
                qualities.append(self.metric(outputs, self._targets[len(qualities)]))
            done += len(labels)
            if progress is not None:
                progress(done)
        self.seconds = time.perf_counter() - start
        scores = self.reader.scores
        if scores is not None and not has_labels:
            pairs = zip(self.chunks, self._outputs, strict=True)
            self.chunks = [(x, read[scores.index].argmax(axis=-1)) for (x, _), read in pairs]
        self._qualities = qualities
        self.original = self._point(self._outputs, qualities)

    def _cacheable(self, model: onnx.ModelProto, cache_bytes: int) -> set[str]:
        """Return the neurons whose spikes are cached: the last ones that fit, by their size for one image."""
        probe = onnx.ModelProto()
        probe.CopyFrom(model)
        exposed = suffix.expose(probe, {spike.path for spike in suffix.spikes(model)})
        x = self.chunks[0][0]
        batch = self.program.input.batch_dim
        values = runtimes.session(probe.SerializeToString(), self.threads).run(
            [spike.value for spike in exposed], {backend.INPUT: np.take(x, [0], axis=batch)}
        )
        kept: set[str] = set()
        for spike, value in reversed(list(zip(exposed, values, strict=True))):
            cache_bytes -= value.size * self.images // (8 if value.max(initial=0) <= 1 else 1)
            if cache_bytes < 0:
                break
            kept.add(spike.path)
        return kept

    def __call__(self, candidate: Program, images: int | None = None) -> Measurement:
        """Measure a pruned or quantized copy of the program; the copy is consumed.

        Args:
            candidate: the copy.
            images: measure on this many images only, rounded up to whole batches.
        """
        quantized = candidate.stage >= Stage.QUANTIZED  # all spikes may differ, so that the whole file has to run
        cached = set() if quantized else self.unchanged(candidate) & self.spikes[0].keys()
        model = export_proto(candidate)
        suffix_inputs = [] if quantized else suffix.suffix(model, cached)
        session = runtimes.session(model.SerializeToString(), self.threads)
        takes_image = backend.INPUT in session.input_names
        read, qualities = [], []
        for number, ((x, labels), spikes) in enumerate(zip(self.chunks, self.spikes, strict=True)):
            if images is not None and images <= 0:
                break
            feed = {spike.value: spikes[spike.path].unpack() for spike in suffix_inputs}
            if takes_image:
                feed[backend.INPUT] = x
            outputs = session.run(self.names, feed)
            read.append(self.reader(outputs))
            if self.metric is not None:
                qualities.append(self.metric(outputs, self._targets[number]))
            images = None if images is None else images - len(labels)
        return self._point(read, qualities)

    def measure_file(self, exported: bytes) -> Measurement:
        """Measure an exported file of a network with the program's input and classes."""
        session = runtimes.session(exported, self.threads)
        outputs = [session.run(self.names, {backend.INPUT: x}) for x, _ in self.chunks]
        qualities = []
        if self.metric is not None:
            qualities = [self.metric(o, targets) for o, targets in zip(outputs, self._targets, strict=True)]
        return self._point([self.reader(o) for o in outputs], qualities)

    def unchanged(self, candidate: Program) -> set[str]:
        """Return the neurons of a candidate whose spikes equal the original's, as nothing in front of them differs."""
        originals = {node.name: node for node in self.program.graph.nodes}
        changed = {
            name.rpartition(".")[0] or name
            for name, value in candidate.module.state_dict().items()
            if value.shape != self._state[name].shape or not torch.equal(value, self._state[name])
        }
        dirty: set[fx.Node] = set()
        unchanged = set()
        for node in candidate.graph.nodes:
            original = originals[node.name]
            literals = [a for a in node.args if not isinstance(a, fx.Node)]
            same = node.kwargs == original.kwargs and literals == [
                a for a in original.args if not isinstance(a, fx.Node)
            ]
            differs = str(node.target) in changed or (
                node.op == "get_attr" and str(node.target).rpartition(".")[0] in changed
            )
            if not same or differs or any(source in dirty for source in node.all_input_nodes):
                dirty.add(node)
            elif node.op == "call_module":
                unchanged.add(str(node.target))
        return unchanged

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
                for outputs, original in zip(read, self._outputs, strict=False):
                    total.add(outputs[i], original[i])
                errors[i] = total.share
        return errors

    def _counted(self, logs: list[np.ndarray], index: int) -> Measurement:
        """Compare log-probabilities, batch by batch, with the labels and with the original's, of output ``index``."""
        originals = [outputs[index] for outputs in self._outputs]
        right = lost = gained = 0
        loss = divergence = regret = 0.0
        images = 0
        for log, reference, (_, labels) in zip(logs, originals, self.chunks, strict=False):
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
