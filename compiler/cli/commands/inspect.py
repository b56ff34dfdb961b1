"""``svitc inspect``."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from svitc.cli import terminal
from svitc.cli.common import options, start
from svitc.cli.options import (
    Arch,
    ArchArgs,
    AsJson,
    Ema,
    Fix,
    InputShape,
    ModelPath,
    TimeSteps,
    TrustPickle,
    Verbose,
    Weights,
)
from svitc.cli.views import latency as latency_view
from svitc.cli.views.inspect import inspection
from svitc.errors import UsageError


def inspect(
    model: ModelPath,
    program_text: Annotated[
        bool, typer.Option("--program", help="Print the typed program instead, one line a node.")
    ] = False,
    latency: Annotated[
        bool,
        typer.Option(
            "--latency",
            help="Show instead where the time of the exported file should go on this machine, layer by layer, beside "
            "what "
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
    from svitc.driver.inspect import inspect
    from svitc.driver.load import load
    from svitc.support.reporter import Reporter

    with terminal.progress(quiet=as_json or verbose) as show:
        program = load(model, reporter=Reporter(show), **given)
        if program_text:
            print(program)
            return
        view = watched(program, weights, threads, show) if latency else inspect(program)
    if as_json:
        print(json.dumps(view, indent=1))
    elif latency:
        latency_view.prediction(view)
    else:
        inspection(view)


def watched(program: Any, weights: str, threads: int | None, show: Any) -> dict[str, Any]:
    """What ``latency.predict`` gives, and how many processors other processes kept busy meanwhile."""
    from svitc.bench.environment import BackgroundLoad
    from svitc.latency.predict import predict
    from svitc.support.reporter import Reporter

    others = BackgroundLoad({})
    return {**predict(program, weights, threads, reporter=Reporter(show)), "other_processes": others.processors()}
