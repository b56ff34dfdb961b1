"""Find regions of a raw graph that compute each element alone, step by step: neurons that are written out by hand.

A region reads the time steps of one tensor, ``x[t]``, does nothing but elementwise operations with numbers or
parameters, in which a step may use what earlier steps computed, and ends where the results of all steps are joined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from svitc.frontends.capture.integer_spikes import operation
from svitc.support.types import JsonDict

ELEMENTWISE = {
    *("add", "iadd", "radd", "sub", "isub", "subtract", "rsub", "mul", "imul", "multiply", "neg", "negative", "square"),
    *("truediv", "div", "itruediv", "divide", "true_divide", "abs", "absolute", "exp", "sigmoid", "tanh", "relu"),
    *("clamp", "clip", "clamp_min", "clamp_max", "hardtanh", "relu6", "round", "floor", "ceil", "sign", "sgn", "pow"),
    *("gt", "ge", "lt", "le", "eq", "ne", "greater", "greater_equal", "less", "less_equal", "where", "masked_fill"),
    *("maximum", "minimum", "fmax", "fmin", "logical_and", "logical_or", "logical_not", "bitwise_and", "bitwise_or"),
    *("bitwise_not", "and", "or", "invert", "heaviside", "zeros_like", "ones_like", "full_like"),
    *("float", "double", "to", "type", "type_as", "int", "long", "bool", "detach", "clone", "contiguous"),
}


@dataclass(frozen=True)
class TimeStep:
    """One time step of a tensor, ``x[t]``.

    Attributes:
        x: The tensor.
        dim: Its dimension of time steps.
        t: The step.
    """

    x: fx.Node
    dim: int
    t: int


@dataclass
class Region:
    """Elementwise operations between the time steps of a tensor and the results of all steps.

    Attributes:
        x: The tensor.
        dim: Its dimension of time steps; None where every step reads the same tensor.
        inputs: Nodes that select a step -> the step.
        nodes: The operations, in the graph's order.
        results: The result of each step.
        joined: The node that joins the results.
        joined_dim: Its dimension of time steps.
        constants: Parameters and buffers that the operations read, without those that hold one number.
        numbers: Those that hold one number.
        after: Operations with numbers that each step ends with, from the first on, which are no part of ``nodes``.
        first_used: For each operation, the first step whose result needs it, where every step reads the same tensor.
    """

    x: fx.Node
    dim: int | None
    inputs: dict[fx.Node, int]
    nodes: list[fx.Node]
    results: list[fx.Node]
    joined: fx.Node
    joined_dim: int
    constants: dict[fx.Node, torch.Tensor] = field(default_factory=dict)
    numbers: dict[fx.Node, torch.Tensor] = field(default_factory=dict)
    after: list[fx.Node] = field(default_factory=list)
    first_used: dict[fx.Node, int] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Number of time steps."""
        return len(self.results)

    def run(self, x: torch.Tensor) -> dict[fx.Node, torch.Tensor]:
        """Run the operations.

        Args:
            x: Values ``[T, …]``, which may differ from step to step although the region reads the same ones at each.

        Returns:
            The value of each operation.
        """
        env: dict[fx.Node, Any] = {**self.constants, **self.numbers}
        env.update({node: x[t] for node, t in self.inputs.items()})
        with torch.no_grad():
            for node in self.nodes:
                if self.dim is None:
                    env[self.x] = x[self.first_used[node]]
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
                value = _call(node, args, kwargs)
                env[node] = value
        return {node: env[node] for node in self.nodes}

    def peel(self) -> bool:
        """Leave the last operation of each step to ``after``; return False where steps end in different ones."""
        first = self.results[0]
        kept = [arg for arg in first.all_input_nodes if arg not in self.numbers]
        if first not in self.nodes or len(kept) != 1 or not all(_alike(first, other) for other in self.results[1:]):
            return False
        inside = set(self.nodes)
        if any(user in inside for node in self.results for user in node.users):
            return False
        if any(arg in self.inputs for arg in kept):
            return False
        self.after.insert(0, first)
        inner = [next(a for a in node.all_input_nodes if a not in self.numbers) for node in self.results]
        self.nodes = [node for node in self.nodes if node not in self.results]
        self.results = inner
        return True

    def literals(self) -> list[float]:
        """Return the numbers that the operations use."""
        found = [float(value) for value in self.numbers.values()]
        for node in self.nodes:
            found += [float(a) for a in (*node.args, *node.kwargs.values()) if type(a) in (int, float)]  # type: ignore[arg-type]
        return list(dict.fromkeys(found))


