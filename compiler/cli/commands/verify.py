"""``svitc verify``: check a compiled file against its source."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from svitc.cli import terminal
from svitc.cli.common import load_images, load_program, start
from svitc.cli.image_options import DataOptions, check_labels
from svitc.cli.options import LoadOptions, VerifyImages
from svitc.cli.output_options import RunOptions
from svitc.cli.views.promise import promise
from svitc.cli.views.verify import differing_layers, int16_line, quantization_line, runtime_words, verdict_line
from svitc.errors import InputError, RuntimeFailure, VerifyError
from svitc.support.types import JsonDict

if TYPE_CHECKING:
    from svitc.ir.program import Program
    from svitc.support.reporter import Reporter
    from svitc.verification.verdict import Verdict


@dataclass(frozen=True)
class VerifyOptions(RunOptions):
    """How many images are verified, more than when compiling, as nothing else is done, and in which runtime."""

    verify_images: VerifyImages = 16
    runtime: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What runs the file: [bold]onnxruntime[/], [bold]openvino[/], [bold]onnxruntime-web[/] (in Node.js), "
            "[bold]reference[/] (ONNX's own evaluator, slow).",
        ),
    ] = "onnxruntime"
    confidence: Annotated[
        float,
        typer.Option(min=0.5, max=0.9999, help="How sure it is what the file loses at most against --against."),
    ] = 0.95


def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="An output folder of svitc compile.", show_default=False)
    ],
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL",
            help="The model that was compiled. With --data: what the file loses at most against it, with --confidence, "
            "on images like these. For integer weights: check also that they are its weights, rounded; where the plan "
            "refitted weights, against a folder of the same plan with --weights fp32.",
        ),
    ] = None,
    *,
    data: DataOptions,
    load: LoadOptions,
    output: VerifyOptions,
) -> None:
    """Check that the ONNX file in FOLDER is the same network as its model.py, layer by layer and as a whole.

    [dim]svitc verify svitc-out[/]
    [dim]svitc verify svitc-out --runtime openvino[/]
    [dim]svitc verify svitc-out --against model.pt --data val/[/]

    Integer weights were compared with the float network when they were compiled; --against MODEL repeats that.

    The result is also noted in FOLDER/report.json, in its table of runtimes.
    """
    start(output.verbose)
    load.check()
    check_labels(data.data, data.unlabeled)
    if against is None:
        load.check_unused()
    with terminal.reporting(output.silent) as reporter:
        report, verdict = _verified(folder, against, data, load, output, reporter)
    _show(report, verdict, against, output.as_json)
    if not verdict.passed:
        raise VerifyError(_failure(folder, against, verdict))


def _verified(
    folder: Path,
    against: Path | None,
    data: DataOptions,
    load: LoadOptions,
    output: VerifyOptions,
    reporter: Reporter,
) -> tuple[JsonDict, Verdict]:
    """Verify a folder, note the result in its report, and return what to show with the verdict.

    Raises:
        RuntimeFailure: the runtime cannot load or run the file, which is noted as well.
    """
    from svitc.driver.float_network import read_report
    from svitc.driver.output_folder import VerifySettings, open_folder, verify_folder
    from svitc.driver.promised import verified_promise
    from svitc.driver.runtime_table import failed_row, note_in_report, verified_row
    from svitc.runtimes import runtime_of

    runtime = runtime_of(output.runtime)
    settings = VerifySettings(output.verify_images, output.seed, runtime)
    program, exported = open_folder(folder)
    model = None if against is None else load_program(against, load, reporter)
    images = load_images(data.data, program, data.limit, output.seed, data, data.unlabeled)
    original, refusal = _float_network(folder, program, against, model, images is not None, reporter)
    promised = None
    if model is not None and images is not None:
        promised = verified_promise(folder, program, model, images, (output.confidence, output.seed), reporter)
    try:
        verdict = verify_folder(program, exported, images, settings, reporter, original)
    except RuntimeFailure as error:
        note_in_report(folder, failed_row(runtime, error.message), exported)
        raise
    quantized = program.stage.name == "QUANTIZED"
    unnoted = note_in_report(folder, verified_row(verdict, quantized), exported)
    if unnoted is not None:
        reporter.decide(f"the result is not in {folder}/report.json: {unnoted}")
    report = verdict.to_json() | ({} if promised is None else {"promise": promised.to_json()})
    if quantized and original is None:
        report["quantization_when_compiled"] = (read_report(folder).get("verify") or {}).get("quantization")
        if refusal is not None:
            report["quantization_refused"] = refusal
    return report, verdict


def _float_network(
    folder: Path, program: Program, against: Path | None, model: Program | None, optional: bool, reporter: Reporter
) -> tuple[Program | None, str | None]:
    """Return the float network whose weights the folder rounds; where it cannot be had, but is ``optional``, why."""
    from svitc.driver.float_network import float_network

    if against is None or model is None:
        return None, None
    try:
        return float_network(folder, program, against, model, reporter), None
    except InputError as error:
        if not optional:
            raise
        return None, f"{error.message}. {error.hint}" if error.hint else f"{error.message}."


def _show(report: JsonDict, verdict: Verdict, against: Path | None, as_json: bool) -> None:
    """Print what was found, as JSON or in words."""
    if as_json:
        print(json.dumps(report, indent=1))
        return
    verdict_line(report)
    int16_line(report)
    quantization_line(report, against)
    differing_layers(verdict)
    promise(report.get("promise"))


def _failure(folder: Path, against: Path | None, verdict: Verdict) -> str:
    """Return what a failed verification found."""
    if verdict.file_divergence is not None:
        where = runtime_words(verdict.runtime)
        return f"{folder}/model.onnx is not the same network in {where}: it diverges first at {verdict.file_divergence}"
    return (
        f"{folder} does not hold the weights of {against}, rounded to integers: it diverges first at "
        f"{verdict.first_divergence}"
    )
