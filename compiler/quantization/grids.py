"""Recognition of weights that lie on a uniform grid already, as quantization-aware training leaves them.

Such training computes ``round(clamp(w / s, -8, 7)) * s`` in ``forward`` (S. K. Esser et al., "Learned Step Size
Quantization", ICLR 2020; in spiking transformers QSD-Transformer, X. Qiu et al., ICLR 2025); binary and ternary
weights are the smallest case. The scale is recognized from the values alone: all weights of an output channel are
small integers times one number. A batch norm that is folded into the layer multiplies a channel by a factor, and its
grid with it: the integers stay, bit for bit, and the step is the product, up to float32's rounding of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from svitc.ir import ops
from svitc.ir.program import Program
from svitc.ir.quantized_modules import TERNARY
from svitc.quantization.weight_grid import is_ternary, stored_bits

MAX_BITS = 8
MAX_LEVEL = 128  # the largest integer weight in magnitude: int8 holds -128 to 127
ROUNDINGS = 4  # to float32, of a weight at most: fake quantization, batch norm, a neuron's factor, one in reserve
TOLERANCE = 2 * ROUNDINGS * 2.0**-24  # relative, of the ratio of two weights
MIN_EVIDENCE = 16  # weights of a layer that must be multiples of another one; fewer may be so by chance
SAMPLE = 8  # channels, and weights of each, by which a layer of real-valued weights is told apart at once
MANTISSA = 24  # bits of float32's mantissa


@dataclass(frozen=True)
class Grid:
    """Weights as integers times a step for each output channel.

    Attributes:
        integers: ``[out, in]``, float64, from -128 to 127, with no common divisor within a channel but 1.
        step: ``[out]``, float64, positive: of all numbers whose products with the integers, rounded to float32, are the
            weights bit for bit, one of the fewest bits; where there is none, since weights were rounded more than once,
            the mean quotient. 1 for a channel of zeros.
        bits: number of bits that count the levels of the widest channel, from 2 to 8. They may be stored in more: four
            bits do not hold 8, which a negative factor makes of -8, nor do two bits hold 0 beside -2 or 3.
    """

    integers: torch.Tensor
    step: torch.Tensor
    bits: int


def grid_of(weight: torch.Tensor, min_evidence: int = MIN_EVIDENCE) -> Grid | None:
    """Return the grid on which all weights of a layer lie, or None where they do not.

    Args:
        weight: ``[out, ...]``, float32 numbers.
        min_evidence: number of weights, besides the first of each channel, that must not be 0; with 0 for a layer that
            is known to have been trained on a grid.
    """
    flat = weight.detach().flatten(1)
    sample = flat[:SAMPLE, :SAMPLE].double()
    if _integers(sample[sample.any(1)]) is None:  # most layers of most models
        return None
    flat = flat.double()
    used = flat.any(1)
    rows = flat[used]
    if int((rows != 0).sum()) - len(rows) < min_evidence or (found := _integers(rows)) is None:
        return None
    integers, step = torch.zeros_like(flat), torch.ones(len(flat), dtype=torch.float64)
    integers[used], step[used] = found, _step(rows, found)
    levels = int((integers.amax(1) - integers.amin(1)).max()) + 1
    return Grid(integers, step, 2 if stored_bits(integers) == 2 else max(2, math.ceil(math.log2(levels))))


def _integers(rows: torch.Tensor) -> torch.Tensor | None:
    """Return the smallest integers whose ratios are those of the weights in each row, or None where a row has none.

    Args:
        rows: ``[rows, in]``, float64, none of which is 0.
    """
    units = rows / rows.abs().amax(1, keepdim=True)
    levels = torch.arange(1, MAX_LEVEL + 1, dtype=rows.dtype)
    plausible = _near_integers(units[:, None, :SAMPLE] * levels[:, None])  # [rows, levels]
    if not bool(plausible.any(1).all()):
        return None
    result, is_open = torch.zeros_like(rows), torch.ones(len(rows), dtype=torch.bool)
    for i, level in enumerate(levels.tolist()):
        tried = (is_open & plausible[:, i]).nonzero().flatten()
        if len(tried):
            ratios = units[tried] * level
            nearest = ratios.round()
            fits = _near_integers(ratios) & (nearest.amax(1) < MAX_LEVEL)
            result[tried[fits]], is_open[tried[fits]] = nearest[fits], False
    return None if bool(is_open.any()) else result


def _near_integers(ratios: torch.Tensor) -> torch.Tensor:
    """Tell for each row, the last dimension, whether all of its numbers are integers up to rounding."""
    nearest = ratios.round()
    return ((ratios - nearest).abs() <= TOLERANCE * nearest.abs()).all(-1)


def _step(rows: torch.Tensor, integers: torch.Tensor) -> torch.Tensor:
    """Return the step of each row, as ``Grid.step`` says."""
    present = integers != 0
    divisors = torch.where(present, integers, 1)
    quotients = torch.where(present, rows / divisors, 0)
    half_unit = torch.exp2(torch.frexp(rows)[1].double() - (MANTISSA + 1)) / divisors.abs()  # of the weight's last bit
    low = torch.where(present, quotients - half_unit, -torch.inf).amax(1)
    high = torch.where(present, quotients + half_unit, torch.inf).amin(1)
    mean = quotients.sum(1) / present.sum(1)
    step, is_open = mean.clone(), torch.ones(len(rows), dtype=torch.bool)
    for bits in range(1, MANTISSA + 1):
        candidate = with_bits((low + high) / 2, torch.full_like(mean, bits))
        fits = is_open & (candidate >= low) & (candidate <= high)
        tried = fits.nonzero().flatten()
        products = (integers[tried] * candidate[tried, None]).float()
        exact = tried[(products == rows[tried]).all(1)]
        step[exact], is_open[exact] = candidate[exact], False
    return step


def with_bits(numbers: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Round positive numbers to the nearest ones whose mantissa has as many bits."""
    mantissa, exponent = torch.frexp(numbers)
    return torch.ldexp(torch.ldexp(mantissa, bits).round(), exponent - bits)