def find_regions(graph: fx.Graph, model: nn.Module) -> Iterator[Region]:
    """Yield the regions of a raw graph, in its order."""
    for node in list(graph.nodes):
        steps = joined_steps(node)
        if steps is None:
            continue
        region = _region(graph, model, node, *steps)
        if region is not None:
            yield region


def skip_single_steps(graph: fx.Graph) -> None:
    """Let whoever selects a step of joined steps read the step itself, in place.

    SpikingJelly's neurons run a single step as a sequence of one.
    """
    for node in list(graph.nodes):
        step = time_step(node)
        if step is None:
            continue
        joined = joined_steps(step.x)
        added = _unsqueezed(step.x, step.dim)
        if joined is not None and joined[1] == step.dim:
            node.replace_all_uses_with(joined[0][step.t])
        elif added is not None:
            node.replace_all_uses_with(added)


def joined_steps(node: fx.Node) -> tuple[list[fx.Node], int] | None:
    """Return the values that a node joins along a new dimension, and the dimension; None for other nodes."""
    name = operation(node)
    if name not in ("stack", "cat", "concat"):
        return None
    parts = node.args[0] if node.args else node.kwargs.get("tensors")
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if not isinstance(parts, (list, tuple)) or not isinstance(dim, int):
        return None
    if name != "stack":
        parts = [_unsqueezed(part, dim) for part in parts]
    if not parts or not all(isinstance(part, fx.Node) for part in parts):
        return None
    return list(parts), dim % node.meta["val"].ndim  # type: ignore[arg-type]


def _unsqueezed(part: object, dim: int) -> fx.Node | None:
    """Return the value to which a node adds the dimension ``dim``, or None."""
    if not isinstance(part, fx.Node) or operation(part) != "unsqueeze":
        return None
    value, added = part.args[0], part.args[1] if len(part.args) > 1 else part.kwargs.get("dim")
    rank = part.meta["val"].ndim
    same = isinstance(added, int) and added % rank == dim % rank
    return value if same and isinstance(value, fx.Node) else None


def time_step(node: fx.Node) -> TimeStep | None:
    """Return which time step a node selects, or None for other nodes."""
    name = operation(node)
    x = node.args[0] if node.args else None
    if not isinstance(x, fx.Node):
        return None
    if name == "select" and len(node.args) == 3 and all(isinstance(a, int) for a in node.args[1:]):
        rank = x.meta["val"].ndim
        dim = node.args[1] % rank  # type: ignore[operator]
        return TimeStep(x, dim, node.args[2] % x.meta["val"].shape[dim])  # type: ignore[operator]
    if name != "getitem":
        return None
    if isinstance(x.meta["val"], (tuple, list)):  # x.unbind(dim)[t]
        source = x.args[0] if operation(x) == "unbind" else None
        if not isinstance(source, fx.Node) or not isinstance(node.args[1], int):
            return None
        dim = x.args[1] if len(x.args) > 1 else x.kwargs.get("dim", 0)
        return TimeStep(source, dim % source.meta["val"].ndim, node.args[1] % len(x.meta["val"]))  # type: ignore[operator]
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    if Ellipsis in index:
        at = index.index(Ellipsis)
        missing = x.meta["val"].ndim - len(index) + 1
        index = (*index[:at], *[slice(None)] * missing, *index[at + 1 :])
    picked = [i for i, entry in enumerate(index) if type(entry) is int]
    if len(picked) != 1 or any(entry != slice(None) for i, entry in enumerate(index) if i != picked[0]):
        return None
    dim = picked[0]
    return TimeStep(x, dim, index[dim] % x.meta["val"].shape[dim])  # type: ignore[operator]


