"""Fuse clipping and rounding, by which a model spells out integer spikes, into one neuron.

    round(clamp(x, 0, D)),  clamp(round(x), 0, D)                ->  IntegerSpike(D, "half_even")(x)
    floor(clamp(x, 0, D) + 0.5),  clamp(floor(x + 0.5), 0, D)    ->  IntegerSpike(D, "half_up")(x)

The two forms of a line are equal for every ``x``. Later operations, such as a division by ``D``, stay as they are.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import fx, nn

from svitc.frontends.capture.graph_builder import has_module
from svitc.ir import ops


class SpikePattern(NamedTuple):
    """What a node computes of ``x``: clipping, rounding, or both.

    Attributes:
        levels: Upper bound of the clipping, or None.
        rounding: ``half_even`` or ``half_up``, or None.
    """

    x: fx.Node
    levels: int | None = None
    rounding: str | None = None


def fuse_integer_spikes(graph: fx.Graph, model: nn.Module) -> None:
    """Rewrite a raw graph in place; new neurons replace the modules of ``model`` that spell them out."""
    for node in list(graph.nodes):
        pattern = match(node)
        if pattern is None or pattern.levels is None or pattern.rounding is None:
            continue
        scope = str(node.meta.get("scope") or "")
        path = register(graph, model, scope, ops.IntegerSpike(pattern.levels, pattern.rounding))
        with graph.inserting_after(node):
            spike = graph.call_module(path, (pattern.x,))
        spike.meta.update({k: v for k, v in node.meta.items() if k != "function"}, scope=path)
        node.replace_all_uses_with(spike)


def operation(node: object) -> str:
    """Return the name of the method or function that a raw node calls, or an empty string."""
    if not isinstance(node, fx.Node) or node.op not in ("call_function", "call_method"):
        return ""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return str(name).strip("_")


def match(node: object) -> SpikePattern | None:
    """Return the pattern of clipping and rounding that ends in ``node``, or None."""
    if not isinstance(node, fx.Node):
        return None
    name = operation(node)
    if name in ("clamp", "clip", "hardtanh", "relu6"):
        levels = _levels(node, name)
        value = node.args[0] if node.args else None
        if levels is None or not isinstance(value, fx.Node):
            return None
        inner = match(value)
        if inner is not None and inner.levels is None:
            return SpikePattern(inner.x, levels, inner.rounding)
        return SpikePattern(value, levels)
    if name == "round" and len(node.args) == 1 and not node.kwargs:
        value = node.args[0]
        return _rounded(value, "half_even") if isinstance(value, fx.Node) else None
    if name == "floor":
        total = node.args[0]
        if isinstance(total, fx.Node) and operation(total) in ("add", "iadd") and not total.kwargs:
            left, right = total.args
            value = right if left == 0.5 else left if right == 0.5 else None
            return _rounded(value, "half_up") if isinstance(value, fx.Node) else None
    return None


def _rounded(value: fx.Node, rounding: str) -> SpikePattern:
    """Return the pattern of rounding ``value``, which may be clipped."""
    inner = match(value)
    if inner is not None and inner.rounding is None:
        return SpikePattern(inner.x, inner.levels, rounding)
    return SpikePattern(value, None, rounding)


def _levels(node: fx.Node, name: str) -> int | None:
    """Return the upper bound of clipping from 0 to a whole number, or None for other bounds."""
    if name == "relu6":
        return 6
    keys = ("min_val", "max_val") if name == "hardtanh" else ("min", "max")
    low, high = (node.args[i + 1] if len(node.args) > i + 1 else node.kwargs.get(key) for i, key in enumerate(keys))
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)):
        return None
    return int(high) if low == 0 and high >= 1 and float(high).is_integer() else None


def register(graph: fx.Graph, model: nn.Module, scope: str, spike: nn.Module) -> str:
    """Register a neuron in place of the module that spells it out, or inside it if that has other parts.

    A module that is called twice becomes two neurons.

    Returns:
        The neuron's path.
    """
    while scope and _is_only_child(model, scope):
        scope = scope.rpartition(".")[0]
    owner = model.get_submodule(scope)
    calls = {str(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")}
    has_weights = any(True for _ in (*owner.parameters(), *owner.buffers()))
    keep_owner = has_weights or not scope or any(target.startswith(f"{scope}.") for target in calls)
    path = base = f"{scope}.spike".lstrip(".") if keep_owner else scope
    count = 0
    while path in calls or (path != scope and has_module(model, path)):
        count += 1
        path = f"{base}_{count}"
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, spike)
    return path


def _is_only_child(model: nn.Module, scope: str) -> bool:
    """Return whether a module is its parent's only child, such as a neuron's surrogate function."""
    parent = scope.rpartition(".")[0]
    holder = model.get_submodule(parent)
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    return bool(parent) and not isinstance(holder, containers) and len(list(holder.children())) == 1
