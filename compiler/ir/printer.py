"""Programs as text: one line for each node, with its type and the line of the user's model that it comes from."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from svitc.ir import axes
from svitc.ir.channel_groups import ChannelGroup
from svitc.ir.graph import module_of, type_of
from svitc.support import human


def dump(module: fx.GraphModule, groups: Sequence[ChannelGroup], title: str) -> str:
    """Return a typed graph as text, one line for each node, with a table of the channel groups.

    Args:
        module: typed.
        groups: of the graph; the n-th group's axis is printed as ``Cn``.
        title: first line of the text.
    """
    axis_names = {id(group.axis): f"C{i}" for i, group in enumerate(groups)}
    for group in groups:
        if group.head_axis is not None:
            axis_names.setdefault(id(group.head_axis), "h")
    lines = [title]
    lines += [f"  {_node_line(module, node, axis_names)}" for node in module.graph.nodes]
    lines.append(human.counted(len(groups), "channel group"))
    for i, group in enumerate(groups):
        size = f"{group.heads} heads x {group.axis.size}" if group.head_axis is not None else str(group.size)
        state = f"  kept whole: {group.frozen}" if group.frozen else ""
        if group.whole_heads and not group.frozen:
            state = f"  whole heads only: {group.whole_heads}"
        lines.append(f"  C{i} = {size}  {group.name} ({len(group.members)} parameter axes){state}")
    return "\n".join(lines)


def _text(argument: object) -> str:
    if isinstance(argument, fx.Node):
        return f"%{argument.name}"
    if isinstance(argument, tuple) and any(isinstance(item, fx.Node) for item in argument):
        return f"({', '.join(map(_text, argument))})"
    return repr(argument)


def _node_line(module: fx.GraphModule, node: fx.Node, axis_names: dict[int, str]) -> str:
    args = ", ".join(_text(a) for a in node.args)
    kwargs = "".join(f", {k}={v}" for k, v in node.kwargs.items())
    if node.op == "call_module":
        call = f"{type(module_of(module, node)).__name__}[{node.target}]"
    elif node.op == "call_function":
        call = getattr(node.target, "__name__", str(node.target))
    else:
        call = f"{node.op} {node.target}"
    source = node.meta.get("source")
    return f"%{node.name}: {axes.show(type_of(node), axis_names)} = {call}({args}{kwargs})" + (
        f"  # {source.rsplit('/', 1)[-1]}" if source else ""
    )
