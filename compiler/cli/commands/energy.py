"""``svitc energy``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from svitc.cli import terminal
from svitc.cli.common import Preparation, load_labelled, options, start
from svitc.cli.options import (
    SOURCE,
    Arch,
    ArchArgs,
    AsJson,
    Crop,
    DataPath,
    Ema,
    Fix,
    InputShape,
    Limit,
    Mean,
    ModelPath,
    Resize,
    Seed,
    Std,
    TimeSteps,
    TrustPickle,
    Verbose,
)
from svitc.cli.views.energy import energy as show_energy
from svitc.errors import UsageError

if TYPE_CHECKING:
    from svitc.energy.estimate import Energy


def energy(
    model: ModelPath,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL",
            help="Another to compare with, such as the original: a checkpoint, or an output folder of "
            "svitc. It sees the same images.",
            rich_help_panel=SOURCE,
        ),
    ] = None,
    data: DataPath = None,
    limit: Limit = None,
    table: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.yaml",
            help="Energies of operations and memory accesses; by default Horowitz, ISSCC 2014, 45 nm.",
            show_default=False,
        ),
    ] = None,
    mean: Mean = None,
    std: Std = None,
    resize: Resize = None,
    crop: Crop = None,
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
    """What does one image cost in energy, by what really fires? Layer by layer, operations and memory apart.

    [dim]svitc energy svitc-out --against model.pt --data val/[/]

    An estimate from counts and a table of energies, not a measurement of a chip.
    """
    start(verbose)
    if data is None:
        raise UsageError(
            "how much fires is measured on images",
            hint="Give them with --data; --limit 100 is enough for a first look.",
        )
    how = Preparation(mean, std, resize, crop)
    given = options(arch, arch_args, input_shape, time_steps, trust_pickle, ema, fix)
    from svitc.driver.load import load
    from svitc.energy.cost_table import load_table
    from svitc.energy.estimate import energy as measure
    from svitc.energy.estimate import saving
    from svitc.support.reporter import Reporter

    costs = load_table(table)  # before a model is loaded for nothing
    notes: list[str] = []

    def of(path: Path, show: Any) -> Any:
        program = load(path, reporter=Reporter(show), **given)
        images = load_labelled(data, program, limit, seed, how)
        found = measure(program, images, costs, reporter=Reporter(show))
        for note in (*program.info.get("assumptions", ()), *images.notes):
            if note not in notes:
                notes.append(note)
        return found

    with terminal.progress(quiet=as_json or verbose) as show:
        ours = of(model, show)
        theirs = None if against is None else of(against, show)
    report: dict[str, Any] = {"model": str(model), "data": str(data), "notes": notes, **ours.to_json(), "against": None}
    if theirs is not None:
        report["against"] = {"model": str(against), **theirs.to_json()}
        report["saving"] = saved = saving(ours, theirs)
        notes += step_between(ours, theirs, saved["total_same_memory"])
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        show_energy(report)


def step_between(ours: Energy, theirs: Energy, same: float | None) -> list[str]:
    """A note where the weights of the two lie in different memories, as that is a large step of the table."""
    if ours.weights_in == theirs.weights_in or same is None:
        return []
    return [
        f"the weights lie in {ours.weights_in}, those of the other in {theirs.weights_in}, which the table prices "
        "apart; "
        f"with both in {ours.weights_in} {same:.1%} of the total would be saved"
    ]
