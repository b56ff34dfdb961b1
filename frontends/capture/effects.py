"""Raw operations that do more than return a value."""

from __future__ import annotations

import operator

from torch import fx


def has_effect(node: fx.Node) -> bool:
    """Return whether a raw operation has an effect even where nothing reads its result."""
    return node.op in ("placeholder", "output") or in_place(node)


def in_place(node: fx.Node) -> bool:
    """Return whether a raw operation changes its input."""
    if node.op == "call_function":
        return node.target in (operator.iadd, operator.isub, operator.imul, operator.itruediv)
    name = str(node.target)
    return node.op == "call_method" and name.endswith("_") and not name.endswith("__")
