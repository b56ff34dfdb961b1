"""Memory traffic for energy: bytes that one image moves, by what they are, from the graph alone.

- weights: each is read once for an image and call, at the bits that it is stored in (8, 4, 2 or 32), with biases,
  scales and other parameters at 32; they lie where all weights of the model fit.
- activations: a value is written once and read once by each layer that reads it. A spike takes 1 bit, a count up to 255
  one byte, other whole numbers 2 or 4, real numbers 4; a view moves nothing. The buffer is the value of one image over
  all its time steps.
- currents: what nothing but neurons read, through pools, scales and additions if need be, is summed up where the
  membrane is, and moves nothing.
- membranes: 4 bytes read and 4 written for each neuron and step; the buffer holds one step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import einops
import torch
from torch import fx

from svitc.analysis.integer_range import IntegerRange
from svitc.ir import ops
from svitc.ir.graph import BATCH_PROBE
from svitc.ir.program import Program
from svitc.quantization.weight_grid import stored_bits

REAL = 32  # bits
VIEWS = (*ops.VIEWS, ops.take_block, ops.take_range)
ON_THE_WAY = (*(view for view in VIEWS if view is not einops.repeat), *ops.ELEMENTWISE)  # what is repeated is kept


@dataclass(frozen=True)
class Traffic:
    """Of one image: ``moved`` bytes, read and written, of a buffer that holds ``held`` bytes."""

    moved: float
    held: float


def bits(grid: IntegerRange | None) -> int:
    """Bits that a value is stored in."""
    if grid is None:
        return REAL
    if grid.is_byte:
        return 1 if grid.high <= 1 else 8
    return 16 if grid.bound < 1 << 15 else REAL


def base(node: fx.Node) -> fx.Node:
    """What a view looks at."""
    while node.target in VIEWS:
        node = node.all_input_nodes[0]
    return node


def currents(program: Program) -> set[fx.Node]:
    """Values that only neurons read, and what lies between; see this module."""
    found: set[fx.Node] = set()
    for node in reversed(list(program.graph.nodes)):
        module = program.module_of(node)
        if node.op in ("placeholder", "get_attr", "output") or ops.is_neuron(module) or not node.users:
            continue
        if all(ops.is_neuron(program.module_of(u)) or (u in found and _on_the_way(program, u)) for u in node.users):
            found.add(node)
    return found


def _on_the_way(program: Program, node: fx.Node) -> bool:
    """Whether an operation can be done as a current arrives."""
    module = program.module_of(node)
    return node.target in ON_THE_WAY or isinstance(module, (*ops.POOLS, *ops.BATCH_NORMS))


def activations(
    program: Program, node: fx.Node, known: dict[fx.Node, IntegerRange], passing: set[fx.Node]
) -> list[Traffic]:
    """What a layer or function reads and writes of values that are stored."""
    found = []
    for each in node.all_input_nodes:
        source = base(each)
        if source in passing or source.op == "get_attr":
            continue
        width = bits(known.get(source)) / 8
        found.append(Traffic(_numbers(program, each) * width, _numbers(program, source) * width))
    if node not in passing:
        written = _numbers(program, node) * bits(known.get(node)) / 8
        found.append(Traffic(written, written))
    return found


def membranes(program: Program, node: fx.Node) -> list[Traffic]:
    """A neuron's membrane, read and written at every step."""
    if not ops.has_state(program.module_of(node)):
        return []
    size = _numbers(program, node) * REAL / 8
    return [Traffic(2 * size, size / program.shape_of(node)[0])]


def weights(program: Program, node: fx.Node) -> tuple[int, int]:
    """Bits of each weight of a layer, 0 where it has none, and bytes of all its parameters."""
    module: Any = program.module_of(node)
    constants = [base(each) for each in node.all_input_nodes if base(each).op == "get_attr"]
    bare = sum(math.prod(program.shape_of(each)) for each in constants)
    if module is None:
        return REAL * bool(bare), 4 * bare
    tensors = {name: each for name, each in module.state_dict().items() if each.dtype != torch.int64}
    width = REAL
    if ops.is_quantized(module):
        width = stored_bits(tensors["weight"])
    size = sum(math.ceil(each.numel() * (width if name == "weight" else REAL) / 8) for name, each in tensors.items())
    return width * bool(tensors), size + 4 * bare


def _numbers(program: Program, node: fx.Node) -> int:
    """Numbers of a value for one image, all time steps."""
    return math.prod(program.shape_of(node)) // BATCH_PROBE


__all__ = ["REAL", "VIEWS", "Traffic", "activations", "base", "bits", "currents", "membranes", "weights"]
