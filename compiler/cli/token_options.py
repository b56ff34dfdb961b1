"""The option of ``svitc compile`` on tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from svitc.cli.options import PRUNING_PANEL
from svitc.errors import UsageError

TOKENS_HINT = "0.5 or 50% lets half of them run, 1 lets all."


def parse_tokens(text: str) -> float:
    """Parse ``--tokens``: a share, such as ``0.5`` or ``50%``.

    Raises:
        UsageError: it is not a number.
    """
    percent = text.endswith("%")
    try:
        return float(text.removesuffix("%")) / (100 if percent else 1)
    except ValueError:
        raise UsageError(f"--tokens {text} is no share of the tokens", hint=TOKENS_HINT) from None


@dataclass(frozen=True, eq=False, repr=False)
class TokenOptions:
    """How many tokens run through the blocks."""

    tokens: Annotated[
        float | None,
        typer.Option(
            parser=parse_tokens,
            metavar="SHARE",
            help="Let only this share of the image's tokens run through the blocks ([bold]0.5[/], [bold]50%[/]), the "
            "same positions for every image; the others keep the value that they have. It saves time, not bytes, and "
            "goes with any budget.",
            rich_help_panel=PRUNING_PANEL,
        ),
    ] = None

    def check_tokens(self, plan: Path | None, has_images: bool) -> None:
        """Check the option before anything is loaded.

        Args:
            plan: the plan to replay, or None.
            has_images: whether there are images, drawn ones too.

        Raises:
            UsageError: it is no share, or makes no sense with the others.
        """
        if self.tokens is None:
            return
        if not 0 < self.tokens <= 1:
            raise UsageError(f"--tokens {self.tokens:g} is no share of the tokens", hint=TOKENS_HINT)
        if plan is not None:
            raise UsageError("a plan that is replayed has its own tokens", hint="Give --plan or --tokens.")
        if not has_images:
            raise UsageError(
                "which tokens run is chosen on images",
                hint="Give them with --data, or leave --no-data uniform out: then svitc draws some.",
            )
