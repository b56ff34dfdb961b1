"""The driver: what a command does first: load, capture and check a model, look at it, open what was written."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from svitc import onnx as backend
from svitc import passes as passes_
from svitc.analysis.layer_stats import layers, macs
from svitc.codegen.module import program_source
from svitc.compilation import Compiled, compile
from svitc.data.inputs import Data, random_inputs, some_inputs
from svitc.errors import InputError, UnsupportedError
from svitc.ir.pass_manager import Pipeline
from svitc.ir.program import Program, Stage
from svitc.ir.verifier import check
from svitc.onnx.export import export
from svitc.planning.cost import byte_cost
from svitc.serialization.writer import load_program
from svitc.support.timing import Clock, Progress
from svitc.verification.exact_check import verify_exact
from svitc.verification.float_check import verify
from svitc.verification.verdict import Verdict

__all__ = [
    "Compiled",
    "canonicalise",
    "check_capture",
    "compile",
    "export",
    "inspect",
    "load",
    "open_folder",
    "verify_folder",
]


def check_capture(model: nn.Module, program: Program, seed: int = 0) -> float:
    """Largest difference between the eager model's logits and the captured program's on a random input: 0.0.

    Raises:
        UnsupportedError: they differ, so that the capture is not the model.
    """
    from svitc.frontends.capture.model_rewrites import reference

    images = 1 if program.info.get("fixed") else 2  # the model's own mistake is none for one image at a time
    x = random_inputs(program, images, images, seed)[0]
    want = reference(model, program, x)
    got = program(x)
    difference = float((got - want).abs().max()) if got.shape == want.shape else float("inf")
    if difference != 0.0:
        raise UnsupportedError(
            f"the captured program differs from the model by {difference:g} on a random input",
            hint="The model does something that depends on values, on the batch or on earlier calls; please report it.",
        )
    return difference


def canonicalise(program: Program) -> Pipeline:
    """Bring a freshly captured program to the form in which its groups are as free as they can be."""
    check(program, "capture")
    pipeline = Pipeline(passes_.canonical())
    pipeline(program)
    return pipeline


def load(
    path: Path | str,
    *,
    seconds: dict[str, float] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Program:
    """Load, capture and check a checkpoint: a program whose groups are ready to be pruned.

    Args:
        path: a checkpoint, or an output folder of svitc.
        options: fields of ``svitc.frontends.LoadOptions``: ``arch``, ``arch_args``, ``input_shape``, …

    Raises:
        InputError: not a checkpoint, or one that does not fit its architecture.
        UnsupportedError: a model that cannot be represented, with its file and line.
    """
    from svitc.frontends import LoadOptions, load_model
    from svitc.frontends.capture.capture import capture

    clock = Clock(progress, seconds if seconds is not None else {})
    path = Path(path)
    if (path / "model.safetensors").is_file():
        with clock.stage("load"):
            return load_program(path / "model.safetensors")
    with clock.stage("load"):
        wanted = LoadOptions(**options)
        loaded = load_model(path, wanted)
    with clock.stage("capture"), loaded.callable_within():
        program = capture(loaded.model, loaded.input, loaded.info, fix=wanted.fix)
        check_capture(loaded.model, program)
    with clock.stage("analyse"):
        canonicalise(program)
    output = next(iter(reversed(program.graph.nodes)))
    program.info["num_classes"] = program.shape_of(output)[-1]
    return program


def inspect(program: Program) -> dict[str, Any]:
    """Layers, groups, bytes and multiply-accumulates of a program, as JSON values."""
    if program.stage >= Stage.INFERENCE:
        raise InputError(
            "this model is quantized already",
            hint="Inspect the original checkpoint; report.json says what was made of it.",
        )
    stored = backend.weight_bytes(export(program))
    inference = program.copy()
    Pipeline(passes_.inference())(inference)
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
        "parameters": program.parameter_count(),
        "bytes": stored,
        "macs": macs(program),
        "neurons": sum(1 for _ in program.neurons()),
        "dead": program.info.get("dead", {}),
    }


def open_folder(folder: Path) -> tuple[Program, bytes]:
    """The program and the ONNX file of an output folder, read without running anything from it.

    Raises:
        InputError: a file is missing or malformed, or model.py is not the source of this program.
    """
    wanted = ("model.onnx", "model.safetensors", "model.py")
    missing = [name for name in wanted if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder} is not an output folder of svitc: {', '.join(missing)} missing",
            hint="svitc compile writes one.",
        )
    program = load_program(folder / "model.safetensors")
    if (folder / "model.py").read_text() != program_source(program):
        raise InputError(
            f"{folder}/model.py is not the source of {folder}/model.safetensors",
            hint="It was edited, or the files are of different runs; compile again.",
        )
    return program, (folder / "model.onnx").read_bytes()


def verify_folder(
    program: Program, exported: bytes, data: Data | None, images: int, seed: int, progress: Progress | None
) -> Verdict:
    """Verify an exported file against its program, on data or on random inputs."""

    def step(done: int) -> None:
        if progress is not None:
            progress("verify", done, images)

    check = verify_exact if program.stage == Stage.QUANTIZED else verify
    return check(program, exported, some_inputs(program, data, images, seed), step)
