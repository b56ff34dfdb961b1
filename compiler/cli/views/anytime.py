"""Table of what stopping before the last time step saves, and what is promised of it."""

from __future__ import annotations

from svitc.cli.terminal import make_table, out
from svitc.support import human
from svitc.support.types import JsonDict


def anytime(report: JsonDict) -> None:
    """Print the report's section ``anytime``: one line for each tolerance, and the promise in words."""
    labeled = report["basis"] == "labels"
    saved = report["full_energy_pj"] is not None
    table = make_table(
        "may lose (points)" if labeled else "may change (%)",
        "mean steps",
        "does",
        f"at most, {report['confidence']:.0%} sure",
        *(("energy",) if saved else ()),
        title="stopping early",
    )
    for row in report["tolerances"]:
        never = row["mean_steps"] == report["time_steps"]
        asked = row["max_drop"] == report["max_drop"]
        cells = [
            f"{100 * row['max_drop']:g}",
            f"{row['mean_steps']:.2f} of {report['time_steps']}",
            "" if never else f"{100 * row['drop']:+.2f}",
            "" if never else f"{100 * row['drop_bound']:.2f}",
            *((human.microjoules(row["energy_pj"]),) if saved else ()),
        ]
        table.add_row(*(f"[bold]{cell}[/]" if asked and cell else cell for cell in cells))
    out.print(table)
    out.print(words(report), soft_wrap=True)


def words(report: JsonDict) -> str:
    """Return what was promised for the tolerance that was asked for, or how many images a promise takes."""
    what = "top-1" if report["basis"] == "labels" else "the class, against that after all steps,"
    images = f"{human.counted(report['images'], 'image')} that did not choose the rule"
    if report["mean_steps"] < report["time_steps"]:
        saved = 1 - report["mean_steps"] / report["time_steps"]
        return (
            f"stopping early runs {saved:.1%} fewer steps; its cost in {what} was confirmed on {images}. The promise "
            "holds for images like these; on images that the network was trained on it flatters"
        )
    points = f"{100 * report['max_drop']:g}"
    takes = (
        "no number of images like these would do: give a larger --max-drop"
        if report["needed"] is None
        else f"it would take about {report['needed']:,} images in all with --data"
    )
    return f"[yellow]note[/] inference never stops early: {images} cannot exclude a drop of {points} points; {takes}"
