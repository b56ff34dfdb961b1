"""Find neurons written by hand that a model calls once for each time step, from a loop over the whole network.

All that one module computes in its calls is a region, if it is elementwise: it has one input and one result for each
step, and what it keeps between the calls is its membrane.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx, nn

from svitc.frontends.capture.integer_spikes import operation
from svitc.frontends.capture.neuron_regions import ELEMENTWISE, Region, sort_constants


def find_step_regions(graph: fx.Graph, model: nn.Module) -> Iterator[Region]:
    """Yield a region for each module that is called once for each time step, the innermost modules first."""
    by_path: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        parts = str(node.meta.get("scope") or "").split(".")
        for depth in range(1, len(parts) + 1):
            if node.op != "get_attr":
                by_path.setdefault(".".join(parts[:depth]), []).append(node)
    covered: set[fx.Node] = set()
    for path in sorted(by_path, key=lambda path: -path.count(".")):
        nodes = by_path[path]
        if path and all(operation(node) in ELEMENTWISE for node in nodes) and covered.isdisjoint(nodes):
            region = _region(model, nodes)
            if region is not None:
                covered.update(nodes)
                yield region


def _region(model: nn.Module, nodes: list[fx.Node]) -> Region | None:
    """Return the region that all operations of a module are, or None."""
    inside = set(nodes)
    sources = list(dict.fromkeys(arg for node in nodes for arg in node.all_input_nodes if arg not in inside))
    inputs = {node: t for t, node in enumerate(n for n in sources if n.op != "get_attr")}
    results = [node for node in nodes if any(user not in inside for user in node.users)]
    shapes = {tuple(node.meta["val"].shape) for node in (*inputs, *results)}
    if len(inputs) != len(results) or len(inputs) < 2 or len(shapes) != 1 or _reaches(results, inputs, inside):
        return None
    region = Region(next(iter(inputs)), 0, inputs, list(nodes), results, results[-1], 0)
    sort_constants(region, model, [node for node in sources if node.op == "get_attr"])
    return region


def _reaches(results: list[fx.Node], inputs: dict[fx.Node, int], inside: set[fx.Node]) -> bool:
    """Return whether a result is part of an input again, by a way outside the region."""
    todo = [user for node in results for user in node.users if user not in inside]
    seen: set[fx.Node] = set()
    while todo:
        node = todo.pop()
        if node in inputs:
            return True
        if node not in seen and node not in inside:
            seen.add(node)
            todo += node.users
    return False
