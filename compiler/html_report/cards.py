"""What notebooks show: a program, a compilation, a plan, sensitivity curves or a front, each as a piece of HTML.

A piece brings its own style, which applies to nothing else on the page (``@scope``), and follows light and dark mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from svitc.html_report import channels, facts, fronts, layers, sensitivity
from svitc.html_report.facts import section
from svitc.html_report.page import TEMPLATES, environment
from svitc.support import human
from svitc.support.types import JsonDict

Table = tuple[Sequence[str], Sequence[Sequence[object]]]  # headings, and rows of cells

FRONT_FIGURES = ("Weights in the file", "Top-1 accuracy", "Same class as the original", "Energy of an image")


@cache
def _style() -> str:
    return "\n".join((TEMPLATES / name).read_text(encoding="utf-8").strip() for name in ("style.css", "card.css"))


def _card(kind: str, title: str, sentences: Sequence[str], **parts: Any) -> str:
    """Return a piece of HTML; what is not given is left out."""
    parts = {"passed": True, "verified": "", "removed": True, "most_bits": 8, **parts}
    for name in ("figures", "charts", "curves", "blocks", "kinds", "groups", "tables", "layers"):
        parts.setdefault(name, ())
    template = environment().get_template("card.html")
    return template.render(style=_style(), kind=kind, title=title, sentences=[s for s in sentences if s], **parts)


def _channels(groups: Sequence[JsonDict]) -> JsonDict:
    """Return the parts of a card that show channel groups, which may be of no known kind."""
    known = {"groups": list(groups)}
    return {
        "blocks": channels.blocks(known),
        "kinds": channels.kinds_of(channels.prunable(known)),
        "groups": [{**group, "kind": channels.kind_of(group)} for group in groups],
    }


def program_card(summary: JsonDict) -> str:
    """Return the card of a program, from its ``summary``."""
    groups = summary["groups"]
    free = len(channels.prunable(summary))
    events = len(summary["input"]) == 4
    shape = " × ".join(map(str, summary["input"]))
    sentences = [
        f"It reads {'event frames' if events else 'images'} of {shape} and has {summary['parameters']:,} parameters in "
        f"{human.counted(summary['layers'], 'layer')}, with {summary['neurons']} layers of neurons between them. It "
        f"is at the stage {summary['stage']}.",
        f"Its channels form {human.counted(len(groups), 'group')}, which are kept or removed together; {free} of "
        "them can be pruned. A bar is a group, from the input to the head; above it the number of its channels.",
    ]
    name = facts.model_name(summary)
    return _card("svitc program", name[:1].upper() + name[1:], sentences, removed=False, **_channels(groups))


def compiled_card(report: JsonDict) -> str:
    """Return the card of a compilation, from the content of its ``report.json``."""
    stored = layers.layers(report)
    return _card(
        "svitc compilation",
        facts.title(report),
        [facts.lead(report), facts.promise(report)],
        verified=facts.verified(report),
        passed=section(report, "verify").get("status") == "passed",
        figures=[figure for figure in facts.figures(report) if figure.after != "-"],
        layers=stored,
        most_bits=max((layer.bits for layer in stored), default=8),
        **_channels(report.get("groups") or []),
    )


def plan_groups(plan: JsonDict) -> list[JsonDict]:
    """Return the channel groups of a plan's JSON, as those of a report."""
    return [
        {"name": name, "size": group["heads"] * group["dims"], "kept": len(group["keep"]), "frozen": None}
        for name, group in plan["groups"].items()
    ]


def plan_sentence(plan: JsonDict) -> str:
    """Return what a plan keeps, in a sentence."""
    groups, bits, tokens = plan_groups(plan), plan.get("bits", {}), plan.get("tokens", {})
    ranks = plan.get("ranks", {})
    parts = []
    if groups:
        kept, size = (sum(group[key] for group in groups) for key in ("kept", "size"))
        parts.append(f"{kept:,} of {size:,} channels in {human.counted(len(groups), 'group')}")
    if bits:
        widths = sorted(set(bits.values()), reverse=True)
        parts.append(f"weights of {' and '.join(map(str, widths))} bits in {human.counted(len(bits), 'layer')}")
    if ranks:
        parts.append(f"{human.counted(len(ranks), 'layer')} of a low rank")
    if tokens:
        parts.append(f"{sum(map(len, tokens.values())):,} tokens in {human.counted(len(tokens), 'stage')}")
    return f"It keeps {', '.join(parts)}." if parts else "It keeps everything."


