"""The line of a user's model that an operation or an error comes from."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import FrameType

import einops
import spikingjelly
import torch

import svitc.frontends

# Files whose frames only pass a call on: the line to show is that of their caller in the user's code.
FRAMEWORK_PATHS = (
    *(str(Path(str(package.__file__)).parent) + os.sep for package in (torch, einops)),
    *(
        str(Path(str(spikingjelly.__file__)).parent / "activation_based" / part)
        for part in ("layer/container.py", "layer/stateless_wrapper.py", "functional/forward.py", "base.py")
    ),
    *(str(Path(str(package.__file__)).parent) + os.sep for package in (svitc, svitc.frontends)),
)
_LIBRARIES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_CAPTURE = str(Path(__file__).parent / "capture.py")


def is_user_code(file: str) -> bool:
    """Return whether a file is neither part of a framework nor generated."""
    return not file.startswith(FRAMEWORK_PATHS) and not file.startswith("<")


def innermost(places: list[tuple[str, int]]) -> str | None:
    """Return ``file.py:line`` of the last place in the model's own code; in a library's where there is no other."""
    own = [place for place in places if is_user_code(place[0])]
    best = [place for place in own if not any(part in place[0] for part in _LIBRARIES)] or own
    return f"{best[-1][0]}:{best[-1][1]}" if best else None


def user_line() -> str | None:
    """Return ``file.py:line`` of the innermost frame of the model's own code."""
    frame: FrameType | None = sys._getframe(1)
    places: list[tuple[str, int]] = []
    while frame is not None and frame.f_code.co_filename != _CAPTURE:  # further out is who called ``capture``
        places.insert(0, (frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return innermost(places)


def raised_at(error: BaseException) -> str | None:
    """Return ``file.py:line`` of the innermost frame of the model's own code that an error passed through."""
    places, trace = [], error.__traceback__
    while trace is not None:
        places.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    return innermost(places)
