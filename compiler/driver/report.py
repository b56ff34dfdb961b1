"""The report: what was done, what it cost, and how sure that is. Its keys are in docs/report.md."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np

from svitc import onnx as backend
from svitc.analysis.exactness import inexact
from svitc.analysis.layer_stats import macs
from svitc.data.dataset import Dataset, split
from svitc.data.inputs import Data, top1
from svitc.energy.estimate import Energy, energy, saving
from svitc.ir import ops
from svitc.ir.pass_manager import Pipeline
from svitc.ir.program import Program
from svitc.ir.quantized_modules import FixedPoint
from svitc.planning.budget import Budget
from svitc.planning.plan import Plan
from svitc.quantization.weight_grid import stored_bits
from svitc.support.confidence import paired, wilson
from svitc.support.timing import Clock

BATCH = 64
ENERGY_IMAGES = 64


def make_report(
    program: Program, pruned: Program, plan: Plan, wanted: Budget | None, limit: int | None, original: int, stored: int
) -> dict[str, Any]:
    """Sizes, and what made them."""
    before, after = program.parameter_count(), pruned.parameter_count()
    dead = program.info.get("dead", {})
    return {
        "svitc": version("svitc"),
        "model": {k: v for k, v in program.info.items() if k != "dead"},
        "input": {"shape": list(program.input.shape), "events": program.input.events},
        "budget": {
            "text": wanted.text if wanted else None,
            "of": wanted.of if wanted else None,
            "limit": limit,
        },
        "policy": plan.provenance,
        "memory": {"original_bytes": original, "compiled_bytes": stored, "ratio": stored / original},
        "parameters": {
            "original": before,
            "compiled": after,
            "ratio": after / before,
            "dead": sum(dead.values()),
            "dead_names": sorted(dead),
        },
        "macs": {"original": macs(program), "compiled": macs(pruned)},
        "versions": {name: version(name) for name in ("torch", "spikingjelly", "onnx", "onnxruntime", "numpy")},
    }


def groups_of(program: Program, plan: Plan) -> list[dict[str, Any]]:
    """What a plan keeps of each channel group."""
    masks = plan.validate(program)
    return [
        {"name": g.name, "heads": g.heads, "size": g.size, "kept": int(masks[g.name].sum()), "frozen": g.frozen}
        for g in program.groups
    ]


def classes(program: Program, data: Data, clock: Clock) -> list[np.ndarray]:
    """The class that a program in PyTorch gives each image, batch by batch."""
    found, seen = [], 0
    with clock.stage("accuracy of the original", len(data)) as step:
        for x, _ in data.batches(program.input.at_once(BATCH)):
            found.append(top1(program(x).numpy()))
            step(seen := seen + len(found[-1]))
    return found


def accuracy(original: list[np.ndarray], exported: bytes, data: Data, clock: Clock) -> dict[str, Any]:
    """Top-1 of the original in PyTorch and of a file in ONNX Runtime, on the same images."""
    session = backend.session(exported)
    before = after = lost = gained = seen = 0
    with clock.stage("accuracy", len(data)) as step:
        for (x, labels), first in zip(data.batches(len(original[0])), original, strict=True):
            want = labels.numpy()
            was = first == want
            now = top1(session.run(None, {backend.INPUT: x.numpy()})[0]) == want
            before, after = before + int(was.sum()), after + int(now.sum())
            lost, gained = lost + int((was & ~now).sum()), gained + int((now & ~was).sum())
            step(seen := seen + len(want))
    return {
        "original": before / seen,
        "original_interval": wilson(before, seen),
        "pruned": after / seen,
        "pruned_interval": wilson(after, seen),
        "drop": (before - after) / seen,
        "drop_interval": paired(lost, gained, seen),
        "images": seen,
        "notes": list(getattr(data, "notes", ())),
        "unreadable": len(getattr(data, "unreadable", ())),
    }


def energy_of(program: Program, data: Data | None, seed: int, clock: Clock) -> Energy | None:
    """What an image costs, on a class-balanced sample of the data; None without data of ours."""
    if not isinstance(data, Dataset):
        return None
    few = split(data, ENERGY_IMAGES, seed)[0] if len(data) > ENERGY_IMAGES else data
    with clock.stage("energy"):
        return energy(program, few, progress=clock.progress)


def against(ours: Energy, original: Energy) -> dict[str, Any]:
    """The report's ``energy``: sums for one image, in pJ, operations and bytes."""
    return {
        "images": ours.images,
        "table": ours.table.name,
        "original": original.totals(),
        "compiled": ours.totals(),
        "saved": saving(ours, original),
    }


def summary(program: Program, pipeline: Pipeline) -> dict[str, Any]:
    """The report's ``weights`` section."""
    layers: dict[str, Any] = {}
    streams: dict[str, float] = {}
    for node in program.graph.nodes:
        module: Any = program.module_of(node)
        if ops.is_quantized(module) and str(node.target) not in layers:
            layers[str(node.target)] = {"bits": stored_bits(module.weight), "shape": list(module.weight.shape)}
        elif isinstance(module, FixedPoint) and node.all_input_nodes[0].op != "placeholder":
            streams |= {str(user.target): module.step for user in node.users}
    open_ends = inexact(program)
    neurons = [str(node.target) for node in program.neurons()]
    return {
        "type": "int8" if all(each["bits"] == 8 for each in layers.values()) else "mixed",
        "layers": layers,
        "streams": streams,
        "exact_neurons": sum(name not in open_ends for name in neurons),
        "neurons": len(neurons),
        "inexact": open_ends,
        "refused": pipeline.refused,
    }
