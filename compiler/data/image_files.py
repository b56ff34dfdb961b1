"""Image files, in class folders or without labels."""

from __future__ import annotations

import io
import os
from collections import Counter

import numpy as np
import torch
from PIL import Image

from svitc.data.class_folders import label_by_folder
from svitc.data.event_files import SUFFIXES as RECORDING_SUFFIXES
from svitc.data.file_stores import FileStore
from svitc.data.first_look import EXPECTED_LAYOUT
from svitc.data.pixels import scaled
from svitc.data.sources import OpenedSource, Scaling, Source, UnreadableImage
from svitc.errors import InputError
from svitc.ir.graph import InputSpec
from svitc.support.types import JsonMapping

PILLOW_MODES = {1: "L", 3: "RGB"}  # by number of channels
GRAY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "F")
# Size of a typical file above which threads decode. For smaller files (CIFAR's have 1,000 bytes) Pillow's own Python
# code, which holds the interpreter's lock, takes longer than the decoding, and threads were measured to be slower.
PARALLEL_FILE_BYTES = 8192
SAMPLED_FILES = 15  # which are taken as typical


class ImageFiles(Source):
    """Image files, decoded with Pillow.

    Args:
        store: Holds the files.
        names: The images, names in ``store``.
        channels: Of the model's input, 1 (gray) or 3 (RGB).
        scaling: How images come to the size of the model's input.
    """

    def __init__(self, store: FileStore, names: list[str], channels: int, scaling: Scaling) -> None:
        self.store, self.names, self.mode, self.scaling = store, names, PILLOW_MODES[channels], scaling
        step = max(1, len(names) // SAMPLED_FILES)
        sizes = sorted(store.size(name) for name in names[::step])
        self.parallel = sizes[len(sizes) // 2] > PARALLEL_FILE_BYTES

    def fetch(self, index: int) -> np.ndarray:
        """Return uint8 ``[H, W]`` or ``[H, W, 3]``. Raises UnreadableImage."""
        name = self.names[index]
        try:
            with Image.open(io.BytesIO(self.store.read(name))) as image:
                pixels = in_8_bits(image).convert(self.mode)
        except Exception as error:  # a damaged file may make a decoder raise any exception
            raise UnreadableImage(name, error) from error
        return np.array(self.scaling.image(pixels, name))

    def collate(self, frames: list[np.ndarray]) -> torch.Tensor:
        x = torch.from_numpy(np.stack(frames))
        x = x[:, None] if x.dim() == 3 else x.permute(0, 3, 1, 2)
        return scaled(x)

    def fingerprint(self, index: int) -> bytes:
        name = self.names[index]
        return os.fsencode(name) + b"\0" + self.store.fingerprint(name)

    def notes(self) -> list[str]:
        """Return how the images differ from what the model takes, as far as a few of them tell."""
        modes: Counter[bool] = Counter()
        wide = 0
        sizes: Counter[tuple[int, int]] = Counter()
        for name in self.names[:: -(-len(self.names) // SAMPLED_FILES)]:
            try:
                with Image.open(io.BytesIO(self.store.read(name))) as image:  # reads the header only
                    modes[image.mode in GRAY_MODES] += 1
                    wide += is_wide(image)
                    sizes[image.height, image.width] += 1
            except Exception:  # told where the images are read
                continue
        notes, gray_model = [], self.mode == "L"
        count, others = modes.total(), modes[not gray_model]
        if others and 2 * others >= count:  # a few gray photographs are in every large data set
            images = "images" if others == count else f"{others} of {count} images looked at"
            if gray_model:
                notes.append(f"{images} are in color, but the model takes gray: only their brightness is used")
            else:
                notes.append(f"{images} are gray, but the model takes color: all three channels get the same values")
        if wide:
            notes.append("pixels of 16 bits, and real ones from 0 to 1, are rounded to 8 bits")
        height, width = self.scaling.size
        del sizes[height, width]
        if sizes and self.scaling.default:
            (tall, wide), _ = sizes.most_common(1)[0]
            notes.append(f"images of {tall}x{wide} are scaled to cover {height}x{width} and cropped at their center")
        return notes


def is_wide(image: Image.Image) -> bool:
    """Tell whether the pixels of an image have more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def in_8_bits(image: Image.Image) -> Image.Image:
    """Return an image with pixels of 8 bits; Pillow's own conversion would clip larger ones at 255.

    Raises:
        ValueError: nothing says which pixel is white.
    """
    if not is_wide(image):
        return image
    values = np.asarray(image).astype(np.float64)
    white = 1.0 if image.mode == "F" else 65535.0
    low, high = float(values.min()), float(values.max())
    if image.mode == "I" and image.format != "PNG":  # of a PNG, older versions of Pillow read 16 bits so
        raise ValueError("its pixels are integers of 32 bits, and nothing says which is white; save it with 16 or 8")
    if not (low >= 0 and high <= white):
        raise ValueError(f"its pixels go from {low:g} to {high:g}, and are read from 0 to {white:g} only")
    return Image.fromarray((values * (255 / white)).round().astype(np.uint8))


def open_files(
    name: str, store: FileStore, spec: InputSpec, info: JsonMapping, scaling: Scaling, unlabeled: bool = False
) -> OpenedSource:
    """Open image files, with labels where they are named class/…/file below a common root.

    Args:
        name: What messages call the store.
        unlabeled: Whether to take folders for no classes.

    Raises:
        InputError: There are no images, some images lie outside class folders, or some folders are no classes.
    """
    channels = spec.shape[0]
    if channels not in PILLOW_MODES:
        raise InputError(
            f"{name}: image files have 1 or 3 channels, but the model takes {channels}", hint="Give an .npz."
        )
    files = store.images()
    if not files:
        holds = "holds recordings or arrays, but the model takes" if store.having(RECORDING_SUFFIXES) else "holds no"
        raise InputError(f"{name} {holds} images", hint=EXPECTED_LAYOUT)
    source = ImageFiles(store, files, channels, scaling)
    notes = [*source.notes(), *([scaling.note] if scaling.note else [])]
    return label_by_folder(name, store, files, source, info, notes, unlabeled)
