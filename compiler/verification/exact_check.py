"""Verification of quantized files: every spike must equal the reference's, bit for bit.

The exported file is split at its neurons and fed with the reference's spikes, so that a wrong layer is identified and
its errors do not spread. One more run feeds random spikes, so that layers that are silent on the images are tested,
too. A neuron behind a float sum, whose order is up to the runtime, may differ where its membrane is next to its
threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch

from svitc import onnx as backend
from svitc.analysis.exactness import inexact
from svitc.ir.outputs import as_tuple
from svitc.ir.program import Program
from svitc.onnx.int16_sums import beyond_int16
from svitc.passes.pipelines import exportable_program
from svitc.runtimes import ONNX_RUNTIME, Runtime
from svitc.verification.informative import informative
from svitc.verification.quantization_check import check_quantization
from svitc.verification.recorder import STIMULUS_SEED, Recorder, program_of_file, stimulate
from svitc.verification.verdict import LayerVerdict, Verdict

NEAR = 2.0**-12  # largest share of the spikes of an inexact neuron that may differ


def verify_exact(
    program: Program,
    exported: bytes,
    inputs: Iterable[torch.Tensor],
    progress: Callable[[int], None] | None = None,
    original: Program | None = None,
    runtime: Runtime = ONNX_RUNTIME,
    all_inputs: bool = True,
) -> Verdict:
    """Compare an exported file with the quantized program that defines it, and that with the float program.

    Args:
        program: the reference, at stage QUANTIZED.
        exported: bytes of the ONNX file.
        inputs: batches in the program's input layout.
        progress: called with the number of images done.
        original: the float program that was quantized (quantization_check.py); None where it is not at hand.
        runtime: runs the file.
        all_inputs: whether to use all inputs, not only those that tell more than the ones before (informative.py).

    Returns:
        the differences in each layer and in the outputs.

    Raises:
        InputError: the file does not have the program's outputs, or the runtime cannot run it.
    """
    quantized, program = program, program_of_file(program, exported)
    lowered = exportable_program(program, per_step=True)  # with layers joined as in the file
    split_file = _SplitFile(exported, lowered, runtime)
    full_session = runtime.open(exported)
    verdict = Verdict.of(lowered, runtime.described())
    verdict.beyond_int16 = beyond_int16(exported)
    for number, x in enumerate(inputs if all_inputs else informative(inputs, verdict)):
        reference, result = Recorder.record(lowered, x)
        expected = as_tuple(result)
        for output, before, after in zip(verdict.outputs, program.outputs(x), expected, strict=True):
            if not torch.equal(before, after):
                output.values_beyond_rounding += 1  # joining layers must not change the result
        if number == 0 and original is not None:  # one image is enough, as each has thousands of currents
            verdict.quantization = check_quantization(original, quantized, x.narrow(program.input.batch_dim, 0, 1))
        split_file.judge(verdict, x, reference, expected)
        spikes = _random_spikes(lowered, reference) if number == 0 else None
        del reference  # the values of one run at a time: they may be more than the weights
        if spikes is not None:
            stimulated, result = Recorder.record(lowered, x, spikes)
            split_file.judge(verdict, x, stimulated, as_tuple(result), natural=False)
        final = full_session.run(program.output_names, {split_file.image: x.numpy()})
        verdict.add(final, [value.numpy() for value in expected], x.shape[program.input.batch_dim])
        if progress is not None:
            progress(verdict.images)
    return verdict


def _random_spikes(program: Program, run: Recorder) -> dict[str, torch.Tensor]:
    """Return random spikes for each neuron of a run."""
    generator = torch.Generator().manual_seed(STIMULUS_SEED)
    modules = {str(node.target): program.module_of(node) for node in program.neurons()}
    return {name: stimulate(modules[name], spikes, generator) for name, spikes in run.spikes.items()}


class _SplitFile:
    """An exported file that is split at its neurons.

    Args:
        exported: bytes of the ONNX file.
        reference: the program that it is compared with.
        runtime: runs the file.
    """

    def __init__(self, exported: bytes, reference: Program, runtime: Runtime) -> None:
        split, self.neurons = backend.split_unrolled_neurons(exported)
        self.session = runtime.open(split, few_runs=True)
        self.image = self.session.input_names[0]  # older versions gave it another one
        self.names = self.session.output_names
        self.output_names = reference.output_names
        self.inexact = set(inexact(reference))

    def judge(
        self, verdict: Verdict, x: torch.Tensor, run: Recorder, expected: tuple[torch.Tensor, ...], natural: bool = True
    ) -> None:
        """Run the file with the spikes of a run of the reference, and add the differences to a verdict.

        Args:
            x: the input of the run.
            run: the run of the reference.
            expected: its outputs.
            natural: whether the spikes are those that the images cause, not random ones.
        """
        feed = {self.image: x.numpy()}
        for neuron in self.neurons:
            feed.update(neuron.steps_of(run.fed[neuron.path].numpy()))
        outputs = dict(zip(self.names, self.session.run(self.names, feed), strict=True))
        for neuron in self.neurons:
            path, spikes = neuron.path, neuron.array_of(outputs)
            _judge(verdict.layers[path], spikes, run, path, path in self.inexact, natural)
        for output, name, value in zip(verdict.outputs, self.output_names, expected, strict=True):
            close = np.isclose(outputs[name], value.numpy(), rtol=1e-4, atol=1e-5 * float(value.abs().max()))
            output.values_beyond_rounding += int((~close).sum())


def _judge(layer: LayerVerdict, spikes: np.ndarray, run: Recorder, path: str, soft: bool, natural: bool) -> None:
    """Add the differing spikes of one neuron in one run to its verdict.

    Args:
        layer: the verdict.
        spikes: the neuron's spikes in the file.
        run: the run of the reference.
        path: the neuron's path.
        soft: whether the neuron is behind a float sum.
        natural: whether the spikes that it gets are those that the images cause, not random ones.
    """
    expected = run.spikes[path].numpy()
    layer.spikes += expected.size
    layer.firing += float(expected.sum()) if natural else 0.0
    differs = spikes.reshape(expected.shape) != expected
    count = int(differs.sum())
    if not count:
        return
    # Rounding moves a sum of a few thousand terms by at most 2^-20 of its magnitude, which flips few spikes; a wrong
    # sum flips far more.
    within_rounding = soft and count <= max(1, NEAR * expected.size)
    layer.flips_within_rounding += count if within_rounding else 0
    layer.flips_beyond_rounding += 0 if within_rounding else count
