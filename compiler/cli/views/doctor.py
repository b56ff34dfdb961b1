"""What is installed, as a table."""

from __future__ import annotations

from rich.markup import escape

from svitc.cli.terminal import make_table, out
from svitc.support.types import JsonDict

FAST = {True: "[green]fast[/]", False: "[yellow]not faster[/]", None: "[dim]not known[/]"}


def installation(report: JsonDict) -> None:
    """Print the machine, the packages, the runtimes, and which files will be fast."""
    found = report["environment"]
    table = make_table("", "", "", left={""}, fold=True)
    table.add_row("processor", escape(found["processor"]), f"{report['usable_cores']} of {found['cores']} cores")
    table.add_row("system", escape(report["system"]), f"Python {found['python']}")
    optional = {package["name"] for package in report["optional"]}
    for name, number in found["versions"].items():
        if name not in optional:
            table.add_row(name, number, "")
    table.add_section()
    for runtime in report["runtimes"]:
        version = "[green]can be used[/]" if runtime["missing"] is None else "[dim]not here[/]"
        told = runtime["version"] or f"{runtime['missing']}. {runtime['install']}"
        table.add_row(f"runtime {runtime['title']}", version, escape(told))
    for package in report["optional"]:
        version = "[dim]not here[/]" if package["version"] is None else package["version"]
        told = "" if package["version"] else f"{package['missing']}: {package['install']}"
        table.add_row(package["name"], version, escape(told))
    table.add_section()
    for row in report["files"]:
        table.add_row(row["options"], FAST[row["fast"]], escape(row["why"]))
    out.print(table)
