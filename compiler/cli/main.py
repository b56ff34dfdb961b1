"""The command line. Exit statuses: 0 done, 2 usage, 3 bad input file, 4 unsupported model, 5 budget cannot be met,
6 verification failed, 7 output cannot be written, 70 a fault of svitc, 130 interrupted."""

from __future__ import annotations

import json
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from svitc import cli_bench, cli_compile, cli_energy, cli_sensitivity
from svitc.cli import terminal
from svitc.cli.common import EPILOG, Preparation, app, load_labelled, options, start, state
from svitc.cli.options import (
    Arch,
    ArchArgs,
    AsJson,
    Crop,
    DataPath,
    Ema,
    Fix,
    Images,
    InputShape,
    Limit,
    Mean,
    ModelPath,
    Resize,
    Seed,
    Std,
    TimeSteps,
    TrustPickle,
    Verbose,
    Weights,
)
from svitc.errors import INTERRUPTED, InternalError, SvitcError, UsageError, VerifyError

app.command(epilog=EPILOG, name="compile")(cli_compile.compile)
app.command(epilog=EPILOG, name="sensitivity")(cli_sensitivity.sensitivity)
app.command(epilog=EPILOG, name="bench")(cli_bench.bench)
app.command(epilog=EPILOG, name="energy")(cli_energy.energy)


@app.command(epilog=EPILOG)
def inspect(
    model: ModelPath,
    program_text: Annotated[
        bool, typer.Option("--program", help="Print the typed program instead, one line a node.")
    ] = False,
    latency: Annotated[
        bool,
        typer.Option(
            "--latency",
            help="Show instead where the time of the exported file should go on this machine, layer by layer, beside what "
            "it is measured to take.",
        ),
    ] = False,
    weights: Weights = "fp32",
    threads: Annotated[
        int | None,
        typer.Option(help="With --latency: threads of ONNX Runtime; by default one a processor.", show_default=False),
    ] = None,
    arch: Arch = None,
    arch_args: ArchArgs = None,
    input_shape: InputShape = None,
    time_steps: TimeSteps = None,
    trust_pickle: TrustPickle = False,
    ema: Ema = False,
    fix: Fix = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Show what is in a model: layers, channel groups, bytes, multiply-accumulates, what is prunable and why not.

    [dim]svitc inspect model.pt[/]

    [dim]svitc inspect model.pt --latency --weights int8[/]
    """
    start(verbose)
    given = options(arch, arch_args, input_shape, time_steps, trust_pickle, ema, fix)
    if latency and program_text:
        raise UsageError("--latency and --program show different things", hint="Give one of them.")
    if not latency and (threads is not None or weights != "fp32"):
        raise UsageError("--weights and --threads are for what --latency times", hint="Give --latency, too.")
    if latency:
        from svitc.latency.predict import check_settings

        check_settings(weights, threads)  # before a model is loaded for nothing
    from svitc.driver import load

    with terminal.progress(quiet=as_json or verbose) as show:
        program = load.load(model, progress=show, **given)
        if program_text:
            print(program)
            return
        view = watched(program, weights, threads, show) if latency else load.inspect(program)
    if as_json:
        print(json.dumps(view, indent=1))
    elif latency:
        latency.prediction(view)
    else:
        terminal.inspection(view)


def watched(program: Any, weights: str, threads: int | None, show: Any) -> dict[str, Any]:
    """What ``latency.predict`` gives, and how many processors other processes kept busy meanwhile."""
    from svitc.bench.environment import Others
    from svitc.latency.predict import predict

    others = Others({})
    return {**predict(program, weights, threads, progress=show), "other_processes": others.processors()}


@app.command(epilog=EPILOG)
def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="An output folder of svitc compile.", show_default=False)
    ],
    data: DataPath = None,
    limit: Limit = None,
    mean: Mean = None,
    std: Std = None,
    resize: Resize = None,
    crop: Crop = None,
    images: Images = 16,
    seed: Seed = 0,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Is the ONNX file in FOLDER the same network as its model.safetensors and model.py? Layer by layer, then whole."""
    start(verbose)
    from svitc.driver import load

    with terminal.progress(quiet=as_json or verbose) as show:
        program, exported = load.open_folder(folder)
        labelled = load_labelled(data, program, limit, seed, Preparation(mean, std, resize, crop))
        verdict = load.verify_folder(program, exported, labelled, images, seed, show)
    if as_json:
        print(json.dumps(verdict.to_json(), indent=1))
    else:
        terminal.verdict_line(verdict.to_json())
        for layer in verdict.layers.values():
            if layer.flips_beyond_rounding or layer.currents_beyond_rounding:
                terminal.out.print(f"  {asdict(layer)}")
    if not verdict.passed:
        raise VerifyError(
            f"{folder}/model.onnx is not the same network: it diverges first at {verdict.first_divergence}"
        )


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"svitc {version('svitc')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status. Bad input never gives a traceback (``-v`` shows one)."""
    state["verbose"] = False
    try:
        app(args=argv, prog_name="svitc")
    except SystemExit as done:
        if done.code == INTERRUPTED:
            terminal.err.print(
                "interrupted; no half-written file is left, and --resume goes on with what was measured or trained"
            )
        return int(done.code or 0)
    except SvitcError as problem:
        terminal.error(problem)
        if state["verbose"]:
            traceback.print_exc()
        return problem.exit_status
    except Exception as problem:
        fault = InternalError(
            f"{type(problem).__name__}: {problem}",
            hint="This is a fault of svitc; -v shows where. Please report it.",
        )
        terminal.error(fault)
        if state["verbose"]:
            traceback.print_exc()
        return fault.exit_status
    return 0
