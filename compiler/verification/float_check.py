"""Verification of float32 files: every layer with the reference's spikes as input, then the file as a whole.

The reference is the program in PyTorch. A copy of the exported file is split at every neuron and gets the reference's
spikes as inputs, so that the rounding of one layer cannot spread into the next. A spike that differs is an error,
unless the currents differ and the reference's membrane was within float rounding of its threshold (float_error.py). An
input current that differs by more than rounding is an error, too. A layer that is silent on the inputs would prove
nothing, so one more batch feeds every layer with random spikes instead of the reference's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from svitc import onnx as backend
from svitc.analysis.float_error import bound, magnitudes, margins, output_sum_lengths, sum_lengths
from svitc.errors import InputError
from svitc.ir import ops
from svitc.ir.outputs import as_tuple
from svitc.ir.program import Program
from svitc.runtimes import ONNX_RUNTIME, Runtime
from svitc.runtimes.base import Session
from svitc.verification.informative import informative
from svitc.verification.recorder import STIMULUS_SEED, Recorder, program_of_file, record_magnitudes, stimulate
from svitc.verification.verdict import LayerVerdict, Verdict


def verify(
    program: Program,
    exported: bytes,
    inputs: Iterable[torch.Tensor],
    progress: Callable[[int], None] | None = None,
    runtime: Runtime = ONNX_RUNTIME,
    all_inputs: bool = True,
) -> Verdict:
    """Compare an exported file with the program that it was exported from.

    Args:
        program: the reference, at a stage at which it can be trained.
        exported: bytes of the ONNX file.
        inputs: batches in the program's input layout.
        progress: called with the number of images done.
        runtime: runs the file.
        all_inputs: whether to use all inputs, not only those that tell more than the ones before (informative.py).

    Returns:
        the differences in each layer and in the outputs.

    Raises:
        InputError: the file does not have the program's outputs, or the runtime cannot run it.
    """
    split_file, neurons = backend.split_neurons(exported)
    split_session = runtime.open(split_file, few_runs=True)
    del split_file  # sessions take most memory while they open: then little else should be there
    full_session = runtime.open(exported)
    given, program = program, program_of_file(program, exported)
    image = full_session.input_names[0]  # older versions gave it another one
    split = _SplitFile(program, split_session, neurons)
    verdict = Verdict.of(program, runtime.described())
    stimulus = torch.Generator().manual_seed(STIMULUS_SEED)
    for number, x in enumerate(inputs if all_inputs else informative(inputs, verdict)):
        run, output = Recorder.record(program, x)
        expected = as_tuple(output)
        shapes = {name: spikes.to("meta") for name, spikes in run.spikes.items()} if number == 0 else {}
        split.judge(verdict, x, run, expected)
        del run  # the values of one run at a time: they may be more than the weights
        if number == 0:
            spikes = {name: stimulate(split.modules[name], like, stimulus) for name, like in shapes.items()}
            run, output = Recorder.record(program, x, spikes)
            split.judge(verdict, x, run, as_tuple(output), natural=False)
            del run, spikes
        final = full_session.run(program.output_names, {image: x.numpy()})
        verdict.add(final, [value.numpy() for value in expected], x.shape[program.input.batch_dim])
        if progress is not None:
            progress(verdict.images)
    split.bounds.release()
    if program is not given:
        program.release()
    return verdict


class _SplitFile:
    """An exported file that is split at its neurons.

    Args:
        program: the reference.
        session: the cut file.
        neurons: its neurons.

    Attributes:
        bounds: the program that computes bounds on the magnitudes of the reference's values.
        modules: neuron -> its module in the reference.
    """

    def __init__(self, program: Program, session: Session, neurons: list[backend.SplitNeuron]) -> None:
        self.session, self.neurons = session, neurons
        self.image, self.names = self.session.input_names[0], self.session.output_names
        self.output_names = program.output_names
        self.bounds = magnitudes(program)
        self.lengths, self.output_lengths = sum_lengths(program), output_sum_lengths(program)
        self.modules = {str(node.target): program.module_of(node) for node in program.neurons()}

    def judge(
        self, verdict: Verdict, x: torch.Tensor, run: Recorder, expected: tuple[torch.Tensor, ...], natural: bool = True
    ) -> None:
        """Run the file with the spikes of a run of the reference, and add the differences to a verdict.

        Args:
            verdict: the verdict.
            x: the input of the run.
            run: the run of the reference.
            expected: its outputs.
            natural: whether the spikes are those that the images cause, not random ones.
        """
        currents, output_magnitudes = record_magnitudes(self.bounds, x, run)
        feed = {self.image: x.numpy()}
        feed.update({neuron.reference: _spikes(run, neuron) for neuron in self.neurons})
        outputs = dict(zip(self.names, self.session.run(self.names, feed), strict=True))
        comparison = _Comparison(outputs, run, currents, natural)
        for neuron in self.neurons:
            path = neuron.path
            comparison.judge(verdict.layers[path], self.modules[path], neuron, self.lengths[path])
        for i, name in enumerate(self.output_names):
            allowed = bound(as_tuple(output_magnitudes)[i].numpy(), self.output_lengths[i])
            beyond = _values_beyond(outputs[name], expected[i].numpy(), allowed)
            verdict.outputs[i].values_beyond_rounding += beyond


def _spikes(run: Recorder, neuron: backend.SplitNeuron) -> np.ndarray:
    """Return what the reference feeds to a neuron's consumers, as the file has it.

    Raises:
        InputError: the file has another number of neurons there.
    """
    fed = run.fed.get(neuron.path)
    if fed is None or fed.numel() % math.prod(size for size in neuron.shape if size > 0):
        raise InputError(
            f"the file was not exported from this program: it differs at {neuron.path}",
            hint="A compiled file goes with the pruned program, Compiled.program.",
        )
    return fed.numpy().reshape(neuron.shape)


def _values_beyond(value: np.ndarray, expected: np.ndarray, allowed: np.ndarray) -> int:
    """Return how many values differ by more than is allowed."""
    with np.errstate(invalid="ignore"):  # a number that is not finite is beyond, unless both are the same
        return int(((value != expected) & ~(abs(value - expected) <= allowed)).sum())


@dataclass(frozen=True)
class _Comparison:
    """One run of the file and of the reference on the same batch.

    Attributes:
        file_outputs: outputs of the split file, by name.
        reference: inputs and spikes of the program's neurons.
        magnitudes: bounds on the sum of the magnitudes of every current.
        natural: whether the spikes are those that the images cause, not random ones.
    """

    file_outputs: dict[str, np.ndarray]
    reference: Recorder
    magnitudes: Recorder
    natural: bool

    def judge(self, layer: LayerVerdict, module: nn.Module | None, neuron: backend.SplitNeuron, terms: int) -> None:
        """Compare one neuron's current and spikes in the file with the reference's.

        Args:
            layer: the verdict to which the result is added.
            module: the neuron in the program.
            neuron: the neuron in the file.
            terms: length of the sums behind its current.
        """
        expected = self.reference.spikes[neuron.path].numpy()
        current = self.reference.currents[neuron.path].numpy()
        magnitude = self.magnitudes.currents[neuron.path].numpy()
        spikes = self.file_outputs[neuron.spikes].reshape(expected.shape)
        # a current that is the same at every step is computed once in the file
        shape = current[:1].shape if neuron.static else current.shape
        difference = abs(self.file_outputs[neuron.current].reshape(shape) - current)
        layer.spikes += expected.size
        layer.firing += float(expected.sum()) if self.natural else 0.0
        layer.max_current_difference = max(layer.max_current_difference, float(difference.max()))
        layer.currents_beyond_rounding += int((difference > bound(magnitude, terms)).sum())
        differs = spikes != expected
        if not differs.any():
            return
        distance, allowed = margins(module, current, expected, magnitude, terms)
        beyond = int((differs & _unexplained(differs, difference, distance > allowed, ops.has_state(module))).sum())
        layer.flips_beyond_rounding += beyond
        layer.flips_within_rounding += int(differs.sum()) - beyond


def _unexplained(differs: np.ndarray, difference: np.ndarray, far: np.ndarray, has_state: bool) -> np.ndarray:
    """Return which of the differing spikes are errors: far from the threshold, or with equal currents.

    Args:
        differs: where the spikes differ, ``[T, ...]``.
        difference: absolute difference of the currents.
        far: where the membrane is further from its threshold than rounding can move it.
        has_state: whether the neuron has a membrane.
    """
    if not has_state:
        return far | (difference == 0)
    # equal currents give equal membranes, bit for bit, so rounding explains a flip only after the currents differed
    rounded = np.cumsum(difference, axis=0) > 0
    # after the first differing spike the membranes are different, so only the first one is judged
    first = differs & (np.cumsum(differs, axis=0) == 1)
    return (first & (far | ~rounded)).any(axis=0)
