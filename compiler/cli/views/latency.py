"""Tables of a latency prediction by layer and by kind, and how far it is from the measurement."""

from __future__ import annotations

from rich.markup import escape

from svitc.cli import terminal
from svitc.support import human
from svitc.support.hardware import disturbed
from svitc.support.human import share
from svitc.support.types import JsonDict

CLOSE = 0.25  # relative error up to which a prediction is shown without a warning


def prediction(report: JsonDict) -> None:
    """Print where the time of an exported file should go, and what the file is measured to take."""
    columns = ("layer", "kind", "operators", "ms", "share")
    table = terminal.make_table(*columns, left={"kind"}, fold=True, title="predicted")
    for row in report["layers"]:
        table.add_row(
            escape(row["layer"]),
            row["kind"],
            str(row["operators"]),
            f"{row['predicted_ms']:.3f}",
            share(row["share"]),
        )
    terminal.out.print(table)
    table = terminal.make_table("kind", "layers", "ms", "share", title="\nby kind")
    for row in report["kinds"]:
        table.add_row(row["kind"], str(row["layers"]), f"{row['predicted_ms']:.3f}", share(row["share"]))
    terminal.out.print(table)
    threads = human.counted(report["threads"], "thread")
    terminal.out.print(
        f"\n{report['predicted_ms']:.2f} ms predicted, [bold]{report['measured_ms']:.2f} ms measured[/] (median of"
        f" {report['runs']} runs of 1 image, {report['weights']} weights, {threads}): {difference(report['ratio'])}"
    )
    if disturbed(report):
        terminal.disturbance(report["other_processes"])


def difference(ratio: float) -> str:
    """Return a sentence on how far the prediction is from the measurement.

    Args:
        ratio: predicted time over measured time.
    """
    off = f"{abs(ratio - 1):.0%} too {'low' if ratio < 1 else 'high'}"
    return (
        f"the prediction is {off}"
        if abs(ratio - 1) <= CLOSE
        else f"[yellow]the prediction is {off}[/], so trust its shares less"
    )
