"""Output folders: open the files of one together, and verify its ONNX file against its program."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from onnx import TensorProto

from svitc.codegen.module import program_source
from svitc.data.inputs import Data, some_inputs
from svitc.data.pixels import pixel_table
from svitc.driver.input_range import Watched, span_of, within
from svitc.errors import InputError
from svitc.ir.program import Program, Stage
from svitc.onnx.export import export
from svitc.onnx.model_info import check_whole, read_proto, reading_metadata
from svitc.onnx.raw_input import takes_bytes, with_raw_input, without_raw_input
from svitc.onnx.states import states_of
from svitc.onnx.static_batch import static_batch
from svitc.runtimes import ONNX_RUNTIME, Runtime
from svitc.serialization.writer import load_program
from svitc.support.atomic_files import settle
from svitc.support.locks import folder_lock
from svitc.support.reporter import Reporter
from svitc.verification.exact_check import verify_exact
from svitc.verification.float_check import verify
from svitc.verification.raw_input_check import check_raw_input
from svitc.verification.stream_check import averages, verify_stream
from svitc.verification.verdict import Verdict

NARROW = {
    2: {TensorProto.INT2, TensorProto.UINT2},
    4: {TensorProto.INT4, TensorProto.UINT4},
}  # bits -> types of weights


def open_folder(folder: Path) -> tuple[Program, bytes]:
    """Return the program and the ONNX file of an output folder, without running any code from the folder.

    Raises:
        InputError: a file is missing or damaged, model.py is not the source of the program, or weights are elsewhere.
    """
    required = ("model.onnx", "model.safetensors", "model.py")
    missing = [name for name in required if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder} is not an output folder of svitc: {', '.join(missing)} missing",
            hint="svitc compile writes one.",
        )
    settle(folder)
    with folder_lock(folder, shared=True):  # not while another process writes it
        program = load_program(folder / "model.safetensors")
        source, exported = (folder / "model.py").read_bytes(), (folder / "model.onnx").read_bytes()
    if source != program_source(program).encode():
        raise InputError(
            f"{folder}/model.py is not the source of {folder}/model.safetensors",
            hint="It was edited, or the files are of different runs; compile again.",
        )
    check_whole(exported, folder / "model.onnx")
    return program, exported


def at_once(file: Path) -> bytes:
    """Return the file for all time steps at once of the same network as a streaming file in an output folder.

    It is written as the streaming file was: for the same runtime, and with weights in the same types.

    Raises:
        InputError: a file is missing or damaged, or model.py is not the source of the program.
    """
    program, _ = open_folder(file.parent)
    proto = read_proto(file)
    stored = next((entry.value for entry in proto.metadata_props if entry.key == "target"), '"cpu"')
    with reading_metadata("target"):
        target = str(json.loads(stored))
    types = {tensor.data_type for tensor in proto.graph.initializer}
    whole = export(
        program,
        target,
        min((bits for bits, stored in NARROW.items() if types & stored), default=8),
        functions=bool(proto.functions),
        per_step=not averages(proto),
        static_batch=static_batch(proto),
    )
    if not takes_bytes(proto):
        return whole
    return with_raw_input(whole, pixel_table(program.info, program.input.shape[-3]))


def is_streaming(model: Path) -> bool:
    """Return whether this is an output folder whose file runs one time step per call."""
    file = model / "model.onnx"
    return file.is_file() and states_of(read_proto(file)) is not None


@dataclass(frozen=True)
class VerifySettings:
    """How a file is verified.

    Attributes:
        images: number of inputs.
        seed: seed of random inputs.
        runtime: runs the file.
    """

    images: int
    seed: int
    runtime: Runtime = ONNX_RUNTIME


def verify_folder(
    program: Program,
    exported: bytes,
    data: Data | None,
    settings: VerifySettings,
    reporter: Reporter,
    original: Program | None = None,
) -> Verdict:
    """Verify an exported file against its program.

    Args:
        program: the program.
        exported: the ONNX file.
        data: where inputs come from; None for random inputs.
        settings: how many inputs, and in which runtime.
        reporter: told about progress.
        original: the float network that a quantized program is compared with (float_network.py); None to leave that.
    """

    def step(done: int) -> None:
        reporter.progress("verify", done, settings.images)

    watched = None if data is None else Watched(data, span_of(program))
    raw_input = check_raw_input(program, exported, settings.runtime)
    exported = without_raw_input(exported)
    proto = read_proto(exported)
    inputs = some_inputs(program, watched, settings.images, settings.seed, static_batch(proto))
    if program.stage == Stage.QUANTIZED:
        # what is drawn at random says nothing of the range of real inputs
        inputs = inputs if data is not None else within(inputs, span_of(program))
    if states_of(proto) is not None:
        whole = export(program, per_step=not averages(proto))
        verdict = verify_stream(program, exported, whole, inputs, step, original, settings.runtime)
    elif program.stage == Stage.QUANTIZED:
        verdict = verify_exact(program, exported, inputs, step, original, settings.runtime)
    else:
        verdict = verify(program, exported, inputs, step, settings.runtime)
    if watched is not None and watched.note is not None:
        reporter.decide(watched.note)
    verdict.raw_input = raw_input
    return verdict
