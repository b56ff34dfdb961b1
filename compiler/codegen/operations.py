"""Operations: each node of a graph as a step whose text is ordinary PyTorch."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import einops
import torch
from torch import fx

from svitc.codegen.constructors import Number, access
from svitc.codegen.partition import Letters, Tree, Unit
from svitc.codegen.statements import Rank, Role, Statement, Text, Value
from svitc.ir import axes, ops
from svitc.ir.einops_pattern import bind_letters, parse_pattern
from svitc.ir.program import Program

SIGNS = {operator.add: "+", operator.sub: "-", operator.mul: "*", operator.truediv: "/", torch.matmul: "@"}
HINTS = {"q": "q", "k": "k", "v": "v"}


def time_steps(program: Program) -> int | None:
    """T, where the program has one number of time steps."""
    found = {
        axis.size
        for node in program.graph.nodes
        for dim in program.type_of(node)
        for axis in dim
        if axis.kind == axes.Kind.TIME
    }
    return found.pop() if len(found) == 1 else None


class StatementBuilder:
    """Turns nodes of a unit, or of the root, into steps.

    Args:
        program: typed.
        tree: the unit's layers; paths are taken from there on.
        letters: names of axes.
        number: writes sizes of axes.
        steps: T.
    """

    def __init__(self, program: Program, tree: Tree, letters: Letters, number: Number, steps: int | None) -> None:
        self.program, self.tree, self.letters, self.number, self.T = program, tree, letters, number, steps
        self.values: dict[fx.Node, Value] = {}

    def value(self, node: fx.Node) -> Value:
        """The value of a node, made at the first call."""
        if node not in self.values:
            layout = self.letters.layout(node)
            constant = access(self.tree, self.path(node)) if node.op == "get_attr" else None
            self.values[node] = Value(layout, constant)
        return self.values[node]

    def path(self, node: fx.Node) -> tuple[str, ...]:
        return tuple(str(node.target).split("."))[len(self.tree.path) :]

    def of(self, nodes: Sequence[fx.Node]) -> list[Statement]:
        """Statements of nodes that belong together; layers that follow each other in a list become one."""
        wanted = set(nodes)
        steps: list[Statement] = []
        for node in nodes:
            if node.op in ("placeholder", "output", "get_attr"):
                continue
            if node.op == "call_module":
                chain = self.chain(node, wanted)
                if chain[-1] is node:
                    steps.append(self.layers(chain))
            else:
                steps.append(self.function(node))
        return steps

    # layers

    def chain(self, node: fx.Node, wanted: set[fx.Node]) -> list[fx.Node]:
        """The run of layers around ``node`` that are consecutive in a list, each read by the next alone."""
        run = [node]
        while (before := self.neighbour(run[0].all_input_nodes[0], run[0], wanted)) is not None:
            run.insert(0, before)
        while len(run[-1].users) == 1:
            after = next(iter(run[-1].users))
            if after not in wanted or self.neighbour(run[-1], after, wanted) is None:
                break
            run.append(after)
        return run

    def neighbour(self, first: fx.Node, second: fx.Node, wanted: set[fx.Node]) -> fx.Node | None:
        """``first``, if it is the layer just before ``second`` in the same list and read by nothing else."""
        if first.op != "call_module" or second.op != "call_module" or first not in wanted or len(first.users) > 1:
            return None
        *parent, name = self.path(first)
        *other, following = self.path(second)
        if parent != other:
            return None
        here = self.tree.at(tuple(parent))
        if not here.sequential or not parent:
            return None
        order = sorted(here.children, key=int)
        place = order.index(name) + 1
        return first if place < len(order) and order[place] == following else None

    def layers(self, chain: list[fx.Node]) -> Statement:
        path = self.path(chain[-1])
        if len(chain) == 1:
            call = access(self.tree, path)
        else:
            here = self.tree.at(path[:-1])
            start, stop = int(self.path(chain[0])[-1]), int(path[-1]) + 1
            call = access(self.tree, path[:-1])
            if len(chain) < len(here.children):
                last = stop == max(map(int, here.children)) + 1
                call += f"[{start or ''}:{'' if last else stop}]"
        role = Role.NEURON if ops.is_neuron(self.program.module_of(chain[-1])) else Role.LAYER
        return Statement(
            [self.value(chain[0].all_input_nodes[0])],
            [self.value(chain[-1])],
            lambda texts: (f"{call}({texts[0][0]})", Rank.ATOM),
            role,
            name_hint(path),
        )

    # functions

    def function(self, node: fx.Node) -> Statement:
        role, code = Role.OTHER, None
        if node.target in ops.VIEWS:
            role, code = Role.VIEW, self.view(node)
        elif node.target in ops.REDUCTIONS:
            role, code = Role.OTHER, self.reduction(node)
        elif node.target is ops.take_block:
            _, dim, index, count = node.args
            code = _suffix(f".chunk({count}, dim={dim})[{index}]")
        else:
            code = self.binary(node)
            if node.target is operator.add and all(isinstance(a, fx.Node) and a.op != "get_attr" for a in node.args):
                role = Role.SUM
        inputs = [self.value(a) for a in node.args if isinstance(a, fx.Node)]
        return Statement(inputs, [self.value(node)], code, role)

    def binary(self, node: fx.Node) -> Callable[[Sequence[Text]], Text]:
        sign = SIGNS[node.target]  # type: ignore[index]
        rank = Rank.SUM if sign in "+-" else Rank.PRODUCT
        fixed: list[Text | None] = [None if isinstance(a, fx.Node) else self.scalar(a) for a in node.args]

        def code(texts: Sequence[Text]) -> Text:
            rest = iter(texts)
            left, right = (each if each is not None else next(rest) for each in fixed)
            a = left[0] if left[1] >= rank else f"({left[0]})"
            b = right[0] if right[1] > rank else f"({right[0]})"
            return f"{a} {sign} {b}", rank

        return code

    def scalar(self, value: Any) -> Text:
        if value < 0 or not math.isfinite(value):
            return repr(value), Rank.SUM
        return self.number(value, ("scale",)), Rank.ATOM

    def reduction(self, node: fx.Node) -> Callable[[Sequence[Text]], Text]:
        dims = list(node.kwargs["dim"])  # type: ignore[arg-type, call-overload]
        where = str(dims[0]) if len(dims) == 1 else repr(tuple(dims))
        keep = ", keepdim=True" if node.kwargs["keepdim"] else ""
        return _suffix(f".{node.target.__name__}({where}{keep})")  # type: ignore[union-attr]

    def view(self, node: fx.Node) -> Callable[[Sequence[Text]], Text]:
        pattern, sizes = self.pattern(node)
        name = "repeat" if node.target is einops.repeat else "rearrange"
        left, right = parse_pattern(pattern)
        if name == "rearrange" and self.T is not None:
            if left[:2] == [["t"], ["b"]] and right == [["t", "b"], *left[2:]]:
                return lambda texts: (f"merge_time({texts[0][0]})", Rank.ATOM)
            if right[:2] == [["t"], ["b"]] and left == [["t", "b"], *right[2:]] and list(sizes) == ["t"]:
                return lambda texts: (f"split_time({texts[0][0]})", Rank.ATOM)
        extra = "".join(f", {k}={v}" for k, v in sizes.items())
        return lambda texts: (f'{name}({texts[0][0]}, "{pattern}"{extra})', Rank.ATOM)

    def pattern(self, node: fx.Node) -> tuple[str, dict[str, str]]:
        """A view's pattern in the letters of the comments, and the text of the sizes that it gives."""
        text = str(node.args[1])
        left, right = parse_pattern(text)
        known = {letter for dim in left for letter in dim}
        given = {k: v for k, v in node.kwargs.items() if k in known}
        bound = bind_letters(self.program.type_of(node.all_input_nodes[0]), text, given)
        for letters, dim in zip(right, self.program.type_of(node), strict=True):
            if len(letters) == 1:
                bound.setdefault(letters[0], dim)
        names: dict[str, str] = {}
        for letter in dict.fromkeys(letter for dim in (*left, *right) for letter in dim):
            name = self.letters.of(bound[letter], letter) if letter in bound else letter
            free = (n for n in (name, *(f"{name}{i}" for i in range(2, 100))) if n not in names.values())
            names[letter] = next(free)
        renamed = re.sub(r"[A-Za-z_]\w*", lambda m: names[m[0]], text)
        sizes: dict[str, str] = {}
        for letter, size in node.kwargs.items():
            dim = bound.get(letter, ())
            time = self.T is not None and size == self.T and {a.kind for a in dim} == {axes.Kind.TIME}
            key = ("size", letter, *map(id, dim))
            sizes[names[letter]] = "T" if time else self.number(size, tuple(map(id, dim)) or key)
        return renamed, sizes


def _suffix(end: str) -> Callable[[Sequence[Text]], Text]:
    def code(texts: Sequence[Text]) -> Text:
        text, rank = texts[0]
        return (text if rank == Rank.ATOM else f"({text})") + end, Rank.ATOM

    return code


def name_hint(path: Sequence[str]) -> str | None:
    """A variable name that a layer's path suggests: q, k, v or shortcut."""
    if "shortcut" in path:
        return "shortcut"
    words = [word for part in path for word in part.split("_")]
    return next((HINTS[word] for word in words if word in HINTS), None)


def call_unit(unit: Unit, steps: StatementBuilder) -> Statement:
    """The call of a unit by the root."""
    call = access(steps.tree, unit.tree.path)
    return Statement(
        [steps.value(n) for n in unit.inputs],
        [steps.value(n) for n in unit.outputs],
        lambda texts: (f"{call}({', '.join(text for text, _ in texts)})", Rank.ATOM),
        Role.CALL,
    )
