"""Inspection: the layers of a model, and the channel groups that may be pruned."""

from __future__ import annotations

from dataclasses import asdict

from svitc import onnx as backend
from svitc.analysis.layer_stats import layers, macs
from svitc.errors import InputError
from svitc.ir.operators.regroup import why_opaque
from svitc.ir.pass_manager import Pipeline
from svitc.ir.program import Program, Stage
from svitc.onnx.export import export
from svitc.passes.pipelines import inference_passes
from svitc.planning.cost import byte_cost
from svitc.support.types import JsonDict


def inspect(program: Program) -> JsonDict:
    """Return layers, channel groups, bytes and multiply-accumulates of a program, as JSON values.

    Raises:
        InputError: the program is quantized.
    """
    if program.stage >= Stage.INFERENCE:
        raise InputError(
            "this model is quantized already",
            hint="Inspect the original checkpoint; report.json says what was made of it.",
        )
    stored = backend.weight_bytes(export(program))
    inference = program.copy()
    Pipeline(inference_passes())(inference)
    cost = byte_cost(program, inference, stored)
    total = cost()
    return {
        "model": {k: v for k, v in program.info.items() if k != "dead"},
        "input": list(program.input.shape),
        "layers": [asdict(layer) for layer in layers(program)],
        "groups": [
            {
                "name": g.name,
                "heads": g.heads,
                "size": g.size,
                "layers": len({m.module for m in g.members}),
                "members": sorted({m.module for m in g.members}),
                "frozen": g.frozen,
                "whole_heads": g.whole_heads,
                "bytes_each": round((total - cost({id(g.axis): g.axis.size - 1})) / g.heads) if g.axis.size > 1 else 0,
            }
            for g in program.groups
        ],
        "opaque": opaque(program),
        "parameters": program.parameter_count(),
        "bytes": stored,
        "macs": macs(program),
        "neurons": sum(1 for _ in program.neurons()),
        "dead": program.info.get("dead", {}),
    }


def opaque(program: Program) -> list[JsonDict]:
    """Return the places of a program whose channels are kept, as axes do not explain what is computed there."""
    places = []
    for node in program.graph.nodes:
        why = why_opaque(node)
        if why is not None:
            place = {"name": node.meta.get("scope") or "the model", "why": why, "where": node.meta.get("source")}
            places += [place] if place not in places else []
    return places
