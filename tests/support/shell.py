"""The command line as a test runs it."""

from __future__ import annotations

from svitc.cli.main import main


def run(capsys, *args: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr, in which there is never a traceback."""
    status = main([str(a) for a in args])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return status, captured.out, captured.err
