"""The page on a compilation: it says what the report says, needs nothing else, and escapes names of the model."""

from __future__ import annotations

import copy
import json
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import svitc
from support.browser import BROWSER, browser
from support.shell import run
from svitc.driver.runtime_table import note_in_report
from svitc.evaluation.evaluator import Measurement
from svitc.evaluation.single_changes import SingleChanges
from svitc.html_report import channels_picture, comparison, page
from svitc.html_report.svg import ticks
from svitc.planning.plan import Plan
from svitc.support.types import JsonDict

LIMIT_BYTES, LIMIT_S = 1_500_000, 2.0
VOID = {"meta", "link", "br", "hr", "img", "input"}
NASTY = "<script>alert('a\"b')</script>&amp;"


class Reader(HTMLParser):
    """Reads a page: its words, and whether every element is closed where it must be.

    Attributes:
        words: all text.
        tags: names of all elements.
        untitled: number of pictures that say nothing to a screen reader.
        addresses: what the page links to or loads.
        levels: levels of the headings, in order.
    """

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words, self.tags, self.addresses, self.levels = "", [], [], []
        self.untitled, self.titled = 0, True
        self.feed(content.decode())
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("href", "src", "xlink:href") and value]
        assert not any(name.startswith("on") for name in given), given
        if tag in ("h1", "h2", "h3"):
            self.levels.append(int(tag[1]))
        if tag == "svg":
            self.untitled += given.get("aria-hidden") != "true"
        if tag == "title" and "svg" in self.open:
            self.untitled -= 1 if self.open[-1] == "svg" else 0
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data


@pytest.fixture(scope="module")
def written(tmp_path_factory, digits) -> Path:
    """The output folder of a compilation from Python, without images."""
    folder = tmp_path_factory.mktemp("report") / "out"
    compiled = svitc.compile(digits, 0.15, weights="int8", images=1, no_data="uniform")
    compiled.write(folder)
    return folder


@pytest.fixture(scope="module")
def report(written) -> JsonDict:
    """A report in which every part is filled, as with images of one's own."""
    content = json.loads((written / "report.json").read_text())
    interval = {"original_interval": [0.98, 0.999], "pruned_interval": [0.97, 0.998], "drop_interval": [-0.005, 0.011]}
    content["accuracy"] = {"original": 0.9944, "pruned": 0.9917, "drop": 0.0027, "images": 360, **interval}
    totals = {"pj": 14e6, "rate": 0.1}
    rates = [{"name": layer["name"], "original": 0.1, "compiled": None} for layer in content["spikes"]["layers"]]
    content["energy"] = {"images": 64, "table": "a table", "original": totals, "compiled": totals, "neurons": rates}
    points = [{"kept": kept, "drop": 0.2 / kept, "drop_interval": [0, 1]} for kept in (32, 8, 4)]
    names = [group["name"] for group in content["groups"] if group["frozen"] is None]
    curves = [{"group": name, "size": 64, "refit": "full", "points": points} for name in names]
    bits = [{"layer": name, "points": [{"bits": 4, "drop": 0.123}]} for name in content["weights"]["layers"]]
    about = {"images": 179, "labels": True, "on_reported_images": True, "points": 30}
    content["sweep"] = {**about, "curves": curves, "bit_curves": bits}
    content["promise"] = {"text": "the file loses at most 1.9 points", "basis": "labels", "drop_bound": 0.019}
    content["promise"] |= {"images": 252, "choosing_images": 108}
    content["command"] = ["svitc", "compile", "my model.pt", "--budget", "0.5"]
    return content


def test_it_says_what_the_report_says(report):
    read = Reader(page(report))
    words = " ".join(read.words.split())
    expected = [
        "99.17%",
        "99.44%",
        "12.3",
        "verified",
        "on 252 others",
        "svitc compile 'my model.pt' --budget 0.5",
        "179 images",
    ]
    expected += [f"{report['memory']['compiled_bytes'] / 1000:.2f} kB", report["model"]["sha256"]]
    expected += [group["name"] for group in report["groups"]]
    expected += [layer["name"] for layer in report["spikes"]["layers"]]
    expected += [file["sha256"] for file in report["files"].values()]
    expected += [f"{group['kept']}/{group['size']}" for group in report["groups"] if group["kept"] < group["size"]]
    missing = [each for each in expected if each.lower() not in words.lower()]
    assert not missing
    pruned = sum(group["frozen"] is None for group in report["groups"])
    assert read.tags.count("svg") >= 2 * pruned + 2 * len(report["spikes"]["layers"]), "a bar and a curve, two rasters"


