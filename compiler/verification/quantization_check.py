"""Verification of quantization: every current of the quantized program against the float program's, within rounding.

That a file computes what the quantized program computes (exact_check.py) says nothing about what the passes of the
quantization left out. Here both programs get the float program's spikes at every neuron, so that errors do not spread,
and each current may differ only by what the rounding of weights and inputs explains (error_bounds.py). A second run
feeds random spikes instead. The equations of each neuron must be the same ones, but for the factor that moved into the
weights: a current x of the original counts as x * gain / (threshold - rest).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from svitc.analysis.float_error import bound, magnitudes, output_sum_lengths, sum_lengths
from svitc.analysis.integer_range import integer_ranges
from svitc.ir import ops
from svitc.ir.neuron_dynamics import NeuronDynamics, dynamics_of
from svitc.ir.outputs import as_tuple, labels
from svitc.ir.program import Program
from svitc.ir.quantized_modules import TERNARY, WIDE_BITS
from svitc.passes.pipelines import unrounded_program
from svitc.passes.quantization.quantize_input import FINE_STEPS
from svitc.quantization.weight_grid import is_ternary, stored_bits
from svitc.verification.error_bounds import VAST, Bound, ErrorBounds
from svitc.verification.recorder import STIMULUS_SEED, Recorder, record_magnitudes, stimulate
from svitc.verification.verdict import QuantizationVerdict

# largest rounding of a weight, as a share of its scale: half the distance of two integers, or of two odd integers
ROUNDING = {16: 0.5, 8: 0.5, 4: 0.5, 2: 1.0, TERNARY: 0.5}
SLACK = 2.0**-10  # of the scale, for the float32 arithmetic of scales
TOLERANCE = 1e-5  # relative, of the numbers in a neuron's equations
CERTAIN = 0.99  # share of a value that the computed sum of its terms' magnitudes has at least: it is rounded, too


def check_quantization(original: Program, program: Program, x: torch.Tensor) -> QuantizationVerdict:
    """Compare a quantized program with the float program that it was made of.

    Args:
        original: the float program, pruned and with its weights on their grids, but not quantized.
        program: the quantized program.
        x: a batch in the program's input layout.
    """
    verdict = QuantizationVerdict()
    exact = unrounded_program(original, _wide_layers(original, program))
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
        reference, output = Recorder.record(original, x, fed, fires=natural)
        quantized = ErrorBounds(program, reference.fed, layers)
        values = zip(*map(as_tuple, (output, quantized.run_from_rest(x))), strict=True)
        sums = _Sums(sizes, x, reference)
        for path in common:
            scale, quantized_scale = _drive(before[path]), _drive(after[path])
            value, other = scale * reference.currents[path], quantized_scale * quantized.currents[path]
            error = _scaled(quantized.bounds[path], abs(quantized_scale))
            if _is_within(value, other, error, 2 * lengths[path] + 8):
                verdict.pass_over(path, value.numel())
                continue
            allowed = error + abs(scale) * bound(sums.currents[path], 2 * lengths[path] + 8)
            verdict.judge(path, _known(value - other, reference.currents[path], allowed), allowed)
        for i, (label, (value, other)) in enumerate(zip(labels(original.info), values, strict=True)):
            error = _scaled(quantized.outputs[i], 1.0)
            if _is_within(value, other, error, 2 * output_lengths[i] + 8):
                verdict.pass_over(label, value.numel())
                continue
            allowed = error + bound(sums.outputs[i], 2 * output_lengths[i] + 8)
            verdict.judge(label, _known(value - other, value, allowed), allowed)
        if natural:
            verdict.clamped.update(quantized.clamped)
            fed = {path: stimulate(before[path], s, generator) for path, s in reference.spikes.items()}
    return verdict


class _Sums:
    """Bounds on the sums of the magnitudes behind currents and outputs, which cost a run: it is made if one is asked.

    Args:
        sizes: ``analysis.float_error.magnitudes`` of the float program.
        x: the batch.
        reference: a run of the float program on it.
    """

    def __init__(self, sizes: Program, x: torch.Tensor, reference: Recorder) -> None:
        self._sizes, self._x, self._reference = sizes, x, reference

    @functools.cached_property
    def _run(self) -> tuple[Recorder, Any]:
        return record_magnitudes(self._sizes, self._x, self._reference)

    @property
    def currents(self) -> dict[str, torch.Tensor]:
        """The bounds of each neuron's current."""
        return self._run[0].currents

    @property
    def outputs(self) -> tuple[torch.Tensor, ...]:
        """The bounds of each output."""
        return as_tuple(self._run[1])


def _is_within(value: torch.Tensor, other: torch.Tensor, error: torch.Tensor, terms: int) -> bool:
    """Return whether values differ by no more than is certain to be allowed.

    The sum of the magnitudes behind a value is at least the magnitude of the value itself, which is at hand. Where that
    explains every difference, the larger sum need not be known.

    Args:
        value: values of the float program.
        other: those of the quantized program.
        error: what the rounding of weights explains.
        terms: length of the sums behind them.
    """
    return bool(((value - other).abs() <= error + CERTAIN * bound(value.abs(), terms)).all())


def _scaled(error: Bound, scale: float) -> torch.Tensor:
    """Return the largest difference that the rounding of weights explains; infinite where nothing is known."""
    return torch.zeros(()) if error is None else scale * error.where(error < VAST, torch.inf)


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


def _wide_layers(original: Program, program: Program) -> dict[str, int]:
    """Return the bits of all layers if the quantized program splits its input, as it does for weights of 16 bits."""
    if FINE_STEPS not in dict(program.module.named_children()):
        return {}
    return {path: WIDE_BITS for path, layer in original.module.named_modules() if ops.is_projection(layer)}


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
        rounding = ROUNDING[TERNARY if is_ternary(integers) else stored_bits(integers)]
        allowed = (rounding + SLACK) * scale
        bias = getattr(exact, "bias", None)
        shift = (layer.get_buffer("bias") - (0 if bias is None else bias.detach())).abs()
        verdict.beyond[path] = int((difference > allowed).sum()) + int((shift > (0.5 + SLACK) * step).sum())


__all__ = ["check_quantization"]
