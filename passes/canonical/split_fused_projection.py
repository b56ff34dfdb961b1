"""SplitFusedProjection: one projection that is cut into blocks becomes one projection for each block."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import einops
import numpy as np
from torch import fx, nn

from svitc.errors import InternalError
from svitc.ir import ops
from svitc.ir.axes import Axis, Dims
from svitc.ir.channel_slicing import slice_module
from svitc.ir.pass_manager import Pass
from svitc.ir.program import Program, Stage
from svitc.ir.views import composed, retarget

BLOCK_NAMES = {("qkv", 3): ("q", "k", "v"), ("qk", 2): ("q", "k"), ("kv", 2): ("k", "v")}


@dataclass
class Chain:
    """What lies between a fused projection and its blocks, projection first."""

    nodes: list[fx.Node]
    section: Axis  # the axis of blocks


@dataclass(frozen=True)
class Block:
    """One of the blocks: its place on the axis of blocks, and the name of its layers."""

    section: Axis
    index: int
    name: str


class SplitFusedProjection(Pass):
    """Give each block of a fused projection its own layer, so that blocks can be pruned apart.

    before   x -> conv[3C] -> batch_norm -> neuron -> rearrange -> take_block 0, 1, 2
    after    x -> conv_q[C] -> batch_norm_q -> neuron_q -> rearrange -> readers of block 0; the same for k, v

    Everything in between works channel by channel, so that the split is exact; only the order of sums
    inside a matrix product may change, as it may with any width.

    Refuses
      1. blocks that are not all of one value;
      2. a value between that has another reader;
      3. a source that is not a convolution or linear layer;
      4. a grouped convolution;
      5. blocks that cut through heads.
    """

    requires = (Stage.CAPTURED, Stage.CAPTURED)

    def match(self, program: Program, node: fx.Node) -> bool:
        return node.target is ops.take_block

    def why_not(self, program: Program, node: fx.Node) -> str | None:
        found = self._chain(program, node)
        return found if isinstance(found, str) else None

    def _chain(self, program: Program, node: fx.Node) -> Chain | str:
        source, dim, _, count = node.args
        assert isinstance(source, fx.Node) and isinstance(dim, int)
        if any(
            user.target is not ops.take_block or user.args[1] != dim or user.args[3] != count for user in source.users
        ):
            return "not every reader takes one of the blocks"
        section = program.type_of(source)[dim][0]
        if section.size != count:
            return "the blocks cut through heads"
        nodes = [source]
        while not ops.is_projection(program.module_of(nodes[0])):
            head = nodes[0]
            module = program.module_of(head)
            if not (head.target is einops.rearrange or ops.is_neuron(module) or ops.is_batch_norm(module)):
                return f"the blocks come from {head.target}, not from a projection"
            before = head.all_input_nodes[0]
            if len(before.users) > 1:
                return f"{before.target} has another reader"
            nodes.insert(0, before)
        if getattr(program.module_of(nodes[0]), "groups", 1) != 1:
            return "a grouped convolution"
        return Chain(nodes, section)

    def rewrite(self, program: Program, node: fx.Node) -> None:
        chain = self._chain(program, node)
        if isinstance(chain, str):
            raise InternalError(f"{self.name}: {chain}")
        count = chain.section.size
        label = str(chain.nodes[0].target)
        names = next(
            (names for (word, n), names in BLOCK_NAMES.items() if n == count and word in label.split(".")[-1] + label),
            tuple(f"block{i}" for i in range(count)),
        )
        originals = {str(n.target): program.module_of(n) for n in chain.nodes if n.op == "call_module"}
        for path in originals:
            owner, _, name = path.rpartition(".")
            setattr(program.module.get_submodule(owner), name, nn.Module())
        readers = list(chain.nodes[-1].users)
        for index, name in enumerate(names):
            made = chain.nodes[0].all_input_nodes[0]
            for old in chain.nodes:
                made = self._copy(program, old, made, Block(chain.section, index, name), originals)
            for reader in readers:
                if reader.args[2] == index:
                    reader.replace_all_uses_with(made)
        for reader in readers:
            program.graph.erase_node(reader)
        for old in reversed(chain.nodes):
            program.graph.erase_node(old)

    def _copy(
        self,
        program: Program,
        old: fx.Node,
        source: fx.Node,
        block: Block,
        originals: dict[str, nn.Module | None],
    ) -> fx.Node:
        """``old`` for one block: the same operation on types without the section axis."""
        dims = without(program.type_of(old), block.section)
        with program.graph.inserting_before(old):
            if old.op == "call_module":
                module = copy.deepcopy(originals[str(old.target)])
                assert module is not None
                slice_module(
                    module,
                    {
                        param: [section_index(dim, block.section, block.index) for dim in pdims]
                        for param, pdims in program.parameters_of(old).items()
                    },
                )
                program.module.get_submodule(str(old.target)).add_module(block.name, module)
                new = program.graph.call_module(f"{old.target}.{block.name}", (source,))
            else:
                new = program.graph.call_function(einops.rearrange, (source,), {})
                retarget(new, source, *_sectionless(program, old, block.section))
        new.meta.update({k: old.meta[k] for k in ("source", "scope") if k in old.meta}, dims=dims)
        return new


def _sectionless(program: Program, view: fx.Node, section: Axis) -> tuple[Dims, Dims]:
    """What a view does to the axes other than the section, by place."""
    typed = program.type_of(view.all_input_nodes[0])
    source, target = composed(program, [view])
    gone = {
        id(place)
        for dim, places in zip(typed, source, strict=True)
        for axis, place in zip(dim, places, strict=True)
        if axis is section
    }
    left, right = (tuple(tuple(p for p in dim if id(p) not in gone) for dim in dims) for dims in (source, target))
    return left, right


def without(dims: Dims, section: Axis) -> Dims:
    return tuple(tuple(axis for axis in dim if axis is not section) for dim in dims)


def section_index(dim: tuple[Axis, ...], section: Axis, index: int) -> np.ndarray | None:
    """Positions of a parameter dimension that belong to one block; None where it has no blocks."""
    if not any(axis is section for axis in dim):
        return None
    grid = np.arange(np.prod([axis.size for axis in dim])).reshape([axis.size for axis in dim])
    return grid.take(index, axis=next(i for i, axis in enumerate(dim) if axis is section)).reshape(-1)
