"""The command line. Exit statuses: 0 done, 2 usage, 3 bad input file, 4 unsupported model, 5 budget cannot be met,
6 verification failed, 7 output cannot be written, 70 a fault of svitc, 130 interrupted."""

from __future__ import annotations

import traceback
from typing import Annotated

import typer

import svitc
from svitc.cli import terminal
from svitc.cli.commands import bench, compile, energy, inspect, sensitivity, verify
from svitc.cli.common import EPILOG, app, state
from svitc.errors import INTERRUPTED, InternalError, SvitcError

app.command(epilog=EPILOG, name="compile")(compile.compile)
app.command(epilog=EPILOG, name="sensitivity")(sensitivity.sensitivity)
app.command(epilog=EPILOG, name="bench")(bench.bench)
app.command(epilog=EPILOG, name="energy")(energy.energy)
app.command(epilog=EPILOG, name="inspect")(inspect.inspect)
app.command(epilog=EPILOG, name="verify")(verify.verify)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"svitc {svitc.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status. Bad input never gives a traceback (``-v`` shows one)."""
    state["verbose"] = False
    try:
        app(args=argv, prog_name="svitc")
    except SystemExit as done:
        if done.code == INTERRUPTED:
            terminal.err.print(
                "interrupted; no half-written file is left, and --resume goes on with what was measured or trained"
            )
        return int(done.code or 0)
    except SvitcError as problem:
        terminal.error(problem)
        if state["verbose"]:
            traceback.print_exc()
        return problem.exit_status
    except Exception as problem:
        fault = InternalError(
            f"{type(problem).__name__}: {problem}",
            hint="This is a fault of svitc; -v shows where. Please report it.",
        )
        terminal.error(fault)
        if state["verbose"]:
            traceback.print_exc()
        return fault.exit_status
    return 0
