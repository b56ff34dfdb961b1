"""The option groups that only ``svitc compile`` has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from svitc.cli.image_options import (
    IMAGES_PANEL,
    DataPath,
    Limit,
    PreparationOptions,
    Unlabeled,
    check_labels,
    images_exist,
)
from svitc.cli.options import PRUNING_PANEL, PruningOptions, SweepOptions, parse_floats
from svitc.cli.streaming_options import FILE_PANEL, StreamingOptions
from svitc.cli.token_options import TokenOptions
from svitc.errors import UsageError

if TYPE_CHECKING:
    from svitc.passes.policies import Policy
    from svitc.planning.budget import Budget

MAX_DROP_POINTS = 100


@dataclass(frozen=True, eq=False, repr=False)
class PlanOptions:
    """A plan to replay, and the lossless rewrites before pruning, which are part of a plan."""

    plan: Annotated[
        Path | None,
        typer.Option(help="Replay this plan.json instead of making a plan.", rich_help_panel=PRUNING_PANEL),
    ] = None
    reparam: Annotated[
        str,
        typer.Option(
            metavar="auto|off",
            help="Merge a chain of convolutions (a RepConv) into one where that is smaller or faster, exactly and "
            "before pruning: [bold]auto[/] or [bold]off[/].",
            rich_help_panel=PRUNING_PANEL,
        ),
    ] = "auto"
    remove_dead_channels: Annotated[
        str,
        typer.Option(
            metavar="auto|off",
            help="Before pruning, remove neurons that no input can make fire, and fold those that always fire into "
            "the layers that read them. Lossless, proved from the weights: [bold]auto[/] or [bold]off[/].",
            rich_help_panel=PRUNING_PANEL,
        ),
    ] = "auto"


@dataclass(frozen=True, eq=False, repr=False)
class BudgetOptions(PruningOptions, PlanOptions, TokenOptions):
    """How small the model is to become, and which policy decides what is removed."""

    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            "-b",
            metavar="BUDGET",
            help="Keep at most this: a share of the original fp32 bytes ([bold]0.78[/], [bold]78%[/]), bytes "
            "([bold]12MB[/]), parameters ([bold]params=8M[/], [bold]params=78%[/]), or the time that ONNX Runtime is "
            "measured to take per image on this machine ([bold]latency=0.6[/] of what the original takes with the "
            "same --weights, [bold]latency=50ms[/]). Several with commas between give a front: [bold]0.9,0.78,0.6[/].",
        ),
    ] = None
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The policy that writes the plan. Channels: [bold]auto[/] (the default), [bold]psvit[/], "
            "[bold]primesvt[/], [bold]uniform[/]. Bits of each layer: [bold]qsvit[/], [bold]aq-greedy[/], "
            "[bold]aq-beam[/]. Both, for small budgets: [bold]auto[/].",
        ),
    ] = None
    no_low_rank: Annotated[
        bool,
        typer.Option(
            "--no-low-rank",
            help="Policy [bold]auto[/] removes channels alone, and stores no convolution as two of a low rank.",
        ),
    ] = False
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Promise to lose at most this many points of top-1, before fine-tuning; without labels, to give at "
            "most this percentage of the images another class than the original's. Confirmed with --confidence on "
            "images of --data that no search has seen. Without --budget: as small as that allows.",
        ),
    ] = None

    @property
    def max_drop_share(self) -> float | None:
        """``max_drop`` as a share: 0.03 for three points."""
        return None if self.max_drop is None else self.max_drop / 100

    def check(self, data: CompileDataOptions, smaller_anyway: bool) -> None:
        """Check the options before anything is loaded.

        Args:
            data: the images, or what to do without.
            smaller_anyway: whether the file differs from the original even without a budget.

        Raises:
            UsageError: an option makes no sense, alone or with the others.
        """
        self.check_tokens(self.plan, data.available)
        smaller_anyway = smaller_anyway or self.tokens is not None
        if self.budget is None and self.plan is None and self.max_drop is None and not smaller_anyway:
            raise UsageError(
                "nothing says how much to keep",
                hint="Give --budget, such as --budget 0.78 (1 keeps all), --weights int8, or --plan to replay a plan.",
            )
        for flag, value in (("--reparam", self.reparam), ("--remove-dead-channels", self.remove_dead_channels)):
            if value not in ("auto", "off"):
                raise UsageError(f"{flag} {value!r} is neither auto nor off")
        if self.max_drop is not None and not 0 <= self.max_drop <= MAX_DROP_POINTS:
            raise UsageError(f"--max-drop {self.max_drop:g} is not a number of points between 0 and {MAX_DROP_POINTS}")
        if self.max_drop is not None and not data.given:
            raise UsageError(
                "--max-drop is a promise that only real images can keep",
                hint="Give some with --data: without labels it bounds how often another class is chosen.",
            )
        if self.refit not in (None, "none") and self.plan is None and not data.available:
            raise UsageError(
                f"--refit {self.refit} looks at images",
                hint="Give them with --data, or leave --no-data uniform out: then svitc draws some.",
            )

    def budgets(self) -> list[Budget | None]:
        """Parse ``--budget``.

        Returns:
            One budget, several for a front, or None alone where the option was not used.

        Raises:
            UsageError: a budget is malformed, or there are several with ``--plan``.
        """
        from svitc.planning.budget import parse_budget

        if self.budget is None:
            return [None]
        budgets: list[Budget | None] = [parse_budget(text) for text in self.budget.split(",")]
        if len(budgets) > 1 and self.plan is not None:
            raise UsageError("--plan replays one plan; give one --budget, or none")
        return budgets

    def make_policy(self, with_images: bool, seed: int) -> Policy:
        """Create the policy: by default ``auto`` where there are images, synthetic ones too, else ``uniform``.

        Raises:
            UsageError: the policy, its criterion or its refit is unknown, or it gives no layer a low rank anyway.
        """
        from svitc.passes.policies import make

        name = self.policy or ("auto" if with_images else "uniform")
        if self.no_low_rank and name != "auto":
            raise UsageError(f"policy {name} removes channels alone", hint="--no-low-rank is for auto: leave it out.")
        return make(
            name,
            criterion=self.criterion,
            refit=self.refit,
            include=self.include or (),
            exclude=self.exclude or (),
            round_to=self.round_to,
            prune_heads=self.prune_heads,
            low_rank=not self.no_low_rank,
            seed=seed,
        )


@dataclass(frozen=True, eq=False, repr=False)
class FileOptions(StreamingOptions):
    """Where the files are written, how the ONNX file stores weights, and when inference may stop."""

    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Folder for model.onnx, model.py, model.safetensors, plan.json, report.json and report.html; for a "
            "front, one folder in it for each budget.",
        ),
    ] = Path("svitc-out")
    no_html: Annotated[
        bool, typer.Option("--no-html", help="Do not write report.html.", rich_help_panel=FILE_PANEL)
    ] = False
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="TYPE",
            help="Type of the stored weights: fp32, int16, int8, int4, int2, ternary or mixed. Integers have exact "
            "sums, so the same spikes in whatever order a processor adds, and [bold]int8[/] to [bold]ternary[/] run "
            "several times as fast as fp32 on one with integer dot products. [bold]int16[/]: the accuracy of fp32 in "
            "half its bytes; slower than int8, faster than fp32. [bold]mixed[/]: the policy chooses the bits of each "
            "layer. By default fp32, or mixed where the policy chooses bits or int8 alone would not meet the budget.",
        ),
    ] = None
    min_weight_bits: Annotated[
        int | None,
        typer.Option(
            "--min-weight-bits",
            metavar="8|4|2",
            help="The fewest bits that the file stores weights in: 2 needs ONNX Runtime 1.24, 4 needs 1.23, 8 needs "
            "1.21.",
            rich_help_panel=FILE_PANEL,
        ),
    ] = None
    input_range: Annotated[
        str | None,
        typer.Option(
            "--input-range",
            metavar="LO,HI",
            help="The smallest and the largest value of an input, such as 0,255. A file with integer weights clamps "
            "what is beyond. By default measured on --data or --train-data, or derived from the model.",
            rich_help_panel=FILE_PANEL,
        ),
    ] = None
    target: Annotated[
        str,
        typer.Option(
            "--target",
            metavar="TARGET",
            help="The runtime that has a kernel for every node of the file: [bold]cpu[/] or [bold]cuda[/], providers "
            "of ONNX Runtime; [bold]openvino[/]; [bold]web[/], which is onnxruntime-web.",
        ),
    ] = "cpu"
    functions: Annotated[
        bool,
        typer.Option(
            "--functions",
            help="Write each neuron as one node that calls a function of the file. Viewers then show it as one; many "
            "runtimes other than ONNX Runtime read no functions.",
            rich_help_panel=FILE_PANEL,
        ),
    ] = False

    static_batch: Annotated[
        int | None,
        typer.Option(
            "--static-batch",
            metavar="N",
            min=1,
            help="Write a file that takes exactly N images at once, for runtimes that need to know it when they load "
            "a file. By default it takes any number.",
            rich_help_panel=FILE_PANEL,
        ),
    ] = None
    per_step: Annotated[
        bool,
        typer.Option(
            "--per-step",
            help="Return the class scores of each time step, \\[T, N, classes], instead of their average, "
            "\\[N, classes].",
            rich_help_panel=FILE_PANEL,
        ),
    ] = False

    @property
    def as_original(self) -> bool:
        """Whether weights and operators are the same as without these options."""
        return self.weights in (None, "fp32") and self.target == "cpu"

    @property
    def input_ends(self) -> tuple[float, float] | None:
        """The ends of ``--input-range``, or None without it.

        Raises:
            UsageError: it is not two numbers, the smaller one first.
        """
        if self.input_range is None:
            return None
        ends = parse_floats("--input-range", self.input_range, "0,255")
        if len(ends) != 2 or not ends[0] < ends[1] or not all(map(math.isfinite, ends)):
            raise UsageError(
                f"--input-range {self.input_range!r} is not a range",
                hint="Give the smallest and the largest value of an input, such as --input-range 0,255.",
            )
        return ends[0], ends[1]

    def check(self) -> None:
        """Check the type of the weights, the range of the input and the target.

        Raises:
            UsageError: there is no such type of weights, no such range, or no such target.
        """
        from svitc.driver.weight_types import check_weight_type
        from svitc.onnx.target import target_of

        if self.weights is not None:
            check_weight_type(self.weights)
        target_of(self.target, self.min_weight_bits)
        _ = self.input_ends


@dataclass(frozen=True, eq=False, repr=False)
class CompileDataOptions(PreparationOptions, SweepOptions):
    """Images to evaluate and to train on, how they become inputs, and how plans are measured on them."""

    data: DataPath = None
    train_data: Annotated[
        Path | None,
        typer.Option(
            "--train-data",
            callback=images_exist,
            metavar="PATH|FACTORY",
            help="Images to fine-tune on, with labels or without, and then also to choose the plan on, so that all of "
            "--data confirms it.",
        ),
    ] = None
    limit: Limit = None
    unlabeled: Unlabeled = False
    no_data: Annotated[
        str,
        typer.Option(
            "--no-data",
            metavar="synthetic|uniform",
            help="Where there are no images at all: [bold]synthetic[/] draws some, which match the statistics of the "
            "model's batch norms and take the place of real ones; [bold]uniform[/] looks at none, and prunes every "
            "group by the same share, which is fast and loses far more.",
            rich_help_panel=IMAGES_PANEL,
        ),
    ] = "synthetic"
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Report this beside top-1, such as a segmentation's mIoU: a function of what the model returns for a "
            "batch and of the labels (without labels, of what the original returns), whose result is a number, or one "
            "for each image; higher is better. A module, or a file.py. [red]This runs its code[/].",
            rich_help_panel=IMAGES_PANEL,
        ),
    ] = None

    @property
    def given(self) -> bool:
        """Whether the user gives images."""
        return self.data is not None or self.train_data is not None

    @property
    def available(self) -> bool:
        """Whether there are images to choose a plan on, which may be synthetic."""
        return self.given or self.no_data == "synthetic"

    def check(self) -> None:
        """Check what is done without images, and labels that can be looked at before the model is loaded.

        Raises:
            UsageError: ``--no-data`` is unknown.
            InputError: an .npz has not one label for each image.
        """
        check_labels(self.data, self.unlabeled)
        check_labels(self.train_data, self.unlabeled)
        if self.no_data not in ("synthetic", "uniform"):
            raise UsageError(f"--no-data {self.no_data!r} is neither synthetic nor uniform")
