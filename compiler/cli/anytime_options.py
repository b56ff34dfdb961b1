"""The options of a rule for stopping before the last time step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from svitc.errors import UsageError

USUAL_CONFIDENCE = 0.95
TIME_PANEL = "Time steps, and promises"


@dataclass(frozen=True, eq=False, repr=False)
class AnytimeOptions:
    """Whether a rule for stopping early is found, and how sure its promise is."""

    anytime: Annotated[
        bool,
        typer.Option(
            "--anytime",
            help="Find when inference may stop before the last time step so that top-1 drops by at most --max-drop, "
            "confirmed on images of --data that did not choose the rule; with --streaming, which this includes. "
            "--max-drop bounds this alone then, and --budget says how much to prune.",
            rich_help_panel=TIME_PANEL,
        ),
    ] = False
    confidence: Annotated[
        float | None,
        typer.Option(
            "--confidence",
            help="How sure it is that images nobody has seen keep what --max-drop or --anytime promises, by default "
            f"[bold]{USUAL_CONFIDENCE}[/].",
            show_default=False,
            rich_help_panel=TIME_PANEL,
        ),
    ] = None

    @property
    def confidence_or_usual(self) -> float:
        """``confidence``, or what it is by default."""
        return USUAL_CONFIDENCE if self.confidence is None else self.confidence

    def check_anytime(self, max_drop: float | None, images: bool, per_step: bool) -> None:
        """Check the options before anything is loaded.

        Args:
            max_drop: value of ``--max-drop``.
            images: whether there are images of ``--data``.
            per_step: whether ``--per-step`` is used.

        Raises:
            UsageError: an option is missing, or does not make sense with the others.
        """
        if self.confidence is not None and not images:
            raise UsageError(
                "--confidence is that of a promise, which takes images that the network was not trained on",
                hint="Give some with --data.",
            )
        if not 0.5 <= self.confidence_or_usual < 1:
            raise UsageError(
                f"--confidence {self.confidence:g} is not at least 0.5 and below 1",
                hint="0.95 is usual; 0.99 is more careful.",
            )
        if not self.anytime:
            return
        if not images:
            raise UsageError(
                "--anytime promises what stopping early costs, which takes images that the network was not trained on",
                hint="Give some with --data.",
            )
        if max_drop is None:
            raise UsageError(
                "--anytime needs to know what stopping early may cost",
                hint="Give the points of top-1 with --max-drop, such as --max-drop 0.5.",
            )
        if per_step:
            raise UsageError(
                "--anytime stops by the average of the steps so far, which --per-step leaves out",
                hint="Use one of them.",
            )
