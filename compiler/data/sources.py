"""What a data set reads from: single images by number, how they are scaled, and what identifies them."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from svitc.errors import InputError, UsageError
from svitc.ir.graph import InputSpec
from svitc.support.hardware import processors

LAYOUT = (
    "Expected class folders (cat/1.png, dog/2.png), a .zip of them, an .npz with images and labels, or module:factory."
)
AHEAD = 4  # images that each worker may be ahead: memory stays small, and none waits for a slow one
MOST_WORKERS = 16


class Unreadable(Exception):
    """An image that cannot be decoded."""

    def __init__(self, name: str, cause: Exception) -> None:
        super().__init__(f"{name}: {type(cause).__name__}: {cause}")
        self.name = name


class Source(ABC):
    """Images by number.

    Attributes:
        parallel: whether ``fetch`` is faster, and allowed, in several threads at once.
    """

    parallel = False

    @abstractmethod
    def fetch(self, index: int) -> Any:
        """One image, as ``collate`` takes it. Raises Unreadable."""

    @abstractmethod
    def collate(self, frames: list[Any]) -> torch.Tensor:
        """A fresh float32 ``[N, C, H, W]`` or ``[N, T, C, H, W]``, not yet normalised."""

    @abstractmethod
    def mark(self, index: int) -> bytes:
        """What tells an image from another one, cheaply."""


class Opened(NamedTuple):
    """A source with its labels, int64 ``[N]``, the names of its classes if known, and what was assumed."""

    source: Source
    labels: np.ndarray
    classes: list[str] | None
    notes: list[str]


def workers() -> int:
    """Threads that decode: the processors that this process may use, shared with its ranks on the machine."""
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, min(processors(), MOST_WORKERS) // max(1, int(ranks) if ranks.isdigit() else 1))


def in_order(source: Source, indices: Sequence[int]) -> Iterator[Any | Unreadable]:
    """Fetch images, several at a time where that pays, and give them in the order of ``indices``.

    An image that cannot be read is given as its exception, so that its place is known.
    """

    def fetch(index: int) -> Any | Unreadable:
        try:
            return source.fetch(index)
        except Unreadable as error:
            return error

    count = workers() if source.parallel else 1
    if count == 1 or len(indices) < 2:
        yield from map(fetch, indices)
        return
    Image.init()  # its plugins are imported on first use, which threads should not do together
    pool = ThreadPoolExecutor(min(count, len(indices)), thread_name_prefix="svitc-decode")
    waiting: deque[Future[Any]] = deque()
    try:
        for index in indices:
            waiting.append(pool.submit(fetch, index))
            if len(waiting) >= count * AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also where the reader stops early
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class Scaling:
    """How images come to the size of the model's input.

    Attributes:
        size: (height, width) of the input.
        resize: length that the shorter side is scaled to, or None.
        crop: side of the square that is cut from the centre after that, or None for ``size``.
        asked: by an argument; then it holds also for arrays that have the input's size already.
        default: neither argument nor checkpoint says anything: scale to cover, cut at the centre.
    """

    size: tuple[int, int]
    resize: int | None = None
    crop: int | None = None
    asked: bool = False
    default: bool = True
    origin: str = ""

    @property
    def note(self) -> str | None:
        """For the user to read; None for the default."""
        if self.default:
            return None
        height, width = self.window
        parts = [f"scaled to {self.resize} on their shorter side"] if self.resize else []
        parts.append(f"cropped to {height}x{width} at their centre")
        parts += [f"scaled to {self.size[0]}x{self.size[1]}"] if self.window != self.size else []
        return f"images are {', '.join(parts)} ({self.origin})"

    @property
    def window(self) -> tuple[int, int]:
        """(height, width) of what is cut out."""
        return (self.crop, self.crop) if self.crop else self.size

    def resized(self, height: int, width: int, name: str) -> tuple[int, int]:
        """(height, width) of a whole image before it is cropped. Raises InputError where the crop is larger."""
        if self.resize:
            short = min(height, width)
            height, width = (int(self.resize * side / short) for side in (height, width))
        if height < self.window[0] or width < self.window[1]:
            wanted = f"{self.window[0]}x{self.window[1]}"
            raise InputError(f"{name} is {height}x{width}, too small to crop {wanted} from it", hint="Give --resize.")
        return height, width

    def corner(self, height: int, width: int) -> tuple[int, int]:
        """(top, left) of the crop, rounded as torchvision does, so that accuracies compare."""
        return round((height - self.window[0]) / 2), round((width - self.window[1]) / 2)

    def image(self, pixels: Image.Image, name: str) -> Image.Image:
        """An image of the input's size. Raises InputError for one that is too small to crop."""
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
        """``[N, C, H, W]`` in [0, 1] of the input's size: as it is where it has that, else scaled.

        Raises:
            InputError: too small to crop.
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
    return F.interpolate(x, size=size, mode="bicubic", antialias=True).clamp(0, 1)  # it overshoots at edges


def scaling(spec: InputSpec, info: Mapping[str, Any], resize: int | None, crop: int | None) -> Scaling:
    """What the arguments say, else what the checkpoint says (``resize`` or ``crop_pct``), else the default.

    Raises:
        UsageError: sizes that make no sense together or for the model.
        InputError: values in the checkpoint that make no sense.
    """
    height, width = size = (spec.shape[-2], spec.shape[-1])
    if resize is None and crop is None:
        return _stated(size, info)
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
            hint="The shorter side is scaled to --resize, then the centre is cut out.",
        )
    flags = [f"{flag} {value}" for flag, value in (("--resize", resize), ("--crop", crop)) if value is not None]
    return Scaling(size, resize, crop, asked=True, default=False, origin=", ".join(flags))


def _stated(size: tuple[int, int], info: Mapping[str, Any]) -> Scaling:
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
        longest = math.floor(max(size) / share)
        return Scaling(size, longest, default=False, origin=f"the checkpoint's crop_pct = {share:g}")
    return Scaling(size)
