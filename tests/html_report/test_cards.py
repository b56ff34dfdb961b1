"""What notebooks show: each object as one piece of HTML with the figures of its report, escaped, and small."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np
import pytest

import svitc
from svitc.errors import UsageError
from svitc.html_report import compiled_card, front_card, plan_card, program_card, sensitivity_card
from svitc.planning.plan import Plan

MOST_BYTES = 40_000
NASTY = "<script>alert('a\"b')</script>&amp;"
VOID = {"br", "hr", "img"}


class Card(HTMLParser):
    """Reads a card: its words without the style, and the names of its elements, which must all be closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words, self.tags = "", []
        self.feed(html)
        assert not self.open and len(html.encode()) < MOST_BYTES

    def handle_starttag(self, tag, attrs) -> None:
        assert not any(name.startswith("on") for name, _ in attrs)
        self.tags.append(tag)
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.words += data if "style" not in self.open else ""


@pytest.fixture(scope="module")
def done(digits):
    return svitc.compile(digits, 0.15, weights="int8", policy="uniform", images=1, no_data="uniform")


@pytest.fixture(scope="module")
def curves(digits):
    rng = np.random.default_rng(0)
    images = rng.random((30, 1, 16, 16), dtype=np.float32), np.arange(30) % 10
    return svitc.sensitivity(digits, images, [0.5], sweep_images=10, calibration_images=10)


def test_a_program(digits):
    card = Card(digits._repr_html_())
    assert "162,754 parameters in 18 layers" in card.words and "images of 1 × 16 × 16" in card.words
    assert "12 groups" in card.words and "10 of them can be pruned" in card.words
    assert all(group.name in card.words for group in digits.groups) and card.tags.count("svg") >= 10
    assert "removed" not in card.words.replace("removed together", "")
    assert len(repr(digits)) < 200 and "162,754 parameters" in repr(digits)


def test_a_compilation(done):
    card = Card(done._repr_html_())
    memory = done.report["memory"]
    assert "Verified." in card.words and f"{memory['compiled_bytes'] / 1000:.2f} kB" in card.words
    assert all(layer in card.words for layer in done.report["weights"]["layers"])
    for group in done.report["groups"]:
        assert group["name"] in card.words and (group["frozen"] or f"{group['kept']:,}" in card.words)
    assert len(repr(done.verdict)) < 200 and "passed" in repr(done.verdict)


def test_a_plan(done):
    keep = {"a": np.array([[True, False, True]]), "b": np.ones((2, 4), bool)}
    plan = Plan(keep, {"policy": "uniform", "budget": "40%"}, {"fc": 4, "head": 8}, {"blocks": (0, 2, 5)})
    card = Card(plan._repr_html_())
    sentence = "It keeps 10 of 11 channels in 2 groups, weights of 8 and 4 bits in 2 layers, 3 tokens in 1 stage."
    assert sentence in card.words and "a budget of 40%" in card.words
    assert repr(plan) == f"Plan({sentence.removeprefix('It keeps ').rstrip('.')})"
    assert "It keeps everything." in Card(Plan({})._repr_html_()).words
    assert len(repr(done.plan)) < 200


def test_sensitivity(curves, digits):
    card = Card(curves._repr_html_())
    free = [group.name for group in digits.groups if group.frozen is None]
    assert len(curves.to_json()["groups"]) == len(free) and all(name in card.words for name in free)
    assert "measured on 10 images" in card.words and card.tags.count("svg") == len(free)
    sweep = curves.to_json()["sweep"]
    steps = [{"bits": 4, "drop": 0.012}, {"bits": 2, "drop": 0.5}]
    bits = {"sweep": sweep, "layers": [{"name": "fc", "kind": "mlp", "steps": steps}], "kinds": []}
    card = Card(svitc.Sensitivity(bits)._repr_html_())
    assert "4 bits" in card.words and "1.2" in card.words and "50.0" in card.words


def test_a_front(done):
    better = svitc.Compiled(done.program, done.onnx, done.plan, json.loads(json.dumps(done.report)), done.verdict)
    better.report["memory"]["compiled_bytes"] *= 2
    ours = svitc.Front([done, better])
    assert [name for name, _ in ours.reports] == ["0.15", "0.15 (2)"] and len(ours) == 2
    assert ours["0.15"] is ours[0.15] is done and ours["0.15 (2)"] is better
    with pytest.raises(UsageError, match=r"no compilation '0.51'\n.*Compilations are 0.15, 0.15 \(2\)"):
        ours[0.51]
    card = Card(ours._repr_html_())
    for report in (done.report, better.report):
        assert f"{report['memory']['compiled_bytes'] / 1000:.2f} kB" in card.words
    assert card.words.count("passed") == 2
    for wrong in ([3], [], 3, {"a": 3}):
        with pytest.raises(UsageError, match="is not a compilation|at least one"):
            svitc.Front(wrong)


def test_names_of_a_stranger_are_text(done, digits, curves):
    report = json.loads(json.dumps(done.report))
    report["groups"][0]["name"] = report["model"]["arch"] = NASTY
    summary = {**digits.summary(), "model": {"arch": NASTY}}
    measured = json.loads(json.dumps(curves.to_json()))
    measured["groups"][0]["group"] = NASTY
    plan = Plan({NASTY: np.ones((1, 2), bool)}, {"policy": NASTY}, {NASTY: 8}).to_json()
    cards = [compiled_card(report), program_card(summary), sensitivity_card(measured), plan_card(plan)]
    for html in [*cards, front_card([(NASTY, report)])]:
        card = Card(html)
        assert "script" not in card.tags and "alert('a" in card.words


def test_a_card_styles_nothing_else(done):
    style = done._repr_html_().partition("<style>")[2].partition("</style>")[0].strip()
    assert style.startswith("@scope (.svitc) {") and style.endswith("}")
    assert style.count("{") == style.count("}") and "prefers-color-scheme: dark" in style


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: svitc.sensitivity(p, None), "sensitivity is measured on images"),
        (lambda p: svitc.sensitivity(p, 3), "an int gives no images"),
        (lambda p: svitc.sensitivity(p, "x.npz", [0.5, 0.25]), "are not ascending shares"),
        (lambda p: svitc.sensitivity(p, "x.npz", criterion="l3"), "no criterion 'l3'"),
    ],
)
def test_what_is_wrong_is_said(digits, call, message):
    with pytest.raises(UsageError, match=message):
        call(digits)
