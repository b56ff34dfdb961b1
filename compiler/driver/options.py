"""Options of a compilation, apart from the program and the budget."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from svitc.data.dataset import Dataset
from svitc.data.inputs import Data
from svitc.errors import UsageError
from svitc.evaluation.metric import Metric
from svitc.support.types import JsonDict

NO_DATA = ("synthetic", "uniform")


@dataclass(frozen=True)
class PreparationOptions:
    """Lossless simplifications before pruning; the fields are described in ``CompileOptions``."""

    reparam: str
    remove_dead_channels: str


@dataclass(frozen=True)
class CompileOptions:
    """Options of a compilation, apart from the program and the budget.

    Attributes:
        data: images that accuracies are reported on, or without labels the agreement with the original; the first of
            them are used for verification. Without ``train_data``, plans are chosen on a part of them, and results are
            reported on the others. A ``Compiler`` opens whatever ``svitc.open_data`` does: paths, arrays, loaders.
        train_data: images to fine-tune on, with or without labels. Plans are then chosen on them as well, so that
            ``data`` stays unseen.
        max_drop: the most accuracy that a plan may lose before fine-tuning, as a share; without labels, the largest
            share of images that may get another class than the original's. Confirmed with ``confidence`` on images of
            ``data`` that no plan was chosen on.
        tokens: share of the tokens that run through the blocks, chosen on the images (docs/tokens.md); None for all.
        sweep_images: number of images that plans are chosen on.
        calibration_images: number of other images, which refits and criteria use; of a few images without labels, the
            same ones.
        sweep_file: file for finished measurements of the sweep; None keeps them in memory.
        resume: use the measurements in ``sweep_file``, and continue an unfinished fine-tuning.
        finetune: epochs of fine-tuning; 0 for none.
        finetune_options: further fields of ``FinetuneOptions``.
        weights: ``fp32``; ``int16``, ``int8``, ``int4`` or ``int2`` for integers of this many bits, whose sums are
            exact; ``ternary`` for -1, 0 and 1; or ``mixed``, where bits differ between layers. None to choose by
            policy and budget (weight_types.py).
        min_weight_bits: the fewest bits that the file stores weights in, for ONNX Runtimes without narrower types.
        target: what the file is written for: ``cpu``, ``cuda``, ``openvino`` or ``web`` (docs/targets.md).
        per_step: the file returns class scores at each time step, ``[T, N, classes]``; otherwise their average,
            ``[N, classes]``.
        streaming: whether the file runs one time step per call, with the membranes as further inputs and outputs; with
            ``per_step`` it returns each step's own class scores, otherwise their average so far.
        packed_state: whether a streaming file has one state, in which all lie one behind the other.
        anytime: the most top-1 that stopping before the last time step may cost, as a share, so that a rule for it is
            found on ``data``; without labels, the largest share of images that get another class. The file is a
            streaming one then. None for no rule.
        confidence: probability with which a drop is promised, for images that nobody has seen.
        functions: whether the file has each neuron as one node that calls a model-local function, which viewers show as
            one but many runtimes do not read.
        raw_input: whether the file takes the bytes of images, uint8 ``[N, H, W, C]``, and normalizes them itself.
        static_batch: number of images that every batch of the file has, for runtimes that need to know it; None for
            any.
        reparam: ``auto`` merges consecutive convolutions before pruning where the result is smaller or faster;
            ``off`` does not. A plan that is replayed overrides this.
        metric: the user's function of a batch's outputs and targets, whose mean over the images takes the place of the
            accuracy, higher for a better network. Targets are the labels; of images without, the original's outputs.
        no_data: what plans are chosen on where there is no data set: ``synthetic`` images, or none (``uniform``): then
            the default policy is ``uniform``, and weights are rounded to the nearest numbers.
        remove_dead_channels: ``auto`` removes neurons that never fire for any input and folds those that always fire
            into their consumers, both without changing the output (passes/canonical); ``off`` does not.
        input_range: the smallest and the largest value of an input, for quantized files, which clamp what is beyond;
            None to measure it on the images, or else to derive it from the model (analysis/input_range.py).
        images: number of images that verification uses; None for up to 4, as long as one makes neurons fire that were
            silent on those before.
        seed: seed of all random choices.
    """

    data: Data | None = None
    train_data: Dataset | None = None
    max_drop: float | None = None
    tokens: float | None = None
    sweep_images: int = 1000
    calibration_images: int = 256
    sweep_file: Path | None = None
    resume: bool = False
    finetune: int = 0
    finetune_options: JsonDict = field(default_factory=dict)
    weights: str | None = None
    min_weight_bits: int | None = None
    target: str = "cpu"
    per_step: bool = False
    streaming: bool = False
    packed_state: bool = False
    anytime: float | None = None
    confidence: float = 0.95
    functions: bool = False
    raw_input: bool = False
    static_batch: int | None = None
    reparam: str = "auto"
    remove_dead_channels: str = "auto"
    no_data: str = "synthetic"
    input_range: tuple[float, float] | None = None
    images: int | None = None
    seed: int = 0
    metric: Metric | None = None

    def __post_init__(self) -> None:
        """A rule for stopping early is for a file that runs one time step per call.

        Raises:
            UsageError: a state is to be packed in a file that has none.
        """
        if self.anytime is not None:
            object.__setattr__(self, "streaming", True)
        if self.packed_state and not self.streaming:
            raise UsageError("only a streaming file has states to pack", hint="Use --packed-state with --streaming.")

    @property
    def preparation(self) -> PreparationOptions:
        """The lossless simplifications before pruning."""
        return PreparationOptions(self.reparam, self.remove_dead_channels)

    @property
    def synthetic(self) -> bool:
        """Whether plans are chosen on synthetic images; a user-defined class of images is used for the report only."""
        return not isinstance(self.choosing, Dataset) and self.no_data == "synthetic"

    @property
    def sampled(self) -> bool:
        """Whether plans can be chosen on images."""
        return isinstance(self.choosing, Dataset) or self.synthetic

    @property
    def choosing_by_labels(self) -> bool:
        """Whether the images that plans are chosen on have labels."""
        return isinstance(self.choosing, Dataset) and self.choosing.labeled

    @property
    def choosing(self) -> Data | None:
        """The images that the user gives to choose plans on."""
        return self.train_data or self.data


__all__ = ["NO_DATA", "CompileOptions", "PreparationOptions"]
