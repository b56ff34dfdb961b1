"""Recordings of events in files: NumPy's .npy and .npz, and what event cameras write, which the package faery reads."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import PurePosixPath

import numpy as np
import torch

from svitc.data.camera_files import CAMERA_FILES, read_camera_file
from svitc.data.class_folders import label_by_folder
from svitc.data.event_frames import POLARITIES, DamagedRecording, Events, checked_events, frames_of
from svitc.data.event_options import EventOptions
from svitc.data.file_stores import FileStore
from svitc.data.sources import OpenedSource, Source, UnreadableImage
from svitc.errors import InputError
from svitc.ir.graph import InputSpec
from svitc.support.types import JsonMapping

SUFFIXES = (".npy", ".npz", *CAMERA_FILES)
FIELD_NAMES = {
    "t": ("t", "ts", "time", "times", "timestamp", "timestamps"),
    "x": ("x", "xs"),
    "y": ("y", "ys"),
    "p": ("p", "ps", "pol", "polarity", "polarities", "on"),
}
FRAMES = "frames"  # SpikingJelly's name for frames in an .npz
EXPECTED_FIELDS = (
    "Expected x, y, p and t, as fields of one structured array or as arrays of an .npz; or an array frames "
    "[T, 2, H, W]; or an .npz with images [N, T, C, H, W] and labels."
)


class EventFiles(Source):
    """Recordings, one in a file, as frames of the model's size.

    Args:
        store: Holds the files.
        names: The recordings, names in ``store``.
        shape: The model's input, ``(T, C, H, W)``.
        options: How events become frames.
    """

    unit = "recording"

    def __init__(self, store: FileStore, names: list[str], shape: tuple[int, ...], options: EventOptions) -> None:
        self.store, self.names, self.shape, self.options = store, names, shape, options

    def read(self, index: int) -> Events | np.ndarray:
        """Return the events of a recording, or the frames that it holds instead.

        Raises:
            InputError: It holds neither, or cannot be read on this machine.
            DamagedRecording: It is damaged, or its events are.
            OSError: The file cannot be read.
        """
        name = self.names[index]
        if PurePosixPath(name).suffix.lower() not in CAMERA_FILES:
            return read_arrays(name, self.store.read(name))
        with self.store.on_disk(name) as path:
            return read_camera_file(name, path)

    def frames(self, name: str, content: Events | np.ndarray) -> np.ndarray:
        """Return a recording as float32 ``[T, C, H, W]``.

        Raises:
            InputError: Its kind or size does not fit the model.
            DamagedRecording: It cannot be used for another reason.
        """
        if isinstance(content, np.ndarray):
            return self._stored_frames(name, content)
        if self.shape[1] != POLARITIES:
            raise InputError(
                f"{name}: events become frames of 2 channels, for both polarities, but the model takes {self.shape[1]}",
                hint="Give frames, or a loader of your own.",
            )
        return frames_of(name, content, self.shape, self.options)

    def _stored_frames(self, name: str, frames: np.ndarray) -> np.ndarray:
        self.options.check_unused(f"{name} holds frames already")
        if frames.shape != self.shape:
            raise InputError(f"{name}: frames are {list(frames.shape)}, but the model takes {list(self.shape)}")
        if frames.dtype.kind not in "iuf":
            raise InputError(f"{name}: frames are {frames.dtype}, not numbers")
        if not np.isfinite(frames).all():
            raise DamagedRecording("its frames hold NaN or infinity")
        return frames.astype(np.float32)

    def fetch(self, index: int) -> np.ndarray:
        """Return float32 ``[T, C, H, W]``. Raises UnreadableImage, and InputError where the kind does not fit."""
        name = self.names[index]
        try:
            return self.frames(name, self.read(index))
        except DamagedRecording as error:
            raise UnreadableImage(name, str(error)) from error
        except OSError as error:
            raise UnreadableImage(name, error) from error

    def collate(self, frames: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack(frames))

    def fingerprint(self, index: int) -> bytes:
        name = self.names[index]
        return os.fsencode(name) + f"\0{self.options}".encode() + self.store.fingerprint(name)


def open_recordings(
    name: str, store: FileStore, spec: InputSpec, info: JsonMapping, options: EventOptions, unlabeled: bool = False
) -> OpenedSource:
    """Open recordings of events, with labels where they are named class/…/file below a common root.

    Args:
        name: What messages call the store.
        unlabeled: Whether to take folders for no classes.

    Raises:
        InputError: There are none, the first does not fit the model, some lie outside class folders, or some folders
            are no classes.
    """
    files = store.having(SUFFIXES)
    if not files:
        kind = "holds still images" if store.images() else "holds no recordings"
        raise InputError(
            f"{name} {kind}, but the model takes event frames {list(spec.shape)}",
            hint=f"Give recordings ({', '.join(SUFFIXES)}), or an .npz with images [N, T, C, H, W] and labels.",
        )
    if not store.has_folders and len(files) < len(store.names):
        other = next(file for file in store.names if PurePosixPath(file).suffix.lower() not in SUFFIXES)
        raise InputError(f"{name}: {other} is no recording", hint=f"They end with {', '.join(SUFFIXES)}.")
    source, notes = EventFiles(store, files, spec.shape, options), []
    try:  # what does not fit should be told before any work
        content = source.read(0)
        source.frames(files[0], content)
        if options.split_by is None and isinstance(content, Events):
            notes.append(
                f"each of the {spec.shape[0]} frames of {name} counts the same number of events; see --split-by"
            )
    except (DamagedRecording, OSError) as error:
        if len(files) == 1:
            raise InputError(f"{files[0]} cannot be used: {error}") from error
    return label_by_folder(name, store, files, source, info, notes, unlabeled)


def read_arrays(name: str, data: bytes) -> Events | np.ndarray:
    """Return the events of an .npy or .npz, or the frames that it holds instead. Pickled objects are never read.

    Raises:
        InputError: It holds other arrays.
        DamagedRecording: It is damaged, or its events are.
    """
    try:
        content = np.load(io.BytesIO(data), allow_pickle=False)
        arrays = {"": content} if isinstance(content, np.ndarray) else {key: content[key] for key in content.files}
    except Exception as error:  # a damaged file may raise any exception
        cause = "it is no file of NumPy" if "pickle" in str(error) else error  # numpy advises to unpickle anything
        raise DamagedRecording(f"it is no file of plain arrays, or damaged: {cause}") from error
    if FRAMES in arrays or (len(arrays) == 1 and next(iter(arrays.values())).ndim == 4):
        return arrays[FRAMES] if FRAMES in arrays else next(iter(arrays.values()))
    structured = [array for array in arrays.values() if array.dtype.names]
    if len(structured) == 1:
        array = structured[0].reshape(-1)
        arrays = {field: array[field] for field in array.dtype.names or ()}
    fields = _fields(arrays)
    if fields is None:
        found = ", ".join(f"{key or 'an array'} {array.dtype} {list(array.shape)}" for key, array in arrays.items())
        raise InputError(f"{name} holds no events: it has {found or 'nothing'}", hint=EXPECTED_FIELDS)
    return checked_events(fields)


def _fields(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    """Return t, x, y and p by those names; None where one is missing or there are two for it."""
    fields: dict[str, np.ndarray] = {}
    for field, names in FIELD_NAMES.items():
        matching = [array for key, array in arrays.items() if key.lower() in names]
        if len(matching) != 1:
            return None
        fields[field] = matching[0]
    return fields
