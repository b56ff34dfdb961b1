"""SplitFusedProjection: replaces a projection that is cut into blocks with one projection for each block."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import einops
import numpy as np
from torch import fx, nn

from svitc.errors import InternalError
from svitc.ir import ops
from svitc.ir.axes import Axis, Dims, Kind
from svitc.ir.channel_slicing import slice_module
from svitc.ir.pass_manager import Pass
from svitc.ir.program import Program, Stage
from svitc.ir.views import composed, retarget

BLOCK_NAMES = {("qkv", 3): ("q", "k", "v"), ("qk", 2): ("q", "k"), ("kv", 2): ("k", "v")}


@dataclass
class Chain:
    """The nodes between a fused projection and its blocks.

    Attributes:
        nodes: projection first.
        section: the axis of blocks.
    """

    nodes: list[fx.Node]
    section: Axis


@dataclass(frozen=True)
class Block:
    """One of the blocks.

    Attributes:
        section: the axis of blocks.
        index: position on that axis.
        name: name of the block's layers.
    """

    section: Axis
    index: int
    name: str


class SplitFusedProjection(Pass):
    """Give each block of a fused projection its own layer, so that blocks can be pruned independently.

    before   x -> conv[3C] -> batch_norm -> neuron -> rearrange -> take_block 0, 1, 2
    after    x -> conv_q[C] -> batch_norm_q -> neuron_q -> rearrange -> readers of block 0; the same for k, v

    Everything in between works channel by channel, so the split is exact; only the order of sums inside a matrix
    product may change, as it may with any width.

    Refuses
      1. blocks that are not all of one value;
      2. a value in between that has another reader;
      3. a source that is not a convolution or linear layer;
      4. a grouped convolution;
      5. blocks that cut through heads;
      6. blocks of time steps or pixels;
      7. a layer that is called more than once, such as at each time step.
    """

    requires = (Stage.CAPTURED, Stage.CAPTURED)

    def match(self, program: Program, node: fx.Node) -> bool:
        return node.target is ops.take_block

    def why_not(self, program: Program, node: fx.Node) -> str | None:
        chain = self._chain(program, node)
        return chain if isinstance(chain, str) else None

    def _chain(self, program: Program, node: fx.Node) -> Chain | str:
        """Return the nodes from the projection to the blocks, or the reason for a refusal."""
        source, dim, _, count = node.args
        assert isinstance(source, fx.Node) and isinstance(dim, int)
        if any(
            user.target is not ops.take_block or user.args[1] != dim or user.args[3] != count for user in source.users
        ):
            return "not every reader takes one of the blocks"
        section = program.type_of(source)[dim][0]
        if section.size != count:
            return "the blocks cut through heads"
        if section.kind != Kind.CHANNEL:
            return "the blocks are time steps or pixels, not channels"
        nodes = [source]
        while not ops.is_projection(program.module_of(nodes[0])):
            head = nodes[0]
            module = program.module_of(head)
            if not (head.target is einops.rearrange or ops.is_neuron(module) or ops.is_batch_norm(module)):
                return f"the blocks come from {head.target}, not from a projection"
            previous = head.all_input_nodes[0]
            if len(previous.users) > 1:
                return f"{previous.target} has another reader"
            nodes.insert(0, previous)
        if getattr(program.module_of(nodes[0]), "groups", 1) != 1:
            return "a grouped convolution"
        for layer in nodes:
            if layer.op == "call_module" and not program.called_once(layer):
                return f"{layer.target} is called more than once"
        return Chain(nodes, section)

    def rewrite(self, program: Program, node: fx.Node) -> None:
        chain = self._chain(program, node)
        if isinstance(chain, str):
            raise InternalError(f"{self.name}: {chain}")
        count = chain.section.size
        label = str(chain.nodes[0].target)
        names = next(
            (
                names
                for (word, blocks), names in BLOCK_NAMES.items()
                if blocks == count and word in label.split(".")[-1] + label
            ),
            tuple(f"block{i}" for i in range(count)),
        )
        originals = {str(n.target): program.module_of(n) for n in chain.nodes if n.op == "call_module"}
        for path in originals:
            owner, _, name = path.rpartition(".")
            setattr(program.module.get_submodule(owner), name, nn.Module())
        readers = list(chain.nodes[-1].users)
        for index, name in enumerate(names):
            value = chain.nodes[0].all_input_nodes[0]
            for original in chain.nodes:
                value = self._copy(program, original, value, Block(chain.section, index, name), originals)
            for reader in readers:
                if reader.args[2] == index:
                    reader.replace_all_uses_with(value)
        for reader in readers:
            program.graph.erase_node(reader)
        for original in reversed(chain.nodes):
            program.graph.erase_node(original)

    def _copy(
        self,
        program: Program,
        original: fx.Node,
        source: fx.Node,
        block: Block,
        originals: dict[str, nn.Module | None],
    ) -> fx.Node:
        """Copy a node for one block: the same operation on types without the axis of blocks."""
        dims = without(program.type_of(original), block.section)
        with program.graph.inserting_before(original):
            if original.op == "call_module":
                module = copy.deepcopy(originals[str(original.target)])
                assert module is not None
                slice_module(
                    module,
                    {
                        param: [section_index(dim, block.section, block.index) for dim in pdims]
                        for param, pdims in program.parameters_of(original).items()
                    },
                )
                program.module.get_submodule(str(original.target)).add_module(block.name, module)
                copied = program.graph.call_module(f"{original.target}.{block.name}", (source,))
            else:
                copied = program.graph.call_function(einops.rearrange, (source,), {})
                retarget(copied, source, *_sectionless(program, original, block.section))
        copied.meta.update({k: original.meta[k] for k in ("source", "scope") if k in original.meta}, dims=dims)
        return copied


def _sectionless(program: Program, view: fx.Node, section: Axis) -> tuple[Dims, Dims]:
    """Return the places of the axes before and after a view, without the axis of blocks."""
    typed = program.type_of(view.all_input_nodes[0])
    source, target = composed(program, [view])
    section_places = {
        id(place)
        for dim, places in zip(typed, source, strict=True)
        for axis, place in zip(dim, places, strict=True)
        if axis is section
    }
    left, right = (
        tuple(tuple(p for p in dim if id(p) not in section_places) for dim in dims) for dims in (source, target)
    )
    return left, right


def without(dims: Dims, section: Axis) -> Dims:
    """Return a type without one axis."""
    return tuple(tuple(axis for axis in dim if axis is not section) for dim in dims)


def section_index(dim: tuple[Axis, ...], section: Axis, index: int) -> np.ndarray | None:
    """Return the positions of a parameter dimension that belong to one block; None where it has no blocks."""
    if not any(axis is section for axis in dim):
        return None
    positions = np.arange(np.prod([axis.size for axis in dim])).reshape([axis.size for axis in dim])
    return positions.take(index, axis=next(i for i, axis in enumerate(dim) if axis is section)).reshape(-1)
