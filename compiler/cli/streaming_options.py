"""The options of what a file takes: one time step per call, states, the bytes of frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from svitc.cli.anytime_options import TIME_PANEL, AnytimeOptions
from svitc.errors import UsageError

FILE_PANEL = "What is written"


@dataclass(frozen=True, eq=False, repr=False)
class StreamingOptions(AnytimeOptions):
    """Whether the file runs one time step per call, what it takes, and when inference may stop."""

    streaming: Annotated[
        bool,
        typer.Option(
            "--streaming",
            help="Write a file that runs one time step per call, for as many steps as you like: it takes a frame and "
            "the membranes, and returns the class scores so far and the new membranes. The same network, spike for "
            "spike.",
            rich_help_panel=TIME_PANEL,
        ),
    ] = False
    packed_state: Annotated[
        bool,
        typer.Option(
            "--packed-state",
            help="With --streaming: one input and one output for all membranes together, \\[N, k], for callers that "
            "keep a single buffer.",
            rich_help_panel=TIME_PANEL,
        ),
    ] = False

    raw_input: Annotated[
        bool,
        typer.Option(
            "--raw-input",
            help="Write a file that takes camera frames as they are, uint8 \\[N, H, W, C], and scales and normalizes "
            "them itself: the same scores, bit for bit.",
            rich_help_panel=FILE_PANEL,
        ),
    ] = False

    def check_streaming(self) -> None:
        """Check the options before anything is loaded.

        Raises:
            UsageError: a state is to be packed in a file that has none.
        """
        if self.packed_state and not (self.streaming or self.anytime):
            raise UsageError("only a streaming file has states to pack", hint="Use --packed-state with --streaming.")
