"""FuseQKV: joins layers that read the same value and are followed by equal neurons into one layer and one neuron."""

from __future__ import annotations

import copy

import einops
import torch
from torch import fx, nn

from svitc.ir import ops
from svitc.ir.neuron_dynamics import dynamics_of
from svitc.ir.pass_manager import Pass
from svitc.ir.program import Program, Stage
from svitc.quantization.weight_grid import stored_bits


class FuseQKV(Pass):
    """Join pruned query, key and value projections into one product and one neuron: fewer, larger operations.

    before   x -> conv_q -> [view] -> neuron_q -> …;  x -> conv_k -> [view] -> neuron_k -> …;  the same for v
    after    x -> conv_{q+k+v} -> [view] -> neuron_{q+k+v} -> take_range, one for each of q, k and v

    The names list the members: ``attn.qkv_lif.q+k+v`` stands for ``attn.qkv_lif.q``, ``….k`` and ``….v``.

    Refuses
      1. layers whose geometry differs;
      2. a layer with another reader, or called more than once;
      3. neurons whose parameters differ;
      4. siblings from different modules, for which there is no joint name.
    """

    requires = (Stage.INFERENCE, Stage.EXPORTABLE)
    ensures = Stage.EXPORTABLE

    def match(self, program: Program, node: fx.Node) -> bool:
        """Return whether a node is the first of several convolutions that read the same value."""
        return len(self._siblings(program, node)) > 1

    def why_not(self, program: Program, node: fx.Node) -> str | None:
        chains = [_chain(program, sibling) for sibling in self._siblings(program, node)]
        if any(chain is None for chain in chains):
            return "a sibling has another reader, or no neuron behind it"
        if len({_signature(program, chain) for chain in chains if chain}) > 1:
            return "siblings differ in geometry or in their neurons"
        for members in zip(*(chain for chain in chains if chain), strict=True):
            owners = {str(member.target).rpartition(".")[0] for member in members if member.op == "call_module"}
            if len(owners) > 1:
                return "siblings belong to different modules, so that no name tells them"
        return None

    def rewrite(self, program: Program, node: fx.Node) -> None:
        siblings = self._siblings(program, node)
        chains = [chain for sibling in siblings if (chain := _chain(program, sibling))]
        layers = [program.module_of(sibling) for sibling in siblings]
        widths = [layer.weight.shape[0] for layer in layers if ops.is_projection(layer)]
        with program.graph.inserting_before(siblings[0]):
            value = node.all_input_nodes[0]
            for members in zip(*chains, strict=True):
                first = members[0]
                if first.op == "call_module":
                    path = joined_path([str(member.target) for member in members])
                    _place(program.module, path, _joined([program.module_of(member) for member in members]))
                    fused = program.graph.call_module(path, (value,))
                else:
                    fused = program.graph.call_function(einops.rearrange, (value, *first.args[1:]), dict(first.kwargs))
                fused.meta.update({k: first.meta[k] for k in ("source", "scope") if k in first.meta})
                value = fused
            dim = 2 if len(chains[0]) > 2 or chains[0][-1].meta["dims"][0] != chains[0][0].meta["dims"][0] else 1
            start = 0
            for chain, width in zip(chains, widths, strict=True):
                part = program.graph.call_function(ops.take_range, (value, dim, start, start + width))
                part.meta.update({k: chain[-1].meta[k] for k in ("source", "scope") if k in chain[-1].meta})
                chain[-1].replace_all_uses_with(part)
                start += width
        for chain in chains:
            for member in reversed(chain):
                program.graph.erase_node(member)

    def _siblings(self, program: Program, node: fx.Node) -> list[fx.Node]:
        """Return the convolutions that read what ``node`` reads, if ``node`` is the first of them, else none."""
        if not _pointwise(program, node):
            return []
        siblings = [user for user in node.all_input_nodes[0].users if _pointwise(program, user)]
        return siblings if siblings[0] is node else []


def _pointwise(program: Program, node: fx.Node) -> bool:
    """Return whether a node is a 1x1 convolution without groups."""
    module = program.module_of(node)
    return isinstance(module, ops.CONVOLUTIONS) and set(module.kernel_size) == {1} and module.groups == 1


def _chain(program: Program, node: fx.Node) -> list[fx.Node] | None:
    """Return the layer, the views after it and the neuron; None unless each but the neuron has one reader."""
    chain = [node]
    while True:
        if len(chain[-1].users) != 1:
            return None
        chain.append(next(iter(chain[-1].users)))
        if ops.has_state(program.module_of(chain[-1])):
            return chain
        if chain[-1].target is not einops.rearrange:
            return None


def _signature(program: Program, chain: list[fx.Node]) -> str:
    """Return a text of everything that siblings must have in common."""
    layer = program.module_of(chain[0])
    assert isinstance(layer, ops.CONVOLUTIONS)
    views = [(str(n.args[1]), sorted(n.kwargs.items())) for n in chain[1:-1]]
    neuron = program.module_of(chain[-1])
    state = {k: v.tolist() for k, v in neuron.state_dict().items()} if neuron is not None else {}
    bits = stored_bits(layer.weight) if ops.is_quantized(layer) else None  # joined, all would be stored in the largest
    geometry = (type(layer).__name__, layer.stride, layer.padding, layer.dilation, layer.bias is None, bits)
    return f"{geometry} {views} {neuron!r} {dynamics_of(neuron)} {state}"


def _joined(modules: list[nn.Module | None]) -> nn.Module:
    """Return one module that computes what the modules compute side by side."""
    module = copy.deepcopy(modules[0])
    assert module is not None
    if isinstance(module, ops.CONVOLUTIONS):
        for name in ("weight", "bias", "scale"):
            parts = [getattr(m, name, None) for m in modules]
            if parts[0] is None:
                continue
            joined = torch.cat(parts).detach()  # type: ignore[arg-type]
            setattr(module, name, joined if ops.is_quantized(module) else nn.Parameter(joined, requires_grad=False))
        module.out_channels = module.weight.shape[0]
    return module


def joined_path(paths: list[str]) -> str:
    """Return the joint path of layers: ``a.q+k+v`` for ``a.q``, ``a.k`` and ``a.v``."""
    owner = paths[0].rpartition(".")[0]
    return (f"{owner}." if owner else "") + "+".join(path.rpartition(".")[2] for path in paths)


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    """Add a module to a model at a path."""
    owner, _, name = path.rpartition(".")
    root.get_submodule(owner).add_module(name, module)
