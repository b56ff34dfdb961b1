"""Finished measurements on disk, so that ``--resume`` never measures a plan twice."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from svitc.errors import InputError, OutputError
from svitc.evaluation.evaluator import Measurement
from svitc.ir.program import Program
from svitc.planning.plan import Plan

FORMAT = "svitc-sweep-1"


def fingerprint(program: Program, *more: Any) -> str:
    """A digest of a program, its weights and whatever else decides a measurement."""
    digest = hashlib.sha256()
    for node in program.graph.nodes:  # time steps, heads, thresholds: what weights do not tell
        called = getattr(node.target, "__name__", node.target)
        digest.update(f"{node.name} {called} {node.args} {node.kwargs} {program.shape_of(node)}".encode())
        digest.update(repr(program.module_of(node)).encode())
    for name, value in sorted(program.module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    digest.update(json.dumps(more, sort_keys=True).encode())
    return digest.hexdigest()


class Store:
    """Finished points in a file, one JSON line each, the first line saying of what.

    Args:
        path: the file; None keeps points in memory only.
        of: fingerprint of the model, the images and the settings.
        resume: go on with what the file holds; else the first new point begins it anew.

    Raises:
        InputError: the file is of another model, other images or other settings.
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path | None, of: str, resume: bool = False) -> None:
        self.path, self.points = path, {}  # type: ignore[var-annotated]
        self._head = json.dumps({"format": FORMAT, "of": of}) + "\n"  # still to be written
        if path is not None and resume and path.is_file() and path.stat().st_size:
            self._read(path, of)
            self._head = ""

    def _read(self, path: Path, of: str) -> None:
        try:
            whole = path.read_text(errors="replace")
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        lines = whole.split("\n")[:-1]  # what does not end in a new line was cut short by a kill
        try:
            head = json.loads(lines[0]) if lines else {}
        except json.JSONDecodeError:
            head = {}
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise InputError(f"{path} holds no points of a sweep", hint="Remove it, or leave --resume out.")
        if head.get("of") != of:
            raise InputError(
                f"{path} is of another model, other images or other settings",
                hint="Leave --resume out to begin anew, or give the same command as before.",
            )
        good = len(lines[0]) + 1
        for line in lines[1:]:
            try:
                entry = json.loads(line)
                self.points[entry["key"]] = Measurement(**entry["point"])
            except (json.JSONDecodeError, KeyError, TypeError):
                break
            good += len(line) + 1
        if good < len(whole):
            with path.open("r+") as file:
                file.truncate(good)

    def add(self, key: str, point: Measurement, about: dict[str, Any]) -> None:
        self.points[key] = point
        if self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("w" if self._head else "a") as file:
                    file.write(self._head + json.dumps({"key": key, "point": asdict(point), **about}) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                self._head = ""
            except OSError as error:
                raise OutputError(
                    f"cannot write {self.path}: {error.strerror}", hint="Free space, then --resume."
                ) from error


def key_of(plan: Plan, refit: str) -> str:
    """Of what is measured: masks that remove something, bits, and the refit."""
    digest = hashlib.sha256(refit.encode())
    if plan.bits:
        digest.update(json.dumps(plan.bits, sort_keys=True).encode())
    for name in sorted(plan.keep):
        if not plan.keep[name].all():
            digest.update(name.encode() + np.packbits(plan.keep[name]).tobytes())
    return digest.hexdigest()[:24]
