"""The option groups that more than one command has, with their help and their checks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from svitc.errors import UsageError

SOURCE_PANEL = "Where the model comes from"
PRUNING_PANEL = "What is removed"
SWEEP_PANEL = "How plans are measured"
TRAINING_PANEL = "Fine-tuning"

RENAMED = {"narrowest": "min-weight-bits", "clean": "remove-dead-channels", "fix": "rewrite-model"}
"""Options by the names that they once had, which are still accepted, without dashes."""


def current_name(option: str) -> str:
    """Return today's name of an option, as click passes names: without dashes."""
    return RENAMED.get(option, option)


ModelPath = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="A checkpoint (.pt, .pth), or an output folder of svitc.", show_default=False),
]
DataPath = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="PATH|MODULE:FACTORY",
        help="Labelled images: a folder of class folders, a .zip of one, an .npz with images and labels, or a factory "
        "of a DataLoader by name, which is run.",
    ),
]
Limit = Annotated[int | None, typer.Option(help="Use a class-balanced sample of this many images.")]
VerifyImages = Annotated[
    int,
    typer.Option("--verify-images", min=1, help="Images that verification looks at: from --data, else random."),
]
Criterion = Annotated[
    str | None,
    typer.Option(
        help="Which channels of a group go first: l2, l1, bn-scale, taylor, firing, reconstruction, random. "
        "By default the policy's own.",
        rich_help_panel=PRUNING_PANEL,
    ),
]
Refit = Annotated[
    str | None,
    typer.Option(
        help="What makes up for a cut, in closed form, on calibration images: none, batch-norm (statistics), readers "
        "(the weights behind it), full (both). By default the policy's own: full for auto, none "
        "for the published policies.",
        rich_help_panel=PRUNING_PANEL,
    ),
]


@dataclass(frozen=True)
class LoadOptions:
    """Where a model comes from; the fields of ``svitc.frontends.LoadOptions``, as typed."""

    arch: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FACTORY",
            help="Your model's factory, as an importable module or path/to/file.py:factory, unmodified. "
            "Needed where the weights do not tell.",
            rich_help_panel=SOURCE_PANEL,
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
            help="Mend a mistake in the model's own code that svitc refuses and names: time and batch run together by a "
            "neuron, as in QKFormer's attention. One image at a time gives the same as before.",
            rich_help_panel=SOURCE_PANEL,
        ),
    ] = False

    def arguments(self) -> dict[str, Any]:
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
        """
        Raises:
            UsageError: ``--arch-args`` or ``--input-shape`` is malformed.
        """
        self.arguments()

    def check_unused(self) -> None:
        """
        Raises:
            UsageError: an option is set, though there is no model that it could be about.
        """
        if any(value not in (None, False) for value in self.arguments().values()):
            raise UsageError("options on where the model comes from need a model", hint="Give it with --against.")


@dataclass(frozen=True)
class PreparationOptions:
    """How images become inputs."""

    mean: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B", help="Mean of each channel of --data, of values in [0, 1]; else the checkpoint's."
        ),
    ] = None
    std: Annotated[str | None, typer.Option(metavar="R,G,B", help="Standard deviation of each channel, likewise.")] = (
        None
    )
    resize: Annotated[
        int | None, typer.Option(min=1, help="Scale the shorter side of each image to this first, as for ImageNet.")
    ] = None
    crop: Annotated[
        int | None, typer.Option(min=1, help="Cut a square of this side from the centre; by default the model's input.")
    ] = None

    def normalization(self, channels: int) -> dict[str, list[float]] | None:
        """Return ``mean`` and ``std``, one number a channel; None where they are not set.

        Raises:
            UsageError: they are not numbers, not as many as channels, or one is there without the other.
        """
        if (self.mean is None) != (self.std is None):
            raise UsageError("--mean and --std go together")
        if self.mean is None or self.std is None:
            return None
        values = {"mean": parse_floats("--mean", self.mean), "std": parse_floats("--std", self.std)}
        if {len(numbers) for numbers in values.values()} != {channels} or min(values["std"]) <= 0:
            raise UsageError(f"--mean and --std must be {channels} numbers each, one a channel, --std above 0")
        return values


@dataclass(frozen=True)
class DataOptions(PreparationOptions):
    """Labelled images, and how they become inputs."""

    data: DataPath = None
    limit: Limit = None


@dataclass(frozen=True)
class SweepOptions:
    """How plans are measured."""

    sweep_images: Annotated[
        int,
        typer.Option(
            min=1, help="Choose plans on a class-balanced sample of this many images.", rich_help_panel=SWEEP_PANEL
        ),
    ] = 1000
    calibration_images: Annotated[
        int, typer.Option(min=1, help="Criteria and refits look at this many others.", rich_help_panel=SWEEP_PANEL)
    ] = 256
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on after a kill: finished measurements and epochs are on disk beside --out.",
            rich_help_panel=SWEEP_PANEL,
        ),
    ] = False


@dataclass(frozen=True)
class PruningOptions:
    """Which channels may go, and what makes up for them."""

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


@dataclass(frozen=True)
class OutputOptions:
    """What a command prints."""

    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON on stdout and nothing else there.")
    ] = False
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log each stage on stderr; show tracebacks.")] = False

    @property
    def quiet(self) -> bool:
        """Whether progress and decisions are not shown: JSON stands alone, and the log says the same."""
        return self.as_json or self.verbose


@dataclass(frozen=True)
class RunOptions(OutputOptions):
    """The seed of a run, and what it prints."""

    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0


@dataclass(frozen=True)
class VerifiedRunOptions(RunOptions):
    """How much is verified, the seed of a run, and what it prints."""

    verify_images: VerifyImages = 4


def parse_shape(text: str | None) -> tuple[int, ...] | None:
    """Parse ``--input-shape``: three or four positive numbers.

    Raises:
        UsageError: it is something else.
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


def parse_floats(flag: str, text: str) -> list[float]:
    """Parse numbers with commas between.

    Raises:
        UsageError: one of them is no number; ``flag`` names the option.
    """
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{flag} {text!r} is not a list of numbers", hint="For example 0.485,0.456,0.406.") from None


def parse_json_object(text: str | None) -> dict[str, Any] | None:
    """Parse ``--arch-args``.

    Raises:
        UsageError: it is not a JSON object.
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
