"""The page on one compilation."""

from __future__ import annotations

import shlex
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from svitc.html_report import channels, facts, findings, layers, sensitivity, spikes
from svitc.html_report.facts import section
from svitc.support import human
from svitc.support.types import JsonDict

TEMPLATES = Path(__file__).with_name("templates")


@cache
def environment() -> Environment:
    """Return the templates, which escape every value that is not markup of ours."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"share": human.share, "bytes": human.byte_size, "count": "{:,}".format}
    return found


def render(template: str, **values: Any) -> bytes:
    """Return a page of a template."""
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    return environment().get_template(template).render(style=style, **values).encode()


def page(report: JsonDict) -> bytes:
    """Return the page on a compilation, from the content of its ``report.json``."""
    groups, rates = report.get("groups") or [], spikes.rates(report)
    stored = layers.layers(report)
    return render(
        "page.html",
        title=facts.title(report),
        lead=facts.lead(report),
        verified=facts.verified(report),
        passed=section(report, "verify").get("status") == "passed",
        promise=facts.promise(report),
        cautions=findings.cautions(report),
        figures=facts.figures(report),
        blocks=channels.blocks(report),
        kinds=channels.kinds_of(channels.prunable(report)),
        groups=[{**group, "kind": channels.kind_of(group)} for group in groups],
        layers=stored,
        most_bits=max((layer.bits for layer in stored), default=8),
        weights=facts.weight_words(report),
        curves=sensitivity.curves(report),
        clip=sensitivity.MOST_POINTS,
        sweep=section(report, "sweep"),
        spikes=section(report, "spikes"),
        chosen=spikes.chosen(report),
        rasters=spikes.rasters(report),
        rates=rates,
        highest=max((rate for row in rates for rate in (row.before, row.after) if rate), default=1.0),
        rate_images=section(report, "energy").get("images"),
        verify=section(report, "verify"),
        looked=findings.looked(report),
        runtimes=[{**row, "name": facts.runtime_name(row["name"])} for row in report.get("runtimes") or ()],
        decisions=report.get("decisions") or [],
        refused=findings.refused(report),
        command=shlex.join(report["command"]) if report.get("command") else None,
        replay=findings.replay(report),
        origin=findings.origin(report),
        files=section(report, "files"),
        seconds=section(report, "seconds"),
    )
