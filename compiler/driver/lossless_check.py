"""The check that channels were removed without changing the network, for the network at hand."""

from __future__ import annotations

import torch

from svitc.data.inputs import random_inputs
from svitc.errors import InternalError
from svitc.ir.outputs import tensors_of
from svitc.ir.program import Program
from svitc.support.types import JsonDict

IMAGES = 2
TOLERANCE = 1e-9  # of the largest output, in float64, in which no rounding flips a spike


def check_removal(program: Program, clean: Program, record: JsonDict) -> None:
    """Compare a program with the one without its constant channels, on random inputs in float64.

    Nothing is compared where biases took over channels: they are rounded to float32, which may flip a spike.

    Args:
        program: the program.
        clean: what ``remove_constant_channels`` made of it.
        record: what it returned with it.

    Raises:
        InternalError: they differ.
    """
    if not record.get("removed") or record.get("folded"):
        return
    [x] = random_inputs(program, IMAGES, IMAGES, seed=0)
    for before, after in zip(_outputs(program, x), _outputs(clean, x), strict=True):
        difference = float((before - after).abs().nan_to_num().max())
        if difference > TOLERANCE * max(1.0, float(before.abs().nan_to_num().max())):
            raise InternalError(
                f"the network without the {record['removed']} channels that give nothing differs by {difference:.1g}",
                hint="--remove-dead-channels off keeps them. Please report it.",
            )


def _outputs(program: Program, x: torch.Tensor) -> list[torch.Tensor]:
    """Return the outputs in float64."""
    twin = program.copy()
    twin.module.double()
    with torch.inference_mode():
        return tensors_of(twin(x.double()))
