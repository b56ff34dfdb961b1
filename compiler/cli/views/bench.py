"""Print times side by side, and where the time goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from svitc.cli import terminal

OPERATORS_SHOWN = 12


def show_report(report: Mapping[str, Any]) -> None:
    """Times as a table, what they depend on, and where they go."""
    from svitc.bench.environment import disturbed

    table = Table(box=None, pad_edge=False)
    titles = ("", "median", "quartiles", "beside svitc", "quartiles", "memory", "weights", "nodes", "runs", "runtime")
    for title in titles:
        table.add_column(title, justify="left" if title in ("", "runtime") else "right", overflow="fold")
    for row in report["rows"]:
        if row["reason"]:
            table.add_row(escape(row["name"]), *[""] * 8, f"[yellow]{escape(row['reason'])}[/]")
            continue
        table.add_row(
            escape(row["name"]),
            f"[bold]{milliseconds(row['median_ms'])}[/]",
            f"{number(row['q1_ms'])} to {number(row['q3_ms'])}",
            f"{row['ratio']:.2f} x",
            f"{row['ratio_q1']:.2f} to {row['ratio_q3']:.2f}",
            terminal.amount(row["memory_bytes"] or 0),
            "" if row["weight_bytes"] is None else terminal.amount(row["weight_bytes"]),
            "" if row["nodes"] is None else f"{row['nodes']:,}",
            str(row["runs"]),
            escape(row["version"]),
        )
    terminal.out.print(table)
    env = report["environment"]
    shape = " x ".join(map(str, report["input"]))
    images = "1 image" if report["batch"] == 1 else f"{report['batch']} images"
    terminal.out.print(
        f"{images} of {shape} a run, {report['threads']} of {env['cores']} processors ({escape(env['processor'])});"
        " beside svitc: time relative to the first row's in the same round",
        soft_wrap=True,
    )
    if disturbed(report):
        terminal.out.print(
            f"[yellow]note[/] other processes kept {report['other_processes']:.1f} processors busy meanwhile, which the"
            " threads needed: do not trust these times",
            soft_wrap=True,
        )
    if "profile" in report:
        show_profile(report["profile"])


def show_profile(profile: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Operators of each file, those that take most first; one pair of columns a file."""
    kinds = sorted(
        {kind for operators in profile.values() for kind in operators},
        key=lambda kind: -max(operators.get(kind, {"ms": 0.0})["ms"] for operators in profile.values()),
    )
    table = Table(
        title="\nby operator, of one run under ONNX Runtime's profiler", title_justify="left", box=None, pad_edge=False
    )
    table.add_column("operator")
    totals = {name: sum(each["ms"] for each in operators.values()) or 1.0 for name, operators in profile.items()}
    for name in profile:
        table.add_column(name, justify="right")
        table.add_column("nodes", justify="right")
    shown, rest = kinds[:OPERATORS_SHOWN], kinds[OPERATORS_SHOWN:]
    for title, group in [(kind, [kind]) for kind in shown] + ([(f"{len(rest)} others", rest)] if rest else []):
        cells = []
        for name, operators in profile.items():
            found = [operators[kind] for kind in group if kind in operators]
            spent = sum(each["ms"] for each in found)
            cells += [
                f"{milliseconds(spent)} [dim]{spent / totals[name]:.1%}[/]",
                f"{sum(each['nodes'] for each in found):,.0f}",
            ]
            if not found:
                cells[-2:] = ["", ""]
        table.add_row(escape(title), *cells)
    table.add_row("all", *(cell for name in profile for cell in (milliseconds(totals[name]), "")))
    terminal.out.print(table)


def milliseconds(value: float) -> str:
    return f"{number(value)} ms"


def number(value: float) -> str:
    """Three significant figures, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
