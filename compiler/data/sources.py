"""What a data set reads from: single images by number, how they are scaled, and their fingerprints."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from svitc.errors import InputError, UsageError
from svitc.ir.graph import InputSpec
from svitc.support.hardware import processors
from svitc.support.types import JsonMapping

NO_LABEL = -1
IMAGES_AHEAD = 4  # images that each worker may decode in advance: memory stays small, and none waits for a slow one
MAX_WORKERS = 16


class UnreadableImage(Exception):
    """An image or a recording that cannot be decoded.

    Args:
        name: Its name.
        cause: Why, as an exception or in words.
    """

    def __init__(self, name: str, cause: Exception | str) -> None:
        super().__init__(f"{name}: {cause if isinstance(cause, str) else _in_words(cause)}")
        self.name = name


def _in_words(error: Exception) -> str:
    """Return what an error says, with its class unless the text says enough."""
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return f"{type(error).__name__}: {error}"


class Source(ABC):
    """Images by number, from 0.

    Attributes:
        parallel: Whether several threads may call ``fetch`` at once and are faster so.
        unit: What messages call one of them.
    """

    parallel = False
    unit = "image"

    @abstractmethod
    def fetch(self, index: int) -> np.ndarray:
        """Return one image in the form that ``collate`` takes. Raises UnreadableImage."""

    @abstractmethod
    def collate(self, frames: list[np.ndarray]) -> torch.Tensor:
        """Return images as a new float32 tensor ``[N, C, H, W]`` or ``[N, T, C, H, W]``, not yet normalized."""

    @abstractmethod
    def fingerprint(self, index: int) -> bytes:
        """Return bytes that tell one image from another, without decoding it."""


class OpenedSource(NamedTuple):
    """A source and the labels of its images.

    Attributes:
        labels: int64 ``[N]``; all ``NO_LABEL`` where the images have none.
        classes: Class names in the order of the model's head, or None where they are not known.
        notes: Assumptions, for the user to read.
        labeled: Whether the images have labels.
    """

    source: Source
    labels: np.ndarray
    classes: list[str] | None
    notes: list[str]
    labeled: bool = True


def without_labels(source: Source, count: int, info: JsonMapping, notes: list[str]) -> OpenedSource:
    """Return a source of ``count`` images that have no labels."""
    classes = list(info["classes"]) if info.get("classes") else None
    return OpenedSource(source, np.full(count, NO_LABEL, dtype=np.int64), classes, notes, labeled=False)


def workers() -> int:
    """Return the number of decoding threads: this process's share of the processors, which ranks divide among them."""
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, min(processors(), MAX_WORKERS) // max(1, int(ranks) if ranks.isdigit() else 1))


