"""Print a prediction of time: one line a layer, one a kind, and how far it is from what was measured."""

from __future__ import annotations

import os
from typing import Any

from rich.markup import escape
from rich.table import Table

from svitc.cli import terminal

CLOSE = 0.25  # a prediction that is off by more is said to be off
DISTURBED = 0.1  # processors


def prediction(report: dict[str, Any]) -> None:
    """Where the time of an exported file should go, and what the file takes."""
    table = Table(title="predicted", title_justify="left", box=None, pad_edge=False, header_style="bold")
    columns = (("layer", "left"), ("kind", "left"), ("operators", "right"), ("ms", "right"), ("share", "right"))
    for title, justify in columns:
        table.add_column(title, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for row in report["layers"]:
        table.add_row(
            escape(row["layer"]),
            row["kind"],
            str(row["operators"]),
            f"{row['predicted_ms']:.3f}",
            f"{row['share']:.1%}",
        )
    terminal.out.print(table)
    table = Table(title="\nby kind", title_justify="left", box=None, pad_edge=False, header_style="bold")
    for title, justify in (("kind", "left"), ("layers", "right"), ("ms", "right"), ("share", "right")):
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    for row in report["kinds"]:
        table.add_row(row["kind"], str(row["layers"]), f"{row['predicted_ms']:.3f}", f"{row['share']:.1%}")
    terminal.out.print(table)
    threads = "1 thread" if report["threads"] == 1 else f"{report['threads']} threads"
    terminal.out.print(
        f"\n{report['predicted_ms']:.2f} ms predicted, [bold]{report['measured_ms']:.2f} ms measured[/] (median of"
        f" {report['runs']} runs of 1 image, {report['weights']} weights, {threads}): {difference(report['ratio'])}"
    )
    others = report.get("other_processes") or 0.0
    if others > DISTURBED and others + report["threads"] > (os.cpu_count() or 1):
        terminal.out.print(
            f"[yellow]note[/] other processes kept {others:.1f} processors busy meanwhile, which the threads needed: "
            "do not"
            " trust these times",
            soft_wrap=True,
        )


def difference(ratio: float) -> str:
    """How far a prediction is from what was measured, in words."""
    off = f"{abs(ratio - 1):.0%} too {'low' if ratio < 1 else 'high'}"
    return (
        f"the prediction is {off}"
        if abs(ratio - 1) <= CLOSE
        else f"[yellow]the prediction is {off}[/], so trust its shares less"
    )