def _of_many_layers(report: JsonDict) -> JsonDict:
    """Return the report of a network of 150 neuron layers and 80 channel groups, for 16 time steps."""
    many = copy.deepcopy(report)
    for layer in many["spikes"]["layers"]:
        layer["original"], layer["compiled"] = (layer[which] * 4 for which in ("original", "compiled"))
    many["spikes"]["layers"] *= 8
    many["verify"]["layers"] *= 10
    many["energy"]["neurons"] *= 8
    for name in ("groups", "decisions"):
        many[name] *= 8
    many["sweep"]["curves"] *= 8
    return many


def test_it_needs_nothing_else_and_is_quick(report):
    start = time.perf_counter()
    content = page(report)
    assert time.perf_counter() - start < LIMIT_S and len(content) < LIMIT_BYTES and content == page(report)
    large, start = _of_many_layers(report), time.perf_counter()
    assert len(page(large)) < LIMIT_BYTES and time.perf_counter() - start < LIMIT_S
    read = Reader(content)
    assert not {"script", "iframe", "object", "img"} & set(read.tags) and not read.untitled
    assert all(address.startswith(("#", "data:,")) for address in read.addresses), read.addresses
    assert b"url(" not in content and b"@import" not in content
    assert read.levels[0] == 1 and all(b - a <= 1 for a, b in zip(read.levels, read.levels[1:], strict=False))
    assert {"header", "nav", "main", "footer"} <= set(read.tags)


def _with_names(value: object, name: str) -> object:
    """Return a report in which every text is another one, where the page does not decide by it."""
    if isinstance(value, dict):
        decides = ("type", "status", "of", "kind", "frozen", "original", "compiled", "removed")
        return {
            key: item if key in decides and isinstance(item, str | list) else _with_names(item, name)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_with_names(item, name) for item in value]
    return name if isinstance(value, str) else value


def test_names_of_a_model_stay_text(report):
    nasty = _with_names(copy.deepcopy(report), NASTY)
    assert isinstance(nasty, dict)
    nasty |= {"refused": {NASTY: NASTY}, "decisions": [NASTY]}
    nasty["model"]["classes"] = [NASTY] * 10
    for content in (page(nasty), comparison([(NASTY, nasty, "a/report.html"), (NASTY, report, None)])):
        read = Reader(content)
        assert "script" not in read.tags and NASTY in read.words and not read.untitled
    assert "<script" not in channels_picture(nasty)


def test_a_report_of_an_older_version_is_a_page(report):
    old = {key: report[key] for key in ("memory", "parameters", "macs", "verify", "weights", "policy", "svitc")}
    old["groups"] = [{key: value for key, value in group.items() if key != "kind"} for group in report["groups"]]
    words = Reader(page(old)).words
    assert "Channels that were kept" in words and "One image through the network" not in words
    assert Reader(comparison([("a", old, None), ("b", report, None)])).words


