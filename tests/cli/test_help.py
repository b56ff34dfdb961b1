"""The help of every command: two screens at most by default, and nothing left out of the whole."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import typer.main
from typer.core import TyperOption

from support.shell import run
from svitc.cli.help import ALL, HelpfulCommand
from svitc.cli.main import app

SCREEN_LINES, COLUMNS = 50, 100
COMMANDS = typer.main.get_command(app).commands


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    for key, value in {"COLUMNS": str(COLUMNS), "TERM": "dumb", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(key, value)


@pytest.mark.parametrize("command", ["", *sorted(COMMANDS)])
def test_help_fits_two_screens_with_examples_on_top(command, capsys):
    status, out, _ = run(capsys, *([command] if command else []), "--help")
    lines = out.splitlines()
    assert status == 0 and len(lines) <= 2 * SCREEN_LINES and max(map(len, lines)) <= COLUMNS
    if command:
        first = next(number for number, line in enumerate(lines) if line.startswith(f" svitc {command}"))
        assert first < next(number for number, line in enumerate(lines) if "╭" in line)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_option_is_named_in_the_help_and_explained_in_the_whole_help(command, capsys):
    options = [option for option in COMMANDS[command].params if isinstance(option, TyperOption) and not option.hidden]
    has_panels = any(option.rich_help_panel for option in options)
    short, whole = (run(capsys, command, flag)[1] for flag in ("--help", ALL if has_panels else "--help"))
    for option in options:
        name = option.opts[0]
        if name == ALL:
            continue
        assert f"{name} " in short and f"│ {name} " in whole
        assert option.help and option.help.split()[0] in whole
        if option.rich_help_panel is None:
            assert f"│ {name} " in short
    assert (ALL in short) == has_panels


def test_the_whole_help_needs_no_argument_and_only_long_help_is_cut(capsys):
    status, whole, _ = run(capsys, "compile", ALL)
    assert status == 0 and "Learning rate" not in whole and "Highest learning rate of fine-tuning." in whole
    assert "Highest learning rate" not in run(capsys, "compile", "--help")[1]
    assert all(isinstance(command, HelpfulCommand) for command in COMMANDS.values())


def test_the_whole_help_of_all_commands(capsys):
    status, whole, _ = run(capsys, ALL)
    assert status == 0
    for name, command in COMMANDS.items():
        assert f"Usage: svitc {name} " in whole
        assert all(f"│ {option.opts[0]} " in whole for option in command.params if isinstance(option, TyperOption))


def test_the_shell_completes_commands_and_options():
    environment = os.environ | {"_SVITC_COMPLETE": "complete_bash"}
    for words, position, expected in (("svitc sens", 1, "sensitivity"), ("svitc compile --bud", 2, "--budget")):
        settings = environment | {"COMP_WORDS": words, "COMP_CWORD": str(position)}
        done = subprocess.run(
            [sys.executable, "-m", "svitc"], env=settings, capture_output=True, text=True, check=False
        )
        assert done.stdout.split() == [expected]
