"""What the commands share: the application, its start, and what they make of their options."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from svitc.errors import UsageError

EPILOG = (
    "Exit status: 0 done, 2 usage, 3 bad input file, 4 unsupported model, 5 budget cannot be met, "
    "6 verification failed, 7 output cannot be written, 70 internal error, 130 interrupted."
)
app = typer.Typer(
    help="Compile spiking vision transformers: prune them to a memory budget and export ONNX that runs on stock "
    "runtimes.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def start(verbose: bool) -> None:
    if verbose:
        state["verbose"] = True
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("svitc").setLevel(logging.DEBUG if verbose else logging.WARNING)
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # "Triton not available", on every CPU build
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # we say what does not fit


state: dict[str, bool] = {"verbose": False}


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if len(shape) not in (3, 4) or min(shape, default=0) < 1:
        raise UsageError(
            f"--input-shape {text!r} is not a shape",
            hint="Give C,H,W such as 3,224,224, or T,C,H,W for event frames.",
        )
    return shape


def _floats(flag: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{flag} {text!r} is not a list of numbers", hint="For example 0.485,0.456,0.406.") from None


def _json_object(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as problem:
        raise UsageError(
            f"--arch-args is not JSON: {problem}", hint="For example --arch-args '{\"embed_dims\": 384}'."
        ) from problem
    if not isinstance(value, dict):
        raise UsageError("--arch-args is not a JSON object", hint="For example --arch-args '{\"embed_dims\": 384}'.")
    return value


def options(
    arch: str | None,
    arch_args: str | None,
    input_shape: str | None,
    time_steps: int | None,
    trust_pickle: bool,
    ema: bool,
    fix: bool,
) -> dict[str, Any]:
    return {
        "arch": arch,
        "arch_args": _json_object(arch_args),
        "input_shape": _numbers(input_shape),
        "time_steps": time_steps,
        "trust_pickle": trust_pickle,
        "ema": ema,
        "rewrite_model": fix,
    }


@dataclass(frozen=True)
class Preparation:
    """How images become inputs: ``--mean``, ``--std``, ``--resize``, ``--crop``, as given."""

    mean: str | None = None
    std: str | None = None
    resize: int | None = None
    crop: int | None = None


def load_labelled(path: Path | None, program: Any, limit: int | None, seed: int, how: Preparation) -> Any:
    """The images of ``--data`` or ``--train-data``; None where there are none."""
    if path is None:
        return None
    from svitc.data.dataset import is_factory, load_data

    mean, std = how.mean, how.std

    if (mean is None) != (std is None):
        raise UsageError("--mean and --std go together")
    if mean is not None and std is not None:
        given = {"mean": _floats("--mean", mean), "std": _floats("--std", std)}
        channels = program.input.shape[-3]
        if {len(values) for values in given.values()} != {channels} or min(given["std"]) <= 0:
            raise UsageError(f"--mean and --std must be {channels} numbers each, one a channel, --std above 0")
        if is_factory(path):
            raise UsageError(f"--mean and --std do not apply to {path}: a factory gives images as the model takes them")
        program.info["normalize"] = given
    elif program.info.get("normalize") is None and not is_factory(path):
        notes = program.info.setdefault("assumptions", [])
        note = "images are only scaled to [0, 1], as nothing says how they are normalised; give --mean and --std"
        if note not in notes:
            notes.append(note)
    return load_data(path, program.input, program.info, limit=limit, seed=seed, resize=how.resize, crop=how.crop)
