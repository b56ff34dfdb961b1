"""Removed channels that are not 0: after ``1 - x`` or a sigmoid, a channel that never fires has another value than 0.

Pruning removes a channel that its producers leave at 0. Where an operation makes another value of this 0, the channel
counts for whatever sums over it, so that it must stay. What it becomes is found by computing it: a later operation,
such as a comparison or a product, can make it 0 again.
"""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import fx, nn

from svitc.ir import ops
from svitc.ir.axes import Axis, Dim, Kind, size
from svitc.ir.graph import attribute_of, module_of, type_of
from svitc.ir.neuron_dynamics import dynamics_of
from svitc.ir.operators.broadcasting import ELEMENTWISE_RULES
from svitc.ir.operators.registry import operator_of
from svitc.ir.operators.slicing import concatenate

REASON = "an operation makes another value of its zeros"
MOST_VALUES = 4096  # that are followed; a channel that can have more is not known
KEEP_ZEROS = frozenset((*ops.VIEWS, *ops.REDUCTIONS, torch.matmul, ops.take_block, ops.take_range))
Values = dict[Axis, torch.Tensor | None]  # channel axis -> values that its removed channels can have; None: not known


def track(node: fx.Node, owner: fx.GraphModule) -> None:
    """Store in ``node.meta["filled"]`` what the removed channels of a value are, for those axes for which it is not 0.

    Axes whose channels would be missing from a sum are frozen.

    Args:
        node: a node with a type.
        owner: the module that contains the layers and parameters of the nodes.
    """
    node.meta.pop("filled", None)
    node.meta.pop("filled_steps", None)
    zeros = not any(s.meta.get("filled") or s.meta.get("filled_steps") for s in node.all_input_nodes)
    if zeros and node.target in KEEP_ZEROS:
        return
    module = module_of(owner, node)
    if zeros and ops.has_state(module) and not dynamics_of(module).fires_without_input:
        return
    if zeros and (ops.is_projection(module) or ops.is_batch_norm(module)):
        node.meta["filled"] = _shifted(node, module, _channels(node))
        return
    sources = [_filled(source) for source in node.all_input_nodes]
    general, present = operator_of(node.target), _channels(node)
    values: Values = {}
    if _is_elementwise(node, module):
        everywhere = all(present <= _channels(source) for source in node.all_input_nodes)
        is_compared = any(is_threshold(source, owner) for source in node.all_input_nodes)
        if not any(sources) and everywhere and node.target in ops.ELEMENTWISE and not is_compared:
            return  # 0 of zeros
        values = {axis: _computed(node, module, axis, owner) for axis in present}
    elif general is not None and general.addend is not None:
        factor = float(node.kwargs.get("beta", 1))  # type: ignore[arg-type]
        bias: fx.Node = node.args[general.addend]  # type: ignore[assignment]
        _freeze_summed(node, sources)
        for axis in present:
            value = None if any(axis in source for source in sources) else _value_of(bias, axis, owner)
            values[axis] = None if value is None else value * factor
    elif (general is not None and not general.moves and general.is_filling(node)) or (
        ops.has_state(module) and dynamics_of(module).fires_without_input
    ):
        values = dict.fromkeys(present)
    elif any(sources):
        values = _passed_on(node, module, sources)
    if module is not None:
        values |= _shifted(node, module, present)
    if ops.has_state(module) or node.target in (concatenate, *ops.VIEWS):
        values |= _over_time(node, module, present)
    node.meta["filled"] = {a: v for a, v in values.items() if a in present and (v is None or bool(v.ne(0).any()))}


def _channels(node: fx.Node) -> set[Axis]:
    """Return the leaf axes of channels in the type of a value."""
    return {axis for dim in type_of(node) for axis in dim if axis.kind == Kind.CHANNEL}


def _is_elementwise(node: fx.Node, module: nn.Module | None) -> bool:
    """Return whether each element of a value depends on the same element of the inputs alone."""
    general = operator_of(node.target)
    if general is not None:
        return general.rule in ELEMENTWISE_RULES
    return node.target in ops.ELEMENTWISE or isinstance(module, ops.STATELESS_NEURONS)


def _computed(node: fx.Node, module: nn.Module | None, axis: Axis, owner: nn.Module) -> torch.Tensor | None:
    """Return what an elementwise operation makes of removed channels; None where that depends on the data."""
    tensors = [_value_of(arg, axis, owner) for arg in node.args if isinstance(arg, fx.Node)]
    if node.target is operator.mul and any(v is not None and not bool(v.ne(0).any()) for v in tensors):
        return torch.zeros(1)
    known = [v for v in tensors if v is not None]
    if len(known) < len(tensors) or torch.Size([v.numel() for v in known]).numel() > MOST_VALUES:
        return None
    grid = iter(torch.meshgrid(*known, indexing="ij"))
    operands = [next(grid) if isinstance(arg, fx.Node) else arg for arg in node.args]
    result = (module if module is not None else node.target)(*operands, **node.kwargs)  # type: ignore[operator]
    return None if bool(result.isnan().any()) else result.reshape(-1).unique()


def _value_of(node: fx.Node, axis: Axis, owner: nn.Module) -> torch.Tensor | None:
    """Return what a value has where channels of an axis are removed.

    A parameter along the axis loses these channels, and counts as 0 there; one without the axis, and a threshold, which
    keeps a neuron that has no input from firing, has its values.
    """
    if axis in _channels(node) and not is_threshold(node, owner):
        return _filled(node).get(axis, torch.zeros(1))
    if node.op != "get_attr":
        return None
    values = attribute_of(owner, str(node.target)).detach()
    return values.float().reshape(-1).unique() if values.numel() <= MOST_VALUES else None


