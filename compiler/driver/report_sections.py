"""Functions that fill the sections of the report (report.py) from programs, files and images."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
from torch import fx, nn

from svitc.analysis.exactness import inexact
from svitc.analysis.input_range import input_range
from svitc.data.dataset import Dataset, split
from svitc.data.inputs import Data, has_labels
from svitc.driver.report import (
    AccuracyReport,
    EnergyReport,
    FileReport,
    GroupReport,
    InputReport,
    MemoryReport,
    ParametersReport,
    StreamingReport,
    WeightsReport,
)
from svitc.driver.weight_types import is_narrow
from svitc.energy.estimate import Energy, energy, saving
from svitc.errors import InputError
from svitc.evaluation.promise import compare_classes
from svitc.ir import ops
from svitc.ir.group_kinds import group_kinds
from svitc.ir.outputs import required_scores
from svitc.ir.pass_manager import Pipeline
from svitc.ir.program import Program
from svitc.ir.quantized_modules import WIDE_BITS, FixedPoint
from svitc.onnx.model_info import read_structure
from svitc.onnx.states import states_of
from svitc.onnx.static_batch import static_batch
from svitc.onnx.target import TARGETS, WEIGHT_OPSETS
from svitc.passes.quantization.quantize_input import FINE_STEPS
from svitc.passes.quantization.quantize_weights import QuantizeWeights
from svitc.planning.plan import Plan
from svitc.quantization.grids import trained_bits
from svitc.quantization.weight_grid import stored_bits
from svitc.support.confidence import paired, wilson
from svitc.support.reporter import Reporter
from svitc.support.types import JsonDict

BATCH_IMAGES = 64
ENERGY_IMAGES = 64


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that a result depends on."""
    return {name: version(name) for name in ("torch", "spikingjelly", "onnx", "onnxruntime", "numpy")}


def memory_report(original: int, compiled: int) -> MemoryReport:
    """Compare the bytes of the weights in two files."""
    return MemoryReport(original, compiled, compiled / original)


def file_report(exported: bytes, target: str) -> FileReport:
    """Describe the form of a file: the version of its operators, and what needs that."""
    proto = read_structure(exported)
    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    needed = next((bits for bits, since in WEIGHT_OPSETS.items() if since == opset != TARGETS[target].opset), None)
    why = f"target {target}" if needed is None else f"weights of {needed} bits"
    return FileReport(opset, why, static_batch(proto))


def streaming_report(exported: bytes) -> StreamingReport | None:
    """Describe the states of a streaming file; None for a file of any other kind."""
    states = states_of(read_structure(exported))
    if states is None:
        return None
    total = sum(state.start(1).nbytes for state in states)
    return StreamingReport(len(states), total, {state.input: list(state.shape) for state in states})


def input_report(program: Program, quantized: bool, raw: bool = False) -> InputReport:
    """Describe the input of a program; its range matters where inputs are rounded to integers.

    Args:
        program: the program.
        quantized: whether inputs are rounded.
        raw: whether the file takes bytes.
    """
    shape, events, dtype = list(program.input.shape), program.input.events, "uint8" if raw else None
    if not quantized:
        return InputReport(shape, events, dtype=dtype)
    found = input_range(program)
    return InputReport(shape, events, (found.low, found.high), found.source, dtype)


def parameters_report(program: Program, pruned: Program) -> ParametersReport:
    """Compare the parameters of the original and of a pruned program."""
    before, after = program.parameter_count(), pruned.parameter_count()
    dead = program.info.get("dead", {})
    return ParametersReport(before, after, after / before, sum(dead.values()), sorted(dead))


def groups_report(program: Program, plan: Plan) -> list[GroupReport]:
    """Return how many channels of each group a plan keeps."""
    masks, kinds = plan.validate(program), group_kinds(program.module, program.groups)
    return [
        GroupReport(g.name, kinds[g.name], g.heads, g.size, int(masks[g.name].sum()), g.frozen) for g in program.groups
    ]


def original_scores(program: Program, data: Data, reporter: Reporter, stage: str) -> Iterator[np.ndarray]:
    """Yield the scores ``[N, classes]`` of the original for images in PyTorch, batch by batch.

    Args:
        program: the original.
        data: the images.
        reporter: told about progress.
        stage: name of the stage for the reporter.
    """
    seen, scores = 0, required_scores(program.graph, program.info)
    with reporter.stage(stage, len(data)) as step:
        for x, _ in data.batches(program.input.at_once(BATCH_IMAGES)):
            batch = scores.of(program.original_outputs(x)).numpy()
            yield batch
            step(seen := seen + len(batch))


def classify(program: Program, data: Data, reporter: Reporter) -> list[np.ndarray]:
    """Return the classes that the original predicts for images in PyTorch, batch by batch."""
    return [scores.argmax(axis=-1) for scores in original_scores(program, data, reporter, "accuracy of the original")]


