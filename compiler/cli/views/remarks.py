"""Remarks below the table of a compilation: what became of fine-tuning, and where an energy ratio comes from."""

from __future__ import annotations

from svitc.support import human
from svitc.support.types import JsonDict

SAME_RATIO = 0.01  # difference of two energy ratios that is not worth a remark


def trained(finetune: JsonDict | None) -> str | None:
    """Return which epoch of fine-tuning was kept; None without fine-tuning.

    Args:
        finetune: the report's section ``finetune``.
    """
    if not finetune:
        return None
    epochs, chosen, images = finetune["epochs"], finetune["chosen_epoch"], finetune["held_out"]
    measure = next(key.removeprefix("best_") for key in finetune if key.startswith("best_"))
    before, best = (human.accuracy(finetune[f"{which}_{measure}"]) for which in ("start", "best"))
    count = human.counted(epochs, "epoch")
    if chosen == 0:
        return (
            f"[yellow]fine-tuning[/] of {count} was thrown away: no epoch beat the network before it, {before} "
            f"({measure} on {human.counted(images, 'held-out image')}). More epochs, more images or another --lr "
            "may help"
        )
    return (
        f"fine-tuning: epoch {chosen} of {epochs} was kept, {measure} {before} before and {best} after on {images:,} "
        "held-out images"
    )


def energy_origin(energy: JsonDict | None) -> str | None:
    """Return how much of an energy ratio is due to the memory that the weights now fit into; None where none is.

    Args:
        energy: the report's section ``energy``.
    """
    saved = (energy or {}).get("saved") or {}
    same, total = saved.get("total_same_memory"), saved.get("total")
    if same is None or total is None or abs(same - total) <= SAME_RATIO:
        return None
    return (
        f"energy: {1 - total:.4f} of the original's, as the weights now fit into a smaller memory of the table, which "
        f"takes less for each byte; read from the same memory it would be {1 - same:.4f}"
    )
