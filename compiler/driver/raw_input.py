"""Files that take the bytes of camera frames (``--raw-input``): when they can be written, and what they are."""

from __future__ import annotations

from svitc.data.arrays import Arrays
from svitc.data.dataset import Dataset
from svitc.data.image_files import ImageFiles
from svitc.data.pixels import pixel_table
from svitc.driver.options import CompileOptions
from svitc.errors import UsageError
from svitc.ir.program import Program
from svitc.onnx.raw_input import with_raw_input
from svitc.support.reporter import Reporter

PICTURE_CHANNELS = (1, 3)  # gray, RGB


def check_takes_bytes(program: Program, options: CompileOptions) -> None:
    """Check that a file can take bytes where the options ask for it.

    Raises:
        UsageError: the model takes no pictures, or nothing tells how they are normalized.
    """
    if not options.raw_input:
        return
    channels = program.input.shape[-3]
    if program.input.events:
        raise UsageError(
            "raw input is of images, but the model takes event frames, which are counts already",
            hint="Leave out --raw-input.",
        )
    if channels not in PICTURE_CHANNELS:
        raise UsageError(
            f"raw input is of gray or RGB images, but the model takes {channels} channels",
            hint="Leave out --raw-input, and normalize them as docs/file.md says.",
        )
    if program.info.get("normalize"):
        return
    for data in (options.data, options.train_data):
        if data is not None and not (isinstance(data, Dataset) and isinstance(data.source, ImageFiles | Arrays)):
            name = data.name if isinstance(data, Dataset) else f"your {type(data).__name__}"
            raise UsageError(
                f"{name} normalizes images itself, and raw input needs to know how",
                hint="Give --mean and --std, in units of pixels from 0 to 1: 0 and 1 if they are only scaled to that.",
            )


def as_asked(program: Program, file: bytes, options: CompileOptions) -> bytes:
    """Return a file that takes bytes where the options ask for it; else the file itself."""
    if not options.raw_input:
        return file
    return with_raw_input(file, pixel_table(program.info, program.input.shape[-3]))


def explain(program: Program, options: CompileOptions, reporter: Reporter) -> None:
    """Report what a file that takes bytes assumes of them."""
    if not options.raw_input:
        return
    data = options.data
    if isinstance(data, Dataset) and isinstance(data.source, Arrays) and not data.source.holds_bytes():
        reporter.decide(
            f"{data.name} has pixels between those of bytes: what is measured on them is not what the file computes of "
            "the nearest bytes; data of 8 bits measure that"
        )
    if not program.info.get("normalize"):
        reporter.decide("nothing says how images are normalized: the file scales bytes to [0, 1], and no more")


__all__ = ["as_asked", "check_takes_bytes", "explain"]
