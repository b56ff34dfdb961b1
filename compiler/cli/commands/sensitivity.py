"""``svitc sensitivity``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from svitc.cli import terminal
from svitc.cli.commands.compile import beside
from svitc.cli.common import Preparation, load_labelled, options, start
from svitc.cli.options import (
    Arch,
    ArchArgs,
    AsJson,
    CalibrationImages,
    Criterion,
    Crop,
    DataPath,
    Ema,
    Exclude,
    Fix,
    Include,
    InputShape,
    Mean,
    ModelPath,
    PruneHeads,
    Refit,
    Resize,
    Resume,
    RoundTo,
    Seed,
    Std,
    SweepImages,
    TimeSteps,
    TrustPickle,
    Verbose,
)
from svitc.cli.views import sensitivity as view
from svitc.cli.views.compile import decision
from svitc.errors import UsageError


def sensitivity(
    model: ModelPath,
    data: DataPath = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The curves, as JSON; the measurements lie beside it for --resume.")
    ] = Path("sensitivity.json"),
    rates: Annotated[
        str, typer.Option(help="Pruning rates to measure, ascending.", metavar="R,R,…")
    ] = "0.125,0.25,0.375,0.5,0.625,0.75,0.875",
    bits: Annotated[
        bool,
        typer.Option(
            "--bits",
            help="Measure bits instead of widths: each layer and each kind of layer at 4 and 2, all else at 8.",
        ),
    ] = False,
    criterion: Criterion = "l2",
    refit: Refit = "none",
    include: Include = None,
    exclude: Exclude = None,
    round_to: RoundTo = 1,
    prune_heads: PruneHeads = False,
    mean: Mean = None,
    std: Std = None,
    resize: Resize = None,
    crop: Crop = None,
    sweep_images: SweepImages = 1000,
    calibration_images: CalibrationImages = 256,
    resume: Resume = False,
    arch: Arch = None,
    arch_args: ArchArgs = None,
    input_shape: InputShape = None,
    time_steps: TimeSteps = None,
    trust_pickle: TrustPickle = False,
    ema: Ema = False,
    fix: Fix = False,
    seed: Seed = 0,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """How much accuracy each channel group costs, and what it saves, rate by rate, all else whole.

    [dim]svitc sensitivity model.pt --data val/[/]

    [dim]svitc sensitivity model.pt --data val/ --bits[/]

    A group whose loss passes 30 points is not pruned further.
    """
    start(verbose)
    if data is None:
        raise UsageError("sensitivity is measured on labelled images", hint="Give them with --data.")
    try:
        wanted = [float(part) for part in rates.split(",")]
    except ValueError:
        wanted = []
    if not wanted or wanted != sorted(wanted) or not all(0 < rate < 1 for rate in wanted):
        raise UsageError(
            f"--rates {rates!r} are not ascending shares between 0 and 1", hint="For example 0.25,0.5,0.75."
        )
    if bits and include:
        raise UsageError(
            "--include names groups whose width is measured; with --bits there are none", hint="See --exclude."
        )
    how = Preparation(mean, std, resize, crop)
    given = options(arch, arch_args, input_shape, time_steps, trust_pickle, ema, fix)
    from svitc.driver.compiler import Compiler
    from svitc.driver.load import load
    from svitc.driver.options import CompileOptions
    from svitc.passes.policies import Settings, make
    from svitc.passes.policies.search_space import Space
    from svitc.passes.policies.sensitivity import sensitivity_curves, to_json
    from svitc.support.atomic_files import writable, write_json
    from svitc.support.distributed import world
    from svitc.support.reporter import Reporter

    writable(out.parent / f"{out.name}.part")
    make("uniform", criterion=criterion, refit=refit)  # refuses what is unknown before anything is loaded
    settings = Settings(criterion or "l2", include or (), exclude or (), round_to, prune_heads, seed)
    with world() as ranks:
        writer = ranks.is_writer
        with terminal.progress(quiet=as_json or verbose or not writer) as show:
            reporter = Reporter(show, None if as_json or verbose or not writer else decision)
            program = load(model, reporter=reporter, **given)
            compiler = Compiler(
                program,
                None,
                CompileOptions(
                    data=load_labelled(data, program, None, seed, how),
                    sweep_images=sweep_images,
                    calibration_images=calibration_images,
                    sweep_file=beside(out, "sweep.jsonl"),
                    resume=resume,
                    seed=seed,
                ),
                reporter,
            )
            if bits:
                found = _precision(compiler, settings)
            else:
                problem = compiler.problem()
                space = Space(problem.program, settings, problem.calibrating)
                rows = to_json(
                    problem, space, sensitivity_curves(problem, space, wanted, refit or "none", "sensitivity")
                )
                found = {"settings": settings.to_json(), "refit": refit or "none", "rates": wanted, "groups": rows}
    if not writer:
        return
    report = {"model": str(model), "sweep": compiler.sweep.to_json(), **found}
    write_json(out, report)
    if as_json:
        print(json.dumps(report, indent=1))
    elif bits:
        view.precision(report, out)
    else:
        view.sensitivity(report, out)


def _precision(compiler: Any, settings: Any) -> dict[str, Any]:
    """Accuracy and size against bits."""
    from svitc.passes.policies.bitwidth.search_space import BitSettings, BitSpace
    from svitc.passes.policies.bitwidth.sensitivity import precision, to_json

    own = BitSettings(exclude=settings.exclude, seed=settings.seed)
    space = BitSpace(compiler.problem(weights="mixed", exclude=tuple(settings.exclude)), own)
    alone = precision(space, "precision")
    return {"settings": own.to_json(), **to_json(space, alone, space.points([space.widest], "precision")[0])}
