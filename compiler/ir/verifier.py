"""Stage checks: what a program's graph must satisfy, looked at after every pass. There is no off switch."""

from __future__ import annotations

from torch import fx, nn

from svitc.errors import InternalError
from svitc.ir import axes, ops
from svitc.ir.graph import attribute_of
from svitc.ir.program import Program, Stage


def check(program: Program, after: str) -> None:
    """Check a typed program against its stage.

    Args:
        program: typed.
        after: name of the pass that ran last, for the message.

    Raises:
        InternalError: naming the node and what is wrong with it.
    """
    known = {node: i for i, node in enumerate(program.graph.nodes)}
    called: set[str] = set()
    for node in program.graph.nodes:
        for problem in _problems(program, node, known, called):
            raise InternalError(f"after {after}: {node.name} ({node.target}): {problem}", where=node.meta.get("source"))


def _problems(program: Program, node: fx.Node, known: dict[fx.Node, int], called: set[str]):
    for used in node.all_input_nodes:
        if used not in known:
            yield f"uses {used.name}, which is not in the graph"
        elif known[used] >= known[node]:
            yield f"uses {used.name} before it is defined"
        if node not in used.users:
            yield f"uses {used.name}, which does not list it as a user"
    for user in node.users:
        if user not in known or node not in user.all_input_nodes:
            yield f"lists {user.name} as a user, which does not use it"
    if "dims" not in node.meta:
        yield "has no axis type"
        return
    module = program.module_of(node)
    if node.op == "call_module":
        if not isinstance(module, ops.MODULES):
            yield f"{type(module).__name__} is not a canonical module"
        if ops.is_neuron(module) and str(node.target) in called:
            yield "a neuron is called twice: its membrane would run on, and no name would tell its spikes apart"
        called.add(str(node.target))
        if program.stage >= Stage.INFERENCE and ops.is_batch_norm(module) and _foldable(program, node):
            yield "a batch norm was not folded"
    elif node.op == "call_function" and node.target not in ops.FUNCTIONS:
        yield "is not a canonical function"
    elif node.op == "call_method":
        yield "methods are not canonical"
    for name, dims in program.parameters_of(node).items():
        value = attribute_of(program.module, f"{node.target}.{name}" if name else str(node.target))
        if tuple(value.shape) != axes.shape(dims):
            yield f"{name or 'value'} has shape {tuple(value.shape)}, its type says {axes.shape(dims)}"
    yield from _widths(module)


def _foldable(program: Program, node: fx.Node) -> bool:
    source = node.all_input_nodes[0]
    return ops.is_projection(program.module_of(source)) and len(source.users) == 1 and program.called_once(source)


def _widths(module: nn.Module | None):
    """Modules carry their widths twice, in attributes and in parameter shapes."""
    if isinstance(module, ops.CONVOLUTIONS):
        want = (module.out_channels, module.in_channels // module.groups)
        if tuple(module.weight.shape[:2]) != want:
            yield f"weight {tuple(module.weight.shape)} does not fit its widths {want}"
    elif isinstance(module, nn.Linear):
        if tuple(module.weight.shape) != (module.out_features, module.in_features):
            yield f"weight {tuple(module.weight.shape)} does not fit its widths"
    elif ops.is_batch_norm(module):
        counted = 0 if module.running_mean is None else module.running_mean.shape[0]
        if counted != module.num_features:
            yield f"statistics of {counted} channels, num_features says {module.num_features}"


__all__ = ["check"]
