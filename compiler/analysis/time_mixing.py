"""Time mixing: which values of a program are computed step by step, and which operations need several steps at once.

A value is *constant* where it does not depend on the time step (a static image), *per step* where step t of it depends
on the steps up to t of the input, and *so far* where a reduction over time has used up all steps. A network can run one
step per call if every operation leaves steps apart, keeps a membrane, or is a reduction over time that only values so
far depend on: their result after T calls is that for T steps.
"""

from __future__ import annotations

import linecache
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import einops
import torch
from torch import fx, nn

from svitc.errors import UnsupportedError
from svitc.ir import axes, ops
from svitc.ir.axes import Axis, Dims, Kind
from svitc.ir.graph import describe, readers_through
from svitc.ir.operators import normalization, products, regroup, resampling, slicing, structure
from svitc.ir.operators.broadcasting import ELEMENTWISE_RULES
from svitc.ir.operators.registry import operator_of
from svitc.ir.operators.time import mix_steps
from svitc.ir.program import Program

# modules whose windows, channels or positions are all dimensions but the first
_FIRST_IS_FREE = (*ops.CONVOLUTIONS, *ops.BATCH_NORMS, *ops.POOLS, *ops.PADS)
_EXTREMES = {normalization.largest: "largest", normalization.smallest: "smallest"}
OTHERWISE = "Compile it without --streaming and --anytime, for all of its time steps at once."
# what models call the operations that have names of svitc's own
_WORDS = {
    ops.take_block: "an index or a loop over time steps",
    ops.take_range: "a slice",
    slicing.slice_range: "a slice",
    slicing.select_indices: "an index",
    einops.rearrange: "a reshape",
    einops.repeat: "a repetition",
    regroup.regroup: "a reshape",
    regroup.at_steps: "a reshape",
    mix_steps: "the neuron",
    normalization.largest: "amax",
    normalization.smallest: "amin",
    normalization.standard_deviation: "std",
    normalization.variance: "var",
    normalization.product: "prod",
    normalization.log_sum_exp: "logsumexp",
}
_APART = "relates time steps to one another"
_SINGLE = "takes single time steps"
_PART = "takes some of the time steps"
_OVER = "runs over the time steps"
_AS_PIXELS = "runs over the time steps as over channels or pixels"
_OWN = "has numbers of its own for each time step"
_JOINS = "joins a value of each time step with one that a reduction has made of all of them"
_SHOWS = "shows every time step what a reduction has made of all of them"
_CUMULATIVE = "A cumulative sum in its place, of the steps up to each one, would run along."
_REDUCTIONS = (
    "A mean, a sum, a cumulative sum, a maximum or a minimum over time runs along, and so does the last step alone."
)
_WITHIN = "The same within each time step, over its tokens, channels or pixels, would run along."
_ADVICE = {  # reason -> a way out that changes the model
    _APART: _WITHIN,
    _SINGLE: "What a loop keeps from step to step has to be the membrane of a neuron that svitc knows. " + _REDUCTIONS,
    _PART: "It would need steps before or after the present one. " + _REDUCTIONS,
    _OVER: _REDUCTIONS,
    _AS_PIXELS: _WITHIN,
    _OWN: "Numbers that all time steps share would run along.",
    _JOINS: "Step 1 would need all later ones. " + _CUMULATIVE,
    _SHOWS: "Step 1 would need all later ones. " + _CUMULATIVE,
}


class Role(Enum):
    """How a value depends on time; see above."""

    CONSTANT = "constant"
    PER_STEP = "per step"
    SO_FAR = "so far"


@dataclass
class StepRoles:
    """The roles of a program's values.

    Attributes:
        roles: node -> its role.
        reductions: node -> the kind of the reduction over time that it computes (``ops.RunningReduction``), or
            ``latest`` where it takes the last step.
    """

    roles: dict[fx.Node, Role] = field(default_factory=dict)
    reductions: dict[fx.Node, str] = field(default_factory=dict)


def time_places(dims: Dims) -> list[tuple[int, Axis]]:
    """Return the time axes of a type, each with the index of its dimension; those of size 1 only where all are."""
    found = [(i, axis) for i, dim in enumerate(dims) for axis in axes.resolve(dim) if axis.kind == Kind.TIME]
    return [place for place in found if place[1].size != 1] or found[:1]