def odd_part(numbers: torch.Tensor) -> torch.Tensor:
    """Return positive float32 numbers without their powers of two: the odd integers of their mantissas."""
    mantissa = torch.ldexp(torch.frexp(numbers)[0], torch.tensor(MANTISSA)).long()
    return (mantissa // (mantissa & -mantissa)).double()


def layers_on_grids(program: Program) -> dict[str, int]:
    """Return the layers of a program whose weights lie on grids, with the bits of their levels."""
    result: dict[str, int] = {}
    for node in program.graph.nodes:
        module: Any = program.module_of(node)
        if ops.is_projection(module) and not ops.is_quantized(module) and str(node.target) not in result:
            grid = grid_of(module.weight)
            if grid is not None:
                result[str(node.target)] = grid.bits
    return result


def trained_bits(info: Mapping[str, Any], layer: str) -> float:
    """Return the bits of the grid on which a layer's weights were when the model was loaded, infinity for real numbers.

    Weights that svitc itself has rounded lie on grids as well, and do not count.
    """
    noted = info.get("grids")
    bits = noted.get(layer) if isinstance(noted, Mapping) else None
    return bits if type(bits) is int and 2 <= bits <= MAX_BITS else math.inf


def kept_grid(info: Mapping[str, Any], layer: str, weight: torch.Tensor, bits: int) -> Grid | None:
    """Return the grid that a layer was trained on, where its levels are as few as it is asked for; None elsewhere.

    Args:
        info: ``Program.info``.
        layer: name of the layer.
        weight: its weights, ``[out, ...]``.
        bits: 16, 8, 4, 2 or ``TERNARY``.
    """
    if trained_bits(info, layer) > max(bits, 2):
        return None
    grid = grid_of(weight, 0)
    return None if grid is not None and bits == TERNARY and not is_ternary(grid.integers) else grid


__all__ = ["Grid", "grid_of", "kept_grid", "layers_on_grids", "odd_part", "trained_bits", "with_bits"]
