"""The report: what was done, what it cost, and how sure that is. Its keys are in docs/report.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from typing import Any

import numpy as np

from svitc import onnx as backend
from svitc.analysis.exactness import inexact
from svitc.data.dataset import Dataset, split
from svitc.data.inputs import Data, top1
from svitc.energy.estimate import Energy, energy, saving
from svitc.ir import ops
from svitc.ir.pass_manager import Pipeline
from svitc.ir.program import Program
from svitc.ir.quantized_modules import FixedPoint
from svitc.planning.plan import Plan
from svitc.quantization.weight_grid import stored_bits
from svitc.support.confidence import paired, wilson
from svitc.support.reporter import Reporter

BATCH = 64
ENERGY_IMAGES = 64


@dataclass(frozen=True)
class Section:
    """A part of the report; its fields are the keys."""

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, in the order of the fields."""
        return {field.name: _json(getattr(self, field.name)) for field in fields(self)}


def _json(value: Any) -> Any:
    if isinstance(value, Section):
        return value.to_json()
    return [_json(item) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class InputReport(Section):
    """The input without batch, and whether it is event frames."""

    shape: list[int]
    events: bool


@dataclass(frozen=True)
class BudgetReport(Section):
    """What was asked for.

    Attributes:
        text, of: as in ``Budget``.
        limit: bytes or parameters.
        timing: what a search in time adds.
    """

    text: str | None
    of: str | None
    limit: int | None
    timing: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"text": self.text, "of": self.of, "limit": self.limit, **self.timing}


@dataclass(frozen=True)
class MemoryReport(Section):
    """Bytes of the files' weights."""

    original_bytes: int
    compiled_bytes: int
    ratio: float


@dataclass(frozen=True)
class ParametersReport(Section):
    """Parameters of the programs that train, and those that the model never uses."""

    original: int
    compiled: int
    ratio: float
    dead: int
    dead_names: list[str]


@dataclass(frozen=True)
class BeforeAfter(Section):
    """A count, of the original and of what was compiled."""

    original: int
    compiled: int


@dataclass(frozen=True)
class GroupReport(Section):
    """What a plan keeps of a channel group."""

    name: str
    heads: int
    size: int
    kept: int
    frozen: str | None


@dataclass(frozen=True)
class WeightsReport(Section):
    """The stored weights.

    Attributes:
        type: ``fp32``, ``int8`` or ``mixed``; all else is of quantized weights only.
        layers: layer -> bits and shape.
        streams: residual stream -> its step.
        exact_neurons, neurons: how many neurons sum whole numbers exactly, and how many there are.
        inexact: neuron -> why its sums are rounded.
        refused: layer -> why a pass left it as it is.
    """

    type: str
    layers: dict[str, Any] = field(default_factory=dict)
    streams: dict[str, float] = field(default_factory=dict)
    exact_neurons: int = 0
    neurons: int = 0
    inexact: Mapping[str, Any] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"type": self.type} if self.type == "fp32" else super().to_json()


@dataclass(frozen=True)
class NoAccuracy(Section):
    """There are no images to report accuracies on."""

    original: None = None
    pruned: None = None
    images: int = 0


@dataclass(frozen=True)
class AccuracyReport(Section):
    """Top-1 of the original in PyTorch and of the file in ONNX Runtime, on the same images; intervals are of 95%."""

    original: float
    original_interval: tuple[float, float]
    pruned: float
    pruned_interval: tuple[float, float]
    drop: float
    drop_interval: tuple[float, float]
    images: int
    notes: list[str]
    unreadable: int


@dataclass(frozen=True)
class EnergyReport(Section):
    """Sums for one image, in pJ, operations and bytes."""

    images: int
    table: str
    original: dict[str, float]
    compiled: dict[str, float]
    saved: dict[str, float | None]


