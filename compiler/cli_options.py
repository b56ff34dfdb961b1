"""The command line's options that more than one command has, and their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SOURCE = "Where the model comes from"
CUT = "What is removed"
ModelPath = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="A checkpoint (.pt, .pth), or an output folder of svitc.", show_default=False),
]
Arch = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:FACTORY",
        help="Your model's factory, as an importable module or path/to/file.py:factory, unmodified. "
        "Needed where the weights do not tell.",
        rich_help_panel=SOURCE,
    ),
]
ArchArgs = Annotated[
    str | None,
    typer.Option(
        metavar="JSON",
        help="Arguments of the factory, such as '{\"embed_dims\": 384}'; they override the checkpoint's.",
        rich_help_panel=SOURCE,
    ),
]
InputShape = Annotated[
    str | None,
    typer.Option(
        metavar="C,H,W",
        help="Input without batch: C,H,W for images, T,C,H,W for event frames.",
        rich_help_panel=SOURCE,
    ),
]
TimeSteps = Annotated[
    int | None,
    typer.Option(
        "--time-steps",
        "-T",
        help="Number of time steps for static images, where the checkpoint does not say.",
        rich_help_panel=SOURCE,
    ),
]
TrustPickle = Annotated[
    bool,
    typer.Option(
        "--trust-pickle",
        help="Unpickle a whole nn.Module. [red]This runs code from the file[/]: only for files that you made.",
        rich_help_panel=SOURCE,
    ),
]
Ema = Annotated[
    bool,
    typer.Option(
        "--ema",
        help="Take the averaged weights (EMA) that the training script saved beside the last ones.",
        rich_help_panel=SOURCE,
    ),
]
Fix = Annotated[
    bool,
    typer.Option(
        "--fix",
        help="Mend a mistake in the model's own code that svitc refuses and names: time and batch run together by a "
        "neuron, as in QKFormer's attention. One image at a time gives the same as before.",
        rich_help_panel=SOURCE,
    ),
]
DataPath = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Labelled images: a folder of class folders, a .zip of one, or an .npz with images and labels.",
    ),
]
Limit = Annotated[int | None, typer.Option(help="Use a class-balanced sample of this many images.")]
Mean = Annotated[
    str | None,
    typer.Option(metavar="R,G,B", help="Mean of each channel of --data, of values in [0, 1]; else the checkpoint's."),
]
Std = Annotated[str | None, typer.Option(metavar="R,G,B", help="Standard deviation of each channel, likewise.")]
Images = Annotated[
    int,
    typer.Option("--verify-images", min=1, help="Images that verification looks at: from --data, else random."),
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout and nothing else there.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log each stage on stderr; show tracebacks.")]
