"""Random flips and crops of training images, drawn from seeded generators so that a resumed run repeats them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from svitc.errors import UsageError
from svitc.ir.graph import InputSpec

AUGMENTATIONS = ("flip", "crop")
SHIFT_DIVISOR = 8  # a crop shifts the image by at most 1/8 of its height and width


def parse_augmentations(text: str, spec: InputSpec) -> tuple[str, ...]:
    """Return the augmentations that an option stands for.

    Args:
        text: ``auto``, ``none`` or a list such as ``flip,crop``. ``auto`` is all of them for images of three channels,
            and none for other inputs.
        spec: the model's input.

    Raises:
        UsageError: an unknown name.
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


def seeded_generator(*numbers: int) -> torch.Generator:
    """Return a random generator whose state depends on these numbers alone."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def augment(
    x: torch.Tensor, names: Sequence[str], generator: torch.Generator, first: int, count: int, batch_dim: int = 0
) -> torch.Tensor:
    """Flip and shift each image at random.

    The choices of all images of a batch are drawn together, so that they do not depend on how ranks share the batch.
    All frames of an event recording are flipped and shifted alike. The border that a shift uncovers is filled with 0,
    which is the mean color after normalization.

    Args:
        x: images ``first``, ``first + 1``, … of the batch.
        names: the augmentations to apply, of ``AUGMENTATIONS``.
        generator: source of the random choices.
        first: index of the first image of ``x`` in the batch.
        count: images in the batch, over all ranks.
        batch_dim: dimension of ``x`` that counts images.
    """
    flips = torch.rand(count, generator=generator) < 0.5
    height, width = x.shape[-2:]
    max_down, max_across = max(1, height // SHIFT_DIVISOR), max(1, width // SHIFT_DIVISOR)
    tops = torch.randint(0, 2 * max_down + 1, (count,), generator=generator).tolist()
    lefts = torch.randint(0, 2 * max_across + 1, (count,), generator=generator).tolist()
    indices = range(first, first + x.shape[batch_dim])
    if "flip" in names:
        shape = [1] * x.ndim
        shape[batch_dim] = -1
        x = torch.where(flips[first : indices.stop].reshape(shape), x.flip(-1), x)
    if "crop" in names:
        padded = F.pad(x, (max_across, max_across, max_down, max_down))
        parts = [
            padded.select(batch_dim, i)[..., tops[k] : tops[k] + height, lefts[k] : lefts[k] + width]
            for i, k in enumerate(indices)
        ]
        x = torch.stack(parts, batch_dim)
    return x
