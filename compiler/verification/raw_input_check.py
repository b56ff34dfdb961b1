"""Check of a file that takes bytes: it computes, bit for bit, what the file computes that takes normalized floats.

The bytes' way into the network is checked for every byte in every channel. Then both files run on the same pixels, and
their outputs are compared: in ONNX Runtime always and bit for bit. Another runtime may add floats in another order once
something lies in front of the network: there outputs are compared where whole numbers decide which spikes fire, and
those that are float sums themselves within rounding.
"""

from __future__ import annotations

import numpy as np

from svitc.analysis.exactness import inexact
from svitc.data.pixels import LEVELS, normalized, pixel_table
from svitc.ir.outputs import labels
from svitc.ir.program import Program, Stage
from svitc.onnx.model_info import file_of, read_apart
from svitc.onnx.raw_input import normalization_of, takes_bytes, with_raw_input, without_raw_input
from svitc.onnx.states import states_of
from svitc.onnx.static_batch import static_batch
from svitc.passes.pipelines import exportable_program
from svitc.runtimes import ONNX_RUNTIME, Runtime
from svitc.verification.recorder import STIMULUS_SEED
from svitc.verification.verdict import RawInputVerdict

IMAGES = 2


def check_raw_input(program: Program, exported: bytes, runtime: Runtime = ONNX_RUNTIME) -> RawInputVerdict | None:
    """Compare a file that takes bytes with the file that it was made of; return None for a file that takes floats.

    Args:
        program: the program that it was exported from.
        exported: bytes of the file.
        runtime: runs both files.

    Raises:
        InputError: it takes bytes, but not as svitc writes it.
        RuntimeFailure: the runtime cannot run it.
    """
    proto, tensors = read_apart(exported)
    if not takes_bytes(proto):
        return None
    plain, info = without_raw_input(exported), program.info
    table = pixel_table(info, program.input.shape[-3])
    as_written = with_raw_input(plain, table) == file_of(proto, tensors)
    batches = _pixels(program, static_batch(proto) or IMAGES)
    front, differing = runtime.open(normalization_of(exported)), 0
    for pixels in batches:
        [looked_up] = front.run(None, {front.input_names[0]: pixels})
        differing += int((looked_up.view(np.int32) != normalized(pixels, info).view(np.int32)).sum())
    soft = set[str]() if runtime is ONNX_RUNTIME else _rounded(program)
    if not soft <= set(labels(info)):
        return RawInputVerdict(as_written, batches.size, differing, 0, 0)
    pixels = batches[0]
    states = {state.input: state.start(len(pixels)) for state in states_of(proto) or ()}
    found, expected = (
        session.run(None, {session.input_names[0]: image, **states})
        for session, image in ((runtime.open(exported), pixels), (runtime.open(plain), normalized(pixels, info)))
    )
    names = [output.name for output in proto.graph.output]
    rounded = {name for name, label in zip(program.output_names, labels(info), strict=True) if label in soft}
    beyond = sum(_differing(a, b, n in rounded) for n, a, b in zip(names, found, expected, strict=True))
    return RawInputVerdict(as_written, batches.size, differing, sum(value.size for value in expected), beyond)


def _pixels(program: Program, batch: int) -> np.ndarray:
    """Return batches of random pixels, uint8 ``[batches, N, H, W, C]``, with every byte in every channel."""
    channels, height, width = program.input.shape
    shape = (-(-LEVELS // (batch * height * width)), batch, height, width, channels)
    pixels = np.random.default_rng(STIMULUS_SEED).integers(0, LEVELS, shape, np.uint8)
    rows, every = pixels.reshape(-1, channels), np.arange(LEVELS, dtype=np.uint8)
    for channel in range(channels):
        rows[:LEVELS, channel] = np.roll(every, channel)
    return pixels


def _rounded(program: Program) -> set[str]:
    """Return the neurons, and the outputs by their labels, that depend on the order of float sums."""
    if program.stage < Stage.QUANTIZED:
        return {str(node.target) for node in program.neurons()}
    return set(inexact(exportable_program(program, per_step=True)))


def _differing(value: np.ndarray, expected: np.ndarray, rounded: bool) -> int:
    """Return how many values of an output or a state differ, by more than rounding where it is a float sum."""
    if not rounded:
        return int((value != expected).sum())
    return int((~np.isclose(value, expected, rtol=1e-4, atol=1e-5 * float(abs(expected).max(initial=0.0)))).sum())


__all__ = ["check_raw_input"]
