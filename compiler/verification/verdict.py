"""Verdict: the result of a verification, in each layer and in the outputs, and whether it passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch

from svitc.ir.outputs import INPUT, ClassScores, class_scores, labels
from svitc.ir.program import Program
from svitc.support import human
from svitc.support.types import JsonDict


@dataclass
class LayerVerdict:
    """The differences of one neuron over all images.

    Attributes:
        name: path of the neuron.
        spikes: number of spikes that were compared.
        flips_within_rounding: spikes that differ as rounding explains.
        flips_beyond_rounding: spikes that differ otherwise.
        currents_beyond_rounding: currents that differ by more than rounding explains.
        max_current_difference: largest absolute difference of a current.
        firing: sum of the spikes that the inputs themselves caused.
        membranes_beyond_rounding: membranes after a step that differ by more than rounding explains; only in a
            streaming file.
    """

    name: str
    spikes: int = 0
    flips_within_rounding: int = 0
    flips_beyond_rounding: int = 0
    currents_beyond_rounding: int = 0
    max_current_difference: float = 0.0
    firing: float = 0.0
    membranes_beyond_rounding: int = 0

    def to_json(self) -> JsonDict:
        """Return the layer's entry in the report; that on membranes only where some differ."""
        values = asdict(self)
        if not self.membranes_beyond_rounding:
            del values["membranes_beyond_rounding"]
        return values


@dataclass
class OutputVerdict:
    """The differences of one output over all images.

    Attributes:
        name: what reports call it.
        values_beyond_rounding: values that differ by more than rounding explains.
        max_difference: largest absolute difference of a value, where the whole file ran by itself.
    """

    name: str
    values_beyond_rounding: int = 0
    max_difference: float = 0.0


MOST_CLAMPED = 0.01  # largest share of an input's values that may lie outside its range


@dataclass
class QuantizationVerdict:
    """The differences between a quantized program and the float program that it was made of.

    Attributes:
        beyond: neuron, layer or output -> how many of its currents, weights or values differ by more than rounding
            explains; for a neuron with other equations at least 1.
        compared: number of currents and values that were compared.
        clamped: rounding of an input or of a stream -> elements outside its range, and all of them.
    """

    beyond: dict[str, int] = field(default_factory=dict)
    compared: int = 0
    clamped: dict[str, tuple[int, int]] = field(default_factory=dict)

    def judge(self, name: str, difference: torch.Tensor, allowed: torch.Tensor) -> None:
        """Count the elements that differ by more than they may.

        Args:
            name: neuron or output.
            difference: differences, of any sign.
            allowed: the largest magnitudes that rounding explains; infinite where nothing is known.
        """
        difference, allowed = difference.abs().double(), allowed.double().expand(difference.shape)
        self.beyond[name] = self.beyond.get(name, 0) + int((~(difference <= allowed)).sum())
        self.compared += difference.numel()

    def pass_over(self, name: str, values: int) -> None:
        """Count elements of a neuron or output that are known to differ by no more than they may."""
        self.beyond.setdefault(name, 0)
        self.compared += values

    def to_json(self) -> JsonDict:
        """Return the ``quantization`` entry of the report's ``verify`` section."""
        return {
            "compared": self.compared,
            "beyond_rounding": sum(self.beyond.values()),
            "first_divergence": self.first_divergence,
            "clamped": {name: {"values": count, "of": total} for name, (count, total) in self.clamped.items()},
        }

    @property
    def first_divergence(self) -> str | None:
        """The first rounding that clamps its input, or the first neuron, layer or output beyond rounding."""
        clamps = [
            f"{name}, which clamps values outside its range"
            for name, (count, total) in self.clamped.items()
            if count > MOST_CLAMPED * total
        ]
        return next((name for name in (*clamps, *(name for name, count in self.beyond.items() if count))), None)


@dataclass(frozen=True)
class RawInputVerdict:
    """The differences between a file that takes bytes and the same file with normalized floats as its input.

    Attributes:
        as_written: whether what is in front of the network is what svitc writes for the program's normalization.
        pixels: number of pixels that were compared, with every byte in every channel.
        pixels_differing: those that become other numbers than those that ``--data`` reads, in any bit.
        values: number of output values that were compared; 0 where a runtime may round float sums otherwise.
        values_differing: those that differ.
    """

    as_written: bool
    pixels: int
    pixels_differing: int
    values: int
    values_differing: int

    @property
    def passed(self) -> bool:
        """Whether both are the same."""
        return self.as_written and not self.pixels_differing and not self.values_differing


