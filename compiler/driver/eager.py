"""The model as its author wrote it, which the accuracy of the original is measured on where it is at hand."""

from __future__ import annotations

import torch
from spikingjelly.activation_based import functional

from svitc.frontends import Loaded
from svitc.ir.outputs import tensors_of
from svitc.ir.program import Program


class EagerModel:
    """Runs a loaded model on batches in the layout of the program that was captured from it.

    Args:
        loaded: the model.
        program: the program.
    """

    def __init__(self, loaded: Loaded, program: Program) -> None:
        self.loaded = loaded
        self.batch_first = bool(program.info.get("batch_first"))

    def __call__(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the model's outputs for a batch, in the order of the program's, from reset membranes."""
        model = self.loaded.model.eval().float()
        functional.reset_net(model)
        with self.loaded.callable_within(), torch.inference_mode():
            # a copy, as a model may change its input in place
            batch = x.transpose(0, 1) if self.batch_first else x
            outputs = tuple(tensors_of(model(batch.clone(memory_format=torch.contiguous_format))))
        functional.reset_net(model)
        return outputs


def attach_eager_model(program: Program, loaded: Loaded) -> None:
    """Let a program know the model that it was captured from.

    Where ``capture`` has corrected a mistake in the model's code, the program is the original instead: the model itself
    computes what was meant for single images alone.
    """
    if not program.info.get("fixed"):
        program.eager = EagerModel(loaded, program)


__all__ = ["EagerModel", "attach_eager_model"]
