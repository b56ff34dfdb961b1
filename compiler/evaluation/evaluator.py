"""The evaluator: the accuracy of many pruned networks on the same images, each from the first layer that differs.

The original runs once. Its spikes are kept, one bit each. A candidate is exported as it would be written,
cut down to what follows the neurons that fire as they did (onnx/surgery/suffix.py), and run in ONNX Runtime.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from svitc import onnx as backend
from svitc.data.inputs import time_average
from svitc.ir.program import Program, Stage
from svitc.onnx.export import export_proto
from svitc.onnx.surgery import suffix
from svitc.support.confidence import paired, wilson

CACHE_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Measurement:
    """A measured network.

    Attributes:
        right: images that it classifies rightly.
        images: of so many.
        lost: images that only the original gets right.
        gained: images that only this network gets right.
        loss: mean cross-entropy, nats.
        divergence: mean Kullback-Leibler divergence from the original's class probabilities, nats.
    """

    right: int
    images: int
    lost: int
    gained: int
    loss: float
    divergence: float

    @property
    def accuracy(self) -> float:
        return self.right / self.images

    @property
    def drop(self) -> float:
        """Accuracy lost against the original, a share."""
        return (self.lost - self.gained) / self.images

    def to_json(self) -> dict[str, Any]:
        low, high = wilson(self.right, self.images)
        less, more = paired(self.lost, self.gained, self.images)
        return {
            **asdict(self),
            "accuracy": self.accuracy,
            "interval": [low, high],
            "drop": self.drop,
            "drop_interval": [less, more],
        }


class Packed:
    """A spike tensor as bits, or bytes where a neuron fires more than once a step."""

    def __init__(self, values: np.ndarray) -> None:
        self.shape, self.binary = values.shape, bool(((values == 0) | (values == 1)).all())
        small = values.astype(np.uint8)
        assert self.binary or (small == values).all()
        self.data = np.packbits(small.reshape(-1)) if self.binary else small.reshape(-1)

    def unpack(self) -> np.ndarray:
        count = int(np.prod(self.shape))
        flat = np.unpackbits(self.data, count=count) if self.binary else self.data
        return flat.astype(np.float32).reshape(self.shape)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities ``[N, classes]`` from ``[N, classes]``, or ``[T, N, classes]`` averaged over time."""
    mean = time_average(logits).astype(np.float64)
    mean -= mean.max(axis=-1, keepdims=True)
    return mean - np.log(np.exp(mean).sum(axis=-1, keepdims=True))


