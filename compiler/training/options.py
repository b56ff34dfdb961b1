"""Options of fine-tuning, and their checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from svitc.errors import UsageError
from svitc.support.atomic_files import writable
from svitc.support.types import JsonDict


@dataclass(frozen=True)
class FinetuneOptions:
    """Options of fine-tuning.

    Attributes:
        epochs: passes over the training images, at least 1.
        batch: images in one step, over all ranks.
        lr: peak learning rate, after a linear warm-up; from there it falls to 0 along a cosine.
        weight_decay: of AdamW; biases and batch norms are exempt.
        distil: weight of the distillation loss against the label loss, from 0 to 1; 1 for images without labels.
        temperature: divisor of the logits in the distillation loss.
        augment: ``auto``, ``none`` or a list such as ``flip,crop``; ``auto`` is ``flip,crop`` for images of three
            channels and ``none`` for other inputs.
        amp: run layers in bfloat16 (automatic mixed precision).
        seed: seed of the image order and the augmentations.
        held_out: largest number of held-out images, which only choose the best epoch; never more than 5% of all.
        bits: layer -> bits of its quantized weights, which stay on their grid (quantization_aware.py).
        checkpoint: file that is written after every epoch.
        resume: go on from ``checkpoint`` if it exists; the resulting weights are those of an uninterrupted run.
    """

    epochs: int
    batch: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.02
    distil: float = 0.5
    temperature: float = 2.0
    augment: str = "auto"
    amp: bool = True
    seed: int = 0
    held_out: int = 2000
    bits: Mapping[str, int] | None = None
    checkpoint: Path | None = None
    resume: bool = False

    def check(self) -> None:
        """Check the options.

        Raises:
            UsageError: a number is out of range, or ``resume`` is set without a checkpoint.
            OutputError: the checkpoint cannot be written.
        """
        for name, low in (("epochs", 1), ("batch", 2), ("held_out", 1)):
            if getattr(self, name) < low:
                raise UsageError(f"fine-tuning with {name} {getattr(self, name)}: it must be at least {low}")
        if not 0 <= self.distil <= 1:
            raise UsageError(f"distil {self.distil:g} is not a share from 0 to 1")
        for name in ("lr", "temperature"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise UsageError(f"{name} {value:g} is not a positive number")
        if self.resume and self.checkpoint is None:
            raise UsageError("there is no checkpoint to resume fine-tuning from")
        if self.checkpoint is not None:
            writable(self.checkpoint.parent)

    def to_json(self) -> JsonDict:
        """Return the options that the resulting weights depend on, except for the bits."""
        excluded = ("bits", "checkpoint", "resume")
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in excluded}
