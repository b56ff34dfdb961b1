"""Output to the terminal: consoles, errors, and the style of tables and notes."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from svitc.cli.progress import progress
from svitc.errors import SvitcError
from svitc.support.reporter import Reporter
from svitc.support.types import JsonMapping

# 200 columns where the output goes to a pipe or a file, so that tables are neither cut nor wrapped
out = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 200)


def error(problem: SvitcError) -> None:
    """Print an error: what is wrong, where, and the way out."""
    err.print(f"[bold red]error:[/] {escape(problem.message)}", soft_wrap=True)
    if problem.where:
        err.print(f"  [dim]at[/] {escape(problem.where)}", soft_wrap=True)
    if problem.hint:
        err.print(f"  [yellow]{escape(problem.hint)}[/]", soft_wrap=True)


def warning(sentence: str) -> None:
    """Print at once what most probably makes the result worthless."""
    err.print(f"[bold yellow]warning:[/] {escape(sentence)}", soft_wrap=True)


@contextmanager
def reporting(quiet: bool) -> Iterator[Reporter]:
    """Show the progress and the decisions of a command on stderr, unless ``quiet``."""
    if quiet:
        yield Reporter()
        return
    with progress(err) as show:
        yield Reporter(on_progress=show, on_decision=decision)


def decision(sentence: str) -> None:
    """Print a decision while the command runs."""
    err.print(f"[dim]{escape(sentence)}[/]", soft_wrap=True)


def assumptions(info: JsonMapping) -> None:
    """Print what was assumed about a model."""
    for assumption in info.get("assumptions", []):
        out.print(f"[yellow]assumed[/] {escape(str(assumption))}")


def note(text: str) -> None:
    """Print a note."""
    out.print(f"[yellow]note[/] {escape(text)}", soft_wrap=True)


def disturbance(processors: float) -> None:
    """Print a note that other processes kept this many processors busy during a measurement."""
    note(
        f"other processes kept {processors:.1f} processors busy meanwhile, which the threads needed: do not trust"
        " these times"
    )


def make_table(
    *columns: str, left: Collection[str] = (), fold: bool | Collection[str] = False, title: str | None = None
) -> Table:
    """Return an empty table without lines.

    Args:
        columns: titles of the columns.
        left: columns that are left-aligned, besides the first; all others hold numbers and are right-aligned.
        fold: columns whose text is wrapped where the terminal is too narrow; True for all of them.
        title: text above the table.
    """
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for position, column in enumerate(columns):
        folded = fold if isinstance(fold, bool) else column in fold
        table.add_column(
            column,
            justify="left" if position == 0 or column in left else "right",
            overflow="fold" if folded else "ellipsis",
        )
    return table
