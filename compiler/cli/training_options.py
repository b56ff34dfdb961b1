"""The options of fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from svitc.errors import UsageError
from svitc.support.types import JsonDict

TRAINING_PANEL = "Fine-tuning"
HOW = ("lr", "batch", "distil", "augment")  # the options that say how to fine-tune


@dataclass(frozen=True, eq=False, repr=False)
class TrainingOptions:
    """How the pruned model is fine-tuned; no fine-tuning by default."""

    finetune: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="EPOCHS",
            help="Train the pruned model for this many epochs on --train-data.",
        ),
    ] = 0
    lr: Annotated[
        float, typer.Option(min=0, help="Highest learning rate of fine-tuning.", rich_help_panel=TRAINING_PANEL)
    ] = 1e-3
    batch: Annotated[
        int, typer.Option(min=2, help="Images per step of fine-tuning.", rich_help_panel=TRAINING_PANEL)
    ] = 64
    distil: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Weight of the original model's answers in the loss, beside the labels; without labels always 1.",
            rich_help_panel=TRAINING_PANEL,
        ),
    ] = 0.5
    augment: Annotated[
        str,
        typer.Option(
            help="Augmentation of training images: auto (flip,crop for color images), none, flip, crop, or flip,crop.",
            rich_help_panel=TRAINING_PANEL,
        ),
    ] = "auto"

    def check(self, train_data: Path | None) -> None:
        """Check that there are images to train on, and that fine-tuning is asked for where an option is about it.

        Raises:
            UsageError: there are none, or it is not.
        """
        unused = [name for name in HOW if getattr(self, name) != getattr(TrainingOptions, name)]
        if unused and not self.finetune:
            way = "Give --finetune EPOCHS as well."
            if "batch" in unused:
                way += " --static-batch says how many images the file takes at once."
            raise UsageError(f"--{unused[0]} is about fine-tuning, which nothing asks for", hint=way)
        if self.finetune and train_data is None:
            raise UsageError("--finetune trains on images", hint="Give them with --train-data.")

    def arguments(self) -> JsonDict:
        """Return ``finetune_options`` of ``svitc.CompileOptions``; empty without fine-tuning."""
        if not self.finetune:
            return {}
        return {name: getattr(self, name) for name in HOW}
