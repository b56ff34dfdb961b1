"""Comparison of a network's outputs with the original's: class probabilities, and relative errors of all else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from svitc.data.inputs import time_average
from svitc.ir import axes
from svitc.ir.axes import Kind
from svitc.ir.graph import BATCH_PROBE
from svitc.ir.outputs import class_scores, output_values
from svitc.ir.program import Program

SAMPLED_VALUES = 4096  # of each output and image: enough for a relative error, where a dense map has millions
SEED = 0


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities ``[N, classes]``.

    Args:
        logits: ``[N, classes]``, or ``[T, N, classes]``, which is averaged over time first.
    """
    mean = time_average(logits).astype(np.float64)
    mean -= mean.max(axis=-1, keepdims=True)
    return mean - np.log(np.exp(mean).sum(axis=-1, keepdims=True))


def batch_dims(program: Program) -> list[int]:
    """Return the index of the batch dimension of each output."""
    return [
        next(i for i, dim in enumerate(program.type_of(value)) if any(axis.kind == Kind.BATCH for axis in dim))
        for value in output_values(program.graph)
    ]


class OutputReader:
    """Reads from the outputs of a run what networks are compared by.

    Args:
        program: the network, or one with the same outputs.

    Attributes:
        scores: the output that scores classes, or None.
    """

    def __init__(self, program: Program) -> None:
        self.scores = class_scores(program.graph, program.info)
        self._batch_dims = batch_dims(program)
        generator = np.random.default_rng(SEED)
        self._sampled: list[np.ndarray | None] = []
        for value in output_values(program.graph):
            count = axes.size(axis for dim in program.type_of(value) for axis in dim) // BATCH_PROBE
            chosen = generator.choice(count, SAMPLED_VALUES, replace=False) if count > SAMPLED_VALUES else None
            self._sampled.append(None if chosen is None else np.sort(chosen))

    def __call__(self, outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return for each output log-probabilities ``[N, classes]``, or some of its values, ``[N, values]``."""
        return [self._read(i, output, outputs) for i, output in enumerate(outputs)]

    def _read(self, index: int, output: np.ndarray, outputs: Sequence[np.ndarray]) -> np.ndarray:
        if self.scores is not None and self.scores.index == index:
            return log_softmax(self.scores.of(outputs))
        rows = np.moveaxis(output, self._batch_dims[index], 0)
        rows = rows.reshape(len(rows), -1)
        chosen = self._sampled[index]
        return rows.copy() if chosen is None else rows[:, chosen]


@dataclass
class RelativeError:
    """The squared error of an output, relative to the squares of the original's.

    Attributes:
        error: sum of the squared differences.
        energy: sum of the original's squares.
    """

    error: float = field(default=0.0)
    energy: float = field(default=0.0)

    def add(self, values: np.ndarray, original: np.ndarray) -> None:
        """Add values of some images."""
        reference = original.astype(np.float64)
        self.error += float(np.square(values - reference).sum())
        self.energy += float(np.square(reference).sum())

    @property
    def share(self) -> float:
        """The relative error: 0 for the same values, 1 for zeros in their place."""
        if self.error == 0:
            return 0.0
        return self.error / self.energy if self.energy else 1.0
