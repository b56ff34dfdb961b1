"""The page on a compilation, or on several: one HTML file that needs nothing else (``report.html``).

It is made of ``report.json`` alone (docs/report.md), and of nothing that depends on the machine, so that the same
report gives the same page. Everything in a report may come from a stranger's checkpoint: templates escape all of it,
and charts are built by ``svg.tag``, which does so as well.

Imports: ``support`` and ``errors``.

``cards.py`` makes the pieces that notebooks show, of the same parts.

Start with ``page.py``, then ``facts.py`` (what was asked, and what came out) and ``templates/page.html``. Each chart is
a file of its own.
"""

from __future__ import annotations

from svitc.html_report.cards import compiled_card, front_card, plan_card, program_card, sensitivity_card
from svitc.html_report.channels import channels_picture
from svitc.html_report.comparison import comparison
from svitc.html_report.page import page

__all__ = [
    "channels_picture",
    "comparison",
    "compiled_card",
    "front_card",
    "page",
    "plan_card",
    "program_card",
    "sensitivity_card",
]
