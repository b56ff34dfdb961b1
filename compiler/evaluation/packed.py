"""Spikes in memory, one bit each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


class Packed:
    """A spike tensor, stored as bits, or as bytes where a neuron may emit several spikes in one time step.

    Args:
        values: whole numbers from 0 to 255, of any shape.
    """

    def __init__(self, values: np.ndarray) -> None:
        self.shape, self.binary = values.shape, bool(((values == 0) | (values == 1)).all())
        small = values.astype(np.uint8)
        assert self.binary or (small == values).all()
        self.data = np.packbits(small.reshape(-1)) if self.binary else small.reshape(-1)

    def unpack(self, part_of: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
        """Return the tensor in float32, or a part of it.

        Args:
            part_of: takes the tensor in uint8, and returns what is wanted of it.
        """
        flat = np.unpackbits(self.data, count=int(np.prod(self.shape))) if self.binary else self.data
        values = flat.reshape(self.shape)
        return (values if part_of is None else part_of(values)).astype(np.float32)
