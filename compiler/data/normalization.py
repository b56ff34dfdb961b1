"""Whether a normalization can be that of pixels in [0, 1], which is what images are scaled to."""

from __future__ import annotations

import torch

from svitc.data.sources import Source, UnreadableImage, fetch_in_order

PIXEL_LEVELS = 255


def normalization_remark(source: Source, mean: torch.Tensor, std: torch.Tensor) -> str | None:
    """Return a sentence if a normalization cannot be that of pixels in [0, 1]; None where it may be.

    The mean of values in [0, 1] is one of them, and their standard deviation is at most 0.5.

    Args:
        source: images, of which the first is looked at.
        mean: subtracted from pixels, ``[C, 1, 1]``.
        std: divides them after that, ``[C, 1, 1]``.
    """
    if mean.min() >= 0 and mean.max() <= 1 and std.max() <= 1:
        return None
    image, went = next(fetch_in_order(source, [0])), ""
    if not isinstance(image, UnreadableImage):
        low, high = source.collate([image]).sub_(mean).div_(std).aminmax()
        went = f"a normalized image goes from {low:.3g} to {high:.3g}: "
    listed = " and ".join(
        f"{name} {', '.join(f'{value:g}' for value in numbers.flatten().tolist())}"
        for name, numbers in (("mean", mean), ("standard deviation", std))
    )
    hint = " (divide them by 255)" if 1 < mean.max() <= PIXEL_LEVELS and std.max() <= PIXEL_LEVELS else ""
    return (
        f"{went}{listed} are not those of pixels in [0, 1], to which images are scaled{hint}; the network will hardly "
        "recognize anything"
    )
