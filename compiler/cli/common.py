"""Steps that the commands share: logging, loading the model, loading the images."""

from __future__ import annotations

import gc
import logging
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from svitc.cli import terminal
from svitc.cli.image_options import PreparationOptions
from svitc.cli.options import LoadOptions
from svitc.errors import UsageError

if TYPE_CHECKING:
    from svitc.data.dataset import Dataset
    from svitc.ir.program import Program
    from svitc.support.reporter import Reporter

_Preparation = TypeVar("_Preparation", bound=PreparationOptions)
state: dict[str, bool] = {"verbose": False}
arguments: list[str] = []  # of the command that runs, for its report
# New objects before Python looks for cycles among them, and how often it looks at older ones. Most of a command's
# objects, modules and graphs, live to its end: with Python's own numbers a tenth of an int8 compilation is looking.
COLLECT_AFTER = (50_000, 20, 50)


def start(verbose: bool) -> None:
    """Set up logging for a command; ``verbose`` logs each stage and makes errors show their tracebacks."""
    if verbose:
        state["verbose"] = True
    gc.set_threshold(*COLLECT_AFTER)
    warnings.filterwarnings("ignore", module="PIL")  # of large pictures and palettes: notes and errors tell
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("svitc").setLevel(logging.DEBUG if verbose else logging.WARNING)
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # "Triton not available", on every CPU build
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # svitc reports shape errors itself


def load_program(path: Path, options: LoadOptions, reporter: Reporter) -> Program:
    """Load a checkpoint or an output folder with the options of the command line."""
    from svitc.driver.load import load

    return load(path, reporter=reporter, **options.arguments())


def declared(program: Program, options: _Preparation) -> _Preparation:
    """Note how images are normalized in a program that normalizes them itself, whoever reads them.

    Args:
        program: its ``info`` is updated where ``--mean`` and ``--std`` are given.
        options: the options that turn images into inputs.

    Returns:
        The options without the two, as the program has them now.

    Raises:
        UsageError: ``--mean`` and ``--std`` are malformed.
    """
    normalization = options.normalization(program.input.shape[-3])
    if normalization is None:
        return options
    program.info["normalize"] = normalization
    return replace(options, mean=None, std=None)


def load_images(
    path: Path | None,
    program: Program,
    limit: int | None,
    seed: int,
    preparation: PreparationOptions,
    unlabeled: bool = False,
) -> Dataset | None:
    """Load the images of ``--data`` or ``--train-data`` in the program's input format.

    Args:
        path: value of the option; None if it was not used.
        program: its input shape and its ``info`` (classes, normalization) are used; ``info`` is updated.
        limit: size of the sample; None for all images.
        seed: seed of the sample.
        preparation: the options that turn images into inputs.
        unlabeled: whether to ignore labels.

    Returns:
        The dataset, or None without a path.

    Raises:
        UsageError: ``--mean`` and ``--std`` are malformed, or ``path`` names a factory, which normalizes by itself.
    """
    if path is None:
        return None
    from svitc.data.dataset import Reading, is_factory, load_data
    from svitc.data.normalization import normalization_remark

    normalization = preparation.normalization(program.input.shape[-3])
    if normalization is not None:
        if is_factory(path):
            raise UsageError(
                f"--mean and --std do not apply to {path}: a factory yields images as the model takes them"
            )
        program.info["normalize"] = normalization
    elif program.info.get("normalize") is None and not program.input.events and not is_factory(path):
        notes: list[str] = program.info.setdefault("assumptions", [])
        # The spelling is part of the file format: output folders of 0.1.0 hold this sentence, which is noted once.
        note = "images are only scaled to [0, 1], as nothing says how they are normalized; give --mean and --std"
        if note not in notes:
            notes.append(note)
    images = load_data(
        path,
        program.input,
        program.info,
        limit=limit,
        seed=seed,
        reading=Reading(preparation.resize, preparation.crop, unlabeled, preparation.event_options()),
    )
    wrong = None if program.input.events else normalization_remark(images.source, images.mean, images.std)
    if wrong is not None:
        terminal.warning(wrong)
    return images


def unfinished_file(out: Path, suffix: str) -> Path:
    """Return the path of the file with a run's unfinished work, such as ``svitc-out.sweep.jsonl``."""
    return out.parent / f"{out.name}.{suffix}"
