"""Positions that count through the whole batch: ``x.reshape(B * N, C)[(index + offset).reshape(-1)]``.

Code that keeps the best tokens of each image adds ``arange(B) * N`` to their positions, or takes
``x[arange(B)[:, None], index]``. Both take elements along one dimension, each image its own, and do not depend on the
batch size; they become ``take_along_dim``.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from svitc.frontends.capture.constants import name_of
from svitc.frontends.capture.graph_builder import unused_name
from svitc.ir.graph import attribute_of

_FLATTEN = ("reshape", "view", "flatten", "ravel")


def rewrite_batch_positions(graph: fx.Graph, model: nn.Module, tracer: Any) -> None:
    """Replace indices that count through the batch by positions of each image, in place.

    Args:
        graph: The raw graph.
        model: What it calls; constants are added to it.
        tracer: Computes the shapes of new nodes.
    """
    for node in list(graph.nodes):
        if name_of(node.target) == "getitem" and isinstance(node.args[0], fx.Node):
            _Rewriter(graph, model, tracer, node).rewrite()


class _Rewriter:
    """Rewriter of one index."""

    def __init__(self, graph: fx.Graph, model: nn.Module, tracer: Any, node: fx.Node) -> None:
        self.graph, self.model, self.tracer, self.node = graph, model, tracer, node

    def rewrite(self) -> None:
        """Replace the index if it counts through the batch."""
        x, entry = self.node.args
        assert isinstance(x, fx.Node)
        if not isinstance(x.meta.get("val"), torch.Tensor):
            return
        with self.graph.inserting_before(self.node):
            if isinstance(entry, tuple) and len(entry) == 2:
                new = self._of_pair(x, *entry)
            else:
                new = self._of_flat(x, entry)
        if new is not None:
            self.node.replace_all_uses_with(new)
            self.graph.erase_node(self.node)

    def _of_pair(self, x: fx.Node, rows: object, index: object) -> fx.Node | None:
        """Emit ``x[arange(B)[:, None], index]``."""
        if not isinstance(index, fx.Node) or not isinstance(rows, fx.Node):
            return None
        places, shape = self.constant(rows), x.meta["val"].shape
        if places is None or index.op == "get_attr" or index.meta["val"].dim() != 2 or x.op == "get_attr":
            return None
        if list(places.shape) != [shape[0], 1] or not torch.equal(places[:, 0], torch.arange(shape[0])):
            return None
        return self.taken(x, index)

    def _of_flat(self, x: fx.Node, entry: Any) -> fx.Node | None:
        """Emit ``x[(index + arange(B)[:, None] * N).reshape(-1)]`` of ``[B * N, ...]``."""
        flat = entry
        while isinstance(flat, fx.Node) and name_of(flat.target) in _FLATTEN:
            flat = flat.args[0]
        if not isinstance(flat, fx.Node) or name_of(flat.target) not in ("add", "iadd") or len(flat.args) != 2:
            return None
        pairs = [flat.args, flat.args[::-1]]
        index, offset = next(
            (p for p in pairs if all(isinstance(v, fx.Node) for v in p) and p[1].op == "get_attr"),  # type: ignore[union-attr]
            (None, None),
        )
        if index is None or index.meta["val"].dim() != 2 or entry.meta["val"].dim() != 1:  # type: ignore[union-attr]
            return None
        batch, rows = index.meta["val"].shape[0], x.meta["val"].shape[0]  # type: ignore[union-attr]
        step = torch.arange(batch).unsqueeze(1) * (rows // batch)
        if rows % batch or not torch.equal(self.constant(offset), step):  # type: ignore[arg-type]
            return None
        if x.op == "get_attr":
            apart = self.repeated(self.constant(x).unflatten(0, (batch, -1)), index)  # type: ignore[arg-type, union-attr]
        else:
            apart = self.emit("call_method", "unflatten", (x, 0, (batch, rows // batch)))
        if apart is None:
            return None
        return self.emit("call_method", "flatten", (self.taken(apart, index), 0, 1))  # type: ignore[arg-type]

    def repeated(self, constant: torch.Tensor, index: fx.Node) -> fx.Node | None:
        """Emit a constant that is the same for each image, repeated for the images of an index."""
        if not torch.equal(constant[:1].expand_as(constant), constant):
            return None
        first = index.meta["val"].shape[0]
        thin = self.emit("call_method", "reshape", (index, (first, -1, *(1,) * (constant.dim() - 2))))
        thin = self.emit("call_function", operator.getitem, (thin, (slice(None), slice(0, 1))))
        zeros = self.emit("call_function", operator.mul, (thin, 0.0))
        if torch.equal(constant, constant.reshape(-1)[0].expand_as(constant)):
            sizes = (-1, *constant.shape[1:])
            zeros = self.emit("call_method", "expand", (zeros, sizes))
            return self.emit("call_function", operator.add, (zeros, constant.reshape(-1)[0].item()))
        name = unused_name(self.model, "constant")
        self.model.register_buffer(name, constant[:1].clone())
        return self.emit("call_function", operator.add, (zeros, self.emit("get_attr", name, ())))

    def taken(self, x: fx.Node, index: fx.Node) -> fx.Node:
        """Emit the elements of dimension 1 at the positions of each image."""
        rank = x.meta["val"].dim()
        index = self.emit("call_method", "reshape", (index, (*index.meta["val"].shape, *(1,) * (rank - 2))))
        return self.emit("call_function", torch.take_along_dim, (x, index, 1))

    def constant(self, node: fx.Node) -> torch.Tensor | None:
        """Return the value of a node that reads a constant, or None."""
        return attribute_of(self.model, str(node.target)) if node.op == "get_attr" else None

    def emit(self, op: str, target: Any, args: tuple) -> fx.Node:
        """Emit a node with the line and the scope of the index."""
        node = self.graph.create_node(op, target, args, {})
        node.meta.update({k: self.node.meta[k] for k in ("source", "scope") if k in self.node.meta})
        node.meta["val"] = self.tracer.value(node)
        return node


__all__ = ["rewrite_batch_positions"]
