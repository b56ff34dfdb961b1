"""Sensitivity to precision: accuracy and size by the bits of each layer, and of each kind of layer, alone."""

from __future__ import annotations

from svitc.ir.layer_roles import KINDS
from svitc.passes.policies.bitwidth.search_space import BitSpace
from svitc.passes.policies.problem import MeasuredAccuracy
from svitc.support.types import JsonDict

LOWER_BITS = (4, 2)
Alone = dict[tuple[str, int], MeasuredAccuracy]  # (layer or kind, bits) -> measurement


def units_of(space: BitSpace) -> dict[str, list[str]]:
    """Return layer or kind of layer -> its layers."""
    by_kind = {kind: [layer for layer in space.layers if space.kinds[layer] == kind] for kind in KINDS}
    return {layer: [layer] for layer in space.layers} | {kind: layers for kind, layers in by_kind.items() if layers}


def precision(space: BitSpace, stage: str) -> Alone:
    """Measure each layer and kind alone at 4 and 2 bits, where they may have them."""
    trials = {
        (name, to): space.lowered(space.widest, layers, to)
        for name, layers in units_of(space).items()
        for to in LOWER_BITS
        if any(space.allowed[layer][0] <= to for layer in layers)
    }
    space.problem.announce([space.plan(bits) for bits in trials.values()], "none", "precision of each layer and kind")
    return dict(zip(trials, space.points(list(trials.values()), stage), strict=True))


def to_json(space: BitSpace, alone: Alone, all_at_8: MeasuredAccuracy) -> JsonDict:
    """Return measurements as JSON values: ``all_at_8``, ``layers`` and ``kinds``.

    Args:
        space: the settings.
        alone: the measurements of layers and kinds.
        all_at_8: the measurement with all layers at 8 bits.
    """
    full_cost = space.cost(space.widest)
    rows = []
    for name, layers in units_of(space).items():
        steps = []
        for to in LOWER_BITS:
            if (name, to) in alone:
                kept = space.cost(space.lowered(space.widest, layers, to))
                steps.append({"bits": to, "bytes": kept, "saved": 1 - kept / full_cost, **alone[name, to].to_json()})
        kind = space.kinds.get(name)
        size = sum(space.problem.cost.of(layer) for layer in layers)
        rows.append({"name": name, "kind": kind, "layers": len(layers), "bytes_at_8": size, "steps": steps})
    return {
        "all_at_8": {"bytes": full_cost, **all_at_8.to_json()},
        "layers": [row for row in rows if row["kind"] is not None],
        "kinds": [row for row in rows if row["kind"] is None],
    }


__all__ = ["LOWER_BITS", "Alone", "precision", "to_json"]