def _region(
    graph: fx.Graph, model: nn.Module, joined: fx.Node, results: list[fx.Node], joined_dim: int
) -> Region | None:
    """Return the region that ends in ``joined``, or None where something in it is not elementwise."""
    inside, inputs, others, attributes = _walk(results)
    sources = {(step.x, step.dim) for step in inputs.values()}
    if len(sources) + len(others) != 1 or not inside:
        return None
    (x, dim) = next(iter(sources)) if sources else (others.pop(), None)
    value = x.meta["val"]
    step_shape = value.shape if dim is None else (*value.shape[:dim], *value.shape[dim + 1 :])
    steps = value.shape[dim] if dim is not None else len(results)
    if steps != len(results) or any(tuple(r.meta["val"].shape) != tuple(step_shape) for r in results):
        return None
    ordered = [node for node in graph.nodes if node in inside]
    if dim is None:
        selected = {x: 0}
    else:
        selected = {node: step.t for node, step in inputs.items()}
    region = Region(x, dim, selected, ordered, results, joined, joined_dim)
    if dim is None:
        for t in reversed(range(steps)):
            region.first_used.update(dict.fromkeys(_walk(results[t : t + 1])[0], t))
    sort_constants(region, model, attributes)
    return region if _is_closed(region) else None


def sort_constants(region: Region, model: nn.Module, attributes: Iterable[fx.Node]) -> None:
    """Add the parameters and buffers that a region reads to its constants, or to its numbers if they hold only one."""
    for node in attributes:
        tensor = _attribute(model, str(node.target))
        first = tensor.reshape(-1)[:1]
        if tensor.numel() and bool((tensor == first).all()):
            region.numbers[node] = first.reshape(()).clone()
        else:
            region.constants[node] = tensor


def _walk(
    results: Sequence[fx.Node],
) -> tuple[set[fx.Node], dict[fx.Node, TimeStep], set[fx.Node], set[fx.Node]]:
    """Return the elementwise operations that lead to ``results``, and what they start from.

    Returns:
        The operations, the time steps that they read, other values, and parameters.
    """
    inside: set[fx.Node] = set()
    inputs: dict[fx.Node, TimeStep] = {}
    others: set[fx.Node] = set()
    attributes: set[fx.Node] = set()
    todo = list(results)
    while todo:
        node = todo.pop()
        if node in inside or node in inputs or node in others or node in attributes:
            continue
        step = time_step(node)
        if step is not None:
            inputs[node] = step
        elif node.op == "get_attr":
            attributes.add(node)
        elif operation(node) in ELEMENTWISE:
            inside.add(node)
            todo += node.all_input_nodes
        else:
            others.add(node)
    return inside, inputs, others, attributes


def _is_closed(region: Region) -> bool:
    """Return whether nothing but the joined result is used outside the region."""
    inside = {*region.nodes, region.joined}
    through = [user for node in region.nodes for user in node.users if user not in inside]
    # what only the next, missing step would need is computed all the same
    return all((operation(user) == "unsqueeze" and set(user.users) <= inside) or not user.users for user in through)


def _attribute(model: nn.Module, path: str) -> torch.Tensor:
    owner, _, name = path.rpartition(".")
    return getattr(model.get_submodule(owner), name).detach()


def _alike(a: fx.Node, b: fx.Node) -> bool:
    """Return whether two nodes call the same operation with the same numbers."""
    return (a.target is b.target or (isinstance(a.target, str) and a.target == b.target)) and _numbers(a) == _numbers(b)


def _numbers(node: fx.Node) -> list[object]:
    kwargs: JsonDict = dict(node.kwargs)
    return [None if isinstance(v, fx.Node) and v.op != "get_attr" else v for v in (*node.args, *kwargs.items())]


def _call(node: fx.Node, args: tuple, kwargs: JsonDict) -> Any:
    """Run one operation on real tensors; a cast to a device is none here."""
    if operation(node) == "to":
        args = tuple(a for a in args if not isinstance(a, (torch.device, str)))
        kwargs = {k: v for k, v in kwargs.items() if k != "device"}
        if len(args) == 1 and not kwargs:
            return args[0]
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    target: Callable = node.target  # type: ignore[assignment]
    return target(*args, **kwargs)
