"""The stages of a network in a compilation: pruned, and as it is deployed."""

from __future__ import annotations

from dataclasses import dataclass

from svitc.driver.report import WeightsReport
from svitc.ir.program import Program
from svitc.training.finetune import Finetuned


@dataclass(frozen=True)
class Applied:
    """A network after its plan was applied.

    Attributes:
        pruned: the pruned program, which can still be trained; fine-tuned where that was asked for.
        tuned: the result of fine-tuning, or None.
    """

    pruned: Program
    tuned: Finetuned | None


@dataclass(frozen=True)
class Lowered:
    """A network as it is deployed.

    Attributes:
        program: the program with weights of the stored type.
        weights: the report's section on the weights.
        exported: the ONNX file of all time steps, for batches of any size.
        plain: the file as it is written, perhaps a streaming file, perhaps for batches of one size, but with
            normalized floats as its input.
        written: the same, perhaps with bytes as its input.
        stored_bytes: bytes of the weights in the file.
    """

    program: Program
    weights: WeightsReport
    exported: bytes
    plain: bytes
    written: bytes
    stored_bytes: int


__all__ = ["Applied", "Lowered"]
