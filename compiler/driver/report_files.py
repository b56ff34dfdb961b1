"""Pages from the reports in output folders (``svitc report``)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from jinja2 import TemplateError

from svitc.errors import InputError
from svitc.html_report import comparison, page
from svitc.support.atomic_files import settle
from svitc.support.json_text import parse_json
from svitc.support.types import JsonDict

REPORT, PAGE = "report.json", "report.html"
MALFORMED = (AttributeError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError, TemplateError)


def report_folders(folders: Sequence[Path]) -> list[Path]:
    """Return the folders that hold a report: those that are given, or those within them, as a front has.

    Raises:
        InputError: a folder holds none.
    """
    found = []
    for folder in folders:
        inner = [] if (folder / REPORT).is_file() else sorted(file.parent for file in folder.glob(f"*/{REPORT}"))
        if not inner and not (folder / REPORT).is_file():
            raise InputError(f"{folder} holds no {REPORT}", hint="svitc compile writes one into its output folder.")
        found += inner or [folder]
    return list(dict.fromkeys(found))


def read_report(folder: Path) -> JsonDict:
    """Return the content of a folder's report.

    Raises:
        InputError: it cannot be read, or is not a report.
    """
    path = folder / REPORT
    settle(folder)
    try:
        report = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}", hint="It is damaged; compile again.") from error
    if not isinstance(report, dict) or not isinstance(report.get("memory"), dict):
        raise InputError(f"{path} is not a report of svitc compile", hint="Give an output folder of svitc compile.")
    return report


def page_of(folder: Path, report: JsonDict | None = None) -> bytes:
    """Return the page on the compilation in a folder.

    Args:
        folder: the folder.
        report: its report; None reads it.

    Raises:
        InputError: its report cannot be read, or was changed.
    """
    report = read_report(folder) if report is None else report
    try:
        return page(report)
    except MALFORMED as error:
        raise _malformed(folder, error) from error


def comparison_of(folders: Sequence[Path], out: Path) -> bytes:
    """Return the page that compares the compilations in several folders.

    Args:
        folders: the folders.
        out: where the page is written, from where it links to those of the folders.

    Raises:
        InputError: a report cannot be read, or was changed.
    """
    found = []
    for folder in folders:
        link = folder / PAGE
        address = Path(os.path.relpath(link, out.parent)).as_posix() if link.is_file() else None
        found.append((folder.name or str(folder), read_report(folder), address))
    try:
        return comparison(found)
    except MALFORMED as error:
        raise _malformed(folders[0], error) from error


def _malformed(folder: Path, error: Exception) -> InputError:
    """Return the error for a report whose values are not those that svitc writes."""
    what = f"no key {error}" if isinstance(error, KeyError) else str(error)
    return InputError(
        f"{folder / REPORT} does not read as a report of svitc compile: {what}", hint="It was changed; compile again."
    )


__all__ = ["MALFORMED", "PAGE", "REPORT", "comparison_of", "page_of", "report_folders"]
