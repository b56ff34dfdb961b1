"""The options on what a command prints, and on how it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from svitc.cli.help import HelpAll

RUN_PANEL = "The run"


@dataclass(frozen=True, eq=False, repr=False)
class OutputOptions:
    """What a command prints."""

    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, and nothing else, on stdout.")] = (
        False
    )
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show the result alone: no progress, no decisions.")] = (
        False
    )
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log each stage on stderr; show tracebacks.")] = False
    help_all: HelpAll = False

    @property
    def silent(self) -> bool:
        """Whether progress and decisions are hidden: JSON is printed alone, and the log shows them already."""
        return self.as_json or self.quiet or self.verbose


@dataclass(frozen=True, eq=False, repr=False)
class RunOptions(OutputOptions):
    """The seed of a run, and what it prints."""

    seed: Annotated[int, typer.Option(metavar="N", help="Seed of everything random.", rich_help_panel=RUN_PANEL)] = 0


@dataclass(frozen=True, eq=False, repr=False)
class VerifiedRunOptions(RunOptions):
    """How many images are verified, the seed of a run, and what it prints."""

    verify_images: Annotated[
        int | None,
        typer.Option(
            "--verify-images",
            min=1,
            help="Images that verification looks at: from --data, else random. By default up to 4, as long as one "
            "makes neurons fire that were silent before.",
            show_default=False,
            metavar="N",
            rich_help_panel=RUN_PANEL,
        ),
    ] = None
