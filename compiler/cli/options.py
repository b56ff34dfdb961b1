"""The option groups that several commands share, with their help texts and their checks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from svitc.errors import UsageError
from svitc.support.names import check_exists
from svitc.support.types import JsonDict

SOURCE_PANEL = "Where the model comes from"
PRUNING_PANEL = "What is removed"
SWEEP_PANEL = "How plans are measured"

RENAMED = {"narrowest": "min-weight-bits", "clean": "remove-dead-channels", "fix": "rewrite-model"}
"""Former names of options, which are still accepted, and their current names; without the leading dashes."""


def current_name(option: str) -> str:
    """Return the current name of an option; click passes names without the leading dashes."""
    return RENAMED.get(option, option)


ModelPath = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="A checkpoint (.pt, .pth), or an output folder of svitc.",
        show_default=False,
        callback=check_exists,  # before torch is imported, which takes seconds
    ),
]
VerifyImages = Annotated[
    int,
    typer.Option("--verify-images", min=1, help="Images that verification looks at: from --data, else random."),
]
Criterion = Annotated[
    str | None,
    typer.Option(
        help="Which channels of a group are removed first: l2, l1, bn-scale, taylor, firing, reconstruction, random. "
        "By default the policy's own.",
        rich_help_panel=PRUNING_PANEL,
    ),
]
Refit = Annotated[
    str | None,
    typer.Option(
        help="How to compensate for removed channels, in closed form, on calibration images: none, batch-norm "
        "(statistics), readers (weights of the layers that read them), full (both). By default the policy's own: full "
        "for auto, none for the published policies.",
        rich_help_panel=PRUNING_PANEL,
    ),
]


@dataclass(frozen=True, eq=False, repr=False)
class LoadOptions:
    """Where the model comes from: the fields of ``svitc.frontends.LoadOptions``, as the user typed them."""

    arch: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FACTORY",
            help="Your model's factory, as an importable module or path/to/file.py:factory, unmodified. "
            "Needed where the weights do not show the family.",
        ),
    ] = None
    arch_args: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="Arguments of the factory, such as '{\"embed_dims\": 384}'; they override the checkpoint's.",
            rich_help_panel=SOURCE_PANEL,
        ),
    ] = None
    input_shape: Annotated[
        str | None,
        typer.Option(
            metavar="C,H,W",
            help="Input without batch: C,H,W for images, T,C,H,W for event frames.",
            rich_help_panel=SOURCE_PANEL,
        ),
    ] = None
    time_steps: Annotated[
        int | None,
        typer.Option(
            "--time-steps",
            "-T",
            help="Number of time steps for static images, where the checkpoint does not say.",
            rich_help_panel=SOURCE_PANEL,
        ),
    ] = None
    trust_pickle: Annotated[
        bool,
        typer.Option(
            "--trust-pickle",
            help="Unpickle a whole nn.Module. [red]This runs code from the file[/]: only for files that you made.",
            rich_help_panel=SOURCE_PANEL,
        ),
    ] = False
    ema: Annotated[
        bool,
        typer.Option(
            "--ema",
            help="Take the averaged weights (EMA) that the training script saved beside the last ones.",
            rich_help_panel=SOURCE_PANEL,
        ),
    ] = False
    rewrite_model: Annotated[
        bool,
        typer.Option(
            "--rewrite-model",
            help="Fix a mistake in the model's own code that svitc otherwise refuses: a neuron that runs time and "
            "batch together, as in QKFormer's attention. One image at a time gives the same result as before.",
            rich_help_panel=SOURCE_PANEL,
        ),
    ] = False

    def arguments(self) -> JsonDict:
        """Return the keyword arguments of ``svitc.load``.

        Raises:
            UsageError: ``--arch-args`` or ``--input-shape`` is malformed.
        """
        return {
            "arch": self.arch,
            "arch_args": parse_json_object(self.arch_args),
            "input_shape": parse_shape(self.input_shape),
            "time_steps": self.time_steps,
            "trust_pickle": self.trust_pickle,
            "ema": self.ema,
            "rewrite_model": self.rewrite_model,
        }

    def check(self) -> None:
        """Check the options before anything is loaded.

        Raises:
            UsageError: ``--arch-args`` or ``--input-shape`` is malformed.
        """
        self.arguments()

    def check_unused(self) -> None:
        """Check that no option is set, for a command without a model to load.

        Raises:
            UsageError: an option is set.
        """
        if any(value not in (None, False) for value in self.arguments().values()):
            raise UsageError("options that say how to load the model need a model", hint="Give it with --against.")


@dataclass(frozen=True, eq=False, repr=False)
class SweepOptions:
    """How plans are measured."""

    sweep_images: Annotated[
        int,
        typer.Option(min=1, help="Choose plans on a sample of this many images.", rich_help_panel=SWEEP_PANEL),
    ] = 1000
    calibration_images: Annotated[
        int, typer.Option(min=1, help="Criteria and refits use this many other images.", rich_help_panel=SWEEP_PANEL)
    ] = 256
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue an interrupted run: finished measurements and epochs are on disk beside --out.",
            rich_help_panel=SWEEP_PANEL,
        ),
    ] = False


@dataclass(frozen=True, eq=False, repr=False)
class PruningOptions:
    """Which channels may be removed, and how the network compensates for them."""

    criterion: Criterion = None
    refit: Refit = None
    include: Annotated[
        list[str] | None,
        typer.Option(
            help="Prune only groups whose name matches this glob; may be repeated.", rich_help_panel=PRUNING_PANEL
        ),
    ] = None
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave every layer that matches this glob as it is; may be repeated.", rich_help_panel=PRUNING_PANEL
        ),
    ] = None
    round_to: Annotated[
        int, typer.Option(min=1, help="Make widths multiples of this.", rich_help_panel=PRUNING_PANEL)
    ] = 1
    prune_heads: Annotated[
        bool,
        typer.Option(
            "--prune-heads",
            help="In attention remove whole heads, not dimensions of every head.",
            rich_help_panel=PRUNING_PANEL,
        ),
    ] = False


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """Parse ``--input-shape``: three or four positive numbers, separated by commas.

    Raises:
        UsageError: the text is not such a shape.
    """
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


def parse_floats(flag: str, text: str, example: str = "0.485,0.456,0.406") -> list[float]:
    """Parse numbers that are separated by commas.

    Args:
        flag: name of the option, for the message.
        text: value of the option.
        example: a valid value, for the message.

    Raises:
        UsageError: one of them is not a number.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{flag} {text!r} is not a list of numbers", hint=f"For example {example}.") from None


def parse_json_object(text: str | None) -> JsonDict | None:
    """Parse ``--arch-args``.

    Raises:
        UsageError: the text is not a JSON object.
    """
    if text is None:
        return None
    hint = "For example --arch-args '{\"embed_dims\": 384}'."
    try:
        value = json.loads(text)
    except json.JSONDecodeError as problem:
        raise UsageError(f"--arch-args is not JSON: {problem}", hint=hint) from problem
    if not isinstance(value, dict):
        raise UsageError("--arch-args is not a JSON object", hint=hint)
    return value
