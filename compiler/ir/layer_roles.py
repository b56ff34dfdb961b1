"""Roles of layers: the kind of each layer, and the stages and blocks that layers form."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from torch import fx

from svitc.ir import ops
from svitc.ir.graph import module_of

KINDS = ("patch embedding", "query", "key", "value", "projection", "mlp", "head", "other")
KIND_PATTERNS = (
    ("patch embedding", re.compile(r"(^|[._])(patch_?embed\w*|stem\w*|downsample\w*|embed\w*|sps)([._]|$)", re.I)),
    ("query", re.compile(r"(^|[._])(q|to_q)(_\w+)?([._]|$)")),
    ("key", re.compile(r"(^|[._])(k|to_k)(_\w+)?([._]|$)")),
    ("value", re.compile(r"(^|[._])(v|to_v)(_\w+)?([._]|$)")),
    ("projection", re.compile(r"(^|[._])proj(_\w+)?([._]|$)", re.I)),
    ("mlp", re.compile(r"(^|[._])(mlp|ffn|fc\d*(_\w+)?)([._]|$)", re.I)),
)


def layer_kinds(module: fx.GraphModule, layers: Iterable[str]) -> dict[str, str]:
    """Return the kind of each layer: by the last part of its path that names one, otherwise by its position.

    The last layer is the head; a layer without such a name is a patch embedding in front of the first product of two
    activations (attention), and ``other`` behind it.
    """
    nodes = list(module.graph.nodes)
    position = {str(node.target): i for i, node in enumerate(nodes)}
    last = next((str(n.target) for n in reversed(nodes) if ops.is_projection(module_of(module, n))), None)
    product = next((i for i, node in enumerate(nodes) if node.target is torch.matmul), 0)
    kinds = {}
    for layer in layers:
        if layer == last:
            kinds[layer] = "head"
            continue
        matched_kinds = [
            (max(m.start() for m in matches), kind)
            for kind, pattern in KIND_PATTERNS
            if (matches := list(pattern.finditer(layer)))
        ]
        if matched_kinds:
            kinds[layer] = max(matched_kinds)[1]
        else:
            kinds[layer] = "patch embedding" if position[layer] < product else "other"
    return kinds


def stages(layers: Sequence[str]) -> list[list[str]]:
    """Group layers whose paths begin with the same name."""
    return _grouped(layers, r"[^.]+")


def blocks(layers: Sequence[str]) -> list[list[str]]:
    """Group layers whose paths are the same up to and including the first number."""
    return _grouped(layers, r".*?\.\d+(?=\.|$)|.*")


def _grouped(layers: Sequence[str], pattern: str) -> list[list[str]]:
    """Group layers whose paths have the same match of a pattern, in order of their first layers."""
    groups: dict[str, list[str]] = {}
    for layer in layers:
        match = re.match(pattern, layer)
        groups.setdefault(match.group() if match else layer, []).append(layer)
    return list(groups.values())


__all__ = ["KINDS", "blocks", "layer_kinds", "stages"]
