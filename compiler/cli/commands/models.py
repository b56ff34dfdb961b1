"""``svitc models``: list the published configurations that a bare checkpoint may be of."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from svitc.cli import terminal
from svitc.cli.common import start
from svitc.cli.output_options import OutputOptions
from svitc.cli.views.models import configurations
from svitc.errors import UsageError


def models(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Show those whose name or family contains this.", show_default=False),
    ] = None,
    *,
    output: OutputOptions,
) -> None:
    """List the published models that svitc recognizes from their weights alone, and what their authors report.

    [dim]svitc models[/]
    [dim]svitc models qkformer[/]

    Any size of these families is recognized, and any other model can be compiled with --arch.
    """
    start(output.verbose)
    with terminal.reporting(output.silent):
        from svitc.driver.known_models import known_models

        rows = known_models()
    wanted = (name or "").lower()
    rows = [row for row in rows if wanted in row["name"].lower() or wanted in row["family"].lower()]
    if not rows:
        raise UsageError(
            f"no published model has {name!r} in its name or family",
            hint="svitc models lists all of them. Other models are compiled with --arch module:factory.",
        )
    if output.as_json:
        print(json.dumps(rows, indent=1))
    else:
        configurations(rows)
