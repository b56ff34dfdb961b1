"""What is promised of a file, in words."""

from __future__ import annotations

from rich.markup import escape

from svitc.cli.terminal import out
from svitc.support.types import JsonDict


def promise(report: JsonDict | None) -> None:
    """Print the report's section ``promise``: the sentence, and on how many images it was chosen and confirmed."""
    if report is None:
        return
    how = "" if report["max_drop"] is None else "[green]promised[/]: "
    out.print(f"{how}{escape(report['text'])}", soft_wrap=True)
    out.print(images(report), soft_wrap=True)


def images(report: JsonDict) -> str:
    """Return on how many images a plan was chosen, and on how many others it was confirmed."""
    confirmed = f"confirmed on {report['images']:,}"
    if report["choosing_images"] is None:
        return confirmed
    tests = len(report["tests"])
    tested = f", which tested {tests} plan{'' if tests == 1 else 's'}" if tests else ""
    return (
        f"the plan was chosen on {report['choosing_images']:,} images of {escape(report['choosing'])}, and {confirmed} "
        f"others{tested}"
    )