def accuracy_report(
    program: Program, original: list[np.ndarray], exported: bytes, data: Data, reporter: Reporter
) -> AccuracyReport:
    """Measure the accuracy of an exported file, and compare it with the original's.

    Args:
        program: the original.
        original: classes that the original predicts, batch by batch.
        exported: the ONNX file.
        data: labeled images.
        reporter: told about progress.

    Raises:
        InputError: the images have no labels.
    """
    if not has_labels(data):
        raise InputError(
            "accuracy needs labels, and these images have none",
            hint="Give class folders, or an .npz with images and labels.",
        )
    found = compare_classes(program, original, exported, data, reporter, "accuracy")
    return AccuracyReport(
        original=found.original / found.images,
        original_interval=wilson(found.original, found.images),
        pruned=found.right / found.images,
        pruned_interval=wilson(found.right, found.images),
        drop=found.drop,
        drop_interval=paired(found.lost, found.gained, found.images),
        images=found.images,
        notes=data.remarks() if isinstance(data, Dataset) else list(getattr(data, "notes", ())),
        unreadable=len(getattr(data, "unreadable", ())),
        lost=found.lost,
        gained=found.gained,
    )


def energy_of(program: Program, data: Data | None, seed: int, reporter: Reporter) -> Energy | None:
    """Return the energy for one image, on a sample of the data; None unless that is a ``Dataset``."""
    if not isinstance(data, Dataset):
        return None
    sample = split(data, ENERGY_IMAGES, seed)[0] if len(data) > ENERGY_IMAGES else data
    return energy(program, sample, reporter=reporter)


def energy_report(compiled: Energy | None, original: Energy | None) -> EnergyReport | None:
    """Compare the energies of two networks; None where they were not measured."""
    if compiled is None or original is None:
        return None
    saved = saving(compiled, original)
    rates = [{row.name: row.rate for row in found.rows if row.reads is None} for found in (original, compiled)]
    neurons = [
        {"name": name, "original": rates[0].get(name), "compiled": rates[1].get(name)}
        for name in dict.fromkeys([*rates[0], *rates[1]])
        if any(found.get(name) is not None for found in rates)
    ]
    return EnergyReport(compiled.images, compiled.table.name, original.totals(), compiled.totals(), saved, neurons)


def _type_of(program: Program, layers: JsonDict, asked: str) -> str:
    """Return the type of weights by the bits of all layers; some may hold 16-bit weights, or a grid, in fewer bits.

    Those that read an image in one kind of steps have 16 bits with every type. Layers that must, or should, keep 8 bits
    have them with the narrow types as well.

    Args:
        program: the quantized program.
        layers: the report's entries on its layers.
        asked: the type that was asked for.
    """
    split = FINE_STEPS in dict(program.module.named_children())
    images = () if split else {str(node.target) for node in program.graph.nodes if _reads_image(program, node)}
    widths = {name: layer["bits"] for name, layer in layers.items() if name not in images}
    if all(width == 8 for width in widths.values()):
        return "int8"
    own = {width for name, width in widths.items() if "grid" not in layers[name]}
    if own in ({WIDE_BITS}, {WIDE_BITS, 8}):
        return "int16"
    narrow = own - {8}
    if not is_narrow(asked) or len(narrow) != 1:
        return "mixed"
    return asked if asked == "ternary" else f"int{narrow.pop()}"


def _reads_image(program: Program, node: fx.Node) -> bool:
    """Return whether a layer reads an image that is rounded to steps, perhaps through views."""
    if not ops.is_quantized(program.module_of(node)):
        return False
    source = node.all_input_nodes[0]
    while not isinstance(program.module_of(source), FixedPoint) and source.all_input_nodes:
        if source.target not in ops.VIEWS and not isinstance(program.module_of(source), nn.ZeroPad2d):
            return False
        source = source.all_input_nodes[0]
    return isinstance(program.module_of(source), FixedPoint) and _of_image(source)


def _of_image(node: fx.Node) -> bool:
    """Return whether a node rounds the image, or what a coarser rounding leaves of it."""
    source = node.all_input_nodes[0]
    while source.op == "call_function" and source.all_input_nodes:
        source = source.all_input_nodes[0]
    return source.op == "placeholder"


def weights_report(program: Program, pipeline: Pipeline, asked: str = "mixed") -> WeightsReport:
    """Describe the weights of a quantized program.

    Args:
        program: the quantized program.
        pipeline: the passes that quantized it.
        asked: the type of weights that was asked for; ``mixed`` where bits were chosen layer by layer.
    """
    layers: JsonDict = {}
    streams: dict[str, float] = {}
    for node in program.graph.nodes:
        module: Any = program.module_of(node)
        if ops.is_quantized(module) and str(node.target) not in layers:
            layers[str(node.target)] = {"bits": stored_bits(module.weight), "shape": list(module.weight.shape)}
        elif isinstance(module, FixedPoint) and not _of_image(node):
            streams |= {str(user.target): module.step for user in node.users}
    for step in pipeline.passes:
        for name, error in step.kept.items() if isinstance(step, QuantizeWeights) else ():
            layers[name] |= {"grid": trained_bits(program.info, name), "scale_error": error}
    inexact_neurons = inexact(program)
    neurons = [str(node.target) for node in program.neurons()]
    return WeightsReport(
        type=_type_of(program, layers, asked),
        layers=layers,
        streams=streams,
        exact_neurons=sum(name not in inexact_neurons for name in neurons),
        neurons=len(neurons),
        inexact=inexact_neurons,
        refused=pipeline.refused,
    )
