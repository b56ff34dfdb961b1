"""Checks of a program's graph against the rules of its stage, after every pass. They cannot be switched off."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx, nn

from svitc.errors import InternalError
from svitc.ir import axes, ops
from svitc.ir.graph import attribute_of
from svitc.ir.outputs import as_tuple
from svitc.ir.program import Program, Stage


def check(program: Program, after: str) -> None:
    """Check a typed program against the rules of its stage.

    Args:
        program: typed.
        after: name of the pass that ran last, for the message.

    Raises:
        InternalError: a node breaks a rule; the message names the node and the problem.
    """
    positions = {node: i for i, node in enumerate(program.graph.nodes)}
    called: set[str] = set()
    for node in program.graph.nodes:
        for problem in _problems(program, node, positions, called):
            raise InternalError(f"after {after}: {node.name} ({node.target}): {problem}", where=node.meta.get("source"))


def _problems(program: Program, node: fx.Node, positions: dict[fx.Node, int], called: set[str]) -> Iterator[str]:
    """Yield every problem of a node.

    Args:
        program: typed.
        node: the node to check.
        positions: node -> index in the graph.
        called: paths of the layers that earlier nodes call; this node's layer is added.
    """
    if node.op == "output" and len(as_tuple(node.args[0])) != len(program.output_names):
        yield f"returns {len(as_tuple(node.args[0]))} values for {len(program.output_names)} names"
    for source in node.all_input_nodes:
        if source not in positions:
            yield f"uses {source.name}, which is not in the graph"
        elif positions[source] >= positions[node]:
            yield f"uses {source.name} before it is defined"
        if node not in source.users:
            yield f"uses {source.name}, which does not list it as a user"
    for user in node.users:
        if user not in positions or node not in user.all_input_nodes:
            yield f"lists {user.name} as a user, which does not use it"
    if "dims" not in node.meta:
        yield "has no axis type"
        return
    module = program.module_of(node)
    if node.op == "call_module":
        if not isinstance(module, ops.MODULES):
            yield f"{type(module).__name__} is not a canonical module"
        if ops.is_neuron(module) and str(node.target) in called:
            yield "a neuron is called twice: the second call would continue with the membrane of the first one"
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
            yield f"{name or 'value'} has shape {tuple(value.shape)}, but its type has {axes.shape(dims)}"
    yield from _widths(module)


def _foldable(program: Program, node: fx.Node) -> bool:
    """Return whether a batch norm normalizes the channels of the layer that it reads, which nothing else reads."""
    source = node.all_input_nodes[0]
    layer = program.module_of(source)
    if not ops.is_projection(layer) or len(source.users) > 1 or not program.called_once(source):
        return False
    return program.type_of(source)[-1 if isinstance(layer, nn.Linear) else 1] == program.type_of(node)[1]


def _widths(module: nn.Module | None) -> Iterator[str]:
    """Yield the difference between a module's channel counts as attributes and in the shapes of its parameters."""
    if isinstance(module, ops.CONVOLUTIONS):
        expected = (module.out_channels, module.in_channels // module.groups)
        if tuple(module.weight.shape[:2]) != expected:
            yield f"weight {tuple(module.weight.shape)} does not fit the channel counts {expected}"
    elif isinstance(module, nn.Linear):
        if tuple(module.weight.shape) != (module.out_features, module.in_features):
            yield f"weight {tuple(module.weight.shape)} does not fit in_features and out_features"
    elif ops.is_batch_norm(module):
        channels = 0 if module.running_mean is None else module.running_mean.shape[0]
        if channels != module.num_features:
            yield f"statistics of {channels} channels, but num_features is {module.num_features}"


__all__ = ["check"]
