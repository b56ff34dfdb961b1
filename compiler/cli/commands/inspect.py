"""``svitc inspect``: show what is in a model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import typer

from svitc.cli import terminal
from svitc.cli.common import load_program, start
from svitc.cli.options import LoadOptions, ModelPath
from svitc.cli.output_options import OutputOptions
from svitc.cli.views.inspect import inspection
from svitc.cli.views.latency import prediction
from svitc.errors import UsageError


def _show_supported(wanted: bool) -> None:
    """Print what a model may be made of, and leave."""
    if wanted:
        from svitc.frontends.capture.supported import page

        print(page(), end="")
        raise typer.Exit


@dataclass(frozen=True)
class ViewOptions:
    """What to show of the model."""

    program: Annotated[bool, typer.Option("--program", help="Print the typed program instead, one line per node.")] = (
        False
    )
    latency: Annotated[
        bool,
        typer.Option(
            "--latency",
            help="Show instead where the time of the exported file should go on this machine, layer by layer, and "
            "what the file is measured to take.",
        ),
    ] = False
    weights: Annotated[
        str,
        typer.Option(
            metavar="fp32|int8",
            help="Type of the stored weights. [bold]int8[/]: one byte each, exact sums, so that no order of "
            "additions changes a spike, and several times the speed on a processor with integer dot products.",
        ),
    ] = "fp32"
    threads: Annotated[
        int | None,
        typer.Option(help="With --latency: threads of ONNX Runtime; by default one per processor.", show_default=False),
    ] = None

    supported: Annotated[
        bool,
        typer.Option(
            "--supported",
            help="List the layers, neurons and operations that a model may be made of, and leave; needs no model.",
            is_eager=True,
            callback=_show_supported,
        ),
    ] = False

    def check(self) -> None:
        """Check the options before anything is loaded.

        Raises:
            UsageError: options do not go together, or the type of the weights is unknown.
        """
        if self.latency and self.program:
            raise UsageError("--latency and --program show different things", hint="Give one of them.")
        if not self.latency and (self.threads is not None or self.weights != "fp32"):
            raise UsageError("--weights and --threads need --latency", hint="Give --latency as well.")
        if self.latency:
            from svitc.latency.predict import check_settings

            check_settings(self.weights, self.threads)


def inspect(model: ModelPath, view: ViewOptions, load: LoadOptions, output: OutputOptions) -> None:
    """Show what is in a model: layers, channel groups, bytes, multiply-accumulates, what can be pruned and why not.

    [dim]svitc inspect model.pt[/]
    [dim]svitc inspect model.pt --latency --weights int8[/]
    """
    start(output.verbose)
    load.check()
    view.check()
    with terminal.reporting(output.silent) as reporter:
        program = load_program(model, load, reporter)
        if view.program:
            print(program)
            return
        if view.latency:
            from svitc.driver.latency import predict_undisturbed
            from svitc.driver.output_folder import is_streaming

            if is_streaming(model):
                reporter.decide("this is of all time steps at once; svitc bench times the streaming file in the folder")
            report = predict_undisturbed(program, view.weights, view.threads, reporter)
        else:
            from svitc.driver.inspect import inspect

            report = inspect(program)
    if output.as_json:
        print(json.dumps(report, indent=1))
    elif view.latency:
        prediction(report)
    else:
        inspection(report)