def steps_of(program: Program) -> int:
    """Return the number of time steps of a program."""
    types = (program.type_of(node) for node in program.graph.nodes if node.op != "output")
    return max((axis.size for dims in types for _, axis in time_places(dims)), default=1)


def step_roles(program: Program) -> StepRoles:
    """Return how each value of a program depends on time.

    Raises:
        UnsupportedError: an operation needs several time steps at once; the error names the layer and its line.
    """
    found = StepRoles()
    for node in program.graph.nodes:
        if node.op == "output":
            continue
        try:
            found.roles[node] = _role(program, node, found)
        except UnsupportedError as error:
            error.where = error.where or node.meta.get("source")
            raise
    return found


def _role(program: Program, node: fx.Node, found: StepRoles) -> Role:
    """Return the role of a node's value, and record a reduction over time."""
    places = time_places(program.type_of(node))
    if node.op == "placeholder":
        return Role.PER_STEP if places else Role.CONSTANT
    roles = {source: found.roles[source] for source in node.all_input_nodes}
    per_step = [source for source, role in roles.items() if role is Role.PER_STEP]
    so_far = Role.SO_FAR in roles.values()
    if not per_step:
        if so_far and places:
            raise _refusal(node, _SHOWS)
        if places and node.target is einops.repeat:
            return Role.PER_STEP
        return Role.SO_FAR if so_far else Role.CONSTANT
    if so_far:
        raise _refusal(node, _JOINS)
    kind = _reduction(program, node)
    if kind is not None:
        found.reductions[node] = kind
        return Role.PER_STEP if node.target is normalization.cumulative_sum else Role.SO_FAR
    reason = _mixing(program, node, per_step)
    if reason is not None:
        raise _refusal(node, reason)
    return Role.PER_STEP


def _refusal(node: fx.Node, reason: str) -> UnsupportedError:
    """Return the error that an operation needs several steps at once, with its line and a way out."""
    advice, source = _ADVICE.get(reason, ""), node.meta.get("source")
    if reason == _SINGLE and all(user.op == "output" for user in readers_through(node, _is_view)):
        advice = "Return all steps as one tensor: then each call gives its own, class scores with --per-step."
    scope = node.meta.get("scope") or "the model"
    named = f"{_WORDS[node.target]} in {scope}" if node.target in _WORDS else describe(node)
    return UnsupportedError(
        f"{named} {reason}, so that the network has no exact form of one time step per call",
        hint=f"{advice} {OTHERWISE}".lstrip(),
        where=source and f"{source}{_text_of(source)}",
    )


def _is_view(node: fx.Node) -> bool:
    return node.target in ops.VIEWS


def _text_of(source: str) -> str:
    """Return what stands at ``FILE:LINE`` as the end of a place, or nothing where that cannot be read."""
    file, _, line = source.rpartition(":")
    text = linecache.getline(file, int(line)).strip() if line.isdecimal() else ""
    return f": {text}" if text else ""


def _reduction(program: Program, node: fx.Node) -> str | None:
    """Return the kind of a reduction over time, or None for any other operation."""
    source = program.type_of(node.all_input_nodes[0])
    reduced: Any = node.kwargs.get("dim", ())
    drops_single_step = node.target is einops.rearrange and not time_places(program.type_of(node))
    if drops_single_step or _takes_last(node, source):
        return "latest"
    if node.target in _EXTREMES:
        reduced = node.kwargs["dims"]
    elif node.target is normalization.cumulative_sum:
        reduced = (reduced,)
    elif node.target not in ops.REDUCTIONS:
        return None
    if not any(place in reduced for place, _ in time_places(source)):
        return None
    if node.target is torch.mean:
        return "mean"
    return _EXTREMES.get(node.target, "sum")  # type: ignore[arg-type]


def _takes_last(node: fx.Node, source: Dims) -> bool:
    """Return whether an operation takes the last time step alone, of a dimension that is time alone."""
    kwargs: Any = node.kwargs
    dim = node.args[1] if node.target is ops.take_block else kwargs.get("dim")
    places = time_places(source)
    if len(places) != 1 or dim != places[0][0] or len(source[places[0][0]]) != 1:
        return False
    last = places[0][1].size - 1
    if node.target is ops.take_block:
        return node.args[2:] == (last, last + 1)
    if node.target is slicing.slice_range:
        return kwargs["start"] == last
    return node.target is slicing.select_indices and list(kwargs["indices"]) == [last]


