"""Neurons that a model calls once for each time step: they become one call over all steps.

What is computed step by step before and between such neurons is computed for all steps at once, too, where the steps
do the same: a layer runs on time and batch together, as it does in a model that was written this way.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.fx.node import Target

from svitc.errors import UnsupportedError
from svitc.frontends.capture.constants import name_of
from svitc.frontends.capture.leaves import leaf_kind
from svitc.ir import ops

if TYPE_CHECKING:
    from svitc.frontends.capture.tracer import Tracer

_SAME_ON_EACH = {
    *("add", "sub", "mul", "truediv", "div", "multiply", "gt", "ge", "lt", "le", "eq", "ne", "pow", "neg", "abs"),
    *("relu", "relu6", "gelu", "silu", "sigmoid", "tanh", "clamp", "clip", "hardtanh", "round", "floor", "ceil"),
    *("maximum", "minimum", "float", "to", "contiguous", "detach", "exp", "sqrt", "leaky_relu", "hardswish"),
    *("hardsigmoid", "softplus", "elu", "mish", "sign", "where", "clone"),
}
_BY_SHAPE = ("reshape", "view", "flatten", "unflatten")
_BY_DIMS = {"transpose": 2, "swapaxes": 2, "unsqueeze": 1, "mean": 1, "sum": 1}  # number of dims in front


def merge_single_steps(graph: fx.Graph, model: nn.Module, tracer: Tracer) -> None:
    """Make one call of the calls of each single-step neuron, in place.

    Args:
        graph: The raw graph.
        model: What it calls; its neurons are set to multi-step mode.
        tracer: What recorded the graph; it computes the shapes of new nodes.

    Raises:
        UnsupportedError: A neuron's input depends on what it fired before.
    """
    calls: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if (
            module is not None
            and leaf_kind(module) in ops.STATEFUL_NEURONS
            and getattr(module, "step_mode", "m") == "s"
        ):
            calls.setdefault(str(node.target), []).append(node)
    if not calls:
        return
    merger = _Merger(graph, tracer)
    for path, steps in calls.items():
        _check_independent(path, steps)
        model.get_submodule(path).step_mode = "m"  # type: ignore[assignment]
        merger.merge(steps)
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is torch.stack and node.users and node not in merger.stacks:
            merger.merge_stack(node)
    _sort(graph)
    if merger.joined:
        first, others = merger.joined[0], len(set(merger.joined)) - 1
        what = f"layer {first}" + (f" and {others} more" if others else "")
        tracer.constants.rounded.append(f"{what}, called step by step in the model and at once here,")


def _check_independent(path: str, steps: Sequence[fx.Node]) -> None:
    """Refuse a neuron whose input at one step depends on its output at an earlier one."""
    reached = set(steps)
    frontier = list(steps)
    while frontier:
        for user in frontier.pop().users:
            if user in steps:
                raise UnsupportedError(
                    f"the input of neuron {path} depends on what it fired at an earlier step",
                    where=user.meta.get("source"),
                    hint="Connections back in time cannot be unrolled into one call of the neuron over all steps.",
                )
            if user not in reached:
                reached.add(user)
                frontier.append(user)


class _Merger:
    """Rewriter of operations on single steps.

    Args:
        graph: The raw graph.
        tracer: Computes the shapes of new nodes.

    Attributes:
        stacks: The nodes that put steps together where nothing better was found.
        joined: The layers that run on all steps at once, which may take sums in another order.
    """

    def __init__(self, graph: fx.Graph, tracer: Tracer) -> None:
        self.graph, self.tracer = graph, tracer
        self.stacks: set[fx.Node] = set()
        self.joined: list[str] = []
        self._known: dict[tuple[fx.Node, ...], fx.Node] = {}
        self._like: fx.Node = next(iter(graph.nodes))

    def merge(self, steps: Sequence[fx.Node]) -> None:
        """Replace the calls of one neuron by one call over all steps."""
        x = self.stacked(tuple(step.all_input_nodes[0] for step in steps))
        self._like = steps[0]
        y = self.emit("call_module", steps[0].target, (x,))
        for t, step in enumerate(steps):
            step.replace_all_uses_with(self.emit("call_function", operator.getitem, (y, t)))
            self.graph.erase_node(step)

    def merge_stack(self, node: fx.Node) -> None:
        """Replace a stack of steps by what is computed of all steps at once."""
        values, dim = (
            node.args[0] if node.args else (),
            node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0),
        )
        if dim != 0 or not isinstance(values, (tuple, list)) or not all(isinstance(v, fx.Node) for v in values):
            return
        self._like = node
        count = len(self.stacks)
        new = self.stacked(tuple(values))  # type: ignore[arg-type]
        if len(self.stacks) == count:  # all of it is computed at once
            node.replace_all_uses_with(new)

    def stacked(self, steps: tuple[fx.Node, ...]) -> fx.Node:
        """Return a node with the values of these nodes along a new first dimension."""
        if steps not in self._known:
            self._like = steps[0]
            self._known[steps] = self._at_once(steps) or self._stack(steps)
        return self._known[steps]

    def _stack(self, steps: tuple[fx.Node, ...]) -> fx.Node:
        """Emit a stack of values between which nothing is known; of the same value, its repetition."""
        self._like = steps[0]
        if len(set(steps)) == 1:
            x = self.emit("call_method", "unsqueeze", (steps[0], 0))
            rank = steps[0].meta["val"].dim()
            return self.emit("call_method", "repeat", (x, len(steps), *(1,) * rank))
        node = self.emit("call_function", torch.stack, (list(steps), 0))
        node.meta["time"] = True
        self.stacks.add(node)
        return node

    def _at_once(self, steps: tuple[fx.Node, ...]) -> fx.Node | None:
        """Emit what computes the values of all steps at once, or return None."""
        first = steps[0]
        whole = _whole(steps)
        if whole is not None:
            return whole
        if any((s.op, s.target, len(s.args)) != (first.op, first.target, len(first.args)) for s in steps):
            return None
        if first.op in ("placeholder", "get_attr") or not isinstance(first.meta.get("val"), torch.Tensor):
            return None
        if first.op == "call_module":
            return self._layer(steps)
        if any(s.kwargs != first.kwargs for s in steps) or any(_nodes(v) for v in first.kwargs.values()):
            return None
        name = name_of(first.target)
        if any(_fixed(s) != _fixed(first) for s in steps):
            return None
        if name in _SAME_ON_EACH or (name == "matmul" and first.meta["val"].dim() > 2):
            return self._elementwise(steps)
        if not _is_tensor(first.args[0]) or any(_nodes(a) for a in first.args[1:]):
            return None  # such as a part of a split, whose first argument are all parts
        return self._rearranged(name, steps)

    def _layer(self, steps: tuple[fx.Node, ...]) -> fx.Node | None:
        """Emit a layer on time and batch together."""
        module = self.tracer.root.get_submodule(str(steps[0].target))
        if leaf_kind(module) in ops.STATEFUL_NEURONS or getattr(module, "step_mode", "s") == "m":
            return None
        x = self.stacked(tuple(step.args[0] for step in steps))  # type: ignore[misc]
        self._like = steps[0]
        if len(steps) > 1:
            self.joined.append(str(steps[0].target))
        shape = tuple(x.meta["val"].shape[:2])
        y = self.emit("call_module", steps[0].target, (self.emit("call_method", "flatten", (x, 0, 1)),))
        return self.emit("call_method", "unflatten", (y, 0, shape))

    def _elementwise(self, steps: tuple[fx.Node, ...]) -> fx.Node | None:
        """Emit an operation that broadcasts, whose operands are the same at each step or as many as there are steps."""
        first, rank = steps[0], steps[0].meta["val"].dim()
        args: list[Any] = []
        for i, value in enumerate(first.args):
            operands = tuple(step.args[i] for step in steps)
            if not isinstance(value, fx.Node):
                args.append(value)
            elif not all(isinstance(o, fx.Node) for o in operands):
                return None
            elif len(set(operands)) == 1 and (value.op == "get_attr" or len(set(steps)) > 1):
                args.append(value)
            elif value.meta["val"].dim() == rank:
                args.append(self.stacked(operands))  # type: ignore[arg-type]
            else:
                return None
        self._like = first
        node = self.emit(first.op, first.target, tuple(args), dict(first.kwargs))
        expected = (len(steps), *first.meta["val"].shape)
        if tuple(node.meta["val"].shape) == expected:
            return node
        self.graph.erase_node(node)
        return None

    def _rearranged(self, name: str, steps: tuple[fx.Node, ...]) -> fx.Node | None:
        """Emit a view or a reduction, one dimension further back."""
        first, rest = steps[0], list(steps[0].args[1:])
        kwargs = dict(first.kwargs)

        def back(dim: Any) -> Any:
            if isinstance(dim, (tuple, list)):
                return tuple(back(d) for d in dim)
            return dim + 1 if isinstance(dim, int) and dim >= 0 else dim

        operation: tuple[str, Target, tuple, dict] | None = None
        if name in _BY_SHAPE:
            operation = ("call_method", "reshape", ((len(steps), *first.meta["val"].shape),), {})
        elif name == "permute":
            order = rest[0] if isinstance(rest[0], (tuple, list)) else rest
            rank = first.meta["val"].dim()
            operation = ("call_method", "permute", ((0, *(d % rank + 1 for d in order)),), {})
        elif name in _BY_DIMS and (rest or "dim" in kwargs):
            count = _BY_DIMS[name]
            kwargs = {k: back(v) if k in ("dim", "dim0", "dim1") else v for k, v in kwargs.items()}
            operation = (first.op, first.target, (*map(back, rest[:count]), *rest[count:]), kwargs)
        elif name == "getitem":
            index = rest[0] if isinstance(rest[0], tuple) else (rest[0],)
            operation = (first.op, first.target, ((slice(None), *index),), {})
        if operation is None:
            return None
        x = self.stacked(tuple(step.args[0] for step in steps))  # type: ignore[misc]
        self._like = first
        kind, target, args, kwargs = operation
        return self.emit(kind, target, (x, *args), kwargs)

    def emit(self, op: str, target: Target, args: tuple = (), kwargs: dict[str, Any] | None = None) -> fx.Node:
        """Append a node, with the line and the scope of the one that it takes the place of."""
        node = self.graph.create_node(op, target, args, kwargs or {})
        node.meta.update({k: self._like.meta[k] for k in ("source", "scope") if k in self._like.meta})
        node.meta["val"] = self.tracer.value(node)
        return node


def _is_tensor(value: object) -> bool:
    """Return whether an argument is the node of a tensor."""
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), torch.Tensor)


def _fixed(step: fx.Node) -> list[object]:
    """Return the arguments of a step that are no tensors, with a mark in the place of those that are."""
    return [None if isinstance(value, fx.Node) else (value,) for value in step.args]


def _nodes(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg(value, found.append)
    return found


def _whole(steps: tuple[fx.Node, ...]) -> fx.Node | None:
    """Return the node whose positions along the first dimension the steps are, all of them in their order."""
    sources = {id(step.args[0]): step.args[0] for step in steps if step.target is operator.getitem}
    if len(sources) != 1 or not all(step.target is operator.getitem for step in steps):
        return None
    [source] = sources.values()
    assert isinstance(source, fx.Node)
    value = source.meta["val"]
    index = [i[0] if isinstance(i, tuple) and len(i) == 1 else i for i in (step.args[1] for step in steps)]
    if not isinstance(value, torch.Tensor) or any(not isinstance(i, int) for i in index):
        return None
    return source if [i % len(value) for i in index] == list(range(len(value))) else None  # type: ignore[operator]


def _sort(graph: fx.Graph) -> None:
    """Bring the nodes of a graph into an order in which each comes after its inputs, with as few moves as possible."""
    placed: set[fx.Node] = set()
    order: list[fx.Node] = []

    def place(node: fx.Node) -> None:
        stack = [node]
        while stack:
            current = stack.pop()
            missing = [n for n in current.all_input_nodes if n not in placed]
            if current in placed:
                continue
            if missing:
                stack += [current, *reversed(missing)]
            else:
                placed.add(current)
                order.append(current)

    for node in sorted(graph.nodes, key=lambda n: n.op == "output"):
        place(node)
    for before, node in itertools.pairwise(order):
        before.append(node)
