"""The proof that travels with a file: images, what the network answers, and the digest of every neuron's spikes.

``check.py`` (device_check.py) reads it on the device, where svitc is not. Images are drawn, so that none of the user's
travel along: rectangles of one color, which take little space. In a file with float weights a spike flips where another
runtime rounds a membrane to the other side of its threshold. An image of one color alone has few different membranes,
so that hardly one lies there, and it is taken only if its spikes stay where ONNX Runtime computes in another order.
"""

from __future__ import annotations

import hashlib
import inspect
import io
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnxruntime

from svitc.analysis.time_mixing import steps_of
from svitc.data.inputs import random_inputs
from svitc.driver import device_check, device_check_steps
from svitc.driver.device_check import fingerprint
from svitc.driver.device_check_steps import in_turn
from svitc.driver.input_range import span_of, within
from svitc.ir.program import Program, Stage
from svitc.onnx.model_info import read_structure
from svitc.onnx.raw_input import takes_bytes
from svitc.onnx.states import states_of
from svitc.onnx.surgery.taps import Tap, tapping, taps
from svitc.runtimes.onnx_runtime import ERRORS_ONLY, opened
from svitc.verification.exact_check import NEAR

IMAGES, CANDIDATES = 2, 6
RECTANGLES = {False: 8, True: 1}  # along each side of an image, by whether weights are floats
RELATIVE, ABSOLUTE = 1e-4, 1e-5  # rounding of outputs that are float sums: as verification allows in quantized files
SCRIPT = inspect.getsource(device_check)
STEPS_SCRIPT = SCRIPT.replace(
    inspect.getsource(device_check.load),
    f"{inspect.getsource(device_check_steps.load)}\n\n{inspect.getsource(in_turn)}",
)


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
        script = STEPS_SCRIPT if "states" in self.arrays else SCRIPT
        return {"check.npz": buffer.getvalue(), "check.py": script.encode()}


@dataclass(frozen=True)
class _Answer:
    """What a file gives for one image.

    Attributes:
        image: the image.
        outputs: the outputs.
        spikes: digest and parts of each neuron's spikes (``fingerprint``).
        sizes: number of values of each neuron's spikes, those that are 0 as well.
        flips: number of spikes that differ in another order of sums.
        silent: neurons that never fire.
    """

    image: np.ndarray
    outputs: list[np.ndarray]
    spikes: list[tuple[str, np.ndarray]]
    sizes: list[int]
    flips: int
    silent: set[str]

    @property
    def flaws(self) -> tuple[int, int]:
        """Flips and silent neurons, of which there should be few."""
        return self.flips, len(self.silent)