def plan_card(plan: JsonDict) -> str:
    """Return the card of a plan, from its JSON."""
    made_by = plan["made_by"]
    title = str(made_by.get("policy") or "A plan")
    budget = made_by.get("budget")
    tables: list[Table] = []
    if plan.get("bits"):
        tables.append((("Layer", "Bits"), [*plan["bits"].items()]))
    if plan.get("ranks"):
        tables.append((("Layer", "Rank"), [*plan["ranks"].items()]))
    if plan.get("tokens"):
        tables.append((("Token stage", "Tokens that run"), [(name, len(p)) for name, p in plan["tokens"].items()]))
    sentences = [plan_sentence(plan), f"It was made for a budget of {budget}." if budget else ""]
    return _card("svitc plan", title, sentences, tables=tables, **_channels(plan_groups(plan)))


def sensitivity_card(measured: JsonDict) -> str:
    """Return the card of sensitivity curves: of channel groups, or of the bits of layers."""
    sweep = measured["sweep"]
    on = f"{human.counted(sweep['images'], 'image')}{'' if sweep['labels'] else ' without labels'}"
    if "groups" in measured:
        words = (
            f"Points of accuracy lost, upwards, where one channel group alone is pruned, against the share of its "
            f"channels that is removed; measured on {on}. Losses of more than {sensitivity.MOST_POINTS:.0f} points are "
            "drawn at the top edge."
        )
        return _card("svitc sensitivity", "Channels", [words], curves=sensitivity.curves(as_report(measured)))
    words = f"Points of accuracy lost where one layer alone has fewer than 8 bits, measured on {on}."
    widths = sorted({step["bits"] for row in measured["layers"] for step in row["steps"]}, reverse=True)
    rows = []
    for row in measured["layers"]:
        drops = {step["bits"]: human.points(step["drop"]) for step in row["steps"]}
        rows.append((row["name"], row["kind"], *(drops.get(bits, "-") for bits in widths)))
    headings = ("Layer", "Kind", *(f"{bits} bits" for bits in widths))
    return _card("svitc sensitivity", "Bits", [words], tables=[(headings, rows)])


def as_report(measured: JsonDict) -> JsonDict:
    """Return sensitivity curves of channel groups in the form in which a report has them."""
    curves = [
        {
            "group": row["group"],
            "size": row["size"],
            "points": [{"kept": step["width"], "drop": step["drop"]} for step in row["steps"]],
        }
        for row in measured["groups"]
    ]
    return {"sweep": {**measured["sweep"], "curves": curves}}


def front_card(reports: Sequence[tuple[str, JsonDict]]) -> str:
    """Return the card of several compilations, from their names and reports."""
    cells = [
        {f.name: f.after if f.share is None else f"{f.after} ({f.short})" for f in facts.figures(report)}
        for _, report in reports
    ]
    shown = [name for name in FRONT_FIGURES if any(name in row for row in cells)]
    rows = []
    for (name, report), row in zip(reports, cells, strict=True):
        passed = section(report, "verify").get("status") == "passed"
        rows.append((name, *(row.get(figure, "-") for figure in shown), "passed" if passed else "failed"))
    names = list(dict.fromkeys(facts.model_name(report) for _, report in reports))
    title = f"{' and '.join(names)}: {len(reports)} compilations"
    return _card(
        "svitc front",
        title,
        [],
        tables=[(("Compilation", *shown, "Verification"), rows)],
        charts=fronts.charts(reports),
    )


__all__ = ["compiled_card", "front_card", "plan_card", "program_card", "sensitivity_card"]