def test_the_command_writes_pages_again(capsys, written, tmp_path):
    first = (written / "report.html").read_bytes()
    (written / "report.html").unlink()
    assert run(capsys, "report", written)[0] == 0 and (written / "report.html").read_bytes() == first
    row, exported = {"name": "openvino", "version": "2026.4", "result": "exact"}, (written / "model.onnx").read_bytes()
    assert "another compilation" in str(note_in_report(written, row, exported[:-1]))
    assert (written / "report.html").read_bytes() == first, "what was verified is no longer there"
    assert note_in_report(written, row, exported) is None
    assert "OpenVINO2026.4exact" in "".join(Reader((written / "report.html").read_bytes()).words.split())
    front = tmp_path / "front"
    for name in ("0.5", "0.4"):
        (front / name).mkdir(parents=True)
        (front / name / "report.json").write_bytes((written / "report.json").read_bytes())
    (front / "0.5" / "report.html").write_bytes(first)
    assert run(capsys, "report", front)[0] == 0
    read = Reader((front / "report.html").read_bytes())
    assert read.addresses.count("0.5/report.html") == 1 and "0.4/report.html" not in read.addresses
    assert run(capsys, "report", front / "0.5", front / "0.4", "-o", tmp_path / "both.html")[0] == 0
    assert "front/0.5/report.html" in Reader((tmp_path / "both.html").read_bytes()).addresses
    for damaged, message in (("{", "not JSON"), ("[]", "not a report"), ('{"memory": {}}', "does not read as")):
        (front / "0.4" / "report.json").write_text(damaged)
        status, _, error = run(capsys, "report", front / "0.4")
        assert status == 3 and message in " ".join(error.split())
    assert run(capsys, "report", tmp_path / "nothing")[0] == 3


def test_the_raster_shows_which_neurons_the_plan_removes(report):
    kept = {group["name"]: (group["kept"], group["size"]) for group in report["groups"]}
    layer = next(each for each in report["spikes"]["layers"] if each["name"] == "blocks.0.mlp.neuron1")
    now, before = kept["blocks.0.mlp.fc1.0"]
    assert layer["compiled_neurons"] / layer["neurons"] == now / before < 1
    assert {group["kind"] for group in report["groups"] if "mlp" in group["name"]} == {"mlp"}
    for each in report["spikes"]["layers"]:
        removed = _bits(each["removed"])
        assert len(each["original"]) == len(each["compiled"]) == report["spikes"]["time_steps"] == 4
        assert not (np.stack([_bits(step) for step in each["compiled"]]) & removed).any(), "what is removed is silent"
    assert 0 < _bits(layer["removed"]).sum() < layer["shown"]


def _bits(digits: str) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8)).astype(bool)


def test_curves_are_of_plans_that_change_one_thing():
    whole, half = np.ones((1, 4), bool), np.array([[True, True, False, False]])
    changes, point = SingleChanges(), Measurement(8, 10, 2, 0, 0.0, 0.0)
    changes.add(Plan({"a": half, "b": whole}), "full", point)
    changes.add(Plan({"a": half, "b": half}), "full", point)
    changes.add(Plan({"a": whole}, bits={"x": 8, "y": 4}), "none", point)
    changes.add(Plan({"a": whole}, bits={"x": 4, "y": 2, "z": 8}), "none", point)
    (curve,), (bits,) = changes.curves(), changes.bit_curves()
    assert (curve["group"], curve["size"], curve["points"][0]["kept"]) == ("a", 4, 2)
    assert curve["points"][0]["drop"] == 0.2 and bits["layer"] == "y" and bits["points"][0]["bits"] == 4


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0.97, 0.99, [0.97, 0.975, 0.98, 0.985, 0.99]),
        (0, 30, [0, 10, 20, 30]),
        (2, 2, [2]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on the path")
def test_in_a_browser(report, tmp_path):
    """No message, no request, no horizontal scrolling, in narrow and wide windows, light and dark, all parts open."""
    (tmp_path / "report.html").write_bytes(page(report))
    (tmp_path / "front.html").write_bytes(
        comparison([("0.9", report, None), ("a folder with a long name", report, None)])
    )
    with browser() as shown:
        for name in ("report.html", "front.html"):
            colors = set()
            for width, dark in ((400, False), (1400, True), (1400, False)):
                shown.open(tmp_path / name, width, dark)
                shown.value("document.querySelectorAll('details').forEach((part) => { part.open = true })")
                assert shown.value("document.documentElement.scrollWidth") <= width
                colors.add(shown.value("getComputedStyle(document.body).backgroundColor"))
            assert len(colors) == 2
            assert shown.value(
                "[...document.querySelectorAll('a[href], summary')].every((part) => part.tabIndex === 0)"
            )
            for kind in ("keyDown", "keyUp"):
                shown.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
            assert shown.value("document.activeElement.matches('a[href], summary')"), "the keyboard reaches nothing"
        assert not shown.problems and {address.partition(":")[0] for address in shown.requests} == {"file"}
