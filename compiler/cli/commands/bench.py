"""``svitc bench``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from svitc.cli import terminal
from svitc.cli.common import options, start
from svitc.cli.options import (
    SOURCE,
    Arch,
    ArchArgs,
    AsJson,
    Ema,
    Fix,
    InputShape,
    Seed,
    TimeSteps,
    TrustPickle,
    Verbose,
)
from svitc.cli.views.bench import show_report
from svitc.errors import UsageError


def bench(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER|FILE.onnx", help="An output folder of svitc compile, or an ONNX file.", show_default=False
        ),
    ],
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL",
            help="The original: a checkpoint (.pt, .pth), or an output folder of svitc. "
            "Without it the file is timed alone.",
            rich_help_panel=SOURCE,
        ),
    ] = None,
    peers: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="What runs the original: [bold]eager[/] (PyTorch), [bold]torch.compile[/], [bold]torch.onnx[/] "
            "(torch.onnx.export, then ONNX Runtime), [bold]openvino[/] (the same export), [bold]cuda[/] (eager, on a "
            "GPU). By default all that are there but torch.compile, which may compile for minutes.",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[int, typer.Option(help="Images in one run.")] = 1,
    threads: Annotated[
        int | None, typer.Option(help="Threads of each runtime; by default one a processor.", show_default=False)
    ] = None,
    runs: Annotated[int, typer.Option(help="Rounds; each runs every contestant once.")] = 20,
    limit: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="What takes longer than this to load, export or run once is left out."),
    ] = 600,
    profile: Annotated[
        bool, typer.Option("--profile", help="Show which operators take the time, in ours and in torch.onnx's file.")
    ] = False,
    arch: Arch = None,
    arch_args: ArchArgs = None,
    input_shape: InputShape = None,
    time_steps: TimeSteps = None,
    trust_pickle: TrustPickle = False,
    ema: Ema = False,
    fix: Fix = False,
    seed: Seed = 0,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """How fast is the compiled file, beside the original in PyTorch, in ONNX Runtime and in OpenVINO?

    [dim]svitc bench svitc-out --against model.pt[/]

    All are timed in one run and in turn, on the same random images, each in a process of its own.
    """
    start(verbose)
    given = options(arch, arch_args, input_shape, time_steps, trust_pickle, ema, fix)
    if against is None and any(value not in (None, False) for value in given.values()):
        raise UsageError("options on where the model comes from need a model", hint="Give it with --against.")
    from svitc.bench.compare import Settings, measure
    from svitc.bench.runners import Source
    from svitc.support.reporter import Reporter

    names = None if peers is None else [name.strip() for name in peers.split(",") if name.strip()]
    settings = Settings(names, batch, threads, runs, seed, limit, profile)
    with terminal.progress(quiet=as_json or verbose) as show:
        source = None if against is None else Source(against, given)
        report = measure(file, source, settings, Reporter(show), verbose=verbose)
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        show_report(report)
