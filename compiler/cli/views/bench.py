"""Tables of the times that ``svitc bench`` measured."""

from __future__ import annotations

from collections.abc import Mapping

from rich.markup import escape

from svitc.cli import terminal
from svitc.support import human
from svitc.support.hardware import disturbed
from svitc.support.human import byte_size, milliseconds, share, three_figures
from svitc.support.types import JsonMapping

OPERATORS_SHOWN = 12


def show_report(report: JsonMapping) -> None:
    """Print the times as a table, what they depend on, and the profile where there is one."""
    columns = ("", "median", "quartiles", "beside svitc", "quartiles", "memory", "weights", "nodes", "runs", "runtime")
    table = terminal.make_table(*columns, left={"runtime"}, fold=True)
    for row in report["rows"]:
        if row["reason"]:
            table.add_row(escape(row["name"]), *[""] * 8, f"[yellow]{escape(row['reason'])}[/]")
            continue
        table.add_row(
            escape(row["name"]),
            f"[bold]{milliseconds(row['median_ms'])}[/]",
            f"{three_figures(row['q1_ms'])} to {three_figures(row['q3_ms'])}",
            f"{row['ratio']:.2f} x",
            f"{row['ratio_q1']:.2f} to {row['ratio_q3']:.2f}",
            byte_size(row["memory_bytes"] or 0),
            "" if row["weight_bytes"] is None else byte_size(row["weight_bytes"]),
            "" if row["nodes"] is None else f"{row['nodes']:,}",
            str(row["runs"]),
            escape(row["version"]),
        )
    terminal.out.print(table)
    env = report["environment"]
    shape = " x ".join(map(str, report["input"]))
    images = human.counted(report["batch"], "image")
    images += ", as bytes," if report.get("dtype") == "uint8" else ""
    terminal.out.print(
        f"{images} of {shape} a run, {report['threads']} of {env['cores']} processors ({escape(env['processor'])});"
        " beside svitc: time relative to the first row's in the same round",
        soft_wrap=True,
    )
    if "streaming" in report:
        show_streaming(report)
    if disturbed(report):
        terminal.disturbance(report["other_processes"])
    if "profile" in report:
        show_profile(report["profile"])


def show_streaming(report: JsonMapping) -> None:
    """Print what one time step per call costs beside all at once, and what stopping early makes of it."""
    found, difference = report["streaming"], report["rows"][0]["max_logit_difference"]
    steps = found["steps"]
    calls = human.counted(steps, "call")
    lines = [f"a run of svitc is {calls}, of one time step each; a call takes {milliseconds(found['call_median_ms'])}"]
    if found["ratio"] is not None:
        lines[0] += f", {found['call_ratio']:.2f} times 1/{steps} of all steps at once"
        quartiles = f"{found['ratio_q1']:.2f} to {found['ratio_q3']:.2f}"
        lines.append(f"{calls} take {found['ratio']:.2f} times as long as all steps at once (quartiles {quartiles})")
        if found["memory_ratio"] is not None:
            lines[-1] += f", in {found['memory_ratio']:.2f} times the memory"
    if difference is not None:
        same = "are the same, bit for bit" if difference == 0 else f"differ by up to {difference:.2g}"
        lines.append(f"on these images the outputs after the last step {same}")
    if found["mean_steps"] is not None:
        time = found["mean_steps_ms"]
        costs = "for images one by one" if time is None else f"{milliseconds(time)} an image"
        lines.append(f"stopping early: {found['mean_steps']:.2f} of {steps} steps on average (report.json), {costs}")
    for line in lines:
        terminal.out.print(line, soft_wrap=True)


def show_profile(profile: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Print the operators of each file, slowest first, with two columns for each file."""
    kinds = sorted(
        {kind for operators in profile.values() for kind in operators},
        key=lambda kind: -max(operators.get(kind, {"ms": 0.0})["ms"] for operators in profile.values()),
    )
    columns = [column for name in profile for column in (name, "nodes")]
    table = terminal.make_table("operator", *columns, title="\nby operator, of one run under ONNX Runtime's profiler")
    totals = {name: sum(entry["ms"] for entry in operators.values()) or 1.0 for name, operators in profile.items()}
    shown, rest = kinds[:OPERATORS_SHOWN], kinds[OPERATORS_SHOWN:]
    for title, group in [(kind, [kind]) for kind in shown] + ([(f"{len(rest)} others", rest)] if rest else []):
        cells = []
        for name, operators in profile.items():
            entries = [operators[kind] for kind in group if kind in operators]
            if not entries:
                cells += ["", ""]
                continue
            spent = sum(entry["ms"] for entry in entries)
            cells += [
                f"{milliseconds(spent)} [dim]{share(spent / totals[name])}[/]",
                f"{sum(entry['nodes'] for entry in entries):,.0f}",
            ]
        table.add_row(escape(title), *cells)
    table.add_row("all", *(cell for name in profile for cell in (milliseconds(totals[name]), "")))
    terminal.out.print(table)
