"""``svitc report``: write the page on a compilation again, or one that compares several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from svitc.cli import terminal

COMPARISON = Path("svitc-report.html")


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER...",
            help="Output folders of svitc compile, or a folder that holds several, as a front does.",
            show_default=False,
        ),
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE.html",
            help="The page to write. By default report.html in the folder; for several folders svitc-report.html.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write report.html again, or one page that compares several compilations.

    [dim]svitc report svitc-out[/]
    [dim]svitc report out/0.9 out/0.6 out/0.35 -o front.html[/]

    It is made from report.json alone: figures that an older svitc did not write are left out.
    """
    from svitc.driver.report_files import comparison_of, page_of, report_folders
    from svitc.support.atomic_files import write_one

    found = report_folders(folders)
    single = len(found) == 1
    default = (folders[0] / "report.html") if len(folders) == 1 else COMPARISON
    path = out or default
    write_one(path, page_of(found[0]) if single else comparison_of(found, path))
    terminal.out.print(f"wrote {escape(str(path))}")