def _mixing(program: Program, node: fx.Node, per_step: list[fx.Node]) -> str | None:
    """Return why an operation needs several time steps at once, as the end of a sentence; None if it does not.

    Args:
        program: the program.
        node: the operation; it is no reduction over time.
        per_step: those of its inputs that are per step.
    """
    for source in node.all_input_nodes:
        if source not in per_step and time_places(program.type_of(source)):
            return _OWN
    found = [time_places(program.type_of(value)) for value in (*per_step, node)]
    if any(len(places) > 1 for places in found):
        raise _refusal(_separating(program, node), _APART)
    by_rule = _by_rule(program, node, [places[0][0] for places in found[:-1] if places])
    if by_rule is not None:
        return by_rule
    if len({id(axis) for places in found for _, axis in places}) != 1 or not all(found):
        return "mixes time steps"
    return None


def _separating(program: Program, node: fx.Node) -> fx.Node:
    """Return the operation that gives groups of time steps a dimension each, where a value only has such groups.

    Args:
        program: the program.
        node: the first operation in which time is more than one axis, perhaps within one dimension.
    """
    nodes = list(program.graph.nodes)
    for later in nodes[nodes.index(node) :]:
        if later.op != "output" and len({place for place, _ in time_places(program.type_of(later))}) > 1:
            return later
    return node


def _by_rule(program: Program, node: fx.Node, places: list[int]) -> str | None:
    """Return why an operation mixes steps although the time axis of its value is that of its input, or None.

    Args:
        program: the program.
        node: the operation.
        places: index of the time dimension in each input that is per step.
    """
    module, place, rank = program.module_of(node), places[0], len(program.type_of(node.all_input_nodes[0]))
    if isinstance(module, nn.Linear):
        return None if place < rank - 1 else "takes time steps for channels"
    if isinstance(module, _FIRST_IS_FREE):
        if place == 0:
            return None
        own = "normalizes each time step with numbers of its own" if ops.is_batch_norm(module) else None
        return own or _AS_PIXELS
    if module is not None or node.target in (*ops.VIEWS, *ops.ELEMENTWISE, *ops.REDUCTIONS):
        return None
    if node.target in (ops.take_block, ops.take_range):
        return _SINGLE if place == node.args[1] else None
    if node.target is mix_steps:
        return "computes each time step from all of them"
    if node.target is regroup.at_steps:
        return "takes other dimensions for time steps"
    if node.target in (torch.matmul, products.attention, products.add_product):
        return None if all(place < rank - 2 for place in places) else _of_rows(program, node)
    return _of_operator(node, place, rank)


def _of_rows(program: Program, node: fx.Node) -> str | None:
    """Return why a product mixes steps, of which one operand has time in its rows or columns; None if it does not."""
    left = time_places(program.type_of(node.all_input_nodes[0]))
    is_rows = node.target is torch.matmul and bool(left) and left[0][0] == len(program.type_of(node)) - 2
    return None if is_rows and not time_places(program.type_of(node.all_input_nodes[1])) else "multiplies time steps"


def _of_operator(node: fx.Node, place: int, rank: int) -> str | None:
    """Return why a general operator mixes steps, or None.

    Args:
        node: the operator's call.
        place: index of the time dimension in its first input that is per step.
        rank: number of dimensions of its first input.
    """
    general = operator_of(node.target)
    if general is None or general.rule in ELEMENTWISE_RULES or node.target is regroup.regroup:
        return None
    along: Any = node.kwargs.get("dims", node.kwargs.get("dim"))
    if along is not None:
        runs_over_time = place in along if isinstance(along, tuple | list) else place == along
        if runs_over_time and node.target in (slicing.slice_range, slicing.select_indices):
            return _PART
        return _OVER if runs_over_time else None
    if general.rule is normalization.last_rule:
        count: Any = node.kwargs["count"]
        return None if place < rank - count else "normalizes over the time steps"
    if node.target in (products.einsum, structure.tile, structure.pad_zeros, structure.pad_edges, structure.pad_number):
        return None  # what they do along time changes the time axis
    if node.target is resampling.parametric_relu:
        return None
    return None if place == 0 else _AS_PIXELS


__all__ = ["OTHERWISE", "Role", "StepRoles", "step_roles", "steps_of", "time_places"]
