"""How the bytes of a picture become what a model takes: scaled to [0, 1], minus the mean, divided by the deviation.

The reader of ``--data`` and the table in a file that takes bytes itself (onnx/raw_input.py) both come from here.
"""

from __future__ import annotations

import numpy as np
import torch

from svitc.support.types import JsonMapping

LEVELS = 256  # values of a byte


def statistics(info: JsonMapping, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation ``[C, 1, 1]`` of the normalization; 0 and 1 where the model has none.

    Args:
        info: Metadata of the program, of which ``normalize`` is read.
        channels: Of the model's input.
    """
    found = info.get("normalize") or {"mean": [0.0] * channels, "std": [1.0] * channels}
    mean, std = (torch.tensor(found[key], dtype=torch.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
    return mean, std


def scaled(pixels: torch.Tensor) -> torch.Tensor:
    """Return bytes as a new float32 tensor in [0, 1]."""
    return pixels.contiguous().float().div_(LEVELS - 1)


def normalize_(x: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Normalize ``[..., C, H, W]`` in place."""
    return x.sub_(mean).div_(std)


def pixel_table(info: JsonMapping, channels: int) -> np.ndarray:
    """Return what each byte becomes in each channel, float32 ``[C, 256]``.

    Args:
        info: Metadata of the program, of which ``normalize`` is read.
        channels: Of the model's input.
    """
    every = torch.arange(LEVELS, dtype=torch.uint8).expand(channels, 1, LEVELS)
    return normalize_(scaled(every), *statistics(info, channels))[:, 0].numpy()


def normalized(pixels: np.ndarray, info: JsonMapping) -> np.ndarray:
    """Return bytes ``[N, H, W, C]`` as the reader of ``--data`` gives them, float32 ``[N, C, H, W]``."""
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    return normalize_(scaled(x), *statistics(info, pixels.shape[-1])).numpy()


__all__ = ["LEVELS", "normalize_", "normalized", "pixel_table", "scaled", "statistics"]
