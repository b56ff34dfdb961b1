"""The range of the input of a quantized file: declared or measured before compiling, and watched afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch

from svitc.analysis.input_range import InputRange, input_range, usual_span
from svitc.data.inputs import Data
from svitc.driver.options import CompileOptions
from svitc.errors import UsageError
from svitc.ir.program import Program

MEASURED_IMAGES = 64


def with_input_range(program: Program, options: CompileOptions) -> Program:
    """Return a program that knows the range of its input, where that is not the usual one.

    The layers are shared with the given program.

    Raises:
        UsageError: the declared range is empty.
    """
    if options.input_range is not None:
        low, high = options.input_range
        if not low < high:
            raise UsageError(
                f"the input range {low:g} … {high:g} is empty",
                hint="Give the smallest and the largest value of an input, such as --input-range 0,255.",
            )
        return _noted(program, InputRange(float(low), float(high), "declared"))
    if options.weights == "fp32" or "input_range" in program.info:
        return program
    found, usual = input_range(program, _measured(program, options)), usual_span(program)
    return program if found.span == input_range(program).span == usual else _noted(program, found)


def _noted(program: Program, found: InputRange) -> Program:
    entry = {"low": found.low, "high": found.high, "source": found.source}
    return replace(program, info={**program.info, "input_range": entry})


def _measured(program: Program, options: CompileOptions) -> tuple[float, float] | None:
    """Return the smallest and the largest value of the first images, or None without images."""
    ends: list[tuple[float, float]] = []
    for data in (options.data, options.train_data):
        images = 0
        for x, _ in data.batches(program.input.at_once(MEASURED_IMAGES)) if data is not None else ():
            ends.append((float(x.min()), float(x.max())))
            images += x.shape[program.input.batch_dim]
            if images >= MEASURED_IMAGES:
                break
    return (min(low for low, _ in ends), max(high for _, high in ends)) if ends else None


class Watched:
    """Images whose values outside a range are counted as they are read.

    Args:
        data: the images.
        span: largest magnitude inside the range; None to count nothing.

    Attributes:
        outside, values: numbers of values outside the range, and of all values, that were read so far.
        largest: largest magnitude so far.
    """

    def __init__(self, data: Data, span: float | None) -> None:
        self.data, self.span = data, span
        self.outside = self.values = 0
        self.largest = 0.0

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the batches of the images."""
        for x, labels in self.data.batches(batch_size):
            if self.span is not None:
                self.outside += int((x.abs() > self.span).sum())
                self.values += x.numel()
                self.largest = max(self.largest, float(x.abs().max()))
            yield x, labels

    def __len__(self) -> int:
        return len(self.data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)

    @property
    def note(self) -> str | None:
        """What to tell the user of values outside the range, or None if there were none."""
        if not self.outside:
            return None
        return (
            f"{self.outside:,} of {self.values:,} values of the images lie outside the range of the file's input, up "
            f"to {self.largest:g}, and are clamped to it: compile with a larger --input-range"
        )


def span_of(program: Program) -> float | None:
    """Return the largest magnitude of an input that a quantized program does not clamp; None if it clamps none."""
    for node in program.graph.nodes:
        module: Any = program.module_of(node)
        if node.op == "call_module" and node.all_input_nodes[0].op == "placeholder" and hasattr(module, "limit"):
            return float(module.step * (module.limit + 0.5))
    return None


def within(inputs: Iterable[torch.Tensor], span: float | None) -> Iterator[torch.Tensor]:
    """Yield inputs whose values are clamped to a range; as they are where there is none."""
    for x in inputs:
        yield x if span is None else x.clamp(-span, span)


__all__ = ["Watched", "span_of", "with_input_range", "within"]
