"""The report on a compilation: its steps, and its results with confidence intervals; docs/report.md lists the keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from svitc.driver.promise_section import PromiseReport
from svitc.driver.section import Section
from svitc.support.types import JsonDict


@dataclass(frozen=True)
class InputReport(Section):
    """The input.

    Attributes:
        shape: its shape without the batch axis.
        events: whether inputs are event frames.
        range: the smallest and the largest value of an input that a quantized file does not clamp; else None.
        range_from: where the range is known from, see ``analysis.input_range.InputRange``.
        dtype: ``uint8`` where the file takes bytes, ``[N, H, W, C]``; else None.
    """

    shape: list[int]
    events: bool
    range: tuple[float, float] | None = None
    range_from: str | None = None
    dtype: str | None = None

    def to_json(self) -> JsonDict:
        """See ``Section``; without the range and the type where there is none."""
        return {key: value for key, value in super().to_json().items() if value is not None}


@dataclass(frozen=True)
class BudgetReport(Section):
    """The budget.

    Attributes:
        text, of: as in ``Budget``.
        limit: the most bytes or parameters.
        timing: entries on a search by latency.
    """

    text: str | None
    of: str | None
    limit: int | None
    timing: JsonDict

    def to_json(self) -> JsonDict:
        """See ``Section``; timing is not nested."""
        return {"text": self.text, "of": self.of, "limit": self.limit, **self.timing}


@dataclass(frozen=True)
class MemoryReport(Section):
    """Bytes of the weights in the exported files."""

    original_bytes: int
    compiled_bytes: int
    ratio: float


@dataclass(frozen=True)
class ParametersReport(Section):
    """Numbers of parameters before batch norms are folded; ``dead`` are those that the model never uses."""

    original: int
    compiled: int
    ratio: float
    dead: int
    dead_names: list[str]


@dataclass(frozen=True)
class BeforeAfter(Section):
    """A count for the original and for the compiled network."""

    original: int
    compiled: int


@dataclass(frozen=True)
class GroupReport(Section):
    """A channel group, and how many of its channels a plan keeps.

    Attributes:
        kind: ``patch embedding``, ``residual stream``, ``attention``, ``mlp`` or ``other``.
    """

    name: str
    kind: str
    heads: int
    size: int
    kept: int
    frozen: str | None


@dataclass(frozen=True)
class WeightsReport(Section):
    """The stored weights.

    Attributes:
        type: ``fp32``, ``int16``, ``int8``, ``int4``, ``int2``, ``ternary`` or ``mixed``; all other fields are for
            quantized weights only.
        layers: layer -> bits and shape, and where it keeps a grid that it was trained on, ``grid``, the bits
            of that, and ``scale_error``, the largest relative error of its scales.
        streams: residual stream -> its quantization step.
        exact_neurons, neurons: number of neuron layers whose integer sums are exact, and of all neuron layers.
        inexact: neuron -> why its sums are rounded.
        refused: layer -> why a pass did not change it.
    """

    type: str
    layers: JsonDict = field(default_factory=dict)
    streams: dict[str, float] = field(default_factory=dict)
    exact_neurons: int = 0
    neurons: int = 0
    inexact: Mapping[str, Any] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> JsonDict:
        """See ``Section``; for ``fp32`` there is only the type."""
        return {"type": self.type} if self.type == "fp32" else super().to_json()


@dataclass(frozen=True)
class FileReport(Section):
    """The form of the written file.

    Attributes:
        opset: version of its operators.
        opset_for: what needs this version.
        batch: the only number of images that it takes at once; None for any.
    """

    opset: int
    opset_for: str
    batch: int | None


@dataclass(frozen=True)
class StreamingReport(Section):
    """The states of a streaming file, which each call passes on to the next.

    Attributes:
        states: number of states.
        bytes: what they take for one image, or one stream of frames.
        inputs: name of each state's input -> its shape.
    """

    states: int
    bytes: int
    inputs: dict[str, list[int | str]]


@dataclass(frozen=True)
class NoAccuracy(Section):
    """The section on accuracy where there are no images with labels to report it on."""

    original: None = None
    pruned: None = None
    images: int = 0


@dataclass(frozen=True)
class AccuracyReport(Section):
    """Top-1 accuracies of the original in PyTorch and of the file in ONNX Runtime, with 95% confidence intervals.

    Attributes:
        notes: remarks of the data set.
        unreadable: number of images that could not be read.
        lost, gained: numbers of images that only the original, and that only the file classifies correctly.
    """

    original: float
    original_interval: tuple[float, float]
    pruned: float
    pruned_interval: tuple[float, float]
    drop: float
    drop_interval: tuple[float, float]
    images: int
    notes: list[str]
    unreadable: int
    lost: int
    gained: int


@dataclass(frozen=True)
class AgreementReport(Section):
    """How alike the file in ONNX Runtime and the original in PyTorch are on images without labels.

    Attributes:
        images: number of images.
        share: share of the images for which both choose the same class, whether that is the right one or not.
        interval: 95% confidence interval of the share.
        divergence: mean Kullback-Leibler divergence of the file's class probabilities from the original's, in nats.
        notes: remarks of the data set.
        unreadable: number of images that could not be read.
    """

    images: int
    share: float
    interval: tuple[float, float]
    divergence: float
    notes: list[str]
    unreadable: int


@dataclass(frozen=True)
class OutputsReport(Section):
    """How far the file's outputs in ONNX Runtime are from the original's in PyTorch, where they are not just classes.

    Attributes:
        images: number of images.
        relative_errors: output -> sum of squared differences, relative to the sum of the original's squares.
        metric: name of the user's metric, with its mean for the ``original`` and the ``compiled`` network, and the
            ``drop``; None without one.
        targets: what the metric compares outputs with: ``labels``, or the ``original``'s outputs.
    """

    images: int
    relative_errors: dict[str, float]
    metric: dict[str, Any] | None
    targets: str


@dataclass(frozen=True)
class PredictionReport(Section):
    """The predicted loss of top-1 accuracy, where no labels tell the real one (prediction.py).

    Attributes:
        basis: ``synthetic`` or ``unlabeled``: what images the file and the original were compared on.
        images: number of these images.
        agreement: share of them for which both choose the same class.
        divergence: mean Kullback-Leibler divergence of the file's class probabilities from the original's, in nats.
        regret: how much less probable the file's choices are than the original's, by the original (``Measurement``).
        loss: predicted loss of top-1 accuracy, a share.
        interval: a factor of 2 below and above it.
        too_small: whether the loss is too small to tell from none.
        large: whether the user is warned.
        recommended: the smallest budget whose predicted loss is small, a share, where the loss is large.
    """

    basis: str
    images: int
    agreement: float
    divergence: float
    regret: float
    loss: float
    interval: tuple[float, float]
    too_small: bool
    large: bool
    recommended: float | None


@dataclass(frozen=True)
class EnergyReport(Section):
    """Energy for one image in pJ, with numbers of operations and bytes.

    Attributes:
        neurons: firing rate of each neuron layer, ``original`` and ``compiled``; None where one does not have it.
    """

    images: int
    table: str
    original: dict[str, float]
    compiled: dict[str, float]
    saved: dict[str, float | None]
    neurons: list[JsonDict]


@dataclass(frozen=True)
class ToleranceReport(Section):
    """What stopping early may save for one tolerance.

    Attributes:
        max_drop: the tolerance, a share of the images.
        mean_steps: mean number of time steps; all of them where nothing could be promised.
        drop: the drop of top-1 on the images that confirmed the rule; without labels, the share of other classes.
        drop_bound: what the true drop is at most, with the section's confidence.
        energy_pj: energy of an image, None where it is not known.
    """

    max_drop: float
    mean_steps: float
    drop: float
    drop_bound: float
    energy_pj: float | None


@dataclass(frozen=True)
class AnytimeReport(ToleranceReport):
    """When inference may stop, and what is promised of it; the fields of a tolerance are for the one asked for.

    Attributes:
        time_steps: time steps of the network.
        images: number of images that confirmed the rule, on which all drops and steps are measured.
        choosing_images: number of other images, on which the rules were chosen.
        basis: ``labels``, or ``agreement`` with the classes after all steps where there are none.
        confidence: probability with which a promise holds, each by itself.
        full: top-1 after all steps; 1 without labels.
        full_energy_pj: energy of an image for all steps.
        needed: where nothing could be promised, about how many images it would take; None if no number is enough.
        tolerances: the table: what would be promised for each tolerance.
        curve: mean steps and drop of every rule that was tried.
    """

    time_steps: int
    images: int
    choosing_images: int
    basis: str
    confidence: float
    full: float
    full_energy_pj: float | None
    needed: int | None
    tolerances: list[ToleranceReport]
    curve: list[tuple[float, float]]


@dataclass(frozen=True)
class Report(Section):
    """The whole report; docs/report.md describes each key."""

    svitc: str
    model: JsonDict
    input: InputReport
    budget: BudgetReport
    policy: JsonDict
    memory: MemoryReport
    parameters: ParametersReport
    macs: BeforeAfter
    versions: dict[str, str]
    nodes: BeforeAfter
    refused: dict[str, str]
    reparam: JsonDict
    clean: JsonDict
    weights: WeightsReport
    target: str
    file: FileReport
    decisions: list[str]
    groups: list[GroupReport]
    sweep: JsonDict | None
    finetune: JsonDict | None
    verify: JsonDict
    runtimes: list[JsonDict]
    accuracy: AccuracyReport | NoAccuracy
    agreement: AgreementReport | None
    prediction: PredictionReport | None
    energy: EnergyReport | None
    spikes: JsonDict | None
    seconds: dict[str, float]
    outputs: OutputsReport | None = None
    streaming: StreamingReport | None = None
    anytime: AnytimeReport | None = None
    promise: PromiseReport | None = None
    tokens: dict[str, JsonDict] | None = None
    ranks: dict[str, JsonDict] | None = None

    def to_json(self) -> JsonDict:
        """See ``Section``; without the outputs where the classes say everything, states, and what nobody asked for."""
        optional = ("outputs", "streaming", "anytime", "promise", "tokens", "ranks")
        return {key: value for key, value in super().to_json().items() if key not in optional or value is not None}
