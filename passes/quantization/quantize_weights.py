"""Quantize: int8 weights for each channel, with sums that are exact in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from svitc.analysis.integer_range import IntegerRange, integer_ranges, runs_in_floats
from svitc.errors import UnsupportedError
from svitc.ir import ops
from svitc.ir.pass_manager import Pass
from svitc.ir.program import Program, Stage
from svitc.ir.quantized_modules import EXACT, QUANTIZED
from svitc.quantization.weight_grid import nearest, scales

LEVELS = 127
MANTISSA = 8  # most bits of a scale; a scale that is rounded up by 2^-8 costs no accuracy that can be seen
LEAST = 2.0**-100  # scale: float32 still holds its products with units and gains, and bits below


class QuantizeWeights(Pass):
    """Store the weights of every convolution and linear layer as whole numbers, symmetric, one scale for each channel.

    before   y = W x + b                           x whole numbers times ``unit``
    after    y = (W' x) * scale + b                W' whole numbers from -127 to 127, or of fewer bits (weight_grid.py)

    The scale is a little larger than the smallest that fits, so that its few bits times the largest possible sum stay
    within 24 bits: their product is exact. A channel whose sum could pass 2^24 gets a coarser scale. A layer that runs
    as a float convolution (the first, depthwise ones) gets a power of two, and a bias on a grid on which the sum with
    it is exact in any order; it keeps its eight bits. A layer whose weights RoundWeights has put on a grid of few bits
    gets the very same whole numbers.

    Refuses a layer that is called more than once, whose inputs may have different ranges.

    Args:
        bits: layer -> 4 or 2 where it is not 8.

    Raises:
        UnsupportedError: weights that are infinite or not a number, or too many inputs for so few levels.
    """

    name = "Quantize"  # in reports, which keep the name that they began with
    requires = (Stage.INFERENCE, Stage.QUANTIZED)
    ensures = Stage.QUANTIZED

    def __init__(self, bits: Mapping[str, int] | None = None) -> None:
        self.bits = bits or {}

    def match(self, program: Program, node: fx.Node) -> bool:
        return ops.is_projection(program.module_of(node)) and not ops.is_quantized(program.module_of(node))

    def apply(self, program: Program) -> Any:
        self.grids = integer_ranges(program)
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
        known = self.grids.get(node.all_input_nodes[0])
        grid = known or IntegerRange(1.0, -1, 1)
        if runs_in_floats(layer, known):
            whole, scale = quantize_weights(weight, grid.bound, 1, bias / grid.unit)
            bias = _on_grid(bias, whole.flatten(1).abs().sum(1) * grid.bound, scale * grid.unit)
        elif (bits := self.bits.get(str(node.target), 8)) < 8:
            found = fewer_bits(weight, grid.bound, bits)
            if found is None:
                raise UnsupportedError(
                    f"{node.target} could pass 2^24 with weights of {bits} bits",
                    where=node.meta.get("source"),
                    hint=f"Leave it at 8 with --exclude '{node.target}'.",
                )
            whole, scale = found
        else:
            whole, scale = quantize_weights(weight, grid.bound, MANTISSA)
        made = _like(layer)
        with torch.no_grad():
            made.weight.copy_(whole)
            made.scale.copy_(scale)
            made.bias.copy_(bias)
        owner, _, name = str(node.target).rpartition(".")
        program.module.get_submodule(owner).add_module(name, made.eval())


def quantize_weights(
    weight: torch.Tensor, bound: int, bits: int, bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole numbers and scales.

    Args:
        weight: ``[out, ...]``, float64.
        bound: largest input.
        bits: most bits of a scale's mantissa.
        bias: ``[out]``, float64, where it is part of the sum; then ``bits`` is 1.

    Returns:
        whole numbers of the weight's shape and scales ``[out]``, both float64;
        ``|sum| * mantissa < 2^24`` for every input within the bound, the sum with the bias if there is one.
    """
    flat = weight.flatten(1)
    largest = flat.abs().amax(1)
    scale = torch.where(largest > 0, largest / LEVELS, torch.ones_like(largest)).clamp_min(LEAST)

    def most(whole: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        total = whole.abs().sum(1) * bound
        return total if bias is None else total + bias.abs() / scale + 1

    for keep in range(bits, 0, -1):
        rounded = _round_up(scale, keep)
        whole = (flat / rounded[:, None]).round()
        bad = most(whole, rounded) * (2**keep - 1) >= EXACT
        if not bool(bad.any()):
            return whole.reshape(weight.shape), rounded
        if keep == 1:
            break
    while bool(bad.any()):  # sums that could pass 2^24: fewer levels for these channels
        scale = torch.where(bad, scale * 2, scale)
        rounded = _round_up(scale, 1)
        whole = (flat / rounded[:, None]).round()
        bad = most(whole, rounded) >= EXACT
    return whole.reshape(weight.shape), rounded


def fewer_bits(weight: torch.Tensor, bound: int, bits: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Whole numbers of 4 or 2 bits, and scales, as ``quantize_weights`` gives them; None where no sum is exact."""
    flat = weight.flatten(1)
    exact = scales(flat, bits).clamp_min(LEAST)
    whole = nearest(flat / exact[:, None], bits)
    sums = whole.abs().sum(1) * bound
    for keep in range(MANTISSA, 0, -1):
        if bool((sums * (2**keep - 1) < EXACT).all()):
            mantissa, exponent = torch.frexp(exact)
            return whole.reshape(weight.shape), torch.ldexp((mantissa * 2**keep).round(), exponent - keep)
    return None


def _round_up(scale: torch.Tensor, bits: int) -> torch.Tensor:
    """To the next number whose mantissa has so many bits."""
    mantissa, exponent = torch.frexp(scale)
    return torch.ldexp((mantissa * 2**bits).ceil(), exponent - bits)


def _on_grid(bias: torch.Tensor, sums: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """A bias as a multiple of ``step`` over a power of two: the finest on which sums with it stay below 2^24."""
    total = sums + bias.abs() / step + 1
    finer = step * torch.exp2((total.log2() - 23).ceil())
    return (bias / finer).round() * finer


def _like(layer: Any) -> Any:
    """An empty quantized layer of the same geometry."""
    kind = next(made for plain, made in QUANTIZED.items() if isinstance(layer, plain))
    if isinstance(layer, nn.Linear):
        return kind(layer.in_features, layer.out_features)
    return kind(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
    )


__all__ = ["QuantizeWeights", "fewer_bits", "quantize_weights"]
