"""``svitc bench``: time the compiled file beside other runtimes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from svitc.cli import terminal
from svitc.cli.common import start
from svitc.cli.options import LoadOptions
from svitc.cli.output_options import RunOptions
from svitc.cli.views.bench import show_report


@dataclass(frozen=True)
class TimingOptions:
    """The runtimes to time, and how."""

    peers: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="What runs the original: [bold]eager[/] (PyTorch), [bold]torch.compile[/], [bold]torch.onnx[/] "
            "(torch.onnx.export, then ONNX Runtime), [bold]openvino[/] (the same export), [bold]cuda[/] (eager, on a "
            "GPU). By default all that are installed except torch.compile, which may compile for minutes.",
            show_default=False,
        ),
    ] = None
    runtimes: Annotated[
        str,
        typer.Option(
            metavar="NAME,…",
            help="What runs the compiled file: [bold]onnxruntime[/], [bold]openvino[/], [bold]onnxruntime-web[/] (in "
            "Node.js), [bold]reference[/] (ONNX's own evaluator, slow). Times are compared with the first's.",
        ),
    ] = "onnxruntime"
    streaming: Annotated[
        bool,
        typer.Option(
            "--streaming",
            help="Time one call for each time step beside the same network's file for all steps at once. A streaming "
            "file is timed so anyway; any other is refused.",
        ),
    ] = False
    batch: Annotated[
        int | None, typer.Option(help="Images in one run; by default 1, or as many as the file takes (--static-batch).")
    ] = None
    threads: Annotated[
        int | None, typer.Option(help="Threads of each runtime; by default one per processor.", show_default=False)
    ] = None
    runs: Annotated[int, typer.Option(help="Number of rounds; in each, every runtime runs once.")] = 20
    limit: Annotated[
        float,
        typer.Option(metavar="SECONDS", help="Leave out what takes longer than this to load, export or run once."),
    ] = 600
    profile: Annotated[
        bool, typer.Option("--profile", help="Show which operators take the time, in svitc's file and in torch.onnx's.")
    ] = False

    @property
    def peer_names(self) -> list[str] | None:
        """The names in ``--peers``; None for all that are installed."""
        return None if self.peers is None else names_in(self.peers)


def names_in(text: str) -> list[str]:
    """Return the names in a list that is separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


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
        ),
    ] = None,
    *,
    timing: TimingOptions,
    load: LoadOptions,
    output: RunOptions,
) -> None:
    """Compare the speed of the compiled file with the original in PyTorch, ONNX Runtime and OpenVINO.

    [dim]svitc bench svitc-out --against model.pt[/]

    All are timed in one run, in turn, on the same random images, each in a process of its own.
    """
    start(output.verbose)
    arguments = load.arguments()
    if against is None:
        load.check_unused()
    from svitc.bench.compare import Settings, measure
    from svitc.bench.runners import Source
    from svitc.driver.output_folder import at_once

    settings = Settings(
        peers=timing.peer_names,
        runtimes=names_in(timing.runtimes),
        batch=timing.batch,
        threads=timing.threads,
        runs=timing.runs,
        seed=output.seed,
        limit=timing.limit,
        profile=timing.profile,
        streaming=timing.streaming,
    )
    with terminal.reporting(output.silent) as reporter:
        source = None if against is None else Source(against, arguments)
        report = measure(file, at_once, source, settings, reporter, output.verbose)
    if output.as_json:
        print(json.dumps(report, indent=1))
    else:
        show_report(report)
