"""The page that compares several compilations: a front, where they are of one network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from svitc.html_report import fronts
from svitc.html_report.channels import KINDS, kind_of
from svitc.html_report.facts import figures, model_name, section, weight_words
from svitc.html_report.page import render
from svitc.support import human
from svitc.support.types import JsonDict


@dataclass(frozen=True)
class Entry:
    """One of the compilations.

    Attributes:
        name: what it is called on the page: its folder.
        address: where its own page is, None where it has none.
        figures: cells of its row in the table, by heading.
        passed: whether its file was verified.
    """

    name: str
    address: str | None
    figures: dict[str, str]
    passed: bool


@dataclass(frozen=True)
class GroupRow:
    """A channel group in all compilations.

    Attributes:
        name: its path.
        class_: class of its kind in style.css.
        kept: what each compilation keeps, as a share and as text; None where it has no such group.
    """

    name: str
    class_: str
    kept: list[tuple[float, str] | None]


def comparison(reports: Sequence[tuple[str, JsonDict, str | None]]) -> bytes:
    """Return a page that compares compilations.

    Args:
        reports: of each a name, the content of its ``report.json``, and where its own page is, if anywhere.
    """
    ordered = sorted(reports, key=lambda entry: -section(entry[1], "memory")["compiled_bytes"])
    contents = [report for _, report, _ in ordered]
    names = list(dict.fromkeys(model_name(report) for report in contents))
    originals = {section(report, "model").get("sha256") for report in contents}
    entries = [_entry(name, report, address) for name, report, address in ordered]
    headings = list(dict.fromkeys(heading for entry in entries for heading in entry.figures))
    return render(
        "comparison.html",
        title=f"{' and '.join(names[:3])}: {len(reports)} compilations",
        lead=_lead(contents, len(originals) == 1),
        same=len(originals) == 1,
        entries=entries,
        headings=headings,
        charts=fronts.charts([(name, report) for name, report, _ in ordered]),
        groups=_groups(contents),
    )


def _lead(reports: Sequence[JsonDict], same: bool) -> str:
    """Return in words what is compared."""
    sizes = [section(report, "memory")["compiled_bytes"] for report in reports]
    what = "of one network" if same else "of different networks"
    ends = f"from {human.byte_size(max(sizes))} down to {human.byte_size(min(sizes))} of weights"
    return f"{len(reports)} compilations {what}, {ends}, the largest first."


def _entry(name: str, report: JsonDict, address: str | None) -> Entry:
    """Return the row of one compilation: what came out, and the change of what has no original beside it."""
    cells = {"Weights stored as": weight_words(report)}
    for figure in figures(report):
        if figure.after != "-":
            left = "" if figure.share is None else f" ({human.share(figure.share)})"
            cells[figure.name] = f"{figure.after}{left}"
            if figure.share is None and figure.change:
                cells[f"Change of {figure.name[:1].lower()}{figure.name[1:]}"] = figure.change
    budget = section(report, "budget").get("text")
    return Entry(
        name,
        address,
        {"Budget": str(budget) if budget is not None else "none", **cells},
        section(report, "verify").get("status") == "passed",
    )


def _groups(reports: Sequence[JsonDict]) -> list[GroupRow]:
    """Return what each compilation keeps of each channel group that could be pruned."""
    found: dict[str, JsonDict] = {}
    for report in reports:
        for group in report.get("groups") or ():
            if group.get("frozen") is None:
                found.setdefault(group["name"], group)
    by_name = [{group["name"]: group for group in report.get("groups") or ()} for report in reports]
    return [
        GroupRow(name, KINDS[kind_of(group)], [_kept(groups.get(name)) for groups in by_name])
        for name, group in found.items()
    ]


def _kept(group: JsonDict | None) -> tuple[float, str] | None:
    return None if group is None else (group["kept"] / group["size"], f"{group['kept']:,}/{group['size']:,}")
