"""Precision: accuracy and size against bits, for each layer and each kind of layer alone, all else at 8."""

from __future__ import annotations

from typing import Any

from svitc.passes.policies.bitwidth.layer_roles import KINDS
from svitc.passes.policies.bitwidth.search_space import BitSpace

LOWER = (4, 2)
Alone = dict[tuple[str, int], Any]  # (layer or kind, bits) -> what was measured


def units_of(space: BitSpace) -> dict[str, list[str]]:
    """Layers, and kinds with their layers."""
    by_kind = {kind: [layer for layer in space.layers if space.kinds[layer] == kind] for kind in KINDS}
    return {layer: [layer] for layer in space.layers} | {kind: layers for kind, layers in by_kind.items() if layers}


def precision(space: BitSpace, stage: str) -> Alone:
    """Measure every layer and kind at every level below 8 that it may have."""
    trials = {
        (name, to): space.lowered(space.widest, layers, to)
        for name, layers in units_of(space).items()
        for to in LOWER
        if any(space.allowed[layer][0] <= to for layer in layers)
    }
    space.problem.announce([space.plan(bits) for bits in trials.values()], "none", "precision of each layer and kind")
    return dict(zip(trials, space.points(list(trials.values()), stage), strict=True))


def to_json(space: BitSpace, alone: Alone, at8: Any) -> dict[str, Any]:
    """As JSON values: ``all_at_8`` and one entry for each layer and kind, with what each level saves.

    Args:
        at8: what was measured with every layer at 8 bits.
    """
    whole = space.cost(space.widest)
    rows = []
    for name, layers in units_of(space).items():
        steps = []
        for to in LOWER:
            if (name, to) in alone:
                kept = space.cost(space.lowered(space.widest, layers, to))
                steps.append({"bits": to, "bytes": kept, "saved": 1 - kept / whole, **alone[name, to].to_json()})
        kind = space.kinds.get(name)
        own = sum(space.problem.cost.of(layer) for layer in layers)
        rows.append({"name": name, "kind": kind, "layers": len(layers), "bytes_at_8": own, "steps": steps})
    return {
        "all_at_8": {"bytes": whole, **at8.to_json()},
        "layers": [row for row in rows if row["kind"] is not None],
        "kinds": [row for row in rows if row["kind"] is None],
    }


__all__ = ["LOWER", "Alone", "precision", "to_json"]
