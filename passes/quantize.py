"""Quantize: int8 weights for each channel, with sums that are exact in float32."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from svitc.analysis.integer_range import Grid, grids, runs_in_floats
from svitc.errors import UnsupportedError
from svitc.ir import ops
from svitc.ir.pass_manager import Pass
from svitc.ir.program import Program, Stage
from svitc.ir.quantized_modules import EXACT, QUANTIZED, FixedPoint
from svitc.quantization.weight_grid import nearest, scales

LEVELS = 127
MANTISSA = 8  # most bits of a scale; a scale that is rounded up by 2^-8 costs no accuracy that can be seen
STEP = 2.0**-9  # of the image: an eighth of the distance between two of its own 256 levels
RANGE = 4  # normalised pixels lie within +-2.7
COUNTS = 256  # events of a pixel in one frame
LEAST = 2.0**-100  # scale: float32 still holds its products with units and gains, and bits below


class QuantizeInput(Pass):
    """Give the network's input as whole numbers, so that the first layer's sums are exact, too.

    before   x -> conv
    after    x -> FixedPoint -> conv', with conv's weights times the step

    The limit is lowered until no sum of the first layer can pass 2^24.

    Refuses
      1. an input that something else than projections reads;
      2. a layer that is called more than once.
    """

    requires = (Stage.INFERENCE, Stage.INFERENCE)

    def match(self, program: Program, node: fx.Node) -> bool:
        return node.op == "placeholder" and not any(isinstance(program.module_of(u), FixedPoint) for u in node.users)

    def why_not(self, program: Program, node: fx.Node) -> str | None:
        readers = _readers(program, node)
        if any(not ops.is_projection(program.module_of(each)) for each in readers):
            return "something else than a convolution or linear layer reads the image"
        twice = [str(each.target) for each in readers if not program.called_once(each)]
        return f"{twice[0]} reads the image and is called more than once" if twice else None

    def rewrite(self, program: Program, node: fx.Node) -> None:
        terms = max(math.prod(_weight(program, each).shape[1:]) for each in _readers(program, node))
        span = COUNTS if program.input.events else RANGE
        limit = min(int(span / STEP), EXACT // (terms * LEVELS) - 1)
        step = STEP
        while step * limit < span:  # a window of many inputs: coarser steps instead of a narrow range
            step *= 2
        limit = min(limit, int(span / step))
        rounded_for(program, node, "input_steps", FixedPoint(step, limit), list(node.users), _readers(program, node))


def rounded_for(
    program: Program, node: fx.Node, name: str, steps: FixedPoint, users: Sequence[fx.Node], layers: Sequence[fx.Node]
) -> None:
    """Give a value to some of its users in whole numbers of steps, and the step to the weights of the layers behind."""
    program.module.add_submodule(name, steps)
    with program.graph.inserting_after(node):
        made = program.graph.call_module(name, (node,))
    made.meta.update({k: node.meta[k] for k in ("source", "scope", "dims") if k in node.meta})
    for user in users:
        user.replace_input_with(node, made)
    for each in layers:
        layer: Any = program.module_of(each)
        with torch.no_grad():
            layer.weight = nn.Parameter(layer.weight * steps.step, requires_grad=False)


def _readers(program: Program, node: fx.Node) -> list[fx.Node]:
    """What reads a value, looking through views."""
    found: list[fx.Node] = []
    for user in node.users:
        found += (
            _readers(program, user)
            if user.target in ops.VIEWS or isinstance(program.module_of(user), nn.ZeroPad2d)
            else [user]
        )
    return found


def _weight(program: Program, node: fx.Node) -> torch.Tensor:
    module: Any = program.module_of(node)
    return module.weight


class Quantize(Pass):
    """Store the weights of every convolution and linear layer as whole numbers, symmetric, one scale for each channel.

    before   y = W x + b                           x whole numbers times ``unit``
    after    y = (W' x) * scale + b                W' whole numbers from -127 to 127, or of fewer bits (bits.py)

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

    requires = (Stage.INFERENCE, Stage.QUANTIZED)
    ensures = Stage.QUANTIZED

    def __init__(self, bits: Mapping[str, int] | None = None) -> None:
        self.bits = bits or {}

    def match(self, program: Program, node: fx.Node) -> bool:
        return ops.is_projection(program.module_of(node)) and not ops.is_quantized(program.module_of(node))

    def apply(self, program: Program) -> Any:
        self.grids = grids(program)
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
        grid = known or Grid(1.0, -1, 1)
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


__all__ = ["Quantize", "QuantizeInput", "fewer_bits", "quantize_weights", "rounded_for"]
