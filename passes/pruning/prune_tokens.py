"""PruneTokens: lets only the tokens of a plan run through the stages that compute tokens one by one."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import einops
import torch
from torch import fx

from svitc.ir import ops
from svitc.ir.axes import Axis, Dim, Dims, Kind
from svitc.ir.einops_pattern import bind_letters
from svitc.ir.graph import type_of
from svitc.ir.operators.slicing import concatenate, select_indices
from svitc.ir.pass_manager import Pass, PassResult
from svitc.ir.program import Program, Stage
from svitc.ir.token_stages import TokenStage, token_stages
from svitc.ir.views import emit_view
from svitc.ir.views import tokens as places
from svitc.planning.plan import Plan
from svitc.planning.token_plan import kept_tokens


@dataclass
class Stream:
    """The residual stream at one place of the rewritten graph.

    Attributes:
        active: positions of the tokens that still run, ascending.
        stopped: values of those that do not, ``[..., tokens, ...]``, each with the positions.
    """

    active: tuple[int, ...]
    stopped: list[tuple[tuple[int, ...], fx.Node]] = field(default_factory=list)


class PruneTokens(Pass):
    """Take tokens out of the stream where a plan stops them, and put them back where all are needed.

    before   x1 = x + stage1(x);  x2 = x1 + stage2(x1);  y = conv(x2)
    after    a, b = x[K1], x[not K1];  a1 = a + stage1(a);  a2, b2 = a1[K2], a1[not K2];  a2 = a2 + stage2(a2)
             y = conv(all of a2, b2, b in their places)

    A stopped token keeps the value that it has, the block-level early stopping of TP-Spikformer (arXiv 2603.00527);
    attention sees the others alone, and its sums over tokens are multiplied by all / running, so that the neurons
    behind them get currents of the size that their thresholds were trained on. Which tokens stop is the same for every
    image. Where only a mean or a sum over all tokens follows, their order does not matter, and they stay as they are.

    Refuses nothing: Plan.validate has already rejected unknown stages, and tokens that come back.

    Args:
        plan: the tokens to keep; channels are left to Prune.
    """

    requires = (Stage.CAPTURED, Stage.PRUNED)

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def apply(self, program: Program) -> PassResult:
        result = PassResult(self.name)
        stages = token_stages(program)
        keep = kept_tokens(stages, self.plan.tokens)
        for region in dict.fromkeys(stage.region for stage in stages):
            _rewrite_region(program, [stage for stage in stages if stage.region == region], keep, result)
        return result


def _rewrite_region(
    program: Program, stages: Sequence[TokenStage], keep: dict[str, tuple[int, ...]], result: PassResult
) -> None:
    """Rewrite stages that follow one another.

    Args:
        program: changed in place; its types stay those before the rewrite.
        stages: in order.
        keep: positions of the tokens that run, by stage.
        result: told about changed stages.
    """
    last = stages[-1]
    letters = _letters(program, stages)
    sums = {node for stage in stages for node in stage.nodes if _sums_tokens(program, node, set(last.tokens))}
    free = _order_is_free(last.exit, set(last.tokens))
    stream = Stream(tuple(range(last.count)))
    for stage in stages:
        if keep[stage.name] != stream.active:
            readers = [user for user in stage.entry.users if user in stage.nodes]
            entry = _narrowed(program, stage, stream, keep[stage.name])
            for reader in readers:
                reader.replace_input_with(stage.entry, entry)
            result.changed.append(stage.name)
        if stream.stopped:
            for view in letters.keys() & set(stage.nodes):
                _resize(view, letters[view], stage.tokens, len(stream.active))
            for total in sums & set(stage.nodes):
                _rescale(program, total, stage.count / len(stream.active))
    if stream.stopped:
        readers = list(last.exit.users)
        merged = _merged(program, last, stream, free)
        for reader in readers:
            reader.replace_input_with(last.exit, merged)


def _rescale(program: Program, total: fx.Node, factor: float) -> None:
    """Multiply a sum over tokens by a factor: behind further products with spikes, so that those stay whole numbers.

    Args:
        program: gets a new node, where no product with a number follows that takes the factor.
        total: the sum.
        factor: number of all tokens by that of those that run.
    """
    users = list(total.users)
    while len(users) == 1 and users[0].target in (torch.matmul, einops.rearrange):
        total, users = users[0], list(users[0].users)
    numbers = [arg for arg in users[0].args if isinstance(arg, int | float)]
    if len(users) == len(numbers) == 1 and users[0].target is operator.mul:
        users[0].args = (total, numbers[0] * factor)
        return
    scaled = _emitter(program, total)("call_function", operator.mul, (total, factor), {})
    for user in users:
        user.replace_input_with(total, scaled)


def _sums_tokens(program: Program, node: fx.Node, tokens: set[Axis]) -> bool:
    """Return whether an operation sums over all tokens; a mean does not depend on how many there are."""
    if node.target is torch.matmul:
        return tokens <= set(program.type_of(node.all_input_nodes[0])[-1])
    if node.target is not torch.sum:
        return False
    reduced: Any = node.kwargs["dim"]
    return tokens <= {axis for i in reduced for axis in program.type_of(node.all_input_nodes[0])[i]}


def _narrowed(program: Program, stage: TokenStage, stream: Stream, active: tuple[int, ...]) -> fx.Node:
    """Stop tokens at the entry of a stage, and return the value of the others in the form of the entry.

    Args:
        program: gets the new nodes.
        stage: the stage.
        stream: which tokens run until there; changed in place.
        active: those that run on.
    """
    emit, dims = _emitter(program, stage.entry), program.type_of(stage.entry)
    seen, flat, at = _forms(dims, len(stream.active) if stream.stopped else None)
    tokens = emit_view(emit, stage.entry, seen, flat)
    index_of = {position: i for i, position in enumerate(stream.active)}
    stopped = tuple(sorted(set(stream.active) - set(active)))

    def taken(positions: tuple[int, ...]) -> fx.Node:
        indices = tuple(index_of[position] for position in positions)
        return emit("call_function", select_indices, (tokens,), {"dim": at, "indices": indices})

    running = taken(active)
    stream.stopped.append((stopped, taken(stopped)))
    stream.active = active
    seen, flat, _ = _forms(dims, len(active))
    return emit_view(emit, running, flat, seen)


def _merged(program: Program, stage: TokenStage, stream: Stream, free: bool) -> fx.Node:
    """Return the value of all tokens behind a stage, in the form of its exit.

    Args:
        program: gets the new nodes.
        stage: the last stage of its region.
        stream: which tokens run, and the values of the others.
        free: whether the order of tokens does not matter.
    """
    emit, dims = _emitter(program, stage.exit), program.type_of(stage.exit)
    seen, flat, at = _forms(dims, len(stream.active))
    tokens = emit_view(emit, stage.exit, seen, flat)
    parts = [(stream.active, tokens), *reversed(stream.stopped)]
    merged = emit("call_function", concatenate, tuple(value for _, value in parts), {"dim": at})
    order = [position for positions, _ in parts for position in positions]
    if not free and order != sorted(order):
        back = tuple(sorted(range(len(order)), key=order.__getitem__))
        merged = emit("call_function", select_indices, (merged,), {"dim": at, "indices": back})
    seen, flat, _ = _forms(dims, None)
    return emit_view(emit, merged, flat, seen)


def _emitter(program: Program, after: fx.Node) -> Callable[..., fx.Node]:
    """Return a function that creates nodes one behind the other, behind a node."""
    place = after

    def emit(op: str, target: Callable, args: tuple, kwargs: dict[str, Any]) -> fx.Node:
        nonlocal place
        with program.graph.inserting_after(place):
            place = program.graph.create_node(op, target, args, kwargs)
        place.meta.update({key: after.meta[key] for key in ("source", "scope") if key in after.meta})
        return place

    return emit


def _forms(dims: Dims, count: int | None) -> tuple[Dims, Dims, int]:
    """Return the types by place of a stream as the program has it, and with all tokens in one dimension, and its index.

    Args:
        dims: type of the stream before the rewrite.
        count: number of tokens, which are on the first of their axes; None for all, on the axes that they had.
    """
    seen = places(dims)
    pixels = tuple(axis for dim in seen for axis in dim if axis.kind == Kind.PIXEL)
    flat: list[Dim] = []
    at = None
    for dim in seen:
        rest = tuple(axis for axis in dim if axis.kind != Kind.PIXEL)
        if rest or not dim:
            flat.append(rest)
        if len(rest) < len(dim) and at is None:
            at = len(flat)
            flat.append(pixels)
    assert at is not None
    if count is None:
        return seen, tuple(flat), at
    fewer = Axis("tokens", count, Kind.PIXEL, "n")
    instead: dict[Axis, Dim] = dict.fromkeys(pixels, ()) | {pixels[0]: (fewer,)}
    shown, lined = (tuple(tuple(b for a in dim for b in instead.get(a, (a,))) for dim in form) for form in (seen, flat))
    return shown, lined, at


def _letters(program: Program, stages: Sequence[TokenStage]) -> dict[fx.Node, dict[str, Dim]]:
    """Return the axes that each letter of a view with sizes stands for, by view."""
    views = [n for stage in stages for n in stage.nodes if n.target is einops.rearrange and n.kwargs]
    return {n: bind_letters(program.type_of(n.all_input_nodes[0]), str(n.args[1]), n.kwargs) for n in views}


def _resize(view: fx.Node, letters: dict[str, Dim], tokens: Dim, count: int) -> None:
    """Set the sizes in a view to those of fewer tokens."""
    sizes = {axis: 1 for axis in tokens} | {tokens[0]: count}
    lengths = {name: math.prod(sizes.get(axis, axis.size) for axis in dim) for name, dim in letters.items()}
    view.kwargs = {name: lengths[name] for name in view.kwargs}


def _order_is_free(node: fx.Node, tokens: set[Axis]) -> bool:
    """Return whether all readers of a value, through views, take a mean or a sum over all its tokens."""
    for user in node.users:
        if user.target in ops.REDUCTIONS:
            reduced: Any = user.kwargs["dim"]
            if not tokens <= {axis for i in reduced for axis in type_of(node)[i]}:
                return False
        elif user.target is not einops.rearrange or not _order_is_free(user, tokens):
            return False
    return True


__all__ = ["PruneTokens"]
