"""Progress on stderr: a bar in a terminal; elsewhere, as in a log file or a CI job, a line from time to time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

from svitc.support.reporter import Progress as ProgressCallback

LINE_EVERY_S = 10.0
EARLY_SHARE = 0.02  # of a stage, before which its pace says little


@contextmanager
def progress(console: Console) -> Iterator[ProgressCallback]:
    """Show progress; the ``with`` statement yields a callback ``(stage, done, total)``.

    Args:
        console: a bar is shown if it is a terminal, otherwise lines.
    """
    with _bar(console) if console.is_terminal else _lines(console) as show:
        yield show


def clock(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds: ``1:02:03``, or ``2:03`` below an hour."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def remaining(done: int, total: int | None, elapsed: float) -> float | None:
    """Return how many seconds a stage still takes at its pace so far; None where nothing is known of that.

    Args:
        done: items that are done.
        total: number of items, or None where it is not known.
        elapsed: seconds since the stage began.
    """
    if not total or done < max(1, EARLY_SHARE * total):
        return None
    return elapsed * (total - done) / done


class _CountColumn(ProgressColumn):
    """How many items are done, and how long the rest takes; nothing where no number of items is known."""

    def render(self, task: Task) -> Text:
        """Return the text of the column."""
        if task.total is None:
            return Text("")
        left = remaining(int(task.completed), int(task.total), task.elapsed or 0.0)
        text = f"{int(task.completed)}/{int(task.total)}"
        return Text(text if left is None else f"{text}, about {clock(left)} left")


@contextmanager
def _bar(console: Console) -> Iterator[ProgressCallback]:
    """Show the stage that runs as a bar, with the time since the command began at its end."""
    start = time.monotonic()
    total_time = TextColumn("[dim]{task.fields[clock]} in all[/]")
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(24), _CountColumn(), total_time)

    def since() -> str:
        return clock(time.monotonic() - start)

    with Progress(*columns, console=console, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int | None) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total, clock=since())
            for name, task in tasks.items():
                bar.update(task, visible=name == stage)
            bar.update(tasks[stage], completed=done, clock=since())

        def tick() -> None:
            for task in list(tasks.values()):
                bar.update(task, clock=since())

        with _every(1.0, tick):
            yield show


@contextmanager
def _lines(console: Console) -> Iterator[ProgressCallback]:
    """Print every ``LINE_EVERY_S`` which stage runs, how far it is, and how long it and the command have run."""
    start = began = time.monotonic()
    stage, done, total = "", 0, None

    def show(name: str, count: int, of: int | None) -> None:
        nonlocal stage, done, total, began
        if name != stage:
            began = time.monotonic()
        stage, done, total = name, count, of

    def line() -> None:
        now = time.monotonic()
        left = remaining(done, total, now - began)
        count = "" if total is None else f": {done} of {total}"
        rest = "" if left is None else f", about {clock(left)} left"
        if stage:
            console.print(f"{stage}{count}{rest}, {clock(now - start)} in all", soft_wrap=True, markup=False)

    with _every(LINE_EVERY_S, line):
        yield show


@contextmanager
def _every(seconds: float, action: Callable[[], object]) -> Iterator[None]:
    """Call an action every so many seconds, in a thread, while the ``with`` statement lasts."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            action()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
