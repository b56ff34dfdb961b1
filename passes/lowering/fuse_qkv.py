"""FuseQKV: layers that read the same value and are followed by the same neuron become one layer and one neuron."""

from __future__ import annotations

import copy

import einops
import torch
from torch import fx, nn

from svitc.ir import ops
from svitc.ir.pass_manager import Pass
from svitc.ir.program import Program, Stage
from svitc.quantization.weight_grid import stored_bits


class FuseQKV(Pass):
    """Join pruned query, key and value projections into one product and one neuron: fewer, larger operations.

    before   x -> conv_q -> [view] -> neuron_q -> …;  x -> conv_k -> [view] -> neuron_k -> …;  the same for v
    after    x -> conv_{q+k+v} -> [view] -> neuron_{q+k+v} -> take_range, one for each of q, k and v

    Names tell the members: ``attn.qkv_lif.q+k+v`` stands for ``attn.qkv_lif.q``, ``….k`` and ``….v``.

    Refuses
      1. layers whose geometry differs;
      2. a layer with another reader, or called more than once;
      3. neurons whose parameters differ;
      4. siblings of different modules, which no joint name could tell.
    """

    requires = (Stage.INFERENCE, Stage.EXPORTABLE)
    ensures = Stage.EXPORTABLE

    def match(self, program: Program, node: fx.Node) -> bool:
        """The first of several convolutions that read one value."""
        return len(self._siblings(program, node)) > 1

    def why_not(self, program: Program, node: fx.Node) -> str | None:
        chains = [_chain(program, each) for each in self._siblings(program, node)]
        if any(chain is None for chain in chains):
            return "a sibling has another reader, or no neuron behind it"
        if len({_likeness(program, chain) for chain in chains if chain}) > 1:
            return "siblings differ in geometry or in their neurons"
        for step in zip(*(chain for chain in chains if chain), strict=True):
            owners = {str(each.target).rpartition(".")[0] for each in step if each.op == "call_module"}
            if len(owners) > 1:
                return "siblings belong to different modules, so that no name tells them"
        return None

    def rewrite(self, program: Program, node: fx.Node) -> None:
        siblings = self._siblings(program, node)
        chains = [chain for each in siblings if (chain := _chain(program, each))]
        layers = [program.module_of(each) for each in siblings]
        widths = [layer.weight.shape[0] for layer in layers if ops.is_projection(layer)]
        with program.graph.inserting_before(siblings[0]):
            value = node.all_input_nodes[0]
            for step in zip(*chains, strict=True):
                first = step[0]
                if first.op == "call_module":
                    made = _joined([program.module_of(each) for each in step])
                    path = joined_path([str(each.target) for each in step])
                    _place(program.module, path, made)
                    new = program.graph.call_module(path, (value,))
                else:
                    new = program.graph.call_function(einops.rearrange, (value, *first.args[1:]), dict(first.kwargs))
                new.meta.update({k: first.meta[k] for k in ("source", "scope") if k in first.meta})
                value = new
            dim = 2 if len(chains[0]) > 2 or chains[0][-1].meta["dims"][0] != chains[0][0].meta["dims"][0] else 1
            start = 0
            for chain, width in zip(chains, widths, strict=True):
                part = program.graph.call_function(ops.take_range, (value, dim, start, start + width))
                part.meta.update({k: chain[-1].meta[k] for k in ("source", "scope") if k in chain[-1].meta})
                chain[-1].replace_all_uses_with(part)
                start += width
        for chain in chains:
            for old in reversed(chain):
                program.graph.erase_node(old)

    def _siblings(self, program: Program, node: fx.Node) -> list[fx.Node]:
        """Convolutions that read what ``node`` reads, if ``node`` is the first of them."""
        if not _pointwise(program, node):
            return []
        found = [user for user in node.all_input_nodes[0].users if _pointwise(program, user)]
        return found if found[0] is node else []


def _pointwise(program: Program, node: fx.Node) -> bool:
    module = program.module_of(node)
    return isinstance(module, ops.CONVOLUTIONS) and set(module.kernel_size) == {1} and module.groups == 1


def _chain(program: Program, node: fx.Node) -> list[fx.Node] | None:
    """The layer, the views behind it and the neuron, each with one reader but the last."""
    chain = [node]
    while True:
        if len(chain[-1].users) != 1:
            return None
        chain.append(next(iter(chain[-1].users)))
        if ops.has_state(program.module_of(chain[-1])):
            return chain
        if chain[-1].target is not einops.rearrange:
            return None


def _likeness(program: Program, chain: list[fx.Node]) -> str:
    """What siblings must have in common."""
    layer = program.module_of(chain[0])
    assert isinstance(layer, ops.CONVOLUTIONS)
    views = [(str(n.args[1]), sorted(n.kwargs.items())) for n in chain[1:-1]]
    neuron = program.module_of(chain[-1])
    state = {k: v.tolist() for k, v in neuron.state_dict().items()} if neuron is not None else {}
    bits = stored_bits(layer.weight) if ops.is_quantized(layer) else None  # joined, all would take the most of them
    geometry = (type(layer).__name__, layer.stride, layer.padding, layer.dilation, layer.bias is None, bits)
    return f"{geometry} {views} {neuron!r} {state}"


def _joined(modules: list[nn.Module | None]) -> nn.Module:
    """One module that does what all do side by side."""
    made = copy.deepcopy(modules[0])
    assert made is not None
    if isinstance(made, ops.CONVOLUTIONS):
        for name in ("weight", "bias", "scale"):
            parts = [getattr(m, name, None) for m in modules]
            if parts[0] is None:
                continue
            joined = torch.cat(parts).detach()  # type: ignore[arg-type]
            setattr(made, name, joined if ops.is_quantized(made) else nn.Parameter(joined, requires_grad=False))
        made.out_channels = made.weight.shape[0]
    return made


def joined_path(paths: list[str]) -> str:
    """``a.q``, ``a.k``, ``a.v`` as ``a.q+k+v``."""
    owner = paths[0].rpartition(".")[0]
    return (f"{owner}." if owner else "") + "+".join(path.rpartition(".")[2] for path in paths)


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    root.get_submodule(owner).add_module(name, module)
