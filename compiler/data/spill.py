"""Keep images that can be read only once: in memory up to a bound, the others in a temporary file."""

from __future__ import annotations

import os
import tempfile
from typing import IO

import numpy as np
import torch

from svitc.data.sources import Source
from svitc.errors import InputError

MEMORY_BYTES = 2_000_000_000  # held before the disk is used


class Spill(Source):
    """float32 images of one shape, kept in numbered slots.

    Args:
        name: What messages call the data.

    Attributes:
        slots: Slot of each image, in the order that ``fetch`` counts them.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.slots: list[int] = []
        self._held: dict[int, np.ndarray] = {}
        self._file: IO[bytes] | None = None
        self._shape: tuple[int, ...] = ()
        self._bytes = 0

    def put(self, slot: int, image: torch.Tensor) -> None:
        """Put an image into a slot, in place of the one there. Raises InputError where the disk is full."""
        # a copy: the loader may reuse its memory, and a view would keep its whole batch
        array = np.array(image.numpy(), dtype=np.float32, order="C")
        self._shape, self._bytes = array.shape, array.nbytes
        if (slot + 1) * self._bytes <= MEMORY_BYTES:
            self._held[slot] = array
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="svitc-data-")  # noqa: SIM115 - as long as the data
            self._file.seek(slot * self._bytes)
            self._file.write(array.tobytes())
            self._file.flush()
        except OSError as error:
            raise InputError(
                f"{self.name} gives more than fits into {MEMORY_BYTES // 10**9} GB of memory"
                f" and {tempfile.gettempdir()}: {error.strerror or error}",
                hint="Take a sample with --limit, or set TMPDIR to a larger disk.",
            ) from error

    def fetch(self, index: int) -> np.ndarray:
        slot = self.slots[index]
        if slot in self._held:
            return self._held[slot]
        assert self._file is not None
        # pread takes the offset: threads would disturb each other at a shared position
        data = os.pread(self._file.fileno(), self._bytes, slot * self._bytes)
        return np.frombuffer(data, dtype=np.float32).reshape(self._shape)

    def collate(self, frames: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack(frames))

    def fingerprint(self, index: int) -> bytes:
        return self.fetch(index).tobytes()
