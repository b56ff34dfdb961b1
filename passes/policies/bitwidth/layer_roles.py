"""Units of a network: the kind of each layer, and the stages and blocks that layers form."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch

from svitc.ir import ops
from svitc.ir.program import Program

KINDS = ("patch embedding", "query", "key", "value", "projection", "mlp", "head", "other")
WORDS = (
    ("patch embedding", re.compile(r"(^|[._])(patch_?embed\w*|stem\w*|downsample\w*|embed\w*|sps)([._]|$)", re.I)),
    ("query", re.compile(r"(^|[._])(q|to_q)(_\w+)?([._]|$)")),
    ("key", re.compile(r"(^|[._])(k|to_k)(_\w+)?([._]|$)")),
    ("value", re.compile(r"(^|[._])(v|to_v)(_\w+)?([._]|$)")),
    ("projection", re.compile(r"(^|[._])proj(_\w+)?([._]|$)", re.I)),
    ("mlp", re.compile(r"(^|[._])(mlp|ffn|fc\d*(_\w+)?)([._]|$)", re.I)),
)


def layer_kinds(program: Program, layers: Iterable[str]) -> dict[str, str]:
    """The kind of each layer: by the last of its names that says one, else by where it stands."""
    nodes = list(program.graph.nodes)
    place = {str(node.target): i for i, node in enumerate(nodes)}
    last = next((str(n.target) for n in reversed(nodes) if ops.is_projection(program.module_of(n))), None)
    product = next((i for i, node in enumerate(nodes) if node.target is torch.matmul), 0)
    found = {}
    for layer in layers:
        if layer == last:
            found[layer] = "head"
            continue
        named = [
            (max(m.start() for m in matches), kind) for kind, word in WORDS if (matches := list(word.finditer(layer)))
        ]
        if named:
            found[layer] = max(named)[1]
        else:
            found[layer] = "patch embedding" if place[layer] < product else "other"
    return found


def stages(layers: Sequence[str]) -> list[list[str]]:
    """Layers whose paths begin with the same name."""
    return _grouped(layers, r"[^.]+")


def blocks(layers: Sequence[str]) -> list[list[str]]:
    """Layers whose paths are the same up to the first number, the number included."""
    return _grouped(layers, r".*?\.\d+(?=\.|$)|.*")


def _grouped(layers: Sequence[str], pattern: str) -> list[list[str]]:
    found: dict[str, list[str]] = {}
    for layer in layers:
        match = re.match(pattern, layer)
        found.setdefault(match.group() if match else layer, []).append(layer)
    return list(found.values())


__all__ = ["KINDS", "blocks", "layer_kinds", "stages"]
