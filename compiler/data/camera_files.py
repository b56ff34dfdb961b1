"""Files that event cameras write, read with the package faery.

faery runs in a process of its own: a damaged AEDAT4 file can make it end the process that it runs in.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

from svitc.data.event_frames import DamagedRecording, Events, checked_events
from svitc.errors import InputError

CAMERA_FILES = {".aedat4": "aedat", ".dat": "dat", ".raw": "evt"}  # suffix -> faery's word for it
UNKNOWN_SIDE = 65535  # pixels: what faery is to say where a header has no size; no camera is that large
ENDS_EARLY = ("failed to fill whole buffer", "is out of bounds")  # Rust's words in faery's errors
HEADER_LINE_BYTES = 1 << 16
DAT_TYPE_BYTES = 2  # the kind and the size of events, between the header and the events
DAT_EVENT_BYTES = 8
RAW_WORD_BYTES = {"evt2": 4, "evt2.1": 8, "evt3": 2}


class CameraReader:
    """A process that reads files with faery, one after another; started at the first, and again where it has died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def read(self, path: Path, kind: str) -> tuple[np.ndarray, int, int]:
        """Return the events of a file, and width and height of the sensor.

        Args:
            kind: faery's word for the format.

        Raises:
            DamagedRecording: faery cannot read it.
        """
        requests, answers = self._pipes()
        try:
            requests.write(json.dumps([os.fspath(path.resolve()), kind]).encode() + b"\n")
            requests.flush()
            answer = json.loads(answers.readline())
            if "error" in answer:
                raise DamagedRecording(_cause(answer["error"]))
            events = np.load(io.BytesIO(answers.read(answer["bytes"])), allow_pickle=False)
            return events, answer["width"], answer["height"]
        except (OSError, ValueError, EOFError) as error:
            self.close()
            raise DamagedRecording("faery crashed on it: it is damaged") from error

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # a request that a dead process has not read
                    pipe.close()
        self._process.kill()
        self._process.wait()
        self._process = None

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        if self._process is None:
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.camera_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # where Rust writes its panics
                env=environment,
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        return self._process.stdin, self._process.stdout


_reader = CameraReader()
atexit.register(_reader.close)


def read_camera_file(name: str, path: Path) -> Events:
    """Return the events of an AEDAT4 file, or of a Prophesee .dat or .raw (EVT 2.0, 2.1 or 3.0).

    Args:
        name: What messages call it; its suffix tells the format.

    Raises:
        InputError: The package that reads it is not installed.
        DamagedRecording: The file is damaged, or its events are.
    """
    if importlib.util.find_spec("faery") is None:
        raise InputError(
            f"{name}: the package that reads {', '.join(CAMERA_FILES)} is not installed",
            hint="pip install faery, or svitc[events].",
        )
    if not path.stat().st_size:
        raise DamagedRecording("the file is empty")
    events, width, height = _reader.read(path, CAMERA_FILES[PurePosixPath(name).suffix.lower()])
    _check_whole(path)
    known = (width, height) != (UNKNOWN_SIDE, UNKNOWN_SIDE)
    fields = {"t": events["t"], "x": events["x"], "y": events["y"], "p": events["on"]}
    return checked_events(fields, (height, width) if known else None)


def _cause(error: str) -> str:
    """Return in words why faery cannot read a file."""
    early = any(words in error for words in ENDS_EARLY)
    return f"{'it is truncated or damaged' if early else 'faery cannot read it'}: {error.strip()}"


def _check_whole(path: Path) -> None:
    """Check that a .dat or .raw ends with a whole event. faery passes over the rest; a cut between events is unseen.

    Raises:
        DamagedRecording: It does not.
    """
    suffix = path.suffix.lower()
    if suffix not in (".dat", ".raw"):
        return
    header = bytearray()
    with path.open("rb") as file:
        line = file.readline(HEADER_LINE_BYTES)
        while line.startswith(b"% "):
            header += line
            if line.rstrip() == b"% end":
                break
            line = file.readline(HEADER_LINE_BYTES)
    size = path.stat().st_size - len(header)
    if suffix == ".dat":
        rest = (size - DAT_TYPE_BYTES) % DAT_EVENT_BYTES
    else:
        words = bytes(header).lower().replace(b" ", b"")
        version = "evt2.1" if b"evt2.1" in words or b"evt21" in words else "evt2" if b"evt2" in words else "evt3"
        rest = size % RAW_WORD_BYTES[version]
    if rest:
        raise DamagedRecording(f"it is truncated: it ends with {rest} bytes of an event")
