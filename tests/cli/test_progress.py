"""Progress: a bar in a terminal, lines elsewhere."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from svitc.cli import progress as module
from svitc.cli.progress import clock, progress, remaining


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (63, "1:03"), (3723, "1:02:03")])
def test_durations(seconds, text):
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("done", "total", "left"), [(0, 10, None), (5, None, None), (1, 1000, None), (5, 10, 8.0), (10, 10, 0.0)]
)
def test_the_remaining_time_is_that_of_the_pace_so_far(done, total, left):
    assert remaining(done, total, 8.0) == left


def shown(monkeypatch, terminal: bool) -> str:
    """Return what is printed while a stage without a number of items, and one of two items, each take 0.1 s."""
    monkeypatch.setattr(module, "LINE_EVERY_S", 0.03)
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, _environ={})
    with progress(console) as show:
        show("load", 0, None)
        time.sleep(0.1)
        show("verify", 1, 2)
        time.sleep(0.1)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_a_terminal_lines_say_what_runs(monkeypatch):
    lines = shown(monkeypatch, terminal=False).splitlines()
    assert "load, 0:00 in all" in lines and "verify: 1 of 2, about 0:00 left, 0:00 in all" in lines
    assert set(map(len, lines)) <= {len("load, 0:00 in all"), len("verify: 1 of 2, about 0:00 left, 0:00 in all")}


def test_a_bar_shows_no_number_of_items_where_none_is_known(monkeypatch):
    text = shown(monkeypatch, terminal=True)
    assert "load" in text and "0/?" not in text and "1/2" in text and "in all" in text
