"""Operations: nodes of a graph as statements in plain PyTorch."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence

import einops
import torch
from torch import fx

from svitc.codegen.constructors import Number, access
from svitc.codegen.partition import Letters, Tree, Unit
from svitc.codegen.statements import Code, Rank, Role, Statement, Text, Value
from svitc.ir import axes, ops
from svitc.ir.einops_pattern import bind_letters, parse_pattern
from svitc.ir.operators.registry import OPERATORS
from svitc.ir.program import Program

SIGNS = {operator.add: "+", operator.sub: "-", operator.mul: "*", operator.truediv: "/", torch.matmul: "@"}
HINTS = {"q": "q", "k": "k", "v": "v"}


def time_steps(program: Program) -> int | None:
    """Return the number of time steps T, or None if there is no time axis, or several with different sizes."""
    sizes = {
        axis.size
        for node in program.graph.nodes
        for dim in program.type_of(node)
        for axis in dim
        if axis.kind == axes.Kind.TIME
    }
    return sizes.pop() if len(sizes) == 1 else None


class StatementBuilder:
    """Converter of the nodes of a unit, or of the root, to statements.

    Args:
        program: typed.
        tree: the part of the model that ``self`` represents in the statements.
        letters: letters of axes in comments and patterns.
        number: writes sizes of axes.
        steps: number of time steps T, or None if there is no single one.
    """

    def __init__(self, program: Program, tree: Tree, letters: Letters, number: Number, steps: int | None) -> None:
        self.program, self.tree, self.letters, self.number, self.T = program, tree, letters, number, steps
        self.values: dict[fx.Node, Value] = {}

    def value(self, node: fx.Node) -> Value:
        """Return the value of a node, which is created in the first call."""
        if node not in self.values:
            layout = self.letters.layout(node)
            constant = access(self.tree, self.path(node)) if node.op == "get_attr" else None
            self.values[node] = Value(layout, constant)
        return self.values[node]

    def path(self, node: fx.Node) -> tuple[str, ...]:
        """Return the path of a node's layer or parameter, starting from ``tree``."""
        return tuple(str(node.target).split("."))[len(self.tree.path) :]

    def of(self, nodes: Sequence[fx.Node]) -> list[Statement]:
        """Return the statements of nodes; consecutive layers of a list become a single call."""
        allowed = set(nodes)
        statements: list[Statement] = []
        for node in nodes:
            if node.op in ("placeholder", "output", "get_attr"):
                continue
            if node.op == "call_module":
                chain = self.chain(node, allowed)
                if chain[-1] is node:
                    statements.append(self.layers(chain))
            else:
                statements.append(self.function(node))
        return statements

    # layers

    def chain(self, node: fx.Node, allowed: set[fx.Node]) -> list[fx.Node]:
        """Return the longest run of layers around ``node`` that are consecutive in a list.

        Only the next layer reads the output of each layer in the run. All nodes are in ``allowed``.
        """
        run = [node]
        while self._is_followed_by(run[0].all_input_nodes[0], run[0], allowed):
            run.insert(0, run[0].all_input_nodes[0])
        while len(run[-1].users) == 1:
            after = next(iter(run[-1].users))
            if after not in allowed or not self._is_followed_by(run[-1], after, allowed):
                break
            run.append(after)
        return run

    def _is_followed_by(self, first: fx.Node, second: fx.Node, allowed: set[fx.Node]) -> bool:
        """Return whether ``second`` is the next layer in the list of ``first``, and the only reader of its output."""
        if first.op != "call_module" or second.op != "call_module" or first not in allowed or len(first.users) > 1:
            return False
        *parent, name = self.path(first)
        *other, following = self.path(second)
        if parent != other:
            return False
        container = self.tree.at(tuple(parent))
        if not container.sequential or not parent:
            return False
        order = sorted(container.children, key=int)
        position = order.index(name) + 1
        return position < len(order) and order[position] == following

    def layers(self, chain: list[fx.Node]) -> Statement:
        """Return the statement that calls one layer, or consecutive layers of a list."""
        path = self.path(chain[-1])
        if len(chain) == 1:
            call = access(self.tree, path)
        else:
            container = self.tree.at(path[:-1])
            start, stop = int(self.path(chain[0])[-1]), int(path[-1]) + 1
            call = access(self.tree, path[:-1])
            if len(chain) < len(container.children):
                last = stop == max(map(int, container.children)) + 1
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
        """Return the statement of a ``call_function`` node."""
        role, code = Role.OTHER, None
        if node.target in ops.VIEWS:
            role, code = Role.VIEW, self.view(node)
        elif node.target in ops.REDUCTIONS:
            role, code = Role.OTHER, self.reduction(node)
        elif node.target is ops.take_block:
            _, dim, index, count = node.args
            code = _suffix(f".chunk({count}, dim={dim})[{index}]")
        elif node.target in OPERATORS:
            code = _call(node)
        else:
            code = self.binary(node)
            if node.target is operator.add and all(isinstance(a, fx.Node) and a.op != "get_attr" for a in node.args):
                role = Role.SUM
        inputs = [self.value(a) for a in node.args if isinstance(a, fx.Node)]
        return Statement(inputs, [self.value(node)], code, role)

    def binary(self, node: fx.Node) -> Code:
        """Return the writer of a binary operator, with parentheses where necessary."""
        sign = SIGNS[node.target]  # type: ignore[index]
        rank = Rank.SUM if sign in "+-" else Rank.PRODUCT
        scalars: list[Text | None] = [None if isinstance(a, fx.Node) else self.scalar(a) for a in node.args]

        def code(texts: Sequence[Text]) -> Text:
            tensors = iter(texts)
            left, right = (scalar if scalar is not None else next(tensors) for scalar in scalars)
            a = left[0] if left[1] >= rank else f"({left[0]})"
            b = right[0] if right[1] > rank else f"({right[0]})"
            return f"{a} {sign} {b}", rank

        return code

    def scalar(self, value: object) -> Text:
        """Return a number as text."""
        assert isinstance(value, (int, float))
        if value < 0 or not math.isfinite(value):
            return repr(value), Rank.SUM
        return self.number(value, ("scale",)), Rank.ATOM

    def reduction(self, node: fx.Node) -> Code:
        """Return the writer of a mean or a sum."""
        dims = list(node.kwargs["dim"])  # type: ignore[arg-type, call-overload]
        where = str(dims[0]) if len(dims) == 1 else repr(tuple(dims))
        keep = ", keepdim=True" if node.kwargs["keepdim"] else ""
        return _suffix(f".{node.target.__name__}({where}{keep})")  # type: ignore[union-attr]

    def view(self, node: fx.Node) -> Code:
        """Return the writer of a view: ``merge_time`` or ``split_time`` if possible, else an einops call."""
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
        """Return a view's pattern with the letters of the comments, and letter -> text of its size."""
        text = str(node.args[1])
        left, right = parse_pattern(text)
        input_letters = {letter for dim in left for letter in dim}
        input_sizes = {letter: size for letter, size in node.kwargs.items() if letter in input_letters}
        bound = bind_letters(self.program.type_of(node.all_input_nodes[0]), text, input_sizes)
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
            assert isinstance(size, int)
            is_time = self.T is not None and size == self.T and {a.kind for a in dim} == {axes.Kind.TIME}
            key = ("size", letter, *map(id, dim))
            sizes[names[letter]] = "T" if is_time else self.number(size, tuple(map(id, dim)) or key)
        return renamed, sizes


