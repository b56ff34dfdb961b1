"""The option groups of ``svitc compile`` alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svitc.cli.options import (
    PRUNING_PANEL,
    TRAINING_PANEL,
    DataPath,
    Limit,
    PreparationOptions,
    PruningOptions,
    SweepOptions,
)
from svitc.errors import UsageError

if TYPE_CHECKING:
    from svitc.passes.policies import Policy
    from svitc.planning.budget import Budget

MAX_DROP_POINTS = 100


@dataclass(frozen=True)
class PlanOptions:
    """A plan to replay, and the lossless rewrites before pruning, which a plan brings with it."""

    plan: Annotated[
        Path | None,
        typer.Option(help="Replay this plan.json instead of making a plan.", rich_help_panel=PRUNING_PANEL),
    ] = None
    reparam: Annotated[
        str,
        typer.Option(
            metavar="auto|off",
            help="Make one convolution of a row of them (a RepConv) where that is smaller or faster, exactly and before "
            "pruning: [bold]auto[/] or [bold]off[/].",
            rich_help_panel=PRUNING_PANEL,
        ),
    ] = "auto"
    remove_dead_channels: Annotated[
        str,
        typer.Option(
            metavar="auto|off",
            help="Before pruning remove neurons that no input can make fire, and fold those that always fire into their "
            "readers: proved from the weights, lossless: [bold]auto[/] or [bold]off[/].",
            rich_help_panel=PRUNING_PANEL,
        ),
    ] = "auto"


@dataclass(frozen=True)
class BudgetOptions(PruningOptions, PlanOptions):
    """How small the model is to be, and who decides what goes."""

    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            "-b",
            help="Keep at most this: a share of the original fp32 bytes ([bold]0.78[/], [bold]78%[/]), bytes "
            "([bold]12MB[/]), parameters ([bold]params=8M[/], [bold]params=78%[/]), or the time that ONNX Runtime is "
            "measured to take for an image on this machine ([bold]latency=0.6[/] of what the original takes with the "
            "same --weights, [bold]latency=50ms[/]). Several with commas make a front: [bold]0.9,0.78,0.6[/].",
            rich_help_panel=PRUNING_PANEL,
        ),
    ] = None
    policy: Annotated[
        str | None,
        typer.Option(
            help="What writes the plan. Channels: [bold]auto[/] (with images), [bold]psvit[/], [bold]primesvt[/], "
            "[bold]uniform[/] (without). Bits of each layer: [bold]qsvit[/], [bold]aq-greedy[/], [bold]aq-beam[/]. "
            "Both, for small budgets: [bold]auto[/].",
            rich_help_panel=PRUNING_PANEL,
        ),
    ] = None
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Lose at most this many points of top-1, before fine-tuning. Without --budget: as small as that "
            "allows.",
            rich_help_panel=PRUNING_PANEL,
        ),
    ] = None

    @property
    def max_drop_share(self) -> float | None:
        """The same as a share: 0.03 for three points."""
        return None if self.max_drop is None else self.max_drop / 100

    def check(self, with_images: bool, smaller_anyway: bool) -> None:
        """Check what was asked, before anything is loaded.

        Args:
            with_images: there are images to choose a plan on.
            smaller_anyway: the file becomes another without a budget, too.

        Raises:
            UsageError: options that make no sense, alone or together.
        """
        if self.budget is None and self.plan is None and self.max_drop is None and not smaller_anyway:
            raise UsageError(
                "what should be kept?", hint="Give --budget, such as --budget 0.78, or --plan to replay a plan."
            )
        for flag, value in (("--reparam", self.reparam), ("--remove-dead-channels", self.remove_dead_channels)):
            if value not in ("auto", "off"):
                raise UsageError(f"{flag} {value!r} is neither auto nor off")
        if self.max_drop is not None and not 0 <= self.max_drop <= MAX_DROP_POINTS:
            raise UsageError(f"--max-drop {self.max_drop:g} is not a number of points between 0 and {MAX_DROP_POINTS}")
        if self.max_drop is not None and not with_images:
            raise UsageError("--max-drop is measured on images", hint="Give them with --data.")
        if self.refit not in (None, "none") and self.plan is None and not with_images:
            raise UsageError(f"--refit {self.refit} looks at images", hint="Give them with --data.")

    def budgets(self) -> list[Budget | None]:
        """Parse the budgets: one, several for a front, or None alone.

        Raises:
            UsageError: a malformed budget, or several with a plan.
        """
        from svitc.planning.budget import parse_budget

        if self.budget is None:
            return [None]
        budgets: list[Budget | None] = [parse_budget(text) for text in self.budget.split(",")]
        if len(budgets) > 1 and self.plan is not None:
            raise UsageError("--plan replays one plan; give one --budget, or none")
        return budgets

    def make_policy(self, with_images: bool, seed: int) -> Policy:
        """Make the policy: by default ``auto`` where there are images, else ``uniform``.

        Raises:
            UsageError: an unknown policy, or options that it does not take.
        """
        from svitc.passes.policies import make

        return make(
            self.policy or ("auto" if with_images else "uniform"),
            criterion=self.criterion,
            refit=self.refit,
            include=self.include or (),
            exclude=self.exclude or (),
            round_to=self.round_to,
            prune_heads=self.prune_heads,
            seed=seed,
        )


@dataclass(frozen=True)
class FileOptions:
    """Where the files go, and how the ONNX file stores weights."""

    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Folder for model.onnx, model.py, model.safetensors, plan.json and report.json; for a front, one "
            "folder in it for each budget.",
        ),
    ] = Path("svitc-out")
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="fp32|int8|int4|int2|mixed",
            help="Type of the stored weights. [bold]int8[/], [bold]int4[/], [bold]int2[/]: whole numbers of so many bits, exact "
            "sums, the same spikes in every runtime, and several times the speed on a processor with integer dot products. "
            "[bold]mixed[/]: each layer's own bits, chosen by the policy. By default fp32, or mixed where the policy chooses "
            "bits or int8 alone would not meet the budget.",
        ),
    ] = None
    min_weight_bits: Annotated[
        int | None,
        typer.Option(
            "--min-weight-bits",
            metavar="8|4|2",
            help="The fewest bits that the file stores weights in: 2 needs ONNX Runtime 1.24, 4 needs 1.23, 8 runs on any.",
        ),
    ] = None
    target: Annotated[
        str,
        typer.Option(
            "--target",
            metavar="cpu|cuda",
            help="Which provider of ONNX Runtime has a kernel for every node of the file: [bold]cpu[/] or [bold]cuda[/].",
        ),
    ] = "cpu"

    @property
    def as_original(self) -> bool:
        """Whether weights and operators are what they are without any option."""
        return self.weights in (None, "fp32") and self.target == "cpu"

    def check(self) -> None:
        """
        Raises:
            UsageError: there is no such type of weights, or no such target.
        """
        from svitc.driver.weight_types import check_weight_type
        from svitc.onnx.target import target_of

        if self.weights is not None:
            check_weight_type(self.weights)
        target_of(self.target, self.min_weight_bits)


@dataclass(frozen=True)
class CompileDataOptions(PreparationOptions, SweepOptions):
    """Images to report on and to train on, how they become inputs, and how plans are measured on them."""

    data: DataPath = None
    train_data: Annotated[
        Path | None,
        typer.Option(
            "--train-data",
            help="Images to fine-tune on, and then also to choose the plan on, so that --data stays unseen.",
        ),
    ] = None
    limit: Limit = None

    @property
    def available(self) -> bool:
        """Whether there are images to choose a plan on."""
        return self.data is not None or self.train_data is not None


@dataclass(frozen=True)
class TrainingOptions:
    """How the pruned model is fine-tuned."""

    finetune: Annotated[
        int,
        typer.Option(
            min=0,
            help="Train the pruned model for this many epochs on --train-data.",
            rich_help_panel=TRAINING_PANEL,
        ),
    ] = 0
    lr: Annotated[
        float, typer.Option(min=0, help="Highest learning rate of fine-tuning.", rich_help_panel=TRAINING_PANEL)
    ] = 1e-3
    batch: Annotated[int, typer.Option(min=2, help="Images a step of fine-tuning.", rich_help_panel=TRAINING_PANEL)] = (
        64
    )
    distil: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Weight of the original's answers in the loss, beside the labels.",
            rich_help_panel=TRAINING_PANEL,
        ),
    ] = 0.5
    augment: Annotated[
        str,
        typer.Option(
            help="Of training images: auto (flip,crop for colour images), none, flip, crop, or flip,crop.",
            rich_help_panel=TRAINING_PANEL,
        ),
    ] = "auto"

    def check(self, train_data: Path | None) -> None:
        """
        Raises:
            UsageError: there is nothing to train on.
        """
        if self.finetune and train_data is None:
            raise UsageError("--finetune trains on images", hint="Give them with --train-data.")

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of ``svitc.training.finetune``; none where there is no fine-tuning."""
        if not self.finetune:
            return {}
        return {"lr": self.lr, "batch": self.batch, "distil": self.distil, "augment": self.augment}
