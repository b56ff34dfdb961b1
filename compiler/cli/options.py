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
Reparam = Annotated[
    str,
    typer.Option(
        metavar="auto|off",
        help="Make one convolution of a row of them (a RepConv) where that is smaller or faster, exactly and before "
        "pruning: [bold]auto[/] or [bold]off[/].",
        rich_help_panel=CUT,
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        metavar="fp32|int8",
        help="Type of the stored weights. [bold]int8[/]: one byte each, sums of whole numbers, the same spikes in "
        "every "
        "runtime, and several times the speed on a processor with integer dot products.",
    ),
]
WeightType = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="fp32|int8|int4|int2|mixed",
        help="Type of the stored weights. [bold]int8[/], [bold]int4[/], [bold]int2[/]: whole numbers of so many "
        "bits, exact "
        "sums, the same spikes in every runtime, and several times the speed on a processor with integer dot products. "
        "[bold]mixed[/]: each layer's own bits, chosen by the policy. By default fp32, or mixed where the policy "
        "chooses "
        "bits or int8 alone would not meet the budget.",
    ),
]
Narrowest = Annotated[
    int | None,
    typer.Option(
        "--narrowest",
        metavar="8|4|2",
        help="The fewest bits that the file stores weights in: 2 needs ONNX Runtime 1.24, 4 needs 1.23, 8 runs on any.",
    ),
]
Clean = Annotated[
    str,
    typer.Option(
        metavar="auto|off",
        help="Before pruning remove neurons that no input can make fire, and fold those that always fire into their "
        "readers: proved from the weights, lossless: [bold]auto[/] or [bold]off[/].",
        rich_help_panel=CUT,
    ),
]
TargetName = Annotated[
    str,
    typer.Option(
        "--target",
        metavar="cpu|cuda",
        help="Which provider of ONNX Runtime has a kernel for every node of the file: [bold]cpu[/] or [bold]cuda[/].",
    ),
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
Mean = Annotated[
    str | None,
    typer.Option(metavar="R,G,B", help="Mean of each channel of --data, of values in [0, 1]; else the checkpoint's."),
]
Std = Annotated[str | None, typer.Option(metavar="R,G,B", help="Standard deviation of each channel, likewise.")]
Resize = Annotated[
    int | None, typer.Option(min=1, help="Scale the shorter side of each image to this first, as for ImageNet.")
]
Crop = Annotated[
    int | None, typer.Option(min=1, help="Cut a square of this side from the centre; by default the model's input.")
]
Images = Annotated[
    int,
    typer.Option("--verify-images", min=1, help="Images that verification looks at: from --data, else random."),
]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON on stdout and nothing else there.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log each stage on stderr; show tracebacks.")]
TrainPath = Annotated[
    Path | None,
    typer.Option(
        "--train-data",
        help="Images to fine-tune on, and then also to choose the plan on, so that --data stays unseen.",
    ),
]
Criterion = Annotated[
    str | None,
    typer.Option(
        help="Which channels of a group go first: l2, l1, bn-scale, taylor, firing, reconstruction, random. "
        "By default the policy's own.",
        rich_help_panel=CUT,
    ),
]
Refit = Annotated[
    str | None,
    typer.Option(
        help="What makes up for a cut, in closed form, on calibration images: none, batch-norm (statistics), readers "
        "(the weights behind it), full (both). By default the policy's own: full for auto, none "
        "for the published policies.",
        rich_help_panel=CUT,
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(help="Prune only groups whose name matches this glob; may be repeated.", rich_help_panel=CUT),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(help="Leave every layer that matches this glob as it is; may be repeated.", rich_help_panel=CUT),
]
RoundTo = Annotated[int, typer.Option(min=1, help="Make widths multiples of this.", rich_help_panel=CUT)]
PruneHeads = Annotated[
    bool,
    typer.Option(
        "--prune-heads", help="In attention remove whole heads, not dimensions of every head.", rich_help_panel=CUT
    ),
]
SWEEP = "How plans are measured"
SweepImages = Annotated[
    int,
    typer.Option(min=1, help="Choose plans on a class-balanced sample of this many images.", rich_help_panel=SWEEP),
]
CalibrationImages = Annotated[
    int, typer.Option(min=1, help="Criteria and refits look at this many others.", rich_help_panel=SWEEP)
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on after a kill: finished measurements and epochs are on disk beside --out.",
        rich_help_panel=SWEEP,
    ),
]
TUNE = "Fine-tuning"
