"""Inference of axis types, with a transfer rule for each canonical operation.

The rules also determine which channels are coupled; there is no separate analysis for it.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from svitc.errors import InternalError, UnsupportedError
from svitc.ir import axes, filled
from svitc.ir.axes import Axis, AxisConflict, Dims, Kind
from svitc.ir.function_rules import FUNCTION_RULES
from svitc.ir.graph import BATCH_PROBE, InputSpec, attribute_of, describe, input_type, module_of
from svitc.ir.module_rules import MODULE_RULES, Rule
from svitc.ir.outputs import as_tuple

ALONE = (
    "Name the dimensions without the batch; what needs several samples belongs outside of the model, or under"
    " if self.training."
)


class TypeInference:
    """Inference of the types of a graph's nodes, one after the other, with new axes.

    Args:
        module: module that contains the layers and parameters of the nodes.
        input: shape of the input without batch.
    """

    def __init__(self, module: fx.GraphModule, input: InputSpec) -> None:
        self.module, self.input = module, input
        self._seen: dict[str, dict[str, Dims]] = {}

    def visit(self, node: fx.Node) -> None:
        """Infer the type of a node whose inputs already have types.

        Raises:
            UnsupportedError: the operation does not fit the types of its inputs; names the line in the user's model.
            InternalError: the operation is not canonical.
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
            if node.op == "call_module" and self._seen.get(str(node.target)) is node.meta.get("params"):
                self._seen.pop(str(node.target), None)  # another input may fit
            hint = conflict.hint or (ALONE if "batch" in str(conflict) else None)
            text = f"{describe(node)}: {conflict}"
            raise UnsupportedError(text, where=node.meta.get("source"), hint=hint) from conflict
        node.meta["dims"] = tuple(axes.resolve(dim) for dim in dims)
        filled.track(node, self.module)

    def share(self, node: fx.Node) -> None:
        """Make the types of a layer's parameters identical in all nodes that call the layer."""
        params = node.meta.get("params", {})
        for name, first_dims in self._seen.setdefault(str(node.target), params).items():
            for dim, first_dim in zip(params[name], first_dims, strict=True):
                axes.unify(dim, first_dim)

    def placeholder(self, node: fx.Node) -> Dims:
        """Return the type of the model's input."""
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
        """Return the type of the model's output, or ``()`` for several; their channels must not be pruned."""
        values = as_tuple(node.args[0])
        for value in values:
            for axis in (axis for dim in input_type(value) for axis in dim):
                if axis.kind == Kind.CHANNEL:
                    axis.freeze("the model's output")
        return input_type(values[0]) if len(values) == 1 else ()

    def attribute(self, node: fx.Node) -> Dims:
        """Return the type of a bare parameter.

        All its axes start as channels; ``function_rules.adopt_kinds`` corrects them later.
        """
        value = attribute_of(self.module, str(node.target))
        dims = tuple(
            () if n == 1 else (Axis(f"{node.target}.{i}", n, Kind.CHANNEL, "c"),) for i, n in enumerate(value.shape)
        )
        node.meta["params"] = {"": dims}
        return dims


def _rule(node: fx.Node, candidates: Iterator[Rule]) -> Rule:
    rule = next(candidates, None)
    if rule is None:
        raise InternalError(f"{describe(node)} is not a canonical operation", where=node.meta.get("source"))
    return rule


def infer(module: fx.GraphModule, input: InputSpec) -> None:
    """Store the types of all nodes in ``node.meta["dims"]``, and those of their parameters in ``node.meta["params"]``.

    Raises:
        UnsupportedError: an operation does not fit the types of its inputs.
    """
    inference = TypeInference(module, input)
    for node in module.graph.nodes:
        node.meta.pop("params", None)
        inference.visit(node)
