"""QuantizeInput: rounds images to integer numbers of steps, so that the sums of the first layer are exact, too."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from svitc.analysis.input_range import COUNTS, PIXELS, SMALL
from svitc.ir import ops
from svitc.ir.graph import readers_through
from svitc.ir.pass_manager import Pass
from svitc.ir.program import Program, Stage
from svitc.ir.quantized_modules import EXACT, WIDE_BITS, FixedPoint
from svitc.passes.quantization.quantize_weights import LEVELS

STEP = 2.0**-9  # of a normalized pixel: an eighth of the distance between two of the image's 256 levels
LARGEST_BYTE = 127  # in magnitude, of an integer product's operand that may be negative
FINEST = 2.0**-11  # step of a small range, as a share of it
COARSE_LIMIT = 32  # least number of coarse steps of an input that is split, on either side of 0
FINE_STEPS = "input_fine_steps"  # name of the module that rounds what coarse steps leave
FINE_LIMIT = 2048  # number of fine steps in half a coarse one


class QuantizeInput(Pass):
    """Round the network's input to integers, so that the sums of the first layer are exact, too.

    before   x -> conv
    after    x -> FixedPoint -> conv', with conv's weights times the step

    The limit is lowered, or the step enlarged, until no sum of the first layer can exceed 2^24 with weights of 8 bits.
    What such weights leave of the 24 bits, mostly 2 to 4, is theirs as well: everything behind reads what they get
    wrong, and as floats they cost nothing.

    With weights of 16 bits such steps would lose more than the weights do. There the input is split into whole coarse
    steps and a rest in fine steps (2^-15 for normalized pixels), and the layer with it:

    before   x -> conv
    after    x -> FixedPoint -> conv',  x - coarse -> FixedPoint -> conv_fine,  and the sum of the two

    Each of the two sums is exact, and adding them rounds once.

    Args:
        span: largest magnitude of an input; None for that of normalized pixels, or of counts of events.
        bits: layer -> bits of its weights, where that is not 8; layers that are added get those of the layers that they
            are added beside, and those that read the image get 16, unless they have others.

    Refuses
      1. an input that something other than projections reads;
      2. a layer that is called more than once.
    """

    requires = (Stage.INFERENCE, Stage.INFERENCE)

    def __init__(self, span: float | None = None, bits: dict[str, int] | None = None) -> None:
        self.span, self.bits = span, {} if bits is None else bits

    def match(self, program: Program, node: fx.Node) -> bool:
        return node.op == "placeholder" and not any(
            isinstance(program.module_of(user), FixedPoint) for user in node.users
        )

    def why_not(self, program: Program, node: fx.Node) -> str | None:
        readers = _readers(program, node)
        if any(not ops.is_projection(program.module_of(reader)) for reader in readers):
            return "something else than a convolution or linear layer reads the image"
        twice = [str(reader.target) for reader in readers if not program.called_once(reader)]
        return f"{twice[0]} reads the image and is called more than once" if twice else None

    def rewrite(self, program: Program, node: fx.Node) -> None:
        readers = _readers(program, node)
        terms = max(math.prod(_weight(program, reader).shape[1:]) for reader in readers)
        span = self.span or (COUNTS if program.input.events else PIXELS)
        if all(self.bits.get(str(reader.target)) == WIDE_BITS for reader in readers):
            _split(program, node, span, readers)
            self.bits.update({fine_path(str(reader.target)): WIDE_BITS for reader in readers})
            return
        step = STEP if span > SMALL else min(STEP, 2.0 ** math.floor(math.log2(span * FINEST)))
        limit = min(int(span / step), EXACT // (terms * LEVELS) - 1)
        while step * limit < span:  # a window of many inputs: coarser steps instead of a narrow range
            step *= 2
        limit = min(limit, int(span / step))
        if limit > LARGEST_BYTE:  # others are read by integer products, in which 16 bits are two planes
            for reader in readers:
                self.bits.setdefault(str(reader.target), WIDE_BITS)
        rounded_for(program, node, "input_steps", FixedPoint(step, limit), list(node.users), readers)


def _split(program: Program, node: fx.Node, span: float, readers: Sequence[fx.Node]) -> None:
    """Split an input into coarse and fine steps, and each of the layers that read it into one for either.

    Args:
        program: the program.
        node: the input.
        span: its largest magnitude.
        readers: the layers that read it, perhaps through views.
    """
    graph = program.graph
    step = 2.0 ** math.floor(math.log2(span / COARSE_LIMIT))
    step = min(step, 1.0) if program.input.events else step  # most counts are small
    fine_steps = FixedPoint(step / (2 * FINE_LIMIT), FINE_LIMIT)
    for reader in readers:
        _add_layer(program, fine_path(str(reader.target)), _without_bias(program.module_of(reader), fine_steps.step))
    coarse = rounded_for(program, node, "input_steps", FixedPoint(step, int(span / step)), list(node.users), readers)
    program.module.add_submodule(FINE_STEPS, fine_steps)
    with graph.inserting_after(coarse):
        fine = graph.call_module(FINE_STEPS, (None,))
    with graph.inserting_before(fine):
        rounded = graph.call_function(operator.mul, (coarse, step))
        fine.args = (graph.call_function(operator.sub, (node, rounded)),)
    for new in (rounded, *fine.all_input_nodes, fine):
        _describe_as(new, coarse)
    copies = {coarse: fine}
    for reader in readers:
        with graph.inserting_before(reader):
            source = _copied(reader.all_input_nodes[0], copies)
            layer = graph.call_module(fine_path(str(reader.target)), (source,))
        with graph.inserting_after(reader):
            total = graph.call_function(operator.add, (reader, layer))
        for user in list(reader.users):
            if user is not total:
                user.replace_input_with(reader, total)
        _describe_as(layer, reader)
        _describe_as(total, reader)


def _copied(node: fx.Node, copies: dict[fx.Node, fx.Node]) -> fx.Node:
    """Return the copy of a view, and make those that are missing of it and of the views that it reads."""
    if node not in copies:
        source = _copied(node.all_input_nodes[0], copies)
        copies[node] = node.graph.node_copy(node, lambda _: source)
    return copies[node]


def fine_path(path: str) -> str:
    """Return the path of the layer that reads the fine steps of an input, beside the layer at ``path``."""
    return f"{path}_fine"


def _without_bias(layer: Any, factor: float) -> nn.Module:
    """Return a copy of a layer with its weights times a factor, and without its bias."""
    result = copy.deepcopy(layer)
    result.weight = nn.Parameter(layer.weight.detach() * factor, requires_grad=False)
    result.bias = None
    return result


def _add_layer(program: Program, path: str, layer: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    program.module.get_submodule(owner).add_module(name, layer)


def _describe_as(node: fx.Node, other: fx.Node) -> None:
    """Give a new node the place in the source and the type of another one."""
    node.meta.update({k: other.meta[k] for k in ("source", "scope", "dims") if k in other.meta})


def rounded_for(
    program: Program, node: fx.Node, name: str, steps: FixedPoint, users: Sequence[fx.Node], layers: Sequence[fx.Node]
) -> fx.Node:
    """Round a value to integer numbers of steps for some of its users, and scale the weights of the layers by the step.

    Args:
        program: the program.
        node: the value.
        name: name of the module that rounds.
        steps: that module.
        users: users of the value that get it rounded.
        layers: layers that read it, perhaps through views, and whose weights are scaled.

    Returns:
        the rounded value.
    """
    program.module.add_submodule(name, steps)
    with program.graph.inserting_after(node):
        rounded = program.graph.call_module(name, (node,))
    _describe_as(rounded, node)
    for user in users:
        user.replace_input_with(node, rounded)
    for reader in layers:
        layer: Any = program.module_of(reader)
        with torch.no_grad():
            layer.weight = nn.Parameter(layer.weight * steps.step, requires_grad=False)
    return rounded


def _readers(program: Program, node: fx.Node) -> list[fx.Node]:
    """Return the nodes that read a value, looking through views and zero padding."""

    def is_view(user: fx.Node) -> bool:
        return user.target in ops.VIEWS or isinstance(program.module_of(user), nn.ZeroPad2d)

    return list(readers_through(node, is_view))


def _weight(program: Program, node: fx.Node) -> torch.Tensor:
    """Return the weight of a layer."""
    module: Any = program.module_of(node)
    return module.weight
