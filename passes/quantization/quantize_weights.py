"""QuantizeWeights: integer weights with one scale per channel, and sums that are exact in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from svitc.analysis.integer_range import IntegerRange, integer_ranges, runs_in_floats
from svitc.errors import UnsupportedError
from svitc.ir import ops
from svitc.ir.pass_manager import Pass, PassResult
from svitc.ir.program import Program, Stage
from svitc.ir.quantized_modules import EXACT, QUANTIZED, TERNARY, WIDE_BITS
from svitc.quantization import planes
from svitc.quantization.grids import Grid, kept_grid, odd_part, with_bits
from svitc.quantization.pair_bound import largest_pair, pair_limit
from svitc.quantization.weight_grid import nearest, scales, stored_bits

LEVELS = 127
MANTISSA = 8  # bits of a scale at most; rounding a scale up by 2^-8 costs no visible accuracy
FLOAT_BITS = 24  # bits of the mantissa of a float32
LEAST = 2.0**-100  # smallest scale: its products with units and gains, and their lower bits, still fit float32


class QuantizeWeights(Pass):
    """Store the weights of every convolution and linear layer as integers, symmetric, with one scale per channel.

    before   y = W x + b                           x integers times ``unit``
    after    y = (W' x) * scale + b                W' integers from -127 to 127, or of fewer bits (weight_grid.py)

    The scale is slightly larger than the smallest that fits, so that its few bits times the largest possible sum stay
    within 24 bits: their product is exact. A channel whose sum could exceed 2^24 gets a coarser scale. So does one with
    two neighbouring weights whose products with the largest inputs could together exceed int16, in which some
    processors add them (``quantization/pair_bound.py``). A layer that runs as a float convolution (the first, depthwise
    ones) gets a power of two, and a bias rounded so that the sum with it is exact in any order; it keeps its eight
    bits, or as many as its sums leave where QuantizeInput gives it 16. A layer whose weights RoundWeights has already
    rounded gets exactly those integers.

    With 16 bits, every layer is quantized like one that runs as a float convolution: the sums of its two planes
    (``quantization/planes.py``) and its bias can then be added in any order. Weights have as many bits as leave the sum
    below 2^24, and mostly all 16.

    A layer that was trained on a grid (``quantization/grids.py``) keeps its integers, bit for bit, and the step of each
    channel is its scale: exactly, where a scale of so few bits exists that all products are exact, and else rounded to
    as many bits as they leave, from 8 to 24. It is quantized like any other where they leave fewer.

    Refuses
      1. a layer that is called more than once, whose inputs may have different ranges.

    Args:
        bits: layer -> 16, 4, 2 or ``TERNARY`` where it is not 8.

    Attributes:
        kept: layers that kept the integers of the grid that they were trained on, each with the largest relative error
            of its scales.

    Raises:
        UnsupportedError: weights that are infinite or not a number, or too many inputs for so few levels.
    """

    name = "Quantize"  # the old name of this pass, which reports keep
    requires = (Stage.INFERENCE, Stage.QUANTIZED)
    ensures = Stage.QUANTIZED

    def __init__(self, bits: Mapping[str, int] | None = None) -> None:
        self.bits = {} if bits is None else bits
        self.kept: dict[str, float] = {}

    def match(self, program: Program, node: fx.Node) -> bool:
        return ops.is_projection(program.module_of(node)) and not ops.is_quantized(program.module_of(node))

    def apply(self, program: Program) -> PassResult:
        self.ranges = integer_ranges(program)
        return super().apply(program)

    def why_not(self, program: Program, node: fx.Node) -> str | None:
        return None if program.called_once(node) else "it is called more than once"

    def rewrite(self, program: Program, node: fx.Node) -> None:
        layer: Any = program.module_of(node)
        weight = layer.weight.detach().double()
        bias = torch.zeros(weight.shape[0]).double() if layer.bias is None else layer.bias.detach().double()
        if not bool(weight.isfinite().all() and bias.isfinite().all()):
            raise UnsupportedError(
                f"{node.target} has weights that are infinite or not a number", where=node.meta.get("source")
            )
        input_range = self.ranges.get(node.all_input_nodes[0])
        integers, scale, bias = self._quantized(program, node, weight, bias, input_range)
        replacement = _like(layer, max(8, stored_bits(integers)))
        with torch.no_grad():
            replacement.weight.copy_(integers)
            replacement.scale.copy_(scale)
            replacement.bias.copy_(bias)
        owner, _, name = str(node.target).rpartition(".")
        program.module.get_submodule(owner).add_module(name, replacement.eval())

    def _quantized(
        self,
        program: Program,
        node: fx.Node,
        weight: torch.Tensor,
        bias: torch.Tensor,
        input_range: IntegerRange | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the integers of a layer's weights, its scales and its bias."""
        layer: Any = program.module_of(node)
        name, bounds = str(node.target), input_range or IntegerRange(1.0, -1, 1)
        bits = self.bits.get(name, 8)
        in_floats = runs_in_floats(layer, input_range, bits)
        grid = kept_grid(program.info, name, layer.weight, bits)
        if grid is not None:
            trained = trained_weights(grid, bounds.bound, bias / bounds.unit if in_floats else None)
            if trained is not None:
                integers, scale = trained
                self.kept[name] = float((scale / grid.step - 1).abs().max())
                if in_floats:
                    sums, odd = integers.abs().sum(1) * bounds.bound, odd_part(scale)
                    bias = _rounded_bias(bias, sums * odd, scale / odd * bounds.unit)
                return integers.reshape(weight.shape), scale, bias
        if in_floats or bits == WIDE_BITS:
            largest = planes.levels(bounds.largest_byte if not in_floats else 0) if bits == WIDE_BITS else LEVELS
            integers, scale = quantize_weights(weight, bounds.bound, 1, bias / bounds.unit, levels=largest)
            return (
                integers,
                scale,
                _rounded_bias(bias, integers.flatten(1).abs().sum(1) * bounds.bound, scale * bounds.unit),
            )
        if bits == 8:
            limit = pair_limit(bounds.largest_byte)
            return *quantize_weights(weight, bounds.bound, MANTISSA, largest_pair_sum=limit), bias
        quantized = fewer_bits(weight, bounds.bound, bits)
        if quantized is None:
            raise UnsupportedError(
                f"{name} could pass 2^24 with {'ternary weights' if bits == TERNARY else f'weights of {bits} bits'}",
                where=node.meta.get("source"),
                hint=f"Leave it at 8 with --exclude '{name}'.",
            )
        return *quantized, bias


def trained_weights(
    grid: Grid, bound: int, bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return the integers of a grid and scales, like ``quantize_weights``; None where scales of 8 bits are too long."""
    sums = (grid.integers.abs().sum(1) * bound).clamp_min(1)
    longest = torch.full_like(sums, FLOAT_BITS)

    def largest_sum(scale: torch.Tensor) -> torch.Tensor:
        shift = 0 if bias is None else bias.abs() / scale + 1
        return (sums + shift) * odd_part(scale)

    step = with_bits(grid.step, longest)
    fits = largest_sum(step) < EXACT
    for bits in range(FLOAT_BITS - 1, MANTISSA - 1, -1):
        candidate = with_bits(grid.step, torch.full_like(sums, bits))
        step = torch.where(fits, step, candidate)
        fits = fits | (largest_sum(candidate) < EXACT)
    return (grid.integers, step) if bool((fits & (step >= LEAST)).all()) else None


def quantize_weights(
    weight: torch.Tensor,
    bound: int,
    bits: int,
    bias: torch.Tensor | None = None,
    largest_pair_sum: int = 2 * LEVELS,
    levels: int = LEVELS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights as integers and scales.

    Args:
        weight: ``[out, ...]``, float64.
        bound: largest magnitude of the inputs, as integers.
        bits: bits of a scale's mantissa, at most.
        bias: ``[out]``, float64, where it is part of the sum; then ``bits`` is 1.
        largest_pair_sum: largest sum of two neighbouring weights of one sign, in magnitude.
        levels: largest integer weight.

    Returns:
        integers of the weight's shape and scales ``[out]``, both float64. For every input within the bound,
        ``|sum| * mantissa < 2^24``, where the sum includes the bias if there is one.
    """
    flat = weight.flatten(1)
    largest = flat.abs().amax(1)
    scale = torch.where(largest > 0, largest / levels, torch.ones_like(largest)).clamp_min(LEAST)

    def largest_sum(integers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        total = integers.abs().sum(1) * bound
        return total if bias is None else total + bias.abs() / scale + 1

    for mantissa_bits in range(bits, 0, -1):
        rounded = _paired(weight, _round_up(scale, mantissa_bits), mantissa_bits, largest_pair_sum)
        integers = (flat / rounded[:, None]).round()
        too_large = largest_sum(integers, rounded) * (2**mantissa_bits - 1) >= EXACT
        if not bool(too_large.any()):
            return integers.reshape(weight.shape), rounded
        if mantissa_bits == 1:
            break
    while bool(too_large.any()):  # fewer levels for the channels whose sums could exceed 2^24
        scale = torch.where(too_large, scale * 2, scale)
        rounded = _paired(weight, _round_up(scale, 1), 1, largest_pair_sum)
        integers = (flat / rounded[:, None]).round()
        too_large = largest_sum(integers, rounded) >= EXACT
    return integers.reshape(weight.shape), rounded


def _paired(weight: torch.Tensor, scale: torch.Tensor, bits: int, limit: int) -> torch.Tensor:
    """Return the smallest scales of so many bits with which neighbouring weights stay within a limit.

    Args:
        weight: ``[out, ...]``, float64.
        scale: ``[out]``, the smallest scales to be considered.
        bits: bits of a scale's mantissa.
        limit: largest sum of two neighbouring weights of one sign, in magnitude, as integers.
    """
    if limit >= 2 * LEVELS:
        return scale
    # rounding takes at most 1 from the sum of two
    scale = torch.maximum(scale, _round_up(largest_pair(weight) / (limit + 1), bits))
    while True:
        integers = (weight / scale.reshape(-1, *(1,) * (weight.ndim - 1))).round()
        over = largest_pair(integers) > limit
        if not bool(over.any()):
            return scale
        mantissa, exponent = torch.frexp(scale)
        scale = torch.where(over, torch.ldexp(mantissa * 2**bits + 1, exponent - bits), scale)


def fewer_bits(weight: torch.Tensor, bound: int, bits: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return weights as integers of few bits and scales, like ``quantize_weights``; None where no sum is exact."""
    flat = weight.flatten(1)
    exact = scales(flat, bits).clamp_min(LEAST)
    integers = nearest(flat / exact[:, None], bits)
    sums = integers.abs().sum(1) * bound
    for mantissa_bits in range(MANTISSA, 0, -1):
        if bool((sums * (2**mantissa_bits - 1) < EXACT).all()):
            mantissa, exponent = torch.frexp(exact)
            scale = torch.ldexp((mantissa * 2**mantissa_bits).round(), exponent - mantissa_bits)
            return integers.reshape(weight.shape), scale
    return None


def _round_up(scale: torch.Tensor, bits: int) -> torch.Tensor:
    """Return scales rounded up to numbers whose mantissa has ``bits`` bits."""
    mantissa, exponent = torch.frexp(scale)
    return torch.ldexp((mantissa * 2**bits).ceil(), exponent - bits)


def _rounded_bias(bias: torch.Tensor, sums: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Return a bias as multiples of ``step``, or of a fraction of it by a power of two.

    It is a fraction with which sums that include the bias stay below 2^24; in whole steps they do by themselves.

    Args:
        bias: ``[out]``.
        sums: largest sums of each output without the bias, in steps.
        step: value of one step for each output.
    """
    total = sums + bias.abs() / step + 1
    finer = step * torch.exp2((total.log2() - 23).ceil().clamp_max(0))
    return (bias / finer).round() * finer


def _like(layer: Any, bits: int) -> Any:
    """Return an empty quantized layer of the same geometry, for weights of 8 or 16 bits."""
    kind = next(quantized for plain, quantized in QUANTIZED.items() if isinstance(layer, plain))
    if isinstance(layer, nn.Linear):
        return kind(layer.in_features, layer.out_features, bits=bits)
    return kind(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        bits=bits,
    )


__all__ = ["QuantizeWeights", "fewer_bits", "quantize_weights"]
