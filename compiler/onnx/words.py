"""What a file's input and outputs are, in words, for its ``doc_string`` entries."""

from __future__ import annotations

from svitc.ir import axes, ops
from svitc.ir.axes import Kind
from svitc.ir.outputs import class_scores, output_values
from svitc.ir.program import Program


def input_words(program: Program, streaming: bool = False) -> str:
    """Return what the input of a program's file is; that of a streaming file is one frame."""
    spec = program.input
    if streaming:
        *_, channels, height, width = spec.shape
        kind = "Event frames" if spec.events else "Images"
        return (
            f"{kind} of one time step [N, {channels}, {height}, {width}], float32. The model's metadata say how "
            "pictures become such inputs, and what the states are before the first step."
        )
    sizes = ", ".join("N" if i == spec.batch_dim else str(size) for i, size in enumerate(spec.batched(1)))
    kind = "Event frames" if spec.events else "Images"
    return f"{kind} [{sizes}], float32. The model's metadata say how pictures become such inputs."


def output_words(program: Program) -> list[str]:
    """Return what each output of a program's file is."""
    scores = class_scores(program.graph, program.info)
    words = []
    for i, value in enumerate(output_values(program.graph)):
        text = "an output of the model"
        if scores is not None and scores.index == i:
            text = "class scores, before softmax" + ("" if scores.time is None else ", at each time step: average them")
        words.append(f"{text}, {dims_words(program.type_of(value))}")
    return words


def dims_words(dims: axes.Dims) -> str:
    """Return a shape with the batch as N, such as ``[N, 10]``."""
    return f"[{', '.join('N' if any(a.kind == Kind.BATCH for a in dim) else str(axes.size(dim)) for dim in dims)}]"


def time_steps(program: Program) -> int:
    """Return the number of time steps of a program's neurons; 1 where none has a membrane."""
    neurons = [node for node in program.neurons() if ops.has_state(program.module_of(node))]
    return max((axes.size(program.type_of(node)[0]) for node in neurons), default=1)


__all__ = ["dims_words", "input_words", "output_words", "time_steps"]
