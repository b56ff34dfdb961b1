"""A simulated event camera that moves over still images.

Each pixel of the camera keeps the logarithm of a brightness. Whenever the logarithm of what it sees differs from that
by a contrast threshold, it emits an event and moves its own by the threshold: the model of ESIM (Rebecq et al., CoRL
2018), with a threshold of its own for each pixel and with events from noise, as v2e adds them (Hu et al., CVPR
Workshops 2021). There is no bandwidth, no refractory time and no leak. The results are simulated events, not recordings
of a real sensor; a network that was trained on them is not made for one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

CONTRAST = 0.25  # change of the logarithm of the brightness that makes an event
CONTRAST_DEVIATION = 0.04  # among pixels
DARK = 0.1  # added to brightness in [0, 1] before its logarithm is taken
STEP_US = 1000  # time between two views
NOISE_HZ = 5.0  # of each pixel, of both polarities
SPEED = 0.35  # pixels that the camera moves between two views
TURN = 0.35  # radians by which its direction changes between two views, standard deviation
REACH = 2.5  # pixels from the center at which it turns back
CHUNK = 256  # recordings that are simulated together


@dataclass(frozen=True)
class Recording:
    """Events of one recording, in the order of time: arrays ``[events]`` as SpikingJelly names them."""

    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays by name."""
        return {"t": self.t, "x": self.x, "y": self.y, "p": self.p}


def record(images: torch.Tensor, size: int, views: int, seed: int) -> list[Recording]:
    """Return a recording of each image, each with a path of its own.

    Args:
        images: Brightness, ``[N, H, W]`` in [0, 1]. What lies outside of an image is as dark as can be.
        size: Height and width of the camera, in pixels of the images.
        views: Number of views after the first.
        seed: Seed of paths, thresholds and noise.
    """
    rng = np.random.default_rng(seed)
    recordings: list[Recording] = []
    for chunk in images.split(CHUNK):
        logs = np.log(DARK + _views(chunk, _paths(rng, len(chunk), views), size))
        recordings += _events(rng, logs)
    return recordings


def _paths(rng: np.random.Generator, count: int, views: int) -> np.ndarray:
    """Return where the camera looks, ``[N, views + 1, 2]`` in pixels from the center: it wanders and turns back."""
    position = rng.uniform(-REACH / 2, REACH / 2, (count, 2))
    angle = rng.uniform(0, 2 * np.pi, count)
    path = [position]
    for _ in range(views):
        home = np.arctan2(-position[:, 1], -position[:, 0])
        outside = np.hypot(position[:, 0], position[:, 1]) > REACH
        angle = np.where(outside, home, angle) + TURN * rng.standard_normal(count)
        position = position + SPEED * np.stack([np.cos(angle), np.sin(angle)], 1)
        path.append(position)
    return np.stack(path, 1)


def _views(images: torch.Tensor, paths: np.ndarray, size: int) -> np.ndarray:
    """Return what the camera sees, ``[N, views + 1, size, size]``."""
    count, times = paths.shape[:2]
    height, width = images.shape[-2:]
    scale = torch.tensor([2 / width, 2 / height])
    theta = torch.zeros(count * times, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = size / width, size / height
    theta[:, :, 2] = torch.from_numpy(paths.reshape(-1, 2)).float() * scale
    grid = F.affine_grid(theta, [count * times, 1, size, size], align_corners=False)
    source = images[:, None].repeat_interleave(times, 0)
    return F.grid_sample(source, grid, align_corners=False).reshape(count, times, size, size).clamp(0, 1).numpy()


def _events(rng: np.random.Generator, logs: np.ndarray) -> list[Recording]:
    """Return the events of each camera.

    Args:
        logs: Logarithm of what each pixel sees, ``[N, views + 1, H, W]``.
    """
    count, times, height, width = logs.shape
    threshold = rng.normal(CONTRAST, CONTRAST_DEVIATION, (count, height, width)).clip(CONTRAST / 2)
    kept = logs[:, 0].astype(np.float64)
    parts: list[list[np.ndarray]] = []  # of each step: sample, time, y, x, polarity
    for step in range(times - 1):
        before, after = logs[:, step].astype(np.float64), logs[:, step + 1].astype(np.float64)
        crossings = np.trunc((after - kept) / threshold)
        sample, y, x = np.nonzero(crossings)
        number = np.abs(crossings[sample, y, x]).astype(int)
        sample, y, x = (np.repeat(values, number) for values in (sample, y, x))
        first = np.repeat(np.cumsum(number) - number, number)
        sign = np.sign(crossings[sample, y, x])
        level = kept[sample, y, x] + sign * (1 + np.arange(len(sample)) - first) * threshold[sample, y, x]
        change = (after - before)[sample, y, x]
        when = ((level - before[sample, y, x]) / np.where(change, change, 1)).clip(0, 1)
        parts.append([sample, STEP_US * (step + when), y, x, sign > 0])
        noisy = np.nonzero(rng.random((count, height, width)) < NOISE_HZ * STEP_US * 1e-6)
        parts.append(
            [noisy[0], STEP_US * (step + rng.random(len(noisy[0]))), *noisy[1:], rng.random(len(noisy[0])) < 0.5]
        )
        kept += crossings * threshold
    sample, when, y, x, p = (np.concatenate(values) for values in zip(*parts, strict=True))
    t = when.astype(np.int64)
    order = np.lexsort((t, sample))
    borders = np.searchsorted(sample[order], np.arange(1, count))
    fields = [np.split(values[order], borders) for values in (t, x.astype(np.int16), y.astype(np.int16), p)]
    return [Recording(*arrays) for arrays in zip(*fields, strict=True)]
