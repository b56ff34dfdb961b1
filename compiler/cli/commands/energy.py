"""``svitc energy``: estimate the energy of one image."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from svitc.cli import terminal
from svitc.cli.common import load_images, load_program, start
from svitc.cli.image_options import DataPath, Limit, PreparationOptions, Unlabeled, check_labels
from svitc.cli.options import LoadOptions, ModelPath
from svitc.cli.output_options import RunOptions
from svitc.cli.views.energy import energy as show_energy
from svitc.errors import UsageError
from svitc.support.types import JsonDict

if TYPE_CHECKING:
    from svitc.energy.cost_table import Table
    from svitc.energy.estimate import Energy
    from svitc.support.reporter import Reporter


@dataclass(frozen=True)
class EnergyOptions(PreparationOptions):
    """The images on which operations are counted, and the energies of the operations."""

    data: DataPath = None
    limit: Limit = None
    unlabeled: Unlabeled = False
    table: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.yaml",
            help="Energies of operations and memory accesses; by default Horowitz, ISSCC 2014, 45 nm.",
            show_default=False,
        ),
    ] = None

    def check(self) -> None:
        """Check that there are images.

        Raises:
            UsageError: there are none.
        """
        if self.data is None:
            raise UsageError(
                "svitc energy measures firing rates on images",
                hint="Give them with --data; --limit 100 is enough for a first look.",
            )


def energy(
    model: ModelPath,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL",
            help="Another model to compare with, such as the original: a checkpoint, or an output folder of svitc. "
            "It gets the same images.",
        ),
    ] = None,
    *,
    options: EnergyOptions,
    load: LoadOptions,
    output: RunOptions,
) -> None:
    """Estimate the energy that one image takes, from what really fires: by layer, for operations and for memory.

    [dim]svitc energy svitc-out --against model.pt --data val/[/]

    This is an estimate from counts and a table of energies, not a measurement of a chip.
    """
    start(output.verbose)
    options.check()
    check_labels(options.data, options.unlabeled)
    load.check()
    from svitc.energy.comparison import compare
    from svitc.energy.cost_table import load_table
    from svitc.energy.twin import neurobench, twins_report

    costs = load_table(options.table)  # a bad table is refused before a model is loaded
    with terminal.reporting(output.silent) as reporter:
        estimates, stopping, notes = [], [], dict[str, None]()
        for path in (model, against):
            if path is not None:
                estimate, remarks, stopped = _estimate(path, options, load, output.seed, costs, reporter)
                estimates.append(estimate)
                stopping.append(stopped)
                notes.update(dict.fromkeys(remarks))
    report = {"model": str(model), "data": str(options.data), "notes": list(notes), **estimates[0].to_json()}
    report |= {**stopping[0], "twin": twins_report(estimates[0]), "neurobench": neurobench(estimates[0])}
    report["against"] = None
    if against is not None:
        report["against"] = {"model": str(against), **estimates[1].to_json(), **stopping[1]}
        report["saving"], remarks = compare(*estimates)
        report["notes"] += remarks
    if output.as_json:
        print(json.dumps(report, indent=1))
    else:
        show_energy(report)


def _estimate(
    path: Path, options: EnergyOptions, load: LoadOptions, seed: int, costs: Table, reporter: Reporter
) -> tuple[Energy, list[str], JsonDict]:
    """Load a model and estimate its energy.

    Returns:
        The estimate for all time steps; what was assumed about model and images; and an entry ``anytime`` for the
        report, if the model is a folder whose file says when inference stops.
    """
    from svitc.driver.anytime import energy_when_stopping, stored_rule
    from svitc.energy.estimate import energy

    program = load_program(path, load, reporter)
    images = load_images(options.data, program, options.limit, seed, options, options.unlabeled)
    assert images is not None  # EnergyOptions.check refuses a run without images
    estimate = energy(program, images, costs, reporter=reporter)
    rule = stored_rule(path)
    stopped = (
        {} if rule is None else {"anytime": energy_when_stopping(program, rule, images, estimate.totals(), reporter)}
    )
    return estimate, [*program.info.get("assumptions", ()), *images.notes], stopped