def is_threshold(node: fx.Node, owner: nn.Module) -> bool:
    """Return whether a node reads a parameter that values are compared with, such as a threshold for each channel.

    Args:
        node: a node of a complete graph.
        owner: the module that contains the layers of the nodes.
    """
    differences = [user for user in node.users if user.target is operator.sub and user.args[1] is node]
    return node.op == "get_attr" and any(
        reader.op == "call_module" and isinstance(owner.get_submodule(str(reader.target)), ops.Step)
        for difference in differences
        for reader in difference.users
    )


def _shifted(node: fx.Node, module: nn.Module, present: set[Axis]) -> Values:
    """Return the axes along which a layer adds its bias although they are not those of its channels, such as tokens."""
    if not (ops.is_projection(module) or ops.is_batch_norm(module)) or getattr(module, "bias", None) is None:
        return {}
    own = node.meta["dims"][-1 if isinstance(module, nn.Linear) else 1]
    return dict.fromkeys(axis for axis in present if axis not in own)


def _passed_on(node: fx.Node, module: nn.Module | None, sources: list[Values]) -> Values:
    """Return what removed channels are after an operation that is not elementwise; freeze those that it sums."""
    inputs = node.all_input_nodes
    values: Values = dict.fromkeys(axis for source in sources for axis in source)
    if ops.is_projection(module):
        dim = type_of(inputs[0])[-1 if isinstance(module, nn.Linear) else 1]
        if getattr(module, "groups", 1) > 1:  # it sums the channels of a group; if depthwise, none
            dim = tuple(axis for axis in dim if axis not in _channels(node))
        _freeze(values, dim)
        return values
    if node.target is torch.matmul:
        left, right = type_of(inputs[0]), type_of(inputs[-1])
        _freeze({axis: None for axis in sources[0] if axis in sources[-1]}, left[-1], right[-2])
        # a product is 0 where one of its factors is, as for a head that is removed from the values
        factors = [(_channels(x), filled) for x, filled in zip(inputs, sources, strict=True)]
        values = {axis: None for axis in values if all(axis in filled for held, filled in factors if axis in held)}
    elif node.target in ops.REDUCTIONS:
        reduced = node.kwargs["dim"]
        _freeze(values, *(type_of(inputs[0])[i] for i in reduced))  # type: ignore[union-attr, index, misc]
    general = operator_of(node.target)
    if general is not None:
        _freeze_summed(node, sources)
    moves = node.target in (*ops.VIEWS, ops.take_block, ops.take_range) or (general is not None and general.moves)
    return dict(sources[0]) if moves and len(inputs) == 1 else values


def _over_time(node: fx.Node, module: nn.Module | None, present: set[Axis]) -> Values:
    """Return what removed channels are that have another value at each time step, such as a membrane at the start.

    They are followed from where steps are joined, in ``node.meta["filled_steps"]``, to the neuron that reads them.
    """
    sources = node.all_input_nodes
    if node.target is concatenate:
        dims, at = type_of(node), int(node.kwargs["dim"])  # type: ignore[call-overload, arg-type]
        if [axis.kind for axis in dims[at]] != [Kind.TIME]:
            return {}
        series: dict[Axis, torch.Tensor] = {}
        for axis in {axis for source in sources for axis in _filled(source)} & present:
            steps = [_filled(source).get(axis, torch.zeros(1)) for source in sources]
            if all(value is not None and value.numel() == 1 for value in steps):
                counts = [size(type_of(source)[at]) for source in sources]
                series[axis] = torch.cat([v.reshape(1).expand(n) for v, n in zip(steps, counts, strict=True)])  # type: ignore[union-attr]
        node.meta["filled_steps"] = series
        return {axis: steps.unique() for axis, steps in series.items()}
    known = {leaf: v for axis, v in sources[0].meta.get("filled_steps", {}).items() for leaf in axis.leaves()}
    if module is None:
        node.meta["filled_steps"] = known
        return {}
    if any(p.numel() > 1 for p in (*module.parameters(), *module.buffers())):
        return {}
    return {axis: _fired(module, steps) for axis, steps in known.items() if type_of(node)[0][0].size == len(steps)}


def _fired(neuron: nn.Module, current: torch.Tensor) -> torch.Tensor:
    """Return what a neuron fires at a current over time, ``[T]``."""
    twin: Any = copy.deepcopy(neuron).eval()
    twin.reset()
    with torch.no_grad():
        return twin(current.reshape(-1, 1)).reshape(-1).unique()


def _freeze_summed(node: fx.Node, sources: list[Values]) -> None:
    """Freeze the axes over which a general operator sums products none of whose factors is 0."""
    present = _channels(node)
    for axis in set().union(*sources):
        holders = [values for x, values in zip(node.all_input_nodes, sources, strict=True) if axis in _channels(x)]
        if axis not in present and all(axis in values for values in holders):
            axis.freeze(REASON)


def _filled(node: fx.Node) -> Values:
    """Return what the removed channels of a value are, by leaf axis, where it is not 0."""
    return {leaf: value for axis, value in node.meta.get("filled", {}).items() for leaf in axis.leaves()}


def _freeze(values: Values, *dims: Dim) -> None:
    """Freeze the axes of these dimensions whose removed channels are not 0."""
    for dim in dims:
        for axis in dim:
            if axis in values:
                axis.freeze(REASON)
