"""Finished measurements on disk, so that ``--resume`` measures no plan twice."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from svitc.errors import InputError, OutputError
from svitc.evaluation.evaluator import Measurement
from svitc.ir.program import Program
from svitc.planning.plan import Plan
from svitc.support.json_text import parse_json
from svitc.support.types import JsonDict

FORMAT = "svitc-sweep-2"  # 2: measurements have a regret
CHECKSUM = "crc32"  # key of a line; files of 0.1.0 have none


def fingerprint(program: Program, *more: object) -> str:
    """Return a digest of a program, its weights and all else that a measurement depends on.

    Args:
        program: the program that is measured.
        more: JSON values, such as the fingerprint of the images and the settings.
    """
    digest = hashlib.sha256()
    for node in program.graph.nodes:  # time steps, heads and thresholds, which are not among the weights
        name = getattr(node.target, "__name__", node.target)
        digest.update(f"{node.name} {name} {node.args} {node.kwargs} {program.shape_of(node)}".encode())
        digest.update(repr(program.module_of(node)).encode())
    for name, value in sorted(program.module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    digest.update(json.dumps(more, sort_keys=True).encode())
    return digest.hexdigest()


class Store:
    """Finished measurements in a file of JSON lines; the first line identifies model, images and settings.

    Args:
        path: the file; None keeps measurements in memory only.
        subject: fingerprint of the model, the images and the settings.
        resume: keep the measurements that the file holds; otherwise the first new one overwrites the file.

    Attributes:
        points: key of a plan (``key_of``) -> its measurement.

    Raises:
        InputError: the file holds measurements of another model, other images or other settings.
        OutputError: the file cannot be written, or not be cut off where it is damaged.
    """

    def __init__(self, path: Path | None, subject: str, resume: bool = False) -> None:
        self.path = path
        self.points: dict[str, Measurement] = {}
        self._head = json.dumps({"format": FORMAT, "of": subject}) + "\n"  # empty once it is written
        if path is not None and resume and path.is_file():
            self._read(path, subject)

    def _read(self, path: Path, subject: str) -> None:
        """Read the measurements of a file up to a line that is incomplete or damaged, and cut it off from there."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        if self._head.encode().startswith(content) and not content.endswith(b"\n"):
            return  # killed, or the disk was full, in its first line: begun anew
        lines = content.split(b"\n")[:-1]  # a last line without a line feed is incomplete: the process was killed
        try:
            head = parse_json(lines[0].decode()) if lines else {}
        except ValueError:
            head = {}
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise InputError(f"{path} holds no points of a sweep", hint="Remove it, or leave --resume out.")
        if head.get("of") != subject:
            raise InputError(
                f"{path} is of another model, other images or other settings",
                hint="Leave --resume out to begin anew, or give the same command as before.",
            )
        valid_bytes = len(lines[0]) + 1
        for line in lines[1:]:
            try:
                entry = parse_json(line.decode())
                if entry.pop(CHECKSUM, None) not in (None, _checksum(entry)):
                    break
                self.points[str(entry["key"])] = Measurement.from_fields(entry["point"])
            except (ValueError, KeyError, TypeError, AttributeError):
                break
            valid_bytes += len(line) + 1
        self._head = ""
        if valid_bytes < len(content):
            with self._writing("r+b") as file:
                file.truncate(valid_bytes)

    def add(self, key: str, point: Measurement, about: JsonDict) -> None:
        """Add a measurement and write it to the disk.

        Args:
            key: key of the plan, as ``key_of`` returns it.
            point: the measurement.
            about: further keys of its line, for readers of the file.

        Raises:
            OutputError: the file cannot be written.
        """
        self.points[key] = point
        if self.path is not None:
            with self._writing("wb" if self._head else "ab") as file:
                entry = {"key": key, "point": point.fields(), **about}
                file.write((self._head + json.dumps({**entry, CHECKSUM: _checksum(entry)}) + "\n").encode())
                file.flush()
                os.fsync(file.fileno())
            self._head = ""

    @contextlib.contextmanager
    def _writing(self, mode: str) -> Iterator[BinaryIO]:
        """Open the file to write. Raises OutputError where that is not possible, now or in the ``with`` statement."""
        assert self.path is not None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open(mode) as file:
                yield file  # type: ignore[misc]
        except OSError as error:
            raise OutputError(
                f"cannot write {self.path}: {error.strerror}", hint="Free space, then --resume."
            ) from error


def _checksum(entry: JsonDict) -> str:
    """Return the checksum of a line, without which a flipped bit could pass as another number."""
    return f"{zlib.crc32(json.dumps(entry).encode()):08x}"


def key_of(plan: Plan, refit: str) -> str:
    """Return the key of a measurement: a digest of the masks that remove something, the bits, ranks and refit."""
    digest = hashlib.sha256(refit.encode())
    if plan.ranks:
        digest.update(json.dumps({"ranks": plan.ranks}, sort_keys=True).encode())
    if plan.bits:
        digest.update(json.dumps(plan.bits, sort_keys=True).encode())
    for name in sorted(plan.keep):
        if not plan.keep[name].all():
            digest.update(name.encode() + np.packbits(plan.keep[name]).tobytes())
    return digest.hexdigest()[:24]
