"""The evaluator: the accuracy of many pruned networks on the same images, each run from the first layer that differs.

Images without labels count as right where a network chooses the class that the original chooses.

The original runs once, and its spikes are kept, one bit each. A candidate is exported as it would be written, reduced
to the layers behind the neurons whose spikes cannot have changed (onnx/surgery/suffix.py), and run in ONNX Runtime.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import numpy as np
import onnx
import torch
from torch import fx

from svitc import onnx as backend
from svitc.data.inputs import time_average
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

    Attributes:
        right: number of images that it classifies correctly.
        images: number of images in total.
        lost: number of images that only the original classifies correctly.
        gained: number of images that only this network classifies correctly.
        loss: mean cross-entropy, in nats.
        divergence: mean Kullback-Leibler divergence of the class probabilities from the original's, in nats.
        regret: mean of how much less probable, by the original, the chosen class is than the original's own choice. If
            the original is as often right as it is confident, that is the accuracy that is lost, and needs no labels.
    """

    right: int
    images: int
    lost: int
    gained: int
    loss: float
    divergence: float
    regret: float = 0.0

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy, a share."""
        return self.right / self.images

    @property
    def drop(self) -> float:
        """Accuracy lost compared with the original, a share."""
        return (self.lost - self.gained) / self.images

    def to_json(self) -> JsonDict:
        """Return JSON values, with 95% confidence intervals."""
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


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities ``[N, classes]``.

    Args:
        logits: ``[N, classes]``, or ``[T, N, classes]``, which is averaged over time first.
    """
    mean = time_average(logits).astype(np.float64)
    mean -= mean.max(axis=-1, keepdims=True)
    return mean - np.log(np.exp(mean).sum(axis=-1, keepdims=True))


class Evaluator:
    """Measures pruned or quantized copies of one program on one set of images.

    Args:
        program: the original, at a stage that can be trained.
        batches: images in the program's input layout with their labels, -1 where they have none; all are kept in
            memory.
        threads: threads of ONNX Runtime, by default all cores.
        cache_bytes: largest size of the cached spikes; those of the first layers are left out first.
        progress: called with the number of images that the original has classified.

    Attributes:
        original: the measurement of the original.
        seconds: time that the original took for all images.
        spikes: for each batch, neuron -> cached spikes of the original.
        labeled: whether the images have labels.
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
        self.labeled = all((y >= 0).all() for _, y in self.chunks)
        self.spikes: list[dict[str, Packed]] = []
        self._logs: list[np.ndarray] = []
        self._state = {name: value.clone() for name, value in program.module.state_dict().items()}
        model = export_proto(program.copy())
        exposed = suffix.expose(model, self._cacheable(model, cache_bytes))
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
        if not self.labeled:
            self.chunks = [(x, log.argmax(axis=-1)) for (x, _), log in zip(self.chunks, self._logs, strict=True)]
        self.original = self._point(self._logs)

    def _cacheable(self, model: onnx.ModelProto, cache_bytes: int) -> set[str]:
        """Return the neurons whose spikes are cached: the last ones that fit, by their size for one image."""
        probe = onnx.ModelProto()
        probe.CopyFrom(model)
        exposed = suffix.expose(probe, {spike.path for spike in suffix.spikes(model)})
        x = self.chunks[0][0]
        batch = self.program.input.batch_dim
        values = backend.session(probe.SerializeToString(), self.threads).run(
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
        session = backend.session(model.SerializeToString(), self.threads)
        takes_image = any(value.name == backend.INPUT for value in session.get_inputs())
        logs = []
        for (x, labels), spikes in zip(self.chunks, self.spikes, strict=True):
            if images is not None and images <= 0:
                break
            feed = {spike.value: spikes[spike.path].unpack() for spike in suffix_inputs}
            if takes_image:
                feed[backend.INPUT] = x
            logs.append(log_softmax(session.run([backend.OUTPUT], feed)[0]))
            images = None if images is None else images - len(labels)
        return self._point(logs)

    def measure_file(self, exported: bytes) -> Measurement:
        """Measure an exported file of a network with the program's input and classes."""
        session = backend.session(exported, self.threads)
        return self._point([log_softmax(session.run(None, {backend.INPUT: x})[0]) for x, _ in self.chunks])

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

    def _point(self, logs: list[np.ndarray]) -> Measurement:
        """Compare log-probabilities, batch by batch, with the labels and with the original's."""
        right = lost = gained = 0
        loss = divergence = regret = 0.0
        images = 0
        for log, reference, (_, labels) in zip(logs, self._logs, self.chunks, strict=False):
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
