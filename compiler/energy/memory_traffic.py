"""Memory traffic: bytes that one image moves, by kind, from the graph alone.

- weights: each is read once per image and call, in the bits in which it is stored (8, 4, 2 or 32), with biases, scales
  and other parameters at 32; they are in the memory that holds all weights of the model.
- activations: a value is written once and read once by each layer that reads it. A spike takes 1 bit, a count up to 255
  one byte, other integers 2 or 4, real numbers 4; a view moves nothing. The buffer is the value of one image over all
  its time steps.
- currents: values that only neurons read, perhaps through pools, scales and additions, are summed up at the membrane
  and move nothing.
- membranes: 4 bytes read and 4 written for each neuron and time step; the buffer holds one step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
ON_ARRIVAL = (*(view for view in VIEWS if view is not einops.repeat), *ops.ELEMENTWISE)  # a repeated value is stored


@dataclass(frozen=True)
class Traffic:
    """Memory accesses of one image.

    Attributes:
        moved: bytes read and written.
        held: size of the buffer, bytes.
    """

    moved: float
    held: float


def bits(value_range: IntegerRange | None) -> int:
    """Return the bits in which a value is stored; ``value_range`` is None for real numbers."""
    if value_range is None:
        return REAL
    if value_range.is_byte:
        return 1 if value_range.high <= 1 else 8
    return 16 if value_range.bound < 1 << 15 else REAL


def base(node: fx.Node) -> fx.Node:
    """Return the node that a view shows, through other views."""
    while node.target in VIEWS:
        node = node.all_input_nodes[0]
    return node


def currents(program: Program) -> set[fx.Node]:
    """Return the values that only neurons read, and those in between; see the top of this module."""
    result: set[fx.Node] = set()
    for node in reversed(list(program.graph.nodes)):
        module = program.module_of(node)
        if node.op in ("placeholder", "get_attr", "output") or ops.is_neuron(module) or not node.users:
            continue
        if all(
            ops.is_neuron(program.module_of(user)) or (user in result and _on_arrival(program, user))
            for user in node.users
        ):
            result.add(node)
    return result


def _on_arrival(program: Program, node: fx.Node) -> bool:
    """Return whether an operation can be done as a current arrives at the membrane."""
    module = program.module_of(node)
    return node.target in ON_ARRIVAL or isinstance(module, (*ops.POOLS, *ops.BATCH_NORMS))


def activations(
    program: Program, node: fx.Node, ranges: dict[fx.Node, IntegerRange], passing: set[fx.Node]
) -> list[Traffic]:
    """Return the accesses of a layer or function to stored values.

    Args:
        program: the program.
        node: the layer or function.
        ranges: integer ranges of the program.
        passing: values that are not stored, from ``currents``.
    """
    traffic = []
    for read in node.all_input_nodes:
        source = base(read)
        if source in passing or source.op == "get_attr":
            continue
        width = bits(ranges.get(source)) / 8
        traffic.append(Traffic(_numbers(program, read) * width, _numbers(program, source) * width))
    if node not in passing:
        written = _numbers(program, node) * bits(ranges.get(node)) / 8
        traffic.append(Traffic(written, written))
    return traffic


def membranes(program: Program, node: fx.Node) -> list[Traffic]:
    """Return the accesses to a neuron's membrane: a read and a write at every time step."""
    if not ops.has_state(program.module_of(node)):
        return []
    size = _numbers(program, node) * REAL / 8
    return [Traffic(2 * size, size / program.shape_of(node)[0])]


def weights(program: Program, node: fx.Node) -> tuple[int, int]:
    """Return the bits of each weight of a layer, 0 where it has none, and the bytes of all its parameters."""
    module = program.module_of(node)
    constants = [base(source) for source in node.all_input_nodes if base(source).op == "get_attr"]
    constant_numbers = sum(math.prod(program.shape_of(constant)) for constant in constants)
    if module is None:
        return REAL * bool(constant_numbers), 4 * constant_numbers
    tensors = {name: tensor for name, tensor in module.state_dict().items() if tensor.dtype != torch.int64}
    width = REAL
    if ops.is_quantized(module):
        width = stored_bits(tensors["weight"])
    size = sum(
        math.ceil(tensor.numel() * (width if name == "weight" else REAL) / 8) for name, tensor in tensors.items()
    )
    return width * bool(tensors), size + 4 * constant_numbers


def _numbers(program: Program, node: fx.Node) -> int:
    """Return how many numbers a value has for one image, over all time steps."""
    return math.prod(program.shape_of(node)) // BATCH_PROBE


__all__ = ["REAL", "VIEWS", "Traffic", "activations", "base", "bits", "currents", "membranes", "weights"]
