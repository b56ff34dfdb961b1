"""The kinds of channel groups: which part of a network they belong to."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from svitc.ir import ops
from svitc.ir.channel_groups import ChannelGroup
from svitc.ir.graph import module_of
from svitc.ir.layer_roles import blocks, layer_kinds

PARTS = {
    "patch embedding": "patch embedding",
    "query": "attention",
    "key": "attention",
    "value": "attention",
    "projection": "attention",
    "mlp": "mlp",
}  # kind of a layer -> part of the network
STREAM, OTHER = "residual stream", "other"


def group_kinds(module: fx.GraphModule, groups: Sequence[ChannelGroup]) -> dict[str, str]:
    """Return the kind of each channel group: that of the layers that produce its channels.

    A group that layers of several parts, or of several blocks, produce is a residual stream, to which they all add.
    """
    layers = [str(node.target) for node in module.graph.nodes if ops.is_projection(module_of(module, node))]
    kinds = layer_kinds(module, layers)
    block = {layer: number for number, names in enumerate(blocks(layers)) for layer in names}
    found = {}
    for group in groups:
        producers = [layer for layer in group.producers if layer in kinds]
        parts = {PARTS.get(kinds[layer], OTHER) for layer in producers}
        spread = len({block[layer] for layer in producers}) > 1 and parts != {"patch embedding"}
        found[group.name] = STREAM if len(parts) > 1 or spread else parts.pop() if parts else OTHER
    return found


__all__ = ["group_kinds"]
