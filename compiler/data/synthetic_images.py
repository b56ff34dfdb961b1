"""Synthetic images: scenes of random shapes, which stand for images where there are none.

Natural images are mostly flat regions with sharp borders, of all sizes, that hide each other. The dead leaves model
makes such images: opaque random shapes on top of each other, whose radii r have a density of 1/r^3 (Lee, Mumford and
Huang, "Occlusion Models for Natural Images", IJCV 2001). Networks that were trained on such images alone transfer to
photographs (Baradad et al., "Learning to See by Looking at Noise", NeurIPS 2021). Images differ much in colors,
contrast, sizes of the shapes and texture, so that a choice among them can fit a network (analysis/batch_norm_match.py).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageDraw

from svitc.data.sources import Source
from svitc.ir.graph import InputSpec

OVERSAMPLING = 3  # shapes are drawn at this multiple of the size, so that their borders are smooth
NOISE_SHARE = 0.15  # of the images are noise without shapes
SHAPE_COUNTS = (8, 150)
CURVE_POINTS = 24  # corners of the polygon that stands for an ellipse
VERSION = 1  # part of the fingerprint: raise it where the images change
EVENT_CONTRAST = 0.15  # change of the logarithm of the brightness that makes an event
MAX_SHIFT_SHARE = 0.1  # of the image's size: how far a scene moves in one frame of events


class SyntheticImages(Source):
    """Scenes of random shapes, float32 in [0, 1]; for event frames, the events of such scenes as they move.

    Args:
        spec: input of the model.
        seed: image ``i`` of a seed is always the same.
    """

    def __init__(self, spec: InputSpec, seed: int = 0) -> None:
        self.spec, self.seed = spec, seed

    def fetch(self, index: int) -> np.ndarray:
        """Return ``[C, H, W]``, or ``[T, C, H, W]`` for event frames."""
        rng = np.random.default_rng([self.seed, index])
        channels, height, width = self.spec.shape[-3:]
        if self.spec.events:
            return _events(rng, self.spec.shape)
        # each further three channels show a scene of their own
        return np.concatenate([_scene(rng, min(3, channels - c), height, width) for c in range(0, channels, 3)])

    def collate(self, frames: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack(frames))

    def fingerprint(self, index: int) -> bytes:
        return f"synthetic {VERSION} {self.spec.shape} {self.seed} {index}".encode()


def _scene(rng: np.random.Generator, channels: int, height: int, width: int) -> np.ndarray:
    """Return one image ``[C, H, W]`` in [0, 1], of 1 to 3 channels."""
    base = rng.uniform(0.15, 0.85) + rng.normal(0, 0.08, channels)
    contrast, saturation = rng.uniform(0.06, 0.35), rng.uniform(0, 0.6)
    if rng.random() < NOISE_SHARE:
        light, color = _noise(rng, 1, height, width), _noise(rng, channels, height, width)
        image = base[:, None, None] + contrast * (light + saturation * color)
    else:
        brightness = contrast * rng.standard_normal((int(rng.integers(3, 12)), 1))
        palette = base + brightness + contrast * saturation * rng.standard_normal((len(brightness), channels))
        image = _leaves(rng, palette, height, width)
        slope = rng.normal(0, 0.1, 2)
        image += slope[0] * np.linspace(-0.5, 0.5, height)[:, None] + slope[1] * np.linspace(-0.5, 0.5, width)
        image += rng.uniform(0, 0.1) * _noise(rng, 1, height, width)
        image += rng.uniform(0, 0.03) * _noise(rng, channels, height, width)
    return image.clip(0, 1).astype(np.float32)


def _leaves(rng: np.random.Generator, palette: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return opaque shapes on top of each other, ``[C, H, W]``.

    Args:
        palette: colors to choose from, ``[colors, C]``.
    """
    channels = palette.shape[1]
    tall, wide = height * OVERSAMPLING, width * OVERSAMPLING
    side = max(tall, wide)
    smallest, largest = side * rng.uniform(0.02, 0.12), side * rng.uniform(0.2, 1.0)
    count = int(rng.integers(*SHAPE_COUNTS))
    u = rng.random(count)
    radii = 1 / np.sqrt(u / largest**2 + (1 - u) / smallest**2)  # by inversion, a density of 1/r^3
    if rng.random() < 0.5:
        radii[::-1].sort()  # large shapes behind small ones
    layers = [Image.new("L", (wide, tall)) for _ in range(channels)]
    pens = [ImageDraw.Draw(layer) for layer in layers]

    def color() -> list[int]:
        jitter = rng.normal(0, 0.03) + rng.normal(0, 0.015, channels)
        return [int(v) for v in (255 * (palette[rng.integers(len(palette))] + jitter)).clip(0, 255)]

    for pen, value in zip(pens, color(), strict=True):
        pen.rectangle((0, 0, wide, tall), fill=value)
    for radius in radii:
        center = rng.uniform(-0.1, 1.1, 2) * (wide, tall)
        corners = [tuple(point) for point in (center + radius * _outline(rng)).tolist()]
        for pen, value in zip(pens, color(), strict=True):
            pen.polygon(corners, fill=value)
    small = [np.asarray(layer.reduce(OVERSAMPLING), np.float64) for layer in layers]
    return np.stack(small) / 255


def _outline(rng: np.random.Generator) -> np.ndarray:
    """Return the corners of an ellipse or a polygon of radius 1 around 0, ``[corners, 2]``."""
    if rng.random() < 0.5:
        angles, turn = np.linspace(0, 2 * math.pi, CURVE_POINTS, endpoint=False), rng.uniform(0, math.pi)
        x, y = np.cos(angles), rng.uniform(0.3, 1) * np.sin(angles)
        return np.stack([x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)], 1)
    count = int(rng.integers(3, 8))
    angles, radii = np.sort(rng.uniform(0, 2 * math.pi, count)), rng.uniform(0.6, 1.3, count)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)


def _noise(rng: np.random.Generator, channels: int, height: int, width: int) -> np.ndarray:
    """Return noise ``[C, H, W]`` of variance 1 whose amplitude falls with the frequency, as in natural images."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    frequency[0, 0] = np.inf  # no constant part
    spectrum = np.fft.fft2(rng.standard_normal((channels, height, width))) / frequency ** rng.uniform(0.7, 1.7)
    noise = np.fft.ifft2(spectrum).real
    return noise / max(noise.std(), 1e-9)


def _events(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return the events of a moving scene, ``[T, C, H, W]``: counts of brighter (even channels) and darker pixels."""
    steps, channels, height, width = shape
    reach = max(1, int(MAX_SHIFT_SHARE * max(height, width)))
    margin = reach * (steps + 1)
    scene = np.log(0.05 + _scene(rng, 1, height + 2 * margin, width + 2 * margin)[0])
    moves = rng.uniform(-reach, reach, (steps, 2)).round().astype(int)
    corners = margin + np.concatenate([np.zeros((1, 2), int), moves.cumsum(0)])
    views = np.stack([scene[y : y + height, x : x + width] for y, x in corners])
    changes = np.diff(views, axis=0)[:, None] / EVENT_CONTRAST
    counts = np.floor(np.concatenate([changes, -changes], axis=1).clip(0))
    return counts[:, np.arange(channels) % 2].astype(np.float32)
