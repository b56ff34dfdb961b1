"""Verification of quantization: every current of the quantized program against the float program's, within rounding.

That a file computes what the quantized program computes (exact_check.py) says nothing about what the passes of the
quantization left out. Here both programs get the float program's spikes at every neuron, so that errors do not spread,
and each current may differ only by what the rounding of weights and inputs explains (error_bounds.py). A second run
feeds random spikes instead. The equations of each neuron must be the same ones, but for the factor that moved into the
weights: a current x of the original counts as x * gain / (threshold - rest).
"""

from __future__ import annotations

import torch
from torch import nn

from svitc.analysis.float_error import bound, magnitudes, output_sum_lengths, sum_lengths
from svitc.analysis.integer_range import integer_ranges
from svitc.ir import ops
from svitc.ir.neuron_dynamics import NeuronDynamics, dynamics_of
from svitc.ir.outputs import as_tuple, labels
from svitc.ir.program import Program
from svitc.passes.pipelines import unrounded_program
from svitc.quantization.weight_grid import stored_bits
from svitc.verification.error_bounds import VAST, Bound, ErrorBounds
from svitc.verification.recorder import STIMULUS_SEED, Recorder, record_magnitudes, stimulate
from svitc.verification.verdict import QuantizationVerdict

# largest rounding of a weight, as a share of its scale: half the distance of two integers, or of two odd integers
ROUNDING = {8: 0.5, 4: 0.5, 2: 1.0}
SLACK = 2.0**-10  # of the scale, for the float32 arithmetic of scales
TOLERANCE = 1e-5  # relative, of the numbers in a neuron's equations


def check_quantization(original: Program, program: Program, x: torch.Tensor) -> QuantizationVerdict:
    """Compare a quantized program with the float program that it was made of.

    Args:
        original: the float program, pruned and with its weights on their grids, but not quantized.
        program: the quantized program.
        x: a batch in the program's input layout.
    """
    verdict = QuantizationVerdict()
    exact = unrounded_program(original)
    layers = {str(n.target): exact.module_of(n) for n in exact.graph.nodes if n.op == "call_module"}
    _check_weights(verdict, program, layers)
    before = {str(n.target): original.module_of(n) for n in original.neurons()}
    after = {str(n.target): program.module_of(n) for n in program.neurons()}
    for path in [*before, *(p for p in after if p not in before)]:
        verdict.beyond[path] = int(path not in before or path not in after or not _alike(before[path], after[path]))
    common = [path for path in before if path in after]
    sizes, lengths, output_lengths = magnitudes(original), sum_lengths(original), output_sum_lengths(original)
    generator = torch.Generator().manual_seed(STIMULUS_SEED + 1)
    fed: dict[str, torch.Tensor] | None = None
    for natural in (True, False):
        reference, output = Recorder.record(original, x, fed)
        magnitude, output_magnitude = record_magnitudes(sizes, x, reference)
        quantized = ErrorBounds(program, reference.fed, layers)
        values = zip(*map(as_tuple, (output, quantized.run_from_rest(x), output_magnitude)), strict=True)
        for path in common:
            scale, quantized_scale = _drive(before[path]), _drive(after[path])
            rounding = abs(scale) * bound(magnitude.currents[path].numpy(), 2 * lengths[path] + 8)
            difference = scale * reference.currents[path] - quantized_scale * quantized.currents[path]
            allowed = _total(quantized.bounds[path], abs(quantized_scale), rounding)
            verdict.judge(path, _known(difference, reference.currents[path], allowed), allowed)
        for i, (label, (value, quantized_value, size)) in enumerate(zip(labels(original.info), values, strict=True)):
            rounding = bound(size.numpy(), 2 * output_lengths[i] + 8)
            allowed = _total(quantized.outputs[i], 1.0, rounding)
            verdict.judge(label, _known(value - quantized_value, value, allowed), allowed)
        if natural:
            verdict.clamped.update(quantized.clamped)
            fed = {path: stimulate(before[path], s, generator) for path, s in reference.spikes.items()}
    return verdict


def _total(error: Bound, scale: float, rounding: object) -> torch.Tensor:
    """Return the largest difference that the rounding of weights and of float32 explains."""
    total = torch.as_tensor(rounding)
    return total if error is None else total + scale * error.where(error < VAST, torch.inf)


def _known(difference: torch.Tensor, value: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Return differences, but for those of which nothing is known: the float program's own value is too large."""
    return difference.where(value.isfinite() | allowed.isfinite(), 0.0)


def _drive(module: nn.Module | None) -> float:
    """Return the factor with which a neuron's input counts, where its threshold is 1 above its resting voltage."""
    neuron = dynamics_of(module)
    return neuron.gain / (neuron.threshold - neuron.rest) if neuron.has_state else 1.0


def _alike(before: nn.Module | None, after: nn.Module | None) -> bool:
    """Return whether two neurons have the same equations, but for the factor of their input."""
    old, new = dynamics_of(before), dynamics_of(after)
    if _kind(old) != _kind(new) or type(before) is not type(after):
        return False
    return all(abs(a - b) <= TOLERANCE * max(1.0, abs(a)) for a, b in zip(_numbers(old), _numbers(new), strict=True))


def _kind(neuron: NeuronDynamics) -> tuple[object, ...]:
    soft = neuron.has_state and neuron.reset is None
    return neuron.kind, soft, neuron.max_spikes, neuron.half_up, neuron.strict, neuron.fires


def _numbers(neuron: NeuronDynamics) -> tuple[float, ...]:
    if not neuron.has_state:
        return (neuron.threshold,)
    return neuron.keep, (neuron.initial - neuron.rest) / (neuron.threshold - neuron.rest)


def _check_weights(verdict: QuantizationVerdict, program: Program, layers: dict[str, nn.Module | None]) -> None:
    """Count the weights and biases that are further from those before rounding than rounding moves them."""
    ranges = integer_ranges(program)
    for node in program.graph.nodes:
        layer, path = program.module_of(node), str(node.target)
        if layer is None or not ops.is_quantized(layer):
            continue
        exact, integers = layers.get(path), layer.get_buffer("weight")
        input_range = ranges.get(node.all_input_nodes[0])
        step = layer.get_buffer("scale") * (1.0 if input_range is None else input_range.unit)
        scale = layer.get_buffer("scale").reshape(-1, *(1,) * (integers.ndim - 1))
        if not isinstance(exact, nn.Module) or exact.get_parameter("weight").shape != integers.shape:
            verdict.beyond[path] = 1
            continue
        difference = (exact.get_parameter("weight").detach() - integers * scale).abs()
        allowed = (ROUNDING[stored_bits(integers)] + SLACK) * scale
        bias = getattr(exact, "bias", None)
        shift = (layer.get_buffer("bias") - (0 if bias is None else bias.detach())).abs()
        verdict.beyond[path] = int((difference > allowed).sum()) + int((shift > (0.5 + SLACK) * step).sum())


__all__ = ["check_quantization"]
