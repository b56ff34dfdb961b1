"""Build a canonical graph node by node, so that a node's inputs are typed before the node is made.

Every view becomes an ``einops.rearrange`` of named axes, which follows from axis types and not from sizes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from torch import fx, nn
from torch.fx.node import Argument, Target

from svitc.errors import UnsupportedError
from svitc.ir import axes, ops
from svitc.ir.graph import input_type
from svitc.ir.module_rules import ACROSS_BATCH
from svitc.ir.operators.regroup import at_steps, regroup, regrouped_type
from svitc.ir.operators.several import SEVERAL
from svitc.ir.program import Program
from svitc.ir.type_inference import TypeInference
from svitc.ir.views import emit_view, regrouped, tokens

ALIGNED = (*ops.ELEMENTWISE, *(operator.function for operator in SEVERAL))  # those whose dimensions meet one by one
Value: TypeAlias = fx.Node | tuple[fx.Node, ...]  # what a raw node becomes


class GraphBuilder:
    """Builder of a typed graph.

    Args:
        program: Holds the layers that nodes call.

    Attributes:
        graph: The canonical graph so far.
        done: Raw node -> the canonical node, or nodes, that it became.
        origin: The raw node that is being rewritten; new nodes get its line and scope.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.graph = fx.Graph()
        self.inference = TypeInference(program.module, program.input)
        self.done: dict[fx.Node, Value] = {}
        self.origin: fx.Node | None = None

    def arg(self, value: Argument) -> Any:
        """Return a raw node's argument with each raw node in it replaced by what it became."""
        return fx.node.map_arg(value, lambda n: self.done[n])

    def emit(
        self,
        op: str,
        target: Target,
        args: tuple[Argument, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> fx.Node:
        """Append a node to the graph, and type it.

        Where the axes of its inputs do not fit, the inputs get axes of their own, which cannot be pruned.

        Raises:
            UnsupportedError: it does not fit its inputs.
        """
        try:
            return self._typed(op, target, args, dict(kwargs or {}), name)
        except UnsupportedError as error:
            if not isinstance(error.__cause__, axes.AxisConflict) or op not in ("call_function", "call_module"):
                raise
            if not any(isinstance(arg, fx.Node) and arg.op != "get_attr" for arg in args):
                raise
            with_steps = self._with_steps(args) if target in ALIGNED else args
            apart = tuple(self.apart(arg) if isinstance(arg, fx.Node) else arg for arg in with_steps)
            for operands in (with_steps, apart) if with_steps != args else (apart,):
                with contextlib.suppress(UnsupportedError):
                    return self._typed(op, target, operands, dict(kwargs or {}), name)
            raise

    def _with_steps(self, args: tuple[Argument, ...]) -> tuple[Argument, ...]:
        """Return operands that meet, with time steps wherever another operand has as many in the same dimension."""
        types = [input_type(arg) for arg in args if isinstance(arg, fx.Node)]
        steps = {len(x) - i: axes.size(dim) for x in types for i, dim in enumerate(x) if are_steps(dim)}
        result = []
        for arg in args:
            for place, count in steps.items():
                if not isinstance(arg, fx.Node) or arg.op == "get_attr" or len(x := input_type(arg)) < place:
                    continue
                dim = x[len(x) - place]
                has_batch = any(axis.kind == axes.Kind.BATCH for axis in dim)
                if axes.size(dim) == count and not has_batch and not are_steps(dim):
                    arg = self.at_steps(arg, len(x) - place)
            result.append(arg)
        return tuple(result)

    def at_steps(self, x: fx.Node, dim: int) -> fx.Node:
        """Return ``x`` with a dimension whose elements are taken for time steps."""
        return self._typed("call_function", at_steps, (x,), {"dim": dim}, None)

    def _typed(self, op: str, target: Target, args: tuple[Argument, ...], kwargs: dict, name: str | None) -> fx.Node:
        """Append a node and type it; it is taken back where that fails."""
        node = self.graph.create_node(op, target, args, kwargs, name=name)
        assert self.origin is not None
        node.meta.update({k: self.origin.meta[k] for k in ("source", "scope") if k in self.origin.meta})
        try:
            # the graph belongs to no module yet: the rules look layers up in the program
            self.inference.visit(node)
        except UnsupportedError:
            self.graph.erase_node(node)
            raise
        return node

    def apart(self, x: fx.Node) -> fx.Node:
        """Return ``x`` with axes of its own, so that it can meet a value whose dimensions are made of others."""
        if x.op == "get_attr":
            return x
        return self._typed("call_function", regroup, (x,), {"sizes": sizes_of(input_type(x))}, None)

    def view(self, x: fx.Node, dims: axes.Dims) -> fx.Node:
        """Return ``x`` with its axes grouped as ``dims``, in their order; ``x`` itself where nothing changes."""
        source, target = regrouped(input_type(x), tuple(axes.resolve(dim) for dim in dims))
        return emit_view(self.emit, x, source, target)

    def permute(self, x: fx.Node, order: Sequence[int]) -> fx.Node:
        """Return ``x`` with its dimensions in another order."""
        source = tokens(input_type(x))
        return emit_view(self.emit, x, source, tuple(source[i] for i in order))

    def reshape(self, x: fx.Node, sizes: tuple[int, ...]) -> fx.Node:
        """Return ``x`` with its axes grouped into dimensions of these sizes. Raises UnsupportedError."""
        try:
            dims = axes.factor(input_type(x), sizes)
        except axes.AxisConflict:
            return self.regroup(x, sizes)
        return self.view(x, dims)

    def regroup(self, x: fx.Node, sizes: tuple[int, ...]) -> fx.Node:
        """Return a reshape of ``x`` that its axes do not explain. Raises UnsupportedError where it mixes the batch."""
        batch = axes.size(axis for dim in input_type(x) for axis in dim if axis.kind == axes.Kind.BATCH)
        try:
            # the batch is in the one dimension whose size changes with it
            dims = regrouped_type(input_type(x), sizes)
        except axes.AxisConflict as conflict:
            where = f"reshape of {axes.show(input_type(x))} to {sizes}"
            if batch > 1:
                conflict = axes.AxisConflict(f"{conflict}, or it runs {ACROSS_BATCH}")
            raise self.refuse(f"{where}: {conflict}") from conflict
        return self.emit("call_function", regroup, (x,), {"sizes": sizes_of(dims)})

    def refuse(self, text: str, hint: str | None = None) -> UnsupportedError:
        """Return an error that names the scope and line of the raw node."""
        assert self.origin is not None
        return UnsupportedError(
            f"{self.origin.meta.get('scope') or 'the model'}: {text}", where=self.origin.meta.get("source"), hint=hint
        )

    def layer(self, name: str, module: nn.Module) -> str:
        """Register a layer for what the model computes with a function, and return its path."""
        assert self.origin is not None
        scope = self.origin.meta.get("scope")
        if scope and scope == self.origin.target:  # beside the layer, which can hold no other
            scope, _, layer = scope.rpartition(".")
            name = f"{layer}_{name}"
        path = base = f"{scope}.{name}" if scope else name
        count = 0
        while has_module(self.program.module, path):
            count += 1
            path = f"{base}_{count}"
        self.program.module.add_submodule(path, module)
        return path

    def replace(self, path: str, module: nn.Module) -> None:
        """Put a module into the program at a path."""
        owner, _, name = path.rpartition(".")
        setattr(self.program.module.get_submodule(owner), name, module)


def are_steps(dim: axes.Dim) -> bool:
    """Return whether the elements of a dimension are time steps."""
    return len(dim) > 0 and all(axis.kind == axes.Kind.TIME for axis in axes.resolve(dim))


def sizes_of(dims: axes.Dims) -> tuple[int, ...]:
    """Return the sizes of a reshape to this type, with -1 for the dimension of the batch."""
    is_batch = [any(axis.kind == axes.Kind.BATCH for axis in dim) for dim in dims]
    return tuple(-1 if batch else axes.size(dim) for batch, dim in zip(is_batch, dims, strict=True))


def has_module(model: nn.Module, path: str) -> bool:
    """Return whether a model has a submodule at a path."""
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def unused_name(module: nn.Module, name: str) -> str:
    """Return a name for a new attribute of a module: the given one, or with a number behind it."""
    unique, count = name, 0
    while hasattr(module, unique):
        count += 1
        unique = f"{name}_{count}"
    return unique