def fetch_in_order(source: Source, indices: Sequence[int]) -> Iterator[np.ndarray | UnreadableImage]:
    """Fetch images, several at a time where that is faster, and yield them in the order of ``indices``.

    For an image that cannot be read the exception is yielded, so that its place is known.
    """

    def fetch(index: int) -> np.ndarray | UnreadableImage:
        try:
            return source.fetch(index)
        except UnreadableImage as error:
            return error

    count = workers() if source.parallel else 1
    if count == 1 or len(indices) < 2:
        yield from map(fetch, indices)
        return
    Image.init()  # its plugins are imported on first use, which threads should not do together
    pool = ThreadPoolExecutor(min(count, len(indices)), thread_name_prefix="svitc-decode")
    waiting: deque[Future[np.ndarray | UnreadableImage]] = deque()
    try:
        for index in indices:
            waiting.append(pool.submit(fetch, index))
            if len(waiting) >= count * IMAGES_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also where the consumer stops early
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class Scaling:
    """How images come to the size of the model's input.

    Attributes:
        size: (height, width) of the input.
        resize: Length in pixels that the shorter side is scaled to first, or None.
        crop: Side in pixels of the square that is then cut from the center, or None for ``size``.
        asked: Whether an argument asks for it; then it also applies to arrays of the input's size.
        default: Whether neither arguments nor the checkpoint say anything: scale to cover, crop at the center.
        origin: The arguments or the checkpoint's entry that say so.
    """

    size: tuple[int, int]
    resize: int | None = None
    crop: int | None = None
    asked: bool = False
    default: bool = True
    origin: str = ""

    @property
    def note(self) -> str | None:
        """Sentence for the user; None for the default."""
        if self.default:
            return None
        height, width = self.window
        parts = [f"scaled to {self.resize} on their shorter side"] if self.resize else []
        parts.append(f"cropped to {height}x{width} at their center")
        parts += [f"scaled to {self.size[0]}x{self.size[1]}"] if self.window != self.size else []
        return f"images are {', '.join(parts)} ({self.origin})"

    @property
    def window(self) -> tuple[int, int]:
        """(height, width) of the crop."""
        return (self.crop, self.crop) if self.crop else self.size

    def resized(self, height: int, width: int, name: str) -> tuple[int, int]:
        """Return the (height, width) that an image is scaled to before it is cropped.

        Raises:
            InputError: The crop is larger.
        """
        if self.resize:
            short = min(height, width)
            height, width = (int(self.resize * side / short) for side in (height, width))
        if height < self.window[0] or width < self.window[1]:
            crop = f"{self.window[0]}x{self.window[1]}"
            raise InputError(f"{name} is {height}x{width}, too small to crop {crop} from it", hint="Give --resize.")
        return height, width

    def corner(self, height: int, width: int) -> tuple[int, int]:
        """Return (top, left) of the crop, rounded like torchvision's, so that accuracies are comparable."""
        return round((height - self.window[0]) / 2), round((width - self.window[1]) / 2)

    def image(self, pixels: Image.Image, name: str) -> Image.Image:
        """Scale and crop an image to the input's size. Raises InputError where it is too small to crop."""
        height, width = self.size
        if self.default:
            same = pixels.size == (width, height)
            return pixels if same else ImageOps.fit(pixels, (width, height), Image.Resampling.BICUBIC)
        tall, wide = self.resized(pixels.height, pixels.width, name)
        if pixels.size != (wide, tall):
            pixels = pixels.resize((wide, tall), Image.Resampling.BICUBIC)
        top, left = self.corner(tall, wide)
        pixels = pixels.crop((left, top, left + self.window[1], top + self.window[0]))
        return pixels if self.window == self.size else pixels.resize((width, height), Image.Resampling.BICUBIC)

    def array(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """Scale and crop ``[N, C, H, W]`` in [0, 1] to the input's size; return it unchanged where it has that size.

        Raises:
            InputError: The images are too small to crop.
        """
        if tuple(x.shape[-2:]) == self.size and not self.asked:
            return x
        if self.default:
            return F.interpolate(x, size=self.size, mode="bilinear", antialias=True)
        tall, wide = self.resized(x.shape[-2], x.shape[-1], name)
        top, left = self.corner(tall, wide)
        x = _bicubic(x, (tall, wide))[..., top : top + self.window[0], left : left + self.window[1]]
        return _bicubic(x, self.size)


def _bicubic(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(x.shape[-2:]) == size:
        return x
    return F.interpolate(x, size=size, mode="bicubic", antialias=True).clamp(0, 1)  # bicubic filters overshoot at edges


def choose_scaling(spec: InputSpec, info: JsonMapping, resize: int | None, crop: int | None) -> Scaling:
    """Return the scaling that the arguments ask for, else the checkpoint's, else the default.

    Args:
        info: Metadata of the program, of which ``resize`` and ``crop_pct`` are read.
        resize, crop: In pixels; see ``Scaling``.

    Raises:
        UsageError: Sizes do not fit together or do not fit the model.
        InputError: The checkpoint's values are invalid.
    """
    height, width = size = (spec.shape[-2], spec.shape[-1])
    if resize is None and crop is None:
        return _scaling_of_checkpoint(size, info)
    if spec.events:
        raise UsageError("--resize and --crop are for images, but the model takes event frames")
    for flag, value in (("--resize", resize), ("--crop", crop)):
        if value is not None and value < 1:
            raise UsageError(f"{flag} {value} is not a positive number of pixels")
    if crop is not None and height != width:
        raise UsageError(f"--crop {crop} is a square, but the model takes {height}x{width}", hint="Leave it out.")
    if resize is not None and resize < (crop or max(size)):
        raise UsageError(
            f"--resize {resize} is smaller than the crop of {crop or f'{height}x{width}'}",
            hint="The shorter side is scaled to --resize, then the center is cut out.",
        )
    flags = [f"{flag} {value}" for flag, value in (("--resize", resize), ("--crop", crop)) if value is not None]
    return Scaling(size, resize, crop, asked=True, default=False, origin=", ".join(flags))


def _scaling_of_checkpoint(size: tuple[int, int], info: JsonMapping) -> Scaling:
    resize, share = info.get("resize"), info.get("crop_pct")
    if resize is not None:
        if type(resize) is not int or resize < max(size):
            raise InputError(
                f"the checkpoint's resize is {resize!r}, not a whole number of at least {max(size)}, the model's input",
                hint="Give --resize.",
            )
        return Scaling(size, resize, default=False, origin=f"the checkpoint's resize = {resize}")
    if share is not None:
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0.1 <= share <= 1:
            raise InputError(
                f"the checkpoint's crop_pct is {share!r}, not a share from 0.1 to 1", hint="Give --resize."
            )
        shorter_side = math.floor(max(size) / share)
        return Scaling(size, shorter_side, default=False, origin=f"the checkpoint's crop_pct = {share:g}")
    return Scaling(size)