def prove(
    program: Program, exported: bytes, inexact: Mapping[str, str], silent: Collection[str] = (), batch: int = 1
) -> Proof:
    """Run a verified file on a few drawn images, and keep what it computes.

    Args:
        program: the program that the file was exported from.
        exported: the file.
        inexact: neurons and outputs of a quantized program that depend on the order of a float sum; of a float program
            nothing needs to be named.
        silent: neurons that the images of the verification did not make fire: no image is sought that does.
        batch: number of images that the file takes at once; the proof then holds such batches in place of images.
    """
    model = read_structure(exported)
    tapped, names = taps(model), [output.name for output in model.graph.output]
    states = states_of(model) or []
    names = [name for name in names if name not in {state.output for state in states}]
    passed = {
        "states": np.array([name for state in states for name in (state.input, state.output)]),
        **{f"start {state.input}": state.start(batch) for state in states},
    }
    patch, is_float = tapping(model, tapped), program.stage < Stage.QUANTIZED
    if states:
        passed["steps"] = np.array(steps_of(program))
    runs = [_Run(exported + patch, names, tapped, plain, passed) for plain in ((False, True) if is_float else (False,))]
    found: list[_Answer] = []
    wanted = max(1, IMAGES // batch)
    for image in _images(program, RECTANGLES[is_float], batch, takes_bytes(model)):
        results = [run(image) for run in runs]
        flips = sum(
            int((a != b).sum()) for a, b in zip(results[0][len(names) :], results[-1][len(names) :], strict=True)
        )
        found.append(_answer(image, results[0], len(names), tapped, flips))
        if sum(not answer.flips and answer.silent <= set(silent) for answer in found) == wanted:
            break
    chosen = sorted(found, key=lambda answer: answer.flaws)[:wanted]
    digests = np.array([[digest for digest, _ in answer.spikes] for answer in chosen])
    total = hashlib.sha256("".join(digests.ravel()).encode()).hexdigest()
    arrays = {
        "digest": np.array(total),
        "images": np.stack([answer.image for answer in chosen]),
        "outputs": np.array(names),
        "layers": np.array([tap.path for tap in tapped]),
        "values": np.array(["\n".join(tap.values) for tap in tapped]),
        "few": np.array([_few(is_float or t.path in inexact, n) for t, n in zip(tapped, chosen[0].sizes, strict=True)]),
        "digests": digests,
        "parts": np.array([[parts for _, parts in answer.spikes] for answer in chosen], np.int32),
        "taps": np.frombuffer(patch, np.uint8),
        **(passed if states else {}),
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
        passed: of a streaming file its states and number of steps, as ``in_turn`` takes them.
    """

    def __init__(
        self, file: bytes, names: list[str], tapped: list[Tap], plain: bool, passed: dict[str, np.ndarray]
    ) -> None:
        self.passed = passed
        self.names = [*names, *(name for tap in tapped for name in tap.values)]
        options, levels = onnxruntime.SessionOptions(), onnxruntime.GraphOptimizationLevel
        options.log_severity_level = ERRORS_ONLY
        options.enable_mem_reuse = False  # planning it takes longer than these few runs (runtimes/onnx_runtime.py)
        options.graph_optimization_level = levels.ORT_DISABLE_ALL if plain else levels.ORT_ENABLE_ALL
        self.session = opened(file, options)

    def __call__(self, image: np.ndarray) -> list[np.ndarray]:
        """Return the outputs for one image, and after them the values of the taps."""
        return in_turn(self.session.run, self.names, self.passed)(image)


def _answer(image: np.ndarray, results: list[np.ndarray], outputs: int, tapped: list[Tap], flips: int) -> _Answer:
    """Sort what a run gives into outputs and spikes."""
    values = iter(results[outputs:])
    steps = [[next(values) for _ in tap.values] for tap in tapped]
    spikes = [fingerprint(each) for each in steps]
    silent = {tap.path for tap, (_, parts) in zip(tapped, spikes, strict=True) if not parts.any()}
    sizes = [sum(step.size for step in each) for each in steps]
    return _Answer(image, results[:outputs], spikes, sizes, flips, silent)


def _few(rounds: bool, size: int) -> int:
    """Return how many of a neuron's spikes may round to the other side of its threshold; -1 for none."""
    return max(1, int(NEAR * size)) if rounds else -1


def _images(program: Program, rectangles: int, batch: int, raw: bool) -> Iterator[np.ndarray]:
    """Yield inputs: rectangles of one color, or of one count of events, in the input's range.

    Args:
        program: its input is read.
        rectangles: how many there are along each side.
        batch: number of images of each input.
        raw: whether the file takes bytes, ``[N, H, W, C]``.
    """
    sizes = program.input.shape[-2:]
    rows, columns = (np.arange(size) * rectangles // size * size // rectangles for size in sizes)
    count = max(1, CANDIDATES // batch) * batch
    if raw:
        pixels = np.random.default_rng(0).integers(0, 256, (count // batch, batch, *sizes, program.input.shape[0]))
        yield from pixels.astype(np.uint8)[:, :, rows][:, :, :, columns]
        return
    for x in within(random_inputs(program, count, batch, seed=0), span_of(program)):
        yield x.numpy()[..., rows, :][..., columns]


__all__ = ["Proof", "prove"]
