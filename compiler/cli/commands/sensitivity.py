"""``svitc sensitivity``: measure what each channel group or layer costs in accuracy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from svitc.cli import terminal
from svitc.cli.common import load_images, load_program, start, unfinished_file
from svitc.cli.image_options import DataPath, Limit, PreparationOptions, Unlabeled, check_labels
from svitc.cli.options import Criterion, LoadOptions, ModelPath, PruningOptions, Refit, SweepOptions
from svitc.cli.output_options import RunOptions
from svitc.cli.views import sensitivity as view
from svitc.errors import UsageError

if TYPE_CHECKING:
    from svitc.driver.compiler import Compiler
    from svitc.passes.policies import Settings
    from svitc.support.reporter import Reporter


@dataclass(frozen=True)
class ChannelOptions(PruningOptions):
    """Which channels are removed first; there is no policy whose own criterion could be the default."""

    criterion: Criterion = "l2"
    refit: Refit = "none"


@dataclass(frozen=True)
class CurveOptions(PreparationOptions, SweepOptions):
    """What is measured, on which images, and where the curves are written."""

    data: DataPath = None
    limit: Limit = None
    unlabeled: Unlabeled = False
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="File for the curves, as JSON; measurements are kept beside it for --resume."),
    ] = Path("sensitivity.json")
    rates: Annotated[str, typer.Option(help="Pruning rates to measure, ascending.", metavar="R,R,…")] = (
        "0.125,0.25,0.375,0.5,0.625,0.75,0.875"
    )
    bits: Annotated[
        bool,
        typer.Option(
            "--bits",
            help="Measure bits instead of widths: each layer and each kind of layer at 4 and 2 bits, all others at 8.",
        ),
    ] = False

    def check(self, include: list[str] | None) -> list[float]:
        """Check the options before anything is loaded, and return the pruning rates.

        Args:
            include: value of ``--include``.

        Raises:
            UsageError: there are no images, the rates are not ascending shares, or ``--include`` comes with ``--bits``.
        """
        if self.data is None:
            raise UsageError("sensitivity is measured on images", hint="Give them with --data.")
        check_labels(self.data, self.unlabeled)
        try:
            rates = [float(part) for part in self.rates.split(",")]
        except ValueError:
            rates = []
        if not rates or rates != sorted(rates) or not all(0 < rate < 1 for rate in rates):
            raise UsageError(
                f"--rates {self.rates!r} are not ascending shares between 0 and 1", hint="For example 0.25,0.5,0.75."
            )
        if self.bits and include:
            raise UsageError(
                "--include names groups whose width is measured, and --bits measures no widths", hint="See --exclude."
            )
        return rates


def sensitivity(
    model: ModelPath, channels: ChannelOptions, curves: CurveOptions, load: LoadOptions, output: RunOptions
) -> None:
    """Measure how much accuracy pruning each channel group alone costs, and what it saves, at each rate.

    [dim]svitc sensitivity model.pt --data val/[/]
    [dim]svitc sensitivity model.pt --data val/ --bits[/]

    A group that loses more than 30 points is not pruned further.

    Without labels, a point is 1% of the images in another class than the original's.
    """
    start(output.verbose)
    rates = curves.check(channels.include)
    load.check()
    from svitc.driver.sensitivity import bit_sensitivity, channel_sensitivity
    from svitc.passes.policies import make
    from svitc.support.atomic_files import writable, write_json
    from svitc.support.distributed import world

    out = curves.out
    writable(out.parent / f"{out.name}.part")
    make(
        "uniform", criterion=channels.criterion, refit=channels.refit
    )  # refuses unknown names before anything is loaded
    settings = _settings(channels, output.seed)
    with world() as ranks, terminal.reporting(output.silent or not ranks.is_writer) as reporter:
        compiler = _compiler(model, curves, load, output.seed, reporter)
        if curves.bits:
            measured = bit_sensitivity(compiler, settings)
        else:
            measured = channel_sensitivity(compiler, settings, rates, channels.refit or "none")
    if not ranks.is_writer:
        return
    report = {"model": str(model), "sweep": compiler.sweep.to_json(), **measured}
    write_json(out, report)
    if output.as_json:
        print(json.dumps(report, indent=1))
    elif curves.bits:
        view.precision(report, out)
    else:
        view.sensitivity(report, out)


def _settings(channels: ChannelOptions, seed: int) -> Settings:
    """Return the settings that order the channels."""
    from svitc.passes.policies import Settings

    return Settings(
        channels.criterion or "l2",
        channels.include or (),
        channels.exclude or (),
        channels.round_to,
        channels.prune_heads,
        seed,
    )


def _compiler(path: Path, curves: CurveOptions, load: LoadOptions, seed: int, reporter: Reporter) -> Compiler:
    """Load the model and its images, and return the compiler that measures plans."""
    from svitc.driver.compiler import Compiler
    from svitc.driver.options import CompileOptions

    program = load_program(path, load, reporter)
    options = CompileOptions(
        train_data=load_images(curves.data, program, curves.limit, seed, curves, curves.unlabeled),
        sweep_images=curves.sweep_images,
        calibration_images=curves.calibration_images,
        sweep_file=unfinished_file(curves.out, "sweep.jsonl"),
        resume=curves.resume,
        seed=seed,
    )
    return Compiler(program, None, options, reporter)
