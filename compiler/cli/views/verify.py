"""The verdict of a verification, as lines of text."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from svitc.cli.terminal import out
from svitc.support import human
from svitc.support.human import share
from svitc.support.types import JsonDict

if TYPE_CHECKING:
    from svitc.verification.verdict import Verdict


def verdict_line(verify: JsonDict) -> None:
    """Print whether the file is the same network, and on how many spikes and images that was checked."""
    flips = f"{verify['flips_within_rounding']} of {verify['spikes']:,} spikes differ within float rounding"
    silent = len(verify["silent_neurons"])
    where = f"in {runtime_words(verify['runtime'])}"
    looked = f"{human.counted(verify['neurons'], 'neuron')}, {human.counted(verify['images'], 'image')}"
    text = f"{looked}: {flips}, {verify['flips_beyond_rounding']} beyond;"
    if verify["top1_agreement"] is not None:
        text += f" the same class for {share(verify['top1_agreement'])}"
    else:
        text += f" outputs differ by at most {verify['max_logit_difference']:.3g}"
    first = escape(str(verify["first_divergence"]))
    kinds = ("flips_beyond_rounding", "currents_beyond_rounding", "logits_beyond_rounding")
    raw = verify.get("raw_input")
    if verify["status"] == "passed":
        out.print(f"[green]verified[/] that model.onnx computes {where} what model.py computes: {text}")
    elif any(verify[kind] for kind in kinds) or not raw_input_passed(raw):
        out.print(f"[bold red]NOT the same network[/] {where}: first at {first}; {text}")
    else:  # the file computes what the program computes, but the program is another network than the float one
        beyond = verify["quantization"]["beyond_rounding"]
        out.print(
            f"[bold red]NOT the float network with its weights rounded[/]: first at {first}, {beyond} values beyond "
            f"rounding; but model.onnx computes what model.py computes: {text}"
        )
    if raw is not None and raw_input_passed(raw):
        out.print(
            f"raw input: all {raw['pixels']:,} bytes, every value in every channel, become what --data reads, bit for "
            "bit" + (f", and all {human.counted(raw['values'], 'output')} are the same" if raw["values"] else "")
        )
    if silent:
        out.print(
            f"[yellow]note[/] {silent} of {human.counted(verify['neurons'], 'neuron')} never fired on these inputs; "
            "--data checks them on real ones"
        )


def raw_input_passed(raw: JsonDict | None) -> bool:
    """Return whether a file that takes bytes is the same as that with normalized floats; true for any other."""
    return raw is None or (raw["as_written"] and not raw["pixels_differing"] and not raw["values_differing"])


def runtime_words(runtime: JsonDict) -> str:
    """Return what a report says of a runtime in words: what texts call it, and its version."""
    from svitc.runtimes import RUNTIMES

    return f"{RUNTIMES[runtime['name']].title} {runtime['version']}"


def int16_line(verify: JsonDict) -> None:
    """Print which integer products of a file could saturate on a processor that adds bytes' products in 16 bits."""
    beyond = verify.get("beyond_int16")
    if beyond:
        name, total = next(iter(beyond.items()))
        out.print(
            f"[bold red]NOT the same network on x86 processors without VNNI[/]: {len(beyond)} integer products could "
            f"saturate there, first {escape(name)} ({escape(total)})"
        )


def quantization_line(verify: JsonDict, against: Path | None) -> None:
    """Print whether the integer network was compared with the float network, now or when it was compiled."""
    checked = verify.get("quantization")
    if checked is not None and checked["first_divergence"] is None:
        counts = f"{checked['compared']:,} currents and output values, 0 beyond rounding"
        out.print(f"[green]verified[/] that the weights are those of {escape(str(against))}, rounded: {counts}")
    elif "quantization_when_compiled" in verify:
        before = verify["quantization_when_compiled"]
        told = "its report.json does not say whether that was checked"
        if before is not None:
            passed = "passed" if before["first_divergence"] is None else "FAILED"
            told = f"when it was compiled, that check {passed} ({before['compared']:,} values, as its report.json says)"
        refused = verify.get("quantization_refused")
        repeat = "--against MODEL repeats it" if refused is None else f"It cannot be repeated: {escape(refused)}"
        out.print(
            f"[yellow]note[/] not checked here: that the weights are those of the float network, rounded; {told}. "
            f"{repeat}",
            soft_wrap=True,
        )


def differing_layers(verdict: Verdict) -> None:
    """Print the layers that differ by more than rounding explains."""
    for layer in verdict.layers.values():
        if layer.flips_beyond_rounding or layer.currents_beyond_rounding:
            out.print(f"  {asdict(layer)}")
