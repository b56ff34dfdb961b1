"""An output folder: its files opened together, and the ONNX file verified against its program."""

from __future__ import annotations

from pathlib import Path

from svitc.codegen.module import program_source
from svitc.data.inputs import Data, some_inputs
from svitc.errors import InputError
from svitc.ir.program import Program, Stage
from svitc.serialization.writer import load_program
from svitc.support.reporter import Reporter
from svitc.verification.exact_check import verify_exact
from svitc.verification.float_check import verify
from svitc.verification.verdict import Verdict


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
    program: Program, exported: bytes, data: Data | None, images: int, seed: int, reporter: Reporter
) -> Verdict:
    """Verify an exported file against its program, on data or on random inputs."""
    check = verify_exact if program.stage == Stage.QUANTIZED else verify
    return check(
        program,
        exported,
        some_inputs(program, data, images, seed),
        lambda done: reporter.progress("verify", done, images),
    )
