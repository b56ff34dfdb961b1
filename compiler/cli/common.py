"""What the commands share: the start of a command, and what they make of their options."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svitc.cli.options import LoadOptions, PreparationOptions
from svitc.errors import UsageError

if TYPE_CHECKING:
    from svitc.data.dataset import Dataset
    from svitc.ir.program import Program
    from svitc.support.reporter import Reporter

state: dict[str, bool] = {"verbose": False}


def start(verbose: bool) -> None:
    """Set up the log of a command; ``verbose`` logs each stage, and lets errors show their tracebacks."""
    if verbose:
        state["verbose"] = True
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("svitc").setLevel(logging.DEBUG if verbose else logging.WARNING)
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # "Triton not available", on every CPU build
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # we say what does not fit


def load_program(path: Path, options: LoadOptions, reporter: Reporter) -> Program:
    """Load a checkpoint or an output folder as its options say."""
    from svitc.driver.load import load

    return load(path, reporter=reporter, **options.arguments())


def load_images(
    path: Path | None, program: Program, limit: int | None, seed: int, preparation: PreparationOptions
) -> Dataset | None:
    """Load the images of ``--data`` or ``--train-data`` as the program takes them; None where there are none.

    Raises:
        UsageError: ``--mean`` and ``--std`` do not fit.
    """
    if path is None:
        return None
    from svitc.data.dataset import is_factory, load_data

    normalization = preparation.normalization(program.input.shape[-3])
    if normalization is not None:
        if is_factory(path):
            raise UsageError(f"--mean and --std do not apply to {path}: a factory gives images as the model takes them")
        program.info["normalize"] = normalization
    elif program.info.get("normalize") is None and not is_factory(path):
        notes: list[Any] = program.info.setdefault("assumptions", [])
        note = "images are only scaled to [0, 1], as nothing says how they are normalised; give --mean and --std"
        if note not in notes:
            notes.append(note)
    return load_data(
        path, program.input, program.info, limit=limit, seed=seed, resize=preparation.resize, crop=preparation.crop
    )


def unfinished_file(out: Path, suffix: str) -> Path:
    """Return the path of a file with a run's unfinished work: ``svitc-out.sweep.jsonl``."""
    return out.parent / f"{out.name}.{suffix}"
