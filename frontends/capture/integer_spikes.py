"""Integer spikes: a value that a model clips and rounds by hand becomes one neuron.

    round(clamp(x, 0, D)),  clamp(round(x), 0, D)                ->  IntegerSpike(D, "half_even")(x)
    floor(clamp(x, 0, D) + 0.5),  clamp(floor(x + 0.5), 0, D)    ->  IntegerSpike(D, "half_up")(x)

The two of each line are equal for every ``x``. What follows, such as a division by ``D``, stays as it is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import fx, nn

from svitc.frontends.capture.graph_builder import has_module
from svitc.ir import ops


class Spike(NamedTuple):
    """What a node computes: clipped and rounded, or half of that, with None for the missing half."""

    x: fx.Node
    levels: int | None = None
    rounding: str | None = None


def fuse_integer_spikes(graph: fx.Graph, model: nn.Module) -> None:
    """Rewrite a raw graph in place; new neurons take the places of the modules of ``model`` that spell them out."""
    for node in list(graph.nodes):
        found = match(node)
        if found is None or found.levels is None or found.rounding is None:
            continue
        scope = str(node.meta.get("scope") or "")
        path = _place(graph, model, scope, ops.IntegerSpike(found.levels, found.rounding))
        with graph.inserting_after(node):
            spike = graph.call_module(path, (found.x,))
        spike.meta.update({k: v for k, v in node.meta.items() if k != "function"}, scope=path)
        node.replace_all_uses_with(spike)


def operation(node: Any) -> str:
    """Name of what a raw node calls, methods and functions alike."""
    if not isinstance(node, fx.Node) or node.op not in ("call_function", "call_method"):
        return ""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return str(name).strip("_")


def match(node: Any) -> Spike | None:
    """The spike that ends in ``node``, as far as it goes."""
    name = operation(node)
    if name in ("clamp", "clip", "hardtanh", "relu6"):
        levels = _levels(node, name)
        inner = match(node.args[0]) if node.args else None
        if levels is None or not node.args:
            return None
        if inner is not None and inner.levels is None:
            return Spike(inner.x, levels, inner.rounding)
        return Spike(node.args[0], levels)
    if name == "round" and len(node.args) == 1 and not node.kwargs:
        return _rounded(node.args[0], "half_even")
    if name == "floor" and operation(node.args[0]) in ("add", "iadd") and not node.args[0].kwargs:
        left, right = node.args[0].args
        value = right if left == 0.5 else left if right == 0.5 else None
        return _rounded(value, "half_up") if isinstance(value, fx.Node) else None
    return None


def _rounded(value: fx.Node, rounding: str) -> Spike:
    inner = match(value)
    if inner is not None and inner.rounding is None:
        return Spike(inner.x, inner.levels, rounding)
    return Spike(value, None, rounding)


def _levels(node: fx.Node, name: str) -> int | None:
    """The upper bound of a clip that begins at 0 and ends at a whole number."""
    if name == "relu6":
        return 6
    keys = ("min_val", "max_val") if name == "hardtanh" else ("min", "max")
    low, high = (node.args[i + 1] if len(node.args) > i + 1 else node.kwargs.get(key) for i, key in enumerate(keys))
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)):
        return None
    return int(high) if low == 0 and high >= 1 and float(high).is_integer() else None


def _place(graph: fx.Graph, model: nn.Module, scope: str, spike: nn.Module) -> str:
    """Register a neuron where the model has the module that spells it out, or inside it if there is more to that.

    A module that is called twice makes two neurons.
    """
    while scope and _sole(model, scope):
        scope = scope.rpartition(".")[0]
    owner = model.get_submodule(scope)
    calls = {str(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")}
    more = any(True for _ in (*owner.parameters(), *owner.buffers()))
    more = more or not scope or any(target.startswith(f"{scope}.") for target in calls)
    path = base = f"{scope}.spike".lstrip(".") if more else scope
    count = 0
    while path in calls or (path != scope and has_module(model, path)):
        count += 1
        path = f"{base}_{count}"
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, spike)
    return path


def _sole(model: nn.Module, scope: str) -> bool:
    """Whether a module is all that its parent has: a neuron's surrogate, say."""
    parent = scope.rpartition(".")[0]
    holder = model.get_submodule(parent)
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    return bool(parent) and not isinstance(holder, containers) and len(list(holder.children())) == 1
