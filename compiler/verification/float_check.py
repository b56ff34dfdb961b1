"""Verification: is the ONNX file the same network? Layer by layer with the reference's spikes fed in, then whole.

The reference is the program in PyTorch. A copy of the written file, cut at every neuron, gets the reference's spikes
as inputs, so that one layer's rounding cannot spread into the next. A spike that differs is an error, unless the
currents differ and the reference's membrane lay within float rounding of its threshold (float_error.py); an input
current that is off by more than rounding is an error, too. A layer that the inputs leave silent would prove nothing:
one more batch feeds every layer with random spikes instead of the reference's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from svitc import onnx as backend
from svitc.analysis.float_error import bound, magnitudes, margins, sum_lengths
from svitc.ir import ops
from svitc.ir.program import Program
from svitc.verification.recorder import STIMULUS_SEED, Recorder, stimulate
from svitc.verification.verdict import LayerVerdict, Verdict


def verify(
    program: Program,
    exported: bytes,
    inputs: Iterable[torch.Tensor],
    progress: Callable[[int], None] | None = None,
) -> Verdict:
    """Compare an exported file with the program it is of.

    Args:
        program: the reference, at a stage that trains.
        exported: bytes of the ONNX file.
        inputs: batches in the program's input layout.
        progress: called with the number of images done.
    """
    split_file, neurons = backend.split_neurons(exported)
    whole, pieces = backend.session(exported), backend.session(split_file)
    bounds = magnitudes(program)
    lengths = sum_lengths(program)
    modules = {str(node.target): program.module_of(node) for node in program.neurons()}
    verdict = Verdict(layers={name: LayerVerdict(name) for name in modules})
    names = [output.name for output in pieces.get_outputs()]
    stimulus = torch.Generator().manual_seed(STIMULUS_SEED)
    for number, x in enumerate(inputs):
        reference, logits = Recorder.record(program, x)
        runs = [(reference, logits)]
        if number == 0:
            spikes = {name: stimulate(modules[name], s, stimulus) for name, s in reference.spikes.items()}
            runs.append(Recorder.record(program, x, spikes))
        for kind, (run, want) in enumerate(runs):
            scale, magnitude = Recorder.record(bounds, x.abs(), run.fed)
            feed = {backend.INPUT: x.numpy()}
            feed.update({neuron.reference: run.fed[neuron.path].numpy().reshape(neuron.shape) for neuron in neurons})
            got = dict(zip(names, pieces.run(names, feed), strict=True))
            comparison = _Comparison(got, run, scale, natural=kind == 0)
            for neuron in neurons:
                path = neuron.path
                comparison.judge(verdict.layers[path], modules[path], neuron, lengths[path])
            off = abs(got[backend.OUTPUT] - want.numpy())
            verdict.logits_beyond_rounding += int((off > bound(magnitude.numpy(), lengths["logits"])).sum())
        expected = logits.numpy()
        final = whole.run(None, {backend.INPUT: x.numpy()})[0]
        verdict.add(final, expected)
        if progress is not None:
            progress(verdict.images)
    return verdict


@dataclass(frozen=True)
class _Comparison:
    """One run of the file and of the reference on the same batch.

    Attributes:
        file_outputs: of the file that is split at its neurons, by name.
        reference: what the program's neurons received and fired.
        magnitudes: a bound on the sum of the magnitudes of every current.
        natural: whether the spikes are the images' own, not random ones.
    """

    file_outputs: dict[str, np.ndarray]
    reference: Recorder
    magnitudes: Recorder
    natural: bool

    def judge(self, layer: LayerVerdict, module: Any, neuron: backend.SplitNeuron, terms: int) -> None:
        """Compare one neuron's current and spikes in the file with the reference's.

        Args:
            layer: where the result is added.
            module: the neuron in the program.
            neuron: its place in the file.
            terms: length of the sums behind its current.
        """
        expected = self.reference.spikes[neuron.path].numpy()
        current = self.reference.currents[neuron.path].numpy()
        magnitude = self.magnitudes.currents[neuron.path].numpy()
        spikes = self.file_outputs[neuron.spikes].reshape(expected.shape)
        # a current that is the same at every step is in the file once
        shape = current[:1].shape if neuron.static else current.shape
        off = abs(self.file_outputs[neuron.current].reshape(shape) - current)
        layer.spikes += expected.size
        layer.firing += float(expected.sum()) if self.natural else 0.0
        layer.max_current_difference = max(layer.max_current_difference, float(off.max()))
        layer.currents_beyond_rounding += int((off > bound(magnitude, terms)).sum())
        differs = spikes != expected
        if not differs.any():
            return
        distance, allowed = margins(module, current, expected, magnitude, terms)
        beyond = int((differs & _unexplained(differs, off, distance > allowed, ops.has_state(module))).sum())
        layer.flips_beyond_rounding += beyond
        layer.flips_within_rounding += int(differs.sum()) - beyond


def _unexplained(differs: np.ndarray, off: np.ndarray, far: np.ndarray, state: bool) -> np.ndarray:
    """Where spikes that differ are wrong: far from the threshold, or on a current that is not off at all."""
    if not state:
        return far | (off == 0)
    # equal currents give equal membranes, bit for bit: only where they differ is rounding an excuse
    strayed = np.cumsum(off, axis=0) > 0
    # once a membrane has taken the other branch its later steps differ with reason: judge the first
    first = differs & (np.cumsum(differs, axis=0) == 1)
    return (first & (far | ~strayed)).any(axis=0)
