"""Image files, in class folders or without labels."""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
import torch

from svitc.data.class_folders import label_by_folder
from svitc.data.event_files import SUFFIXES as RECORDING_SUFFIXES
from svitc.data.file_stores import FileStore
from svitc.data.first_look import EXPECTED_LAYOUT
from svitc.data.picture import GRAY_MODES, PASSED_OVER, in_mode, is_wide, opened, peculiarities, why_unreadable
from svitc.data.pixels import scaled
from svitc.data.sources import OpenedSource, Scaling, Source, UnreadableImage
from svitc.errors import InputError
from svitc.ir.graph import InputSpec
from svitc.support.limits import check_claim
from svitc.support.types import JsonMapping

PILLOW_MODES = {1: "L", 3: "RGB"}  # by number of channels
PIXEL_BYTES = 4  # while it is decoded
WIDE_PIXEL_BYTES = 32  # of more than 8 bits, which are scaled as floats
WHITE, WHITE_OF_12_BITS = 2**16 - 1, 2**12 - 1  # as cameras store them in 16 bits
# of pictures that are not read, so that a folder of them is not silently a smaller one
OTHER_SUFFIXES = (".avif", ".dng", ".exr", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".mpo", ".svg", ".tga")
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
            content = self.store.read(name)
        except InputError:
            raise
        except Exception as error:  # of a folder or of an archive
            raise UnreadableImage(name, error) from error
        try:
            with opened(content) as image:
                bytes_each = WIDE_PIXEL_BYTES if is_wide(image) else PIXEL_BYTES
                check_claim(image.width * image.height * bytes_each, name)
                pixels = in_mode(image, self.mode)
        except InputError:
            raise
        except Exception as error:  # a damaged file may make a decoder raise any exception
            raise UnreadableImage(name, why_unreadable(error, content)) from error
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
        brightest: list[int] = []  # of the pictures of 16 bits
        sizes: Counter[tuple[int, int]] = Counter()
        passed_over: Counter[str] = Counter()
        for name in self.names[:: -(-len(self.names) // SAMPLED_FILES)]:
            try:
                with opened(self.store.read(name)) as image:  # reads the header only
                    modes[image.mode in GRAY_MODES] += 1
                    sizes[image.height, image.width] += 1
                    passed_over.update(peculiarities(image))
                    if is_wide(image):
                        brightest.append(image.getextrema()[1] if image.mode != "F" else WHITE)  # type: ignore
            except Exception:  # told where the images are read
                continue
        notes, gray_model = [], self.mode == "L"
        count, others = modes.total(), modes[not gray_model]
        if others and 2 * others >= count:  # a few gray photographs are in every large data set
            images = _some(others, count)
            if gray_model:
                notes.append(f"{images} are in color, but the model takes gray: only their brightness is used")
            else:
                notes.append(f"{images} are gray, but the model takes color: all three channels get the same values")
        if brightest:
            notes.append("pixels of 16 bits, and real ones from 0 to 1, are rounded to 8 bits")
            if max(brightest) <= WHITE_OF_12_BITS:
                notes.append(
                    f"white is {WHITE:,} in pixels of 16 bits, but the brightest is {max(brightest):,}: if they have "
                    "12 bits, save them scaled to 16"
                )
        for key, words in PASSED_OVER.items():
            if passed_over[key]:
                notes.append(f"{words} ({'all' if passed_over[key] == count else _some(passed_over[key], count)})")
        height, width = self.scaling.size
        del sizes[height, width]
        if sizes and self.scaling.default:
            (tall, wide), _ = sizes.most_common(1)[0]
            notes.append(f"images of {tall}x{wide} are scaled to cover {height}x{width} and cropped at their center")
        return notes


def _some(number: int, of: int) -> str:
    """Return in words how many of the images that were looked at."""
    return "images" if number == of else f"{number} of {of} images looked at"


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
    if store.has_folders and (others := store.having(OTHER_SUFFIXES)):
        notes.append(f"{len(others):,} files such as {others[0]} are passed over: pictures of kinds that are not read")
    return label_by_folder(name, store, files, source, info, notes, unlabeled)