@dataclass(repr=False)
class Verdict:
    """The result of a verification; ``to_json`` is the report's ``verify`` section.

    Attributes:
        images: number of images compared.
        agreeing: number of images with the same predicted class.
        layers: neuron -> its differences, in order of execution.
        outputs: the differences of each output, in order.
        scores: which of the outputs scores classes, if any.
        quantization: for a quantized program, its differences from the float program, where that was at hand.
        runtime: what ran the file: ``name``, ``version`` and ``settings``.
        calls: of a streaming file, the number of time steps that were run, one per call; else None.
        beyond_int16: for a quantized program, the integer products of its file that could saturate on processors
            without VNNI, each with the sum that it could reach (onnx/int16_sums.py).
        raw_input: of a file that takes bytes, its differences from the one that takes normalized floats, to which all
            else refers.
    """

    images: int = 0
    agreeing: int = 0
    layers: dict[str, LayerVerdict] = field(default_factory=dict)
    outputs: list[OutputVerdict] = field(default_factory=list)
    scores: ClassScores | None = None
    quantization: QuantizationVerdict | None = None
    runtime: JsonDict = field(default_factory=dict)
    calls: int | None = None
    beyond_int16: dict[str, str] | None = None
    raw_input: RawInputVerdict | None = None

    def __repr__(self) -> str:
        """Return the result in one line; ``to_json`` has all of it."""
        return (
            f"Verdict({'passed' if self.passed else 'failed'}, {human.counted(self.images, 'image')}, "
            f"{human.counted(len(self.layers), 'neuron layer')})"
        )

    @classmethod
    def of(cls, program: Program, runtime: JsonDict) -> Verdict:
        """Return an empty verdict on a program's file in a runtime (``Runtime.described``)."""
        layers = {str(node.target): LayerVerdict(str(node.target)) for node in program.neurons()}
        outputs = [OutputVerdict(label) for label in labels(program.info)]
        return cls(layers=layers, outputs=outputs, scores=class_scores(program.graph, program.info), runtime=runtime)

    def add(self, final: Sequence[np.ndarray], expected: Sequence[np.ndarray], images: int) -> None:
        """Count the images of a batch.

        Args:
            final: outputs of the unsplit file.
            expected: outputs of the reference, of the same shapes.
            images: number of images in the batch.
        """
        for output, value, expected_value in zip(self.outputs, final, expected, strict=True):
            difference = abs(value - expected_value).max(initial=0.0)
            output.max_difference = max(output.max_difference, float(difference))
        if self.scores is not None:
            same = self.scores.of(final).argmax(axis=-1) == self.scores.of(expected).argmax(axis=-1)
            self.agreeing += int(same.sum())
        self.images += images

    @property
    def logits_beyond_rounding(self) -> int:
        """Number of output values that differ by more than rounding explains."""
        return sum(output.values_beyond_rounding for output in self.outputs)

    @property
    def max_logit_difference(self) -> float:
        """Largest absolute difference of an output value, where the whole file ran by itself."""
        return max((output.max_difference for output in self.outputs), default=0.0)

    def total(self, field_name: str) -> int:
        """Return the sum of a field over the layers."""
        return sum(getattr(layer, field_name) for layer in self.layers.values())

    @property
    def silent(self) -> list[str]:
        """The neurons that no image made fire."""
        return [layer.name for layer in self.layers.values() if layer.firing == 0]

    @property
    def file_divergence(self) -> str | None:
        """Return the first layer, in execution order, in which the file differs from its program."""
        if self.raw_input is not None and not self.raw_input.passed:
            return f"{INPUT}, whose pixels become other numbers than those of --data"
        for layer in self.layers.values():
            if layer.flips_beyond_rounding or layer.currents_beyond_rounding or layer.membranes_beyond_rounding:
                return layer.name
        return next((output.name for output in self.outputs if output.values_beyond_rounding), None)

    @property
    def first_divergence(self) -> str | None:
        """Return the first layer, in execution order, that rounding does not explain, in the file or before it."""
        beyond = self.file_divergence
        if beyond is None and self.quantization is not None:
            return self.quantization.first_divergence
        return beyond

    @property
    def passed(self) -> bool:
        """Return whether rounding explains every difference."""
        return self.first_divergence is None

    def to_json(self) -> JsonDict:
        """Return the ``verify`` section of the report."""
        return {
            "status": "passed" if self.passed else "failed",
            "runtime": self.runtime,
            "images": self.images,
            "neurons": len(self.layers),
            "spikes": self.total("spikes"),
            "flips_within_rounding": self.total("flips_within_rounding"),
            "flips_beyond_rounding": self.total("flips_beyond_rounding"),
            "currents_beyond_rounding": self.total("currents_beyond_rounding"),
            "logits_beyond_rounding": self.logits_beyond_rounding,
            "first_divergence": self.first_divergence,
            "top1_agreement": self.agreeing / self.images if self.images and self.scores is not None else None,
            "max_logit_difference": self.max_logit_difference,
            "silent_neurons": self.silent,
            "layers": [layer.to_json() for layer in self.layers.values()],
            **({} if self.calls is None else {"calls": self.calls}),
            **({} if self.quantization is None else {"quantization": self.quantization.to_json()}),
            **({} if self.beyond_int16 is None else {"beyond_int16": self.beyond_int16}),
            **({} if self.raw_input is None else {"raw_input": asdict(self.raw_input)}),
            **({"outputs": [asdict(output) for output in self.outputs]} if len(self.outputs) > 1 else {}),
        }
