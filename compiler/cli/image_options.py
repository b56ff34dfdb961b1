"""The options of ``--data``: where images come from, and how they become inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from svitc.cli.options import parse_floats
from svitc.data.event_options import EventOptions, parse_event_options
from svitc.errors import UsageError

EVENTS_PANEL = "Recordings of events"
IMAGES_PANEL = "Images"


def images_exist(path: Path | None) -> Path | None:
    """Return the value of ``--data`` or ``--train-data`` if there is such a thing, before torch is imported.

    Raises:
        InputError: there is no such file or folder, or the folder is empty.
        UsageError: it names a factory in a file that does not exist.
    """
    if path is not None:
        from svitc.data.first_look import check_source

        check_source(path)
    return path


DataPath = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="PATH|FACTORY",
        help="Images. With labels: a folder of class folders, an .npz with images and labels. Without labels: any "
        "other folder, a list of files (.txt), an .npz with images alone. Or a .zip of a folder, or a DataLoader: "
        "module:factory, which is run. For event frames likewise, or recordings of events: .npy, .npz, .aedat4, .dat, "
        ".raw.",
        callback=images_exist,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(metavar="N", help="Use a sample of this many images, class-balanced where they have labels."),
]
Unlabeled = Annotated[
    bool,
    typer.Option(
        "--unlabeled",
        help="Ignore labels: take all images as they are, wherever they lie.",
        rich_help_panel=IMAGES_PANEL,
    ),
]


@dataclass(frozen=True, eq=False, repr=False)
class PreparationOptions:
    """How images become inputs."""

    mean: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B",
            help="Mean of each channel of --data, of values in [0, 1]; else the checkpoint's.",
            rich_help_panel=IMAGES_PANEL,
        ),
    ] = None
    std: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B",
            help="Standard deviation of each channel, likewise.",
            rich_help_panel=IMAGES_PANEL,
        ),
    ] = None
    resize: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="PIXELS",
            help="Scale the shorter side of each image to this first, as for ImageNet.",
            rich_help_panel=IMAGES_PANEL,
        ),
    ] = None
    crop: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="PIXELS",
            help="Cut a square of this side from the center; by default the model's input.",
            rich_help_panel=IMAGES_PANEL,
        ),
    ] = None
    split_by: Annotated[
        str | None,
        typer.Option(
            metavar="number|time",
            help="Frames of equal numbers of events (the default), or of equal time, as SpikingJelly divides them.",
            rich_help_panel=EVENTS_PANEL,
        ),
    ] = None
    sensor: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            help="Size of the sensor in pixels, where the file does not tell; by default the model's input.",
            rich_help_panel=EVENTS_PANEL,
        ),
    ] = None
    pool: Annotated[
        str | None,
        typer.Option(
            metavar="sum|mean",
            help="Where the sensor is larger than the model's input: blocks of pixels become their sum, or their mean.",
            rich_help_panel=EVENTS_PANEL,
        ),
    ] = None

    def event_options(self) -> EventOptions:
        """Return how recordings of events become frames. Raises UsageError for a malformed option."""
        return parse_event_options(self.split_by, self.sensor, self.pool)

    def normalization(self, channels: int) -> dict[str, list[float]] | None:
        """Return ``mean`` and ``std``, each with one number per channel; None where they are not set.

        Args:
            channels: channels of the model's input.

        Raises:
            UsageError: they are not numbers, there is not one per channel, or one is set without the other.
        """
        if (self.mean is None) != (self.std is None):
            raise UsageError("--mean and --std go together")
        if self.mean is None or self.std is None:
            return None
        values = {"mean": parse_floats("--mean", self.mean), "std": parse_floats("--std", self.std)}
        if {len(numbers) for numbers in values.values()} != {channels} or min(values["std"]) <= 0:
            raise UsageError(f"--mean and --std must be {channels} numbers each, one per channel, --std above 0")
        return values


@dataclass(frozen=True, eq=False, repr=False)
class DataOptions(PreparationOptions):
    """Images, and how they become inputs."""

    data: DataPath = None
    limit: Limit = None
    unlabeled: Unlabeled = False


def check_labels(path: Path | None, unlabeled: bool) -> None:
    """Check the labels of ``--data`` that can be looked at before a model is loaded.

    Args:
        path: value of the option; None if it was not used.
        unlabeled: whether labels are ignored.

    Raises:
        InputError: an .npz has not one label for each image.
    """
    if path is not None and not unlabeled:
        from svitc.data.first_look import check_stored_labels

        check_stored_labels(path)
