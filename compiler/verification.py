"""Verification: is the ONNX file the same network? Layer by layer with the reference's spikes fed in, then whole.

The reference is the program in PyTorch. A copy of the written file, cut at every neuron, gets the reference's spikes
as inputs, so that one layer's rounding cannot spread into the next. A spike that differs is an error, unless the
currents differ and the reference's membrane lay within float rounding of its threshold (rounding.py); an input current
that is off by more than rounding is an error, too. A layer that the inputs leave silent would prove nothing: one more batch feeds every layer with
random spikes instead of the reference's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx

from svitc import onnx as backend
from svitc.analysis.float_error import bound, magnitudes, margins, sum_lengths
from svitc.data.inputs import top1
from svitc.ir import ops
from svitc.ir.program import Program

STIMULUS_SEED = 0


@dataclass
class LayerVerdict:
    """One neuron over all images: differing spikes of both kinds, and currents that rounding does not explain."""

    name: str
    spikes: int = 0
    flips_within_rounding: int = 0
    flips_beyond_rounding: int = 0
    currents_beyond_rounding: int = 0
    max_current_difference: float = 0.0
    firing: float = 0.0  # sum of the spikes that the inputs themselves caused


@dataclass
class Verdict:
    """What verification found; ``to_json`` is the report's ``verify`` section."""

    images: int = 0
    agreeing: int = 0
    max_logit_difference: float = 0.0
    logits_beyond_rounding: int = 0
    layers: dict[str, LayerVerdict] = field(default_factory=dict)

    def add(self, final: np.ndarray, expected: np.ndarray) -> None:
        """Count a batch by the logits of the whole file and of the reference."""
        ours, theirs = top1(final), top1(expected)
        self.max_logit_difference = max(self.max_logit_difference, float(abs(final - expected).max()))
        self.agreeing += int((ours == theirs).sum())
        self.images += len(theirs)

    def total(self, what: str) -> int:
        return sum(getattr(layer, what) for layer in self.layers.values())

    @property
    def first_divergence(self) -> str | None:
        """The first layer, in execution order, that rounding does not explain."""
        for layer in self.layers.values():
            if layer.flips_beyond_rounding or layer.currents_beyond_rounding:
                return layer.name
        return "logits" if self.logits_beyond_rounding else None

    @property
    def passed(self) -> bool:
        return self.first_divergence is None

    def to_json(self) -> dict[str, Any]:
        return {
            "status": "passed" if self.passed else "failed",
            "images": self.images,
            "neurons": len(self.layers),
            "spikes": self.total("spikes"),
            "flips_within_rounding": self.total("flips_within_rounding"),
            "flips_beyond_rounding": self.total("flips_beyond_rounding"),
            "currents_beyond_rounding": self.total("currents_beyond_rounding"),
            "logits_beyond_rounding": self.logits_beyond_rounding,
            "first_divergence": self.first_divergence,
            "top1_agreement": self.agreeing / self.images if self.images else None,
            "max_logit_difference": self.max_logit_difference,
            "silent_neurons": [layer.name for layer in self.layers.values() if layer.firing == 0],
            "layers": [asdict(layer) for layer in self.layers.values()],
        }


class Recorder(fx.Interpreter):
    """Runs a program and keeps what each neuron receives and fires, and what it feeds on.

    Attributes:
        currents: each neuron's input.
        spikes: what it fires on that.
        fed: what its readers get: its spikes, or the ones given instead.
    """

    def __init__(self, program: Program, spikes: dict[str, torch.Tensor] | None = None) -> None:
        super().__init__(program.module)
        self.program, self.given = program, spikes
        self.currents: dict[str, torch.Tensor] = {}
        self.spikes: dict[str, torch.Tensor] = {}
        self.fed: dict[str, torch.Tensor] = {}

    def call_module(self, target: Any, args: tuple, kwargs: dict) -> Any:
        module = self.fetch_attr(target)
        if not ops.is_neuron(module):
            return super().call_module(target, args, kwargs)
        self.currents[target] = args[0]
        self.spikes[target] = super().call_module(target, args, kwargs)
        self.fed[target] = self.given[target] if self.given is not None else self.spikes[target]
        return self.fed[target]

    @classmethod
    def record(
        cls, program: Program, x: torch.Tensor, spikes: dict[str, torch.Tensor] | None = None
    ) -> tuple[Recorder, torch.Tensor]:
        program.module.eval()
        program.reset()
        recorder = cls(program, spikes)
        with torch.inference_mode():
            logits = recorder.run(x)
        program.reset()
        return recorder, logits


