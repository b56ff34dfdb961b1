"""A program as text: one line a node, with its type and the line of the user's model it came from."""

from __future__ import annotations

from torch import fx

from svitc import axes
from svitc.program import Program


def dump(program: Program) -> str:
    """The whole program; channel axes are named by their group."""
    groups = program.groups
    short = {id(group.axis): f"C{i}" for i, group in enumerate(groups)}
    for group in groups:
        if group.head_axis is not None:
            short.setdefault(id(group.head_axis), "h")
    lines = [f"program {program.info.get('arch', '')} at stage {program.stage.name.lower()}"]
    lines += [f"  {_node(program, node, short)}" for node in program.graph.nodes]
    lines.append(f"{len(groups)} channel groups")
    for i, group in enumerate(groups):
        size = f"{group.heads} heads x {group.axis.size}" if group.head_axis is not None else str(group.size)
        state = f"  kept whole: {group.frozen}" if group.frozen else ""
        if group.whole_heads and not group.frozen:
            state = f"  whole heads only: {group.whole_heads}"
        lines.append(f"  C{i} = {size}  {group.name} ({len(group.members)} parameter axes){state}")
    return "\n".join(lines)


def _node(program: Program, node: fx.Node, short: dict[int, str]) -> str:
    args = ", ".join(f"%{a.name}" if isinstance(a, fx.Node) else repr(a) for a in node.args)
    extra = "".join(f", {k}={v}" for k, v in node.kwargs.items())
    if node.op == "call_module":
        module = program.module_of(node)
        call = f"{type(module).__name__}[{node.target}]"
    elif node.op == "call_function":
        call = getattr(node.target, "__name__", str(node.target))
    else:
        call = f"{node.op} {node.target}"
    source = node.meta.get("source")
    return f"%{node.name}: {axes.show(program.type_of(node), short)} = {call}({args}{extra})" + (
        f"  # {source.rsplit('/', 1)[-1]}" if source else ""
    )