@dataclass(frozen=True)
class Report(Section):
    """What was done, what it cost, and how sure that is; docs/report.md describes each key."""

    svitc: str
    model: dict[str, Any]
    input: InputReport
    budget: BudgetReport
    policy: dict[str, Any]
    memory: MemoryReport
    parameters: ParametersReport
    macs: BeforeAfter
    versions: dict[str, str]
    nodes: BeforeAfter
    refused: dict[str, str]
    reparam: dict[str, Any]
    clean: dict[str, Any]
    weights: WeightsReport
    target: str
    decisions: list[str]
    groups: list[GroupReport]
    sweep: dict[str, Any] | None
    finetune: dict[str, Any] | None
    verify: dict[str, Any]
    accuracy: AccuracyReport | NoAccuracy
    energy: EnergyReport | None
    seconds: dict[str, float]


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that a result depends on."""
    return {name: version(name) for name in ("torch", "spikingjelly", "onnx", "onnxruntime", "numpy")}


def memory_report(original: int, compiled: int) -> MemoryReport:
    """Compare the bytes of two files' weights."""
    return MemoryReport(original, compiled, compiled / original)


def parameters_report(program: Program, pruned: Program) -> ParametersReport:
    """Compare the parameters of the original and of a pruned program."""
    before, after = program.parameter_count(), pruned.parameter_count()
    dead = program.info.get("dead", {})
    return ParametersReport(before, after, after / before, sum(dead.values()), sorted(dead))


def groups_report(program: Program, plan: Plan) -> list[GroupReport]:
    """Return what a plan keeps of each channel group."""
    masks = plan.validate(program)
    return [GroupReport(g.name, g.heads, g.size, int(masks[g.name].sum()), g.frozen) for g in program.groups]


def classify(program: Program, data: Data, reporter: Reporter) -> list[np.ndarray]:
    """Return the class that a program in PyTorch gives each image, batch by batch."""
    classes: list[np.ndarray] = []
    seen = 0
    with reporter.stage("accuracy of the original", len(data)) as step:
        for x, _ in data.batches(program.input.at_once(BATCH)):
            classes.append(top1(program(x).numpy()))
            step(seen := seen + len(classes[-1]))
    return classes


def accuracy_report(original: list[np.ndarray], exported: bytes, data: Data, reporter: Reporter) -> AccuracyReport:
    """Measure a file on images.

    Args:
        original: classes that the original gives the images, batch by batch.
        exported: the file.
    """
    session = backend.session(exported)
    before = after = lost = gained = seen = 0
    with reporter.stage("accuracy", len(data)) as step:
        for (x, labels), first in zip(data.batches(len(original[0])), original, strict=True):
            want = labels.numpy()
            was = first == want
            now = top1(session.run(None, {backend.INPUT: x.numpy()})[0]) == want
            before, after = before + int(was.sum()), after + int(now.sum())
            lost, gained = lost + int((was & ~now).sum()), gained + int((now & ~was).sum())
            step(seen := seen + len(want))
    return AccuracyReport(
        original=before / seen,
        original_interval=wilson(before, seen),
        pruned=after / seen,
        pruned_interval=wilson(after, seen),
        drop=(before - after) / seen,
        drop_interval=paired(lost, gained, seen),
        images=seen,
        notes=list(getattr(data, "notes", ())),
        unreadable=len(getattr(data, "unreadable", ())),
    )


def energy_of(program: Program, data: Data | None, seed: int, reporter: Reporter) -> Energy | None:
    """Return what an image costs, on a class-balanced sample of the data; None without data of ours."""
    if not isinstance(data, Dataset):
        return None
    few = split(data, ENERGY_IMAGES, seed)[0] if len(data) > ENERGY_IMAGES else data
    return energy(program, few, reporter=reporter)


def energy_report(compiled: Energy | None, original: Energy | None) -> EnergyReport | None:
    """Compare the energy of two networks; None where it was not measured."""
    if compiled is None or original is None:
        return None
    saved = saving(compiled, original)
    return EnergyReport(compiled.images, compiled.table.name, original.totals(), compiled.totals(), saved)


def weights_report(program: Program, pipeline: Pipeline) -> WeightsReport:
    """Describe the weights of a quantized program.

    Args:
        pipeline: that quantized it.
    """
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
    return WeightsReport(
        type="int8" if all(layer["bits"] == 8 for layer in layers.values()) else "mixed",
        layers=layers,
        streams=streams,
        exact_neurons=sum(name not in open_ends for name in neurons),
        neurons=len(neurons),
        inexact=open_ends,
        refused=pipeline.refused,
    )
