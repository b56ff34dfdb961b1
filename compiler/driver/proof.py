"""The proof that travels with a file: images, what the network answers, and the digest of every neuron's spikes.

``check.py`` (device_check.py) reads it on the device, where svitc is not. Images are drawn, so that none of the user's
leave the house: rectangles of one color, which take little space and bring few membranes next to a threshold.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from svitc import onnx as backend
from svitc.data.inputs import random_inputs
from svitc.driver.device_check import fingerprint
from svitc.driver.input_range import span_of, within
from svitc.ir.program import Program, Stage
from svitc.onnx.model_info import read_proto
from svitc.onnx.runtime import ERRORS_ONLY
from svitc.onnx.surgery.taps import Tap, tapping, taps

IMAGES, CANDIDATES = 2, 4
RECTANGLES = 8  # along each side of an image
RELATIVE, ABSOLUTE = 1e-4, 1e-5  # rounding of outputs that are float sums: as verification allows in quantized files
SCRIPT = Path(__file__).with_name("device_check.py")


@dataclass(frozen=True)
class Proof:
    """The proof of one file.

    Attributes:
        arrays: what ``check.npz`` holds.
        digest: SHA-256 of the digests of all spikes, in hexadecimal digits.
    """

    arrays: dict[str, np.ndarray]
    digest: str

    def files(self) -> dict[str, bytes]:
        """Return the files that are written beside the model, by name."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **self.arrays)  # type: ignore[arg-type]
        return {"check.npz": buffer.getvalue(), "check.py": SCRIPT.read_bytes()}


@dataclass(frozen=True)
class _Answer:
    """What a file gives for one image: its outputs, and for each neuron digest, size and parts (``fingerprint``)."""

    image: np.ndarray
    outputs: list[np.ndarray]
    spikes: list[tuple[str, int, np.ndarray]]

    @property
    def silent(self) -> int:
        """Number of neurons that never fire."""
        return sum(not parts.any() for _, _, parts in self.spikes)


def prove(program: Program, exported: bytes, inexact: Mapping[str, str], seed: int) -> Proof:
    """Run a verified file on a few drawn images, and keep what it computes.

    Args:
        program: the program that the file was exported from.
        exported: the file.
        inexact: neurons and outputs of a quantized program that depend on the order of a float sum; of a float program
            nothing needs to be named.
        seed: seed of the images.
    """
    model = read_proto(exported)
    tapped, names = taps(model), [output.name for output in model.graph.output]
    patch, is_float = tapping(model, tapped), program.stage < Stage.QUANTIZED
    runs = [_Run(exported + patch, names, tapped, plain) for plain in ((False, True) if is_float else (False,))]
    ranked: list[tuple[int, int, _Answer]] = []
    for image in _images(program, seed):
        first, *others = [run(image) for run in runs]
        flips = sum(a[0] != b[0] for other in others for a, b in zip(first.spikes, other.spikes, strict=True))
        ranked.append((flips, first.silent, first))
    chosen = [answer for _, _, answer in sorted(ranked, key=lambda entry: entry[:2])[:IMAGES]]
    digests = np.array([[digest for digest, _, _ in answer.spikes] for answer in chosen])
    total = hashlib.sha256("".join(digests.ravel()).encode()).hexdigest()
    arrays = {
        "digest": np.array(total),
        "images": np.stack([answer.image for answer in chosen]),
        "outputs": np.array(names),
        "layers": np.array([tap.path for tap in tapped]),
        "values": np.array(["\n".join(tap.values) for tap in tapped]),
        "exact": np.array([not is_float and tap.path not in inexact for tap in tapped]),
        "digests": digests,
        "parts": np.array([[parts for _, _, parts in answer.spikes] for answer in chosen], np.int32),
        "taps": np.frombuffer(patch, np.uint8),
    }
    for i, name in enumerate(names):
        value = np.stack([answer.outputs[i] for answer in chosen])
        is_exact = not is_float and not inexact.keys() & {name, f"output {name}"}
        allowed = RELATIVE * abs(value) + ABSOLUTE * abs(value).max(initial=0.0)
        arrays |= {f"value {name}": value, f"allowed {name}": 0 * allowed if is_exact else allowed}
    return Proof(arrays, total)


class _Run:
    """A file that is run with the spikes of all neurons as outputs.

    Args:
        file: the file with its taps.
        names: names of its outputs.
        tapped: the taps.
        plain: whether to leave out all of the runtime's optimizations, so that floats are rounded in another way.
    """

    def __init__(self, file: bytes, names: list[str], tapped: list[Tap], plain: bool) -> None:
        self.tapped, self.names = tapped, [*names, *(name for tap in tapped for name in tap.values)]
        self.outputs = len(names)
        options, levels = onnxruntime.SessionOptions(), onnxruntime.GraphOptimizationLevel
        options.log_severity_level = ERRORS_ONLY
        options.graph_optimization_level = levels.ORT_DISABLE_ALL if plain else levels.ORT_ENABLE_ALL
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def __call__(self, image: np.ndarray) -> _Answer:
        """Run it on one image."""
        results = self.session.run(self.names, {backend.INPUT: image})
        values = iter(results[self.outputs :])
        spikes = [fingerprint([next(values) for _ in tap.values]) for tap in self.tapped]
        return _Answer(image, results[: self.outputs], spikes)


def _images(program: Program, seed: int) -> Iterator[np.ndarray]:
    """Yield inputs of one image each: rectangles of one color, or of one count of events, in the input's range."""
    sizes = program.input.shape[-2:]
    rows, columns = (np.arange(size) * RECTANGLES // size * size // RECTANGLES for size in sizes)
    for x in within(random_inputs(program, CANDIDATES, 1, seed), span_of(program)):
        yield x.numpy()[..., rows, :][..., columns]


__all__ = ["Proof", "prove"]