def _suffix(end: str) -> Code:
    """Return the writer of a method call: the input's text, in parentheses if necessary, and then ``end``."""

    def code(texts: Sequence[Text]) -> Text:
        text, rank = texts[0]
        return (text if rank == Rank.ATOM else f"({text})") + end, Rank.ATOM

    return code


def _call(node: fx.Node) -> Code:
    """Return the writer of a call of a general operator."""
    name = OPERATORS[node.target].name  # type: ignore[index]
    attributes = [f"{key}={value!r}" for key, value in node.kwargs.items()]
    return lambda texts: (f"{name}({', '.join([*(text for text, _ in texts), *attributes])})", Rank.ATOM)


def name_hint(path: Sequence[str]) -> str | None:
    """Return the variable name that a layer's path suggests: q, k, v or shortcut; else None."""
    if "shortcut" in path:
        return "shortcut"
    words = [word for part in path for word in part.split("_")]
    return next((HINTS[word] for word in words if word in HINTS), None)


def call_unit(unit: Unit, builder: StatementBuilder) -> Statement:
    """Return the statement of the root that calls a unit."""
    call = access(builder.tree, unit.tree.path)
    return Statement(
        [builder.value(n) for n in unit.inputs],
        [builder.value(n) for n in unit.outputs],
        lambda texts: (f"{call}({', '.join(text for text, _ in texts)})", Rank.ATOM),
        Role.CALL,
    )
