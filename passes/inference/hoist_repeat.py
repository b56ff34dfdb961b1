"""HoistRepeat: computes what does not change over time once, not at every time step."""

from __future__ import annotations

import einops
from torch import fx
from torch.fx.node import Argument

from svitc.ir import ops
from svitc.ir.axes import Kind, size
from svitc.ir.pass_manager import Pass
from svitc.ir.program import Program, Stage
from svitc.ir.views import pattern_between, regrouped

STATELESS = (*ops.CONVOLUTIONS, *ops.BATCH_NORMS, *ops.POOLS, *ops.PADS, *ops.STATELESS_NEURONS)


class HoistRepeat(Pass):
    """Move the repetition of a static image over time behind the stateless layers that follow it.

    before   x -> repeat over t -> (t b) -> conv -> batch_norm -> neuron
    after    x -> conv -> batch_norm -> repeat over t -> (t b) -> neuron

    Refuses
      1. a repetition with another reader;
      2. a merged view that more than one layer reads, or whose outer dimension is not time.
    """

    requires = (Stage.CAPTURED, Stage.PRUNED)

    def match(self, program: Program, node: fx.Node) -> bool:
        if node.target is not einops.repeat:
            return False
        first = program.type_of(node)[0]
        return len(first) > 0 and all(axis.kind == Kind.TIME for axis in first)

    def why_not(self, program: Program, node: fx.Node) -> str | None:
        if len(node.users) != 1:
            return "the repeated image has more than one reader"
        merged = next(iter(node.users))
        if merged.target is not einops.rearrange:
            return "the repeated image is read step by step"
        if len(merged.users) != 1:
            return "the repeated image has more than one reader"
        if program.type_of(merged)[0][:1] != program.type_of(node)[0]:
            return "time is not the outer one of the dimensions that it is merged with"
        if not isinstance(program.module_of(next(iter(merged.users))), STATELESS):
            return "a layer with state, or none with weights, reads it"
        return None

    def rewrite(self, program: Program, node: fx.Node) -> None:
        time = program.type_of(node)[0]
        merged = next(iter(node.users))
        value = node.all_input_nodes[0]
        reader = next(iter(merged.users))
        last = reader
        while isinstance(program.module_of(reader), STATELESS):
            with program.graph.inserting_before(reader):
                hoisted = program.graph.call_module(str(reader.target), (value,))
            dims = program.type_of(reader)
            batch = tuple(axis for axis in dims[0] if axis.kind != Kind.TIME)
            hoisted.meta.update(reader.meta, dims=(batch, *dims[1:]))
            value, last = hoisted, reader
            if len(reader.users) != 1:
                break
            reader = next(iter(reader.users))
        dims = program.type_of(value)
        names = " ".join(f"d{i}" for i in range(len(dims)))
        with program.graph.inserting_before(last):
            repeated = program.graph.call_function(einops.repeat, (value, f"{names} -> t {names}"), {"t": size(time)})
            repeated.meta.update(node.meta, dims=(time, *dims))
            # by place: where height and width have met, they are one axis
            pattern, sizes = pattern_between(*regrouped((time, *dims), program.type_of(last)))
            kwargs: dict[str, Argument] = {**sizes}
            view = program.graph.call_function(einops.rearrange, (repeated, pattern), kwargs)
            view.meta.update(merged.meta, dims=program.type_of(last))
        last.replace_all_uses_with(view)
        while last is not node:
            previous = last.all_input_nodes[0]
            program.graph.erase_node(last)
            last = previous
        program.graph.erase_node(node)
