"""Flips and crops of training images, drawn from seeded generators so that a resumed run sees the same ones."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from svitc.errors import UsageError
from svitc.ir.graph import InputSpec

AUGMENTATIONS = ("flip", "crop")


BORDER = 8  # a crop moves by at most one part in so many


def augmentation(text: str, spec: InputSpec) -> tuple[str, ...]:
    """What ``auto``, ``none`` or a list such as ``flip,crop`` means for a model's input.

    Raises:
        UsageError: an unknown name, or one that makes no sense for event frames.
    """
    if text == "auto":
        return AUGMENTATIONS if not spec.events and spec.shape[0] == 3 else ()
    names = () if text == "none" else tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in AUGMENTATIONS:
            raise UsageError(
                f"{name!r} is no augmentation", hint=f"There are {', '.join(AUGMENTATIONS)}, auto and none."
            )
    return names


def random_of(*numbers: int) -> torch.Generator:
    """A generator that these numbers determine."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def jitter(
    x: torch.Tensor, names: Sequence[str], generator: torch.Generator, first: int, count: int, batch_dim: int = 0
) -> torch.Tensor:
    """Flip and shift each image by its own random choice.

    Args:
        x: images ``first``, ``first + 1``, … of a batch of ``count``, whose choices are drawn together. All frames
            of an event recording move alike. What a shift uncovers is 0, the mean colour, after normalisation.
    """
    flips = torch.rand(count, generator=generator) < 0.5
    height, width = x.shape[-2:]
    down, across = max(1, height // BORDER), max(1, width // BORDER)
    tops = torch.randint(0, 2 * down + 1, (count,), generator=generator).tolist()
    lefts = torch.randint(0, 2 * across + 1, (count,), generator=generator).tolist()
    mine = range(first, first + x.shape[batch_dim])
    if "flip" in names:
        shape = [1] * x.ndim
        shape[batch_dim] = -1
        x = torch.where(flips[first : mine.stop].reshape(shape), x.flip(-1), x)
    if "crop" in names:
        padded = F.pad(x, (across, across, down, down))
        parts = [
            padded.select(batch_dim, i)[..., tops[k] : tops[k] + height, lefts[k] : lefts[k] + width]
            for i, k in enumerate(mine)
        ]
        x = torch.stack(parts, batch_dim)
    return x
