"""Running scores: the answer of a network after each time step, from its streaming file."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from svitc import onnx as backend
from svitc import runtimes
from svitc.data.inputs import Data
from svitc.errors import InternalError
from svitc.ir.outputs import required_scores
from svitc.ir.program import Program
from svitc.onnx.model_info import read_proto
from svitc.onnx.states import states_of
from svitc.onnx.words import time_steps

BATCH_IMAGES = 64


def running_scores(program: Program, streaming: bytes, data: Data) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the class scores after each time step, averaged over the steps so far, batch by batch.

    Args:
        program: the network.
        streaming: its streaming file, for batches of any size.
        data: the images.

    Yields:
        Scores ``[T, N, classes]``, float32, and labels ``[N]``.
    """
    states = states_of(read_proto(streaming))
    if states is None:
        raise InternalError("the file is not a streaming file")
    steps, scores = time_steps(program), required_scores(program.graph, program.info)
    session = runtimes.session(streaming)
    names = [*program.output_names, *(state.output for state in states)]
    for x, labels in data.batches(program.input.at_once(BATCH_IMAGES)):
        images = x.numpy()
        feed = {state.input: state.start(len(labels)) for state in states}
        answers = []
        for t in range(steps):
            outputs = session.run(names, {backend.INPUT: images[t] if program.input.events else images, **feed})
            answers.append(outputs[scores.index])
            feed = {state.input: value for state, value in zip(states, outputs[-len(states) :], strict=True)}
        yield np.stack(answers), labels.numpy()


__all__ = ["running_scores"]