def verify(
    program: Program,
    exported: bytes,
    inputs: Iterable[torch.Tensor],
    progress: Callable[[int], None] | None = None,
) -> Verdict:
    """Compare an exported file with the program it is of.

    Args:
        program: the reference, at a stage that trains.
        exported: bytes of the ONNX file.
        inputs: batches in the program's input layout.
        progress: called with the number of images done.
    """
    cut_bytes, cuts = backend.cut(exported)
    whole, pieces = backend.session(exported), backend.session(cut_bytes)
    bounds = magnitudes(program)
    lengths = sum_lengths(program)
    modules = {str(node.target): program.module_of(node) for node in program.neurons()}
    verdict = Verdict(layers={name: LayerVerdict(name) for name in modules})
    names = [output.name for output in pieces.get_outputs()]
    stimulus = torch.Generator().manual_seed(STIMULUS_SEED)
    for number, x in enumerate(inputs):
        reference, logits = Recorder.record(program, x)
        runs = [(reference, logits)]
        if number == 0:
            spikes = {name: stimulate(modules[name], s, stimulus) for name, s in reference.spikes.items()}
            runs.append(Recorder.record(program, x, spikes))
        for kind, (run, want) in enumerate(runs):
            scale, magnitude = Recorder.record(bounds, x.abs(), run.fed)
            feed = {backend.INPUT: x.numpy()}
            feed.update({each.reference: run.fed[each.path].numpy().reshape(each.shape) for each in cuts})
            got = dict(zip(names, pieces.run(names, feed), strict=True))
            for each in cuts:
                layer, module = verdict.layers[each.path], modules[each.path]
                _judge(layer, module, each, got, run, scale, lengths[each.path], natural=kind == 0)
            off = abs(got[backend.OUTPUT] - want.numpy())
            verdict.logits_beyond_rounding += int((off > bound(magnitude.numpy(), lengths["logits"])).sum())
        expected = logits.numpy()
        final = whole.run(None, {backend.INPUT: x.numpy()})[0]
        verdict.add(final, expected)
        if progress is not None:
            progress(verdict.images)
    return verdict


def _judge(
    layer: LayerVerdict,
    module: Any,
    each: backend.CutNeuron,
    got: dict[str, np.ndarray],
    reference: Recorder,
    scale: Recorder,
    terms: int,
    natural: bool,
) -> None:
    """Compare one neuron's current and spikes in the file with the reference's."""
    want = reference.spikes[each.path].numpy()
    current = reference.currents[each.path].numpy()
    magnitude = scale.currents[each.path].numpy()
    spikes = got[each.spikes].reshape(want.shape)
    given = got[each.current]
    # a current that is the same at every step is in the file once
    off = abs(given.reshape(current[:1].shape if each.static else current.shape) - current)
    layer.spikes += want.size
    layer.firing += float(want.sum()) if natural else 0.0
    layer.max_current_difference = max(layer.max_current_difference, float(off.max()))
    layer.currents_beyond_rounding += int((off > bound(magnitude, terms)).sum())
    differs = spikes != want
    if not differs.any():
        return
    distance, allowed = margins(module, current, want, magnitude, terms)
    beyond = int((differs & _unexplained(differs, off, distance > allowed, ops.has_state(module))).sum())
    layer.flips_beyond_rounding += beyond
    layer.flips_within_rounding += int(differs.sum()) - beyond


def _unexplained(differs: np.ndarray, off: np.ndarray, far: np.ndarray, state: bool) -> np.ndarray:
    """Where spikes that differ are wrong: far from the threshold, or on a current that is not off at all."""
    if not state:
        return far | (off == 0)
    # equal currents give equal membranes, bit for bit: only where they differ is rounding an excuse
    strayed = np.cumsum(off, axis=0) > 0
    # once a membrane has taken the other branch its later steps differ with reason: judge the first
    first = differs & (np.cumsum(differs, axis=0) == 1)
    return (first & (far | ~strayed)).any(axis=0)


def stimulate(module: Any, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random spikes of a neuron's shape: a fifth fire, integer neurons any of their counts."""
    fired = torch.rand(like.shape, generator=generator) < 0.2
    if isinstance(module, ops.IntegerSpike):
        most = module.levels
    else:
        most = getattr(module.surrogate_function, "max_spike_count", 1)
    counts = torch.randint(1, int(most) + 1, like.shape, generator=generator)
    return (fired * counts).to(like.dtype)
