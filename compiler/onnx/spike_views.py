"""How a neuron's spikes, as a file stores them, form the program's array: metadata of the node that gives them."""

from __future__ import annotations

import json

from svitc.ir.axes import Dims, Kind
from svitc.onnx import layout
from svitc.onnx.builder import Stored

VIEW_KEY = "svitc.view"  # metadata of a neuron's node: an einops pattern, sizes, and the names of the values


def describe_stored(spikes: Stored, path: str) -> None:
    """Record in the metadata of the node that gives a neuron's spikes how they form the program's array.

    One value has the spikes of all steps; where each step has its own, see unrolled/lower.py.
    """
    letters = {id(token): f"a{i}" for i, token in enumerate(layout.flat(spikes.view))}
    sizes = {letters[id(token)]: token.size for token in layout.flat(spikes.view) if token.kind != Kind.BATCH}

    def side(dims: Dims) -> str:
        return " ".join("(" + " ".join(letters[id(token)] for token in dim) + ")" for dim in dims)

    assert spikes.value is not None
    node = spikes.value.producer()
    assert node is not None
    pattern = f"() {side(spikes.dims)} -> {side(spikes.view)}"  # of a stack of one value
    node.metadata_props[VIEW_KEY] = json.dumps(
        {"path": path, "pattern": pattern, "sizes": sizes, "values": [spikes.value.name]}
    )


__all__ = ["VIEW_KEY", "describe_stored"]
