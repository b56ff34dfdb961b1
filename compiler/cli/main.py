"""The command line: the list of commands, and the exit status of every outcome (``EPILOG`` explains them)."""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

import svitc
from svitc.cli import terminal
from svitc.cli.commands.bench import bench
from svitc.cli.commands.compile import compile
from svitc.cli.commands.doctor import doctor
from svitc.cli.commands.energy import energy
from svitc.cli.commands.inspect import inspect
from svitc.cli.commands.models import models
from svitc.cli.commands.report import report
from svitc.cli.commands.sensitivity import sensitivity
from svitc.cli.commands.verify import verify
from svitc.cli.common import arguments, state
from svitc.cli.help import ALL, HelpfulCommand, show_all_commands
from svitc.cli.option_groups import grouped
from svitc.cli.options import current_name
from svitc.errors import INTERRUPTED, InputError, InternalError, SvitcError
from svitc.support.environment import one_line
from svitc.support.limits import bound_process, is_out_of_memory, limits_of_one_run, parse_size, set_max_memory

EPILOG = (
    "Exit status: 0 done, 2 usage, 3 bad input file, 4 unsupported model, 5 budget cannot be met, "
    "6 verification failed, 7 output cannot be written, 70 internal error, 130 interrupted."
)
COMMANDS = (compile, report, sensitivity, bench, energy, inspect, verify, models, doctor)  # in the order of --help
app = typer.Typer(
    help="Compile spiking vision transformers: prune them to a memory budget and export ONNX that runs on stock "
    "runtimes.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": current_name},
)
for command in COMMANDS:
    app.command(command.__name__, cls=HelpfulCommand, epilog=EPILOG)(grouped(command))


def _version(requested: bool) -> None:
    if requested:
        print(f"svitc {svitc.__version__} ({one_line()})")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version, and those of what it runs on."
        ),
    ] = False,
    help_all: Annotated[
        bool,
        typer.Option(ALL, callback=show_all_commands, is_eager=True, help="Explain all options of all commands."),
    ] = False,
    max_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            show_default=False,
            help="Refuse files that would take more memory than this, such as 4GB, and stop before working takes a "
            "gigabyte more. By default half of the machine's, for files alone.",
        ),
    ] = None,
) -> None:
    """Handle the options of ``svitc`` itself; each command handles its own."""
    set_max_memory(None if max_memory is None else parse_size(max_memory))
    if max_memory is not None:
        bound_process()


def _fault(problem: Exception) -> SvitcError:
    """Return what to tell of an error that no part of svitc raises on purpose."""
    if is_out_of_memory(problem):
        return InputError(
            f"there is not enough memory for this: {problem}",
            hint="Give a larger --max-memory, a smaller --limit or --sweep-images, or use a machine with more.",
        )
    return InternalError(
        f"{type(problem).__name__}: {problem}", hint="This is a bug in svitc; -v shows where. Please report it."
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line; bad input gives a message, and a traceback only with ``-v``.

    Args:
        argv: arguments without the name of the program; None for those of the process.

    Returns:
        The exit status.
    """
    state["verbose"] = False
    arguments[:] = sys.argv[1:] if argv is None else argv
    try:
        with limits_of_one_run():
            app(args=argv, prog_name="svitc")
    except SystemExit as done:
        if done.code == INTERRUPTED:
            terminal.err.print(
                "interrupted; no half-written file is left, and --resume continues from what was measured or trained"
            )
        return int(done.code or 0)
    except SvitcError as problem:
        terminal.error(problem)
        if state["verbose"]:
            traceback.print_exc()
        return problem.exit_status
    except Exception as problem:
        fault = _fault(problem)
        terminal.error(fault)
        if state["verbose"]:
            traceback.print_exc()
        return fault.exit_status
    return 0
