"""What a person sees: tables, summaries and errors on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from svitc.errors import SvitcError

# where nobody watches (a pipe, a log) nothing is cut or wrapped
out = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 200)


def error(problem: SvitcError) -> None:
    """One error: what, where, and the way out."""
    err.print(f"[bold red]error:[/] {escape(problem.message)}", soft_wrap=True)
    if problem.where:
        err.print(f"  [dim]at[/] {escape(problem.where)}", soft_wrap=True)
    if problem.hint:
        err.print(f"  [yellow]{escape(problem.hint)}[/]", soft_wrap=True)


def amount(number: float) -> str:
    """Bytes as a person reads them, in powers of ten."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:.0f} B"


@contextmanager
def progress(quiet: bool) -> Iterator[Any]:
    """A progress line on stderr, for a driver's callback ``(stage, done, of)``; nothing where ``quiet``."""
    if quiet:
        yield None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, of: int | None) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    bar.update(task, visible=False)
                tasks[stage] = bar.add_task(stage, total=of)
            bar.update(tasks[stage], completed=done, visible=True)

        yield show


def assumptions(info: dict[str, Any]) -> None:
    for each in info.get("assumptions", []):
        out.print(f"[yellow]assumed[/] {escape(str(each))}")


def share_interval(interval: Sequence[float]) -> str:
    return f"{interval[0]:.1%} to {interval[1]:.1%}"


def points_interval(drop: Sequence[float]) -> str:
    """The interval of a change in points, from that of the drop."""
    return f"{0.0 - 100 * drop[1]:+.2f} to {0.0 - 100 * drop[0]:+.2f}"
