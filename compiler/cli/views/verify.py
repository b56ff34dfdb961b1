"""The verdict of a verification, as lines of text."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.markup import escape

from svitc.cli.terminal import out
from svitc.support.human import share
from svitc.support.types import JsonDict

if TYPE_CHECKING:
    from svitc.verification.verdict import Verdict


def verdict_line(verify: JsonDict) -> None:
    """Print whether the file is the same network, and on how many spikes and images that was checked."""
    flips = f"{verify['flips_within_rounding']} of {verify['spikes']:,} spikes differ within float rounding"
    silent = len(verify["silent_neurons"])
    text = f"{verify['neurons']} neurons, {verify['images']} images: {flips}, {verify['flips_beyond_rounding']} beyond;"
    if verify["top1_agreement"] is not None:
        text += f" the same class for {share(verify['top1_agreement'])}"
    else:
        text += f" outputs differ by at most {verify['max_logit_difference']:.3g}"
    if verify["status"] == "passed":
        out.print(f"[green]verified[/] that model.onnx computes what model.py computes: {text}")
    else:
        out.print(f"[bold red]NOT the same network[/]: first at {escape(str(verify['first_divergence']))}; {text}")
    if silent:
        out.print(
            f"[yellow]note[/] {silent} of {verify['neurons']} neurons never fired on these inputs; --data checks them "
            "on real ones"
        )


def differing_layers(verdict: Verdict) -> None:
    """Print the layers that differ by more than rounding explains."""
    for layer in verdict.layers.values():
        if layer.flips_beyond_rounding or layer.currents_beyond_rounding:
            out.print(f"  {asdict(layer)}")
