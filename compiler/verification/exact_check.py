"""Verification of quantized files: every spike must be the reference's, bit for bit.

The written file is cut at its neurons and fed with the reference's spikes, so that a layer that is wrong is named and
does not spread; once more with random spikes, so that a layer that the images leave silent proves something, too.
A neuron behind a float sum, whose order runtimes choose, may differ where its membrane lies next to its threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch

from svitc import onnx as backend
from svitc.analysis.exactness import inexact
from svitc.ir.program import Program
from svitc.passes.pipelines import exportable_program
from svitc.verification.recorder import STIMULUS_SEED, Recorder, stimulate
from svitc.verification.verdict import LayerVerdict, Verdict

NEAR = 2.0**-12  # share of an inexact neuron's spikes that may differ


def verify_exact(
    program: Program, exported: bytes, inputs: Iterable[torch.Tensor], progress: Callable[[int], None] | None = None
) -> Verdict:
    """Compare an exported file with the quantized program that defines it.

    Args:
        program: the reference, at stage QUANTIZED.
        exported: bytes of the ONNX file.
        inputs: batches in the program's input layout.
        progress: called with the number of images done.
    """
    joined = exportable_program(program)  # the same layers, joined as the file joins them
    split_file, neurons = backend.split_unrolled_neurons(exported)
    whole, pieces = backend.session(exported), backend.session(split_file)
    soft = set(inexact(joined))
    modules = {str(node.target): joined.module_of(node) for node in joined.neurons()}
    verdict = Verdict(layers={name: LayerVerdict(name) for name in modules})
    names = [output.name for output in pieces.get_outputs()]
    stimulus = torch.Generator().manual_seed(STIMULUS_SEED)
    for number, x in enumerate(inputs):
        reference, logits = Recorder.record(joined, x)
        if not torch.equal(program(x), logits):
            verdict.logits_beyond_rounding += 1  # joining layers must change nothing
        runs = [(reference, logits)]
        if number == 0:
            spikes = {name: stimulate(modules[name], s, stimulus) for name, s in reference.spikes.items()}
            runs.append(Recorder.record(joined, x, spikes))
        for kind, (run, want) in enumerate(runs):
            feed = {backend.INPUT: x.numpy()}
            for neuron in neurons:
                feed.update(neuron.steps_of(run.fed[neuron.path].numpy()))
            got = dict(zip(names, pieces.run(names, feed), strict=True))
            for neuron in neurons:
                path = neuron.path
                _judge(verdict.layers[path], neuron.array_of(got), run, path, path in soft, natural=kind == 0)
            close = np.isclose(got[backend.OUTPUT], want.numpy(), rtol=1e-4, atol=1e-5 * float(want.abs().max()))
            verdict.logits_beyond_rounding += int((~close).sum())
        expected = logits.numpy()
        final = whole.run(None, {backend.INPUT: x.numpy()})[0]
        verdict.add(final, expected)
        if progress is not None:
            progress(verdict.images)
    return verdict


def _judge(layer: LayerVerdict, ours: np.ndarray, run: Recorder, path: str, soft: bool, natural: bool) -> None:
    want = run.spikes[path].numpy()
    layer.spikes += want.size
    layer.firing += float(want.sum()) if natural else 0.0
    differs = ours.reshape(want.shape) != want
    count = int(differs.sum())
    if not count:
        return
    # a sum of some thousand terms strays by 2^-20 of its magnitude at most; a wrong one flips far more spikes than that
    few = soft and count <= max(1, NEAR * want.size)
    layer.flips_within_rounding += count if few else 0
    layer.flips_beyond_rounding += 0 if few else count