class Evaluator:
    """Measures pruned copies of one program on one set of labelled images.

    Args:
        program: the original, at a stage that trains.
        batches: images in the program's input layout with their labels; all are kept in memory.
        threads: of ONNX Runtime, by default all cores.
        cache_bytes: the most that kept spikes may take; the earliest layers' go first.
        progress: called with the number of images that the original has seen.

    Attributes:
        original: the original's own point.
        seconds: that the original took on all images.
        spikes: of the original, for each batch: those that are kept, by the path of their neuron.
    """

    def __init__(
        self,
        program: Program,
        batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
        *,
        threads: int | None = None,
        cache_bytes: int = CACHE_BYTES,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.program, self.threads = program, threads
        self.chunks = [(x.numpy(), y.numpy()) for x, y in batches]
        self.images = sum(len(y) for _, y in self.chunks)
        self.spikes: list[dict[str, Packed]] = []
        self._logs: list[np.ndarray] = []
        self._state = {name: value.clone() for name, value in program.module.state_dict().items()}
        model = export_proto(program.copy())
        wanted = self._affordable(model, cache_bytes)
        exposed = suffix.expose(model, wanted)
        session = backend.session(model.SerializeToString(), threads)
        done, start = 0, time.perf_counter()
        for x, labels in self.chunks:
            logits, *values = session.run([backend.OUTPUT, *(e.value for e in exposed)], {backend.INPUT: x})
            self.spikes.append({e.path: Packed(v) for e, v in zip(exposed, values, strict=True)})
            self._logs.append(log_softmax(logits))
            done += len(labels)
            if progress is not None:
                progress(done)
        self.seconds = time.perf_counter() - start
        self.original = self._point(self._logs)

    def _affordable(self, model: Any, cache_bytes: int) -> set[str]:
        """Neurons whose spikes are kept: the latest that fit, by the size that the first batch shows."""
        probe = type(model)()
        probe.CopyFrom(model)
        found = suffix.expose(probe, {each.path for each in suffix.spikes(model)})
        x = self.chunks[0][0]
        batch = self.program.input.batch_dim
        one = backend.session(probe.SerializeToString(), self.threads).run(
            [each.value for each in found], {backend.INPUT: np.take(x, [0], axis=batch)}
        )
        kept: set[str] = set()
        for each, value in reversed(list(zip(found, one, strict=True))):
            cache_bytes -= value.size * self.images // (8 if value.max(initial=0) <= 1 else 1)
            if cache_bytes < 0:
                break
            kept.add(each.path)
        return kept

    def __call__(self, candidate: Program, images: int | None = None) -> Measurement:
        """Measure a pruned copy of the program, or a quantized one; the copy is used up.

        Args:
            images: look at the first so many only, and what completes their batch.
        """
        rounded = candidate.stage >= Stage.QUANTIZED  # each neuron fires otherwise; its file is the faster one anyhow
        known = set() if rounded else self.unchanged(candidate) & self.spikes[0].keys()
        model = export_proto(candidate)
        taken = [] if rounded else suffix.suffix(model, known)
        session = backend.session(model.SerializeToString(), self.threads)
        image = any(given.name == backend.INPUT for given in session.get_inputs())
        logs = []
        for (x, labels), spikes in zip(self.chunks, self.spikes, strict=True):
            if images is not None and images <= 0:
                break
            feed = {each.value: spikes[each.path].unpack() for each in taken}
            if image:
                feed[backend.INPUT] = x
            logs.append(log_softmax(session.run([backend.OUTPUT], feed)[0]))
            images = None if images is None else images - len(labels)
        return self._point(logs)

    def unchanged(self, candidate: Program) -> set[str]:
        """Neurons of a candidate that must fire as the original's: nothing that feeds them differs."""
        ours = {node.name: node for node in self.program.graph.nodes}
        changed = {
            name.rpartition(".")[0] or name
            for name, value in candidate.module.state_dict().items()
            if value.shape != self._state[name].shape or not torch.equal(value, self._state[name])
        }
        dirty: set[fx.Node] = set()
        clean = set()
        for node in candidate.graph.nodes:
            like = ours[node.name]
            literals = [a for a in node.args if not isinstance(a, fx.Node)]
            same = node.kwargs == like.kwargs and literals == [a for a in like.args if not isinstance(a, fx.Node)]
            own = str(node.target) in changed or (
                node.op == "get_attr" and str(node.target).rpartition(".")[0] in changed
            )
            if not same or own or any(source in dirty for source in node.all_input_nodes):
                dirty.add(node)
            elif node.op == "call_module":
                clean.add(str(node.target))
        return clean

    def _point(self, logs: list[np.ndarray]) -> Measurement:
        right = lost = gained = 0
        loss = divergence = 0.0
        seen = 0
        for log, reference, (_, labels) in zip(logs, self._logs, self.chunks, strict=False):
            seen += len(labels)
            now, before = log.argmax(axis=-1) == labels, reference.argmax(axis=-1) == labels
            right += int(now.sum())
            lost += int((before & ~now).sum())
            gained += int((now & ~before).sum())
            loss -= float(np.take_along_axis(log, labels[:, None], axis=-1).sum())
            divergence += float((np.exp(reference) * (reference - log)).sum())
        return Measurement(right, seen, lost, gained, loss / seen, divergence / seen)
