"""Check of a packed state: each of its parts lies where the metadata say, before a step and after it."""

from __future__ import annotations

import numpy as np

from svitc.onnx.packed_state import with_parts_as_outputs
from svitc.onnx.states import FileState
from svitc.runtimes import Runtime
from svitc.verification.recorder import STIMULUS_SEED


def misplaced_values(packed: bytes, state: FileState, frame: np.ndarray, runtime: Runtime) -> dict[str, int]:
    """Run one step from random states, and compare the parts as the network reads and writes them with the state.

    Args:
        packed: bytes of a file with a packed state.
        state: that state.
        frame: what the file gets, ``[N, C, H, W]``.
        runtime: runs the file.

    Returns:
        part -> number of its values that differ, in any bit; parts without any are left out.
    """
    file, after = with_parts_as_outputs(packed)
    session = runtime.open(file)
    value = np.random.default_rng(STIMULUS_SEED).random(state.start(len(frame)).shape, np.float32)
    names = [part.name for part in state.parts]
    feed = {session.input_names[0]: frame, state.input: value}
    following, *parts = session.run([state.output, *names, *after], feed)
    wrong = {}
    for part, read, written in zip(state.parts, parts[: len(names)], parts[len(names) :], strict=True):
        place = slice(part.offset, part.offset + part.size)
        differ = [
            int((whole[:, place] != apart.reshape(len(frame), -1)).sum())
            for whole, apart in ((value, read), (following, written))
        ]
        if any(differ):
            wrong[part.name] = sum(differ)
    return wrong


__all__ = ["misplaced_values"]
