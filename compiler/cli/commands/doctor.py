"""``svitc doctor``: show what is installed, and which files will be fast here."""

from __future__ import annotations

import json

from svitc.cli.common import start
from svitc.cli.output_options import OutputOptions
from svitc.cli.views.doctor import installation


def doctor(output: OutputOptions) -> None:
    """Show what is installed, which runtimes can be used, and which of svitc's files will be fast on this machine.

    [dim]svitc doctor[/]
    [dim]svitc doctor --json[/]    for a bug report
    """
    start(output.verbose)
    from svitc.driver.doctor import doctor as examine

    report = examine()
    if output.as_json:
        print(json.dumps(report, indent=1))
    else:
        installation(report)
