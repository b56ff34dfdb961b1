"""Firing rates of the neuron layers, and the spikes of one image through the network, before and after."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from svitc.html_report.facts import section
from svitc.html_report.svg import tag
from svitc.support import human
from svitc.support.types import JsonDict

STEP = 6  # pixels of a time step in height


@dataclass(frozen=True)
class Rate:
    """The firing rate of one neuron layer: spikes of a neuron in a time step.

    Attributes:
        name: path of the layer.
        before, after: shares of the neurons; None where that is not known.
    """

    name: str
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Raster:
    """The spikes of one layer.

    Attributes:
        name: path of the layer.
        before, after: pictures: a column for each neuron of the sample, a row for each time step.
        words: the rates and the numbers of neurons, as text.
    """

    name: str
    before: Markup
    after: Markup
    words: str


def rates(report: JsonDict) -> list[Rate]:
    """Return the firing rates over the images of the energy estimate, or those on the one image of the raster."""
    neurons = section(report, "energy").get("neurons")
    if neurons:
        return [Rate(row["name"], row.get("original"), row.get("compiled")) for row in neurons]
    layers = section(report, "spikes").get("layers") or ()
    return [Rate(layer["name"], layer.get("original_rate"), layer.get("compiled_rate")) for layer in layers]


def chosen(report: JsonDict) -> str:
    """Return in words which class the networks choose for the image of the raster; nothing where there are none."""
    spikes, classes = section(report, "spikes"), section(report, "model").get("classes") or ()

    def name(key: str) -> str | None:
        number = spikes.get(key)
        return None if number is None else f"“{classes[number]}”" if number < len(classes) else f"class {number}"

    before, after, label = name("original_class"), name("compiled_class"), name("label")
    if before is None or after is None:
        return ""
    both = (
        f"Both networks choose {before} for it"
        if before == after
        else (f"The original chooses {before} for it, the compiled network {after}")
    )
    return f"{both}." if label is None else f"{both}; its label is {label}."


def rasters(report: JsonDict) -> list[Raster]:
    """Return the raster of each layer, from the input to the head."""
    found = []
    for layer in section(report, "spikes").get("layers") or ():
        shown = int(layer["shown"])
        removed = _bits(layer.get("removed") or "", shown)
        before = _picture(layer["original"], shown, [], f"{layer['name']} before")
        after = _picture(layer["compiled"], shown, removed, f"{layer['name']} after")
        words = (
            f"{layer['neurons']:,} → {layer['compiled_neurons']:,} neurons, "
            f"{human.share(layer['original_rate'])} → {human.share(layer['compiled_rate'])} fire"
        )
        found.append(Raster(layer["name"], before, after, words))
    return found


def _bits(digits: str, count: int) -> list[int]:
    """Return the places of the ones in hexadecimal digits, the first bit being the highest of the first digit."""
    bits = f"{int(digits, 16):0{4 * len(digits)}b}" if digits else ""
    return [place for place, bit in enumerate(bits[:count]) if bit == "1"]


def _runs(places: list[int]) -> list[tuple[int, int]]:
    """Return runs of neighboring places, each with its length."""
    runs: list[tuple[int, int]] = []
    for place in places:
        if runs and sum(runs[-1]) == place:
            runs[-1] = runs[-1][0], runs[-1][1] + 1
        else:
            runs.append((place, 1))
    return runs


def _picture(steps: list[str], shown: int, removed: list[int], words: str) -> Markup:
    """Return a raster that is as wide as its place; a path for all spikes, and one for the removed neurons."""
    rows = [_bits(digits, shown) for digits in steps]
    path = "".join(f"M{x} {y}h{run}" for y, row in enumerate(rows) for x, run in _runs(row))
    gone = "".join(f"M{x} -.5h{run}v{len(rows)}h-{run}z" for x, run in _runs(removed))
    return tag(
        "svg",
        tag("title", f"{words}: {sum(map(len, rows))} spikes of {shown} neurons in {len(rows)} time steps"),
        tag("path", d=gone, class_="gone") if gone else "",
        tag("path", d=path, class_="spike") if path else "",
        role="img",
        viewBox=f"0 -.5 {shown} {len(rows)}",
        preserveAspectRatio="none",
        height=STEP * len(rows),
        class_="raster",
    )
