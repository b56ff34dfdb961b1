"""Axis-type inference: one transfer rule for each canonical operation. The rules are the whole coupling analysis."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from svitc.errors import InternalError, UnsupportedError
from svitc.ir import axes
from svitc.ir.axes import Axis, AxisConflict, Dims, Kind
from svitc.ir.function_rules import FUNCTION_RULES
from svitc.ir.graph import BATCH_PROBE, InputSpec, attribute_of, describe, input_type, module_of
from svitc.ir.module_rules import MODULE_RULES, Rule


class TypeInference:
    """Types the nodes of a graph in order, with fresh axes.

    Args:
        module: whose layers and parameters the nodes call.
        input: shape of the input without batch.
    """

    def __init__(self, module: fx.GraphModule, input: InputSpec) -> None:
        self.module, self.input = module, input
        self._seen: dict[str, dict[str, Dims]] = {}

    def visit(self, node: fx.Node) -> None:
        """Type one node; its inputs are typed already.

        Raises:
            UnsupportedError: the operation cannot be what its inputs' types say, with the user's line.
        """
        try:
            if node.op == "placeholder":
                dims = self.placeholder(node)
            elif node.op == "output":
                dims = self.output(node)
            elif node.op == "get_attr":
                dims = self.attribute(node)
            elif node.op == "call_module":
                module = module_of(self.module, node)
                dims = _rule(node, (rule for t, rule in MODULE_RULES.items() if isinstance(module, t)))(node, module)
                self.share(node)
            else:
                dims = _rule(node, (rule for f, rule in FUNCTION_RULES.items() if f is node.target))(node, None)
        except AxisConflict as conflict:
            raise UnsupportedError(f"{describe(node)}: {conflict}", where=node.meta.get("source")) from conflict
        node.meta["dims"] = tuple(axes.resolve(dim) for dim in dims)

    def share(self, node: fx.Node) -> None:
        """Weights that two nodes share have one type."""
        params = node.meta.get("params", {})
        for name, dims in self._seen.setdefault(str(node.target), params).items():
            for mine, first in zip(params[name], dims, strict=True):
                axes.unify(mine, first)

    def placeholder(self, node: fx.Node) -> Dims:
        *time, channels, height, width = self.input.shape
        batch = Axis("batch", BATCH_PROBE, Kind.BATCH, "b")
        image = (
            (Axis("input", channels, Kind.CHANNEL, "c", frozen="the model's input"),),
            (Axis("input/height", height, Kind.PIXEL, "y"),),
            (Axis("input/width", width, Kind.PIXEL, "x"),),
        )
        if time:
            return ((Axis("time", time[0], Kind.TIME, "t"),), (batch,), *image)
        return ((batch,), *image)

    def output(self, node: fx.Node) -> Dims:
        dims = input_type(node.args[0])
        for dim in dims:
            for axis in dim:
                if axis.kind == Kind.CHANNEL:
                    axis.freeze("the model's output")
        return dims

    def attribute(self, node: fx.Node) -> Dims:
        """A bare parameter: its last dimensions become channels or pixels by what it meets."""
        value = attribute_of(self.module, str(node.target))
        dims = tuple(
            () if n == 1 else (Axis(f"{node.target}.{i}", n, Kind.CHANNEL, "c"),) for i, n in enumerate(value.shape)
        )
        node.meta["params"] = {"": dims}
        return dims


def _rule(node: fx.Node, found: Iterator[Rule]) -> Rule:
    rule = next(found, None)
    if rule is None:
        raise InternalError(f"{describe(node)} is not a canonical operation", where=node.meta.get("source"))
    return rule


def infer(module: fx.GraphModule, input: InputSpec) -> None:
    """Give every node its axis type in ``node.meta["dims"]``, and its parameters' in ``node.meta["params"]``."""
    inference = TypeInference(module, input)
    for node in module.graph.nodes:
        node.meta.pop("params", None)
        inference.visit(node)
