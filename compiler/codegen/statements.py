"""Statements: a graph of operations as lines of readable Python.

A value that is used once is written directly in the expression that uses it, as long as the line stays short. Other
values get a variable, whose name is used again as soon as the value is no longer needed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from typing import TypeAlias

WIDTH_CHARS = 100  # longest line of the generated source, without comments
POOL = ("x", "y", "z", "u", "w", *(f"x{i}" for i in range(2, 1000)))


class Rank(IntEnum):
    """Operator precedence of an expression, which decides where parentheses are necessary."""

    SUM = 1
    PRODUCT = 2
    ATOM = 3


Text: TypeAlias = tuple[str, Rank]
Code: TypeAlias = Callable[[Sequence[Text]], Text]  # function from the texts of the inputs to the text of the result


class Role(IntEnum):
    """Kind of a statement, which decides how it is written."""

    VIEW = 0  # only moves values
    LAYER = 1
    NEURON = 2  # ends a line, because spikes are the signals between layers
    SUM = 3  # residual addition; ends a line
    OTHER = 4
    CALL = 5  # call of a unit; always on a separate line


@dataclass(eq=False)
class Value:
    """Value of a statement.

    Attributes:
        layout: letters of each dimension, for comments.
        constant: expression that is always written for the value (for a bare parameter), or None.
    """

    layout: tuple[str, ...] = ()
    constant: str | None = None


@dataclass(eq=False)
class Statement:
    """Operation that is written as an expression or as a line.

    Attributes:
        inputs: values that the operation reads.
        outputs: values that the operation computes.
        code: writes the expression.
        role: decides where lines end.
        hint: a suitable variable name for the value, or None.
        loop: (list, variable for its element) if the statement calls every element of a list in turn.
    """

    inputs: list[Value]
    outputs: list[Value]
    code: Code
    role: Role = Role.OTHER
    hint: str | None = None
    loop: tuple[str, str] | None = None


@dataclass
class Body:
    """Body of a ``forward`` method.

    Attributes:
        steps: statements, in an order in which they can be computed.
        inputs: values of the arguments.
        outputs: values to return.
        returned: writes what is returned, from the texts of the outputs and the width of a line.
        indent: spaces before each line.
        maker: value -> the statement that computes it.
        kept: values that get a variable.
    """

    steps: list[Statement]
    inputs: list[Value]
    outputs: list[Value]
    returned: Callable[[Sequence[str]], str] = ", ".join
    indent: str = " " * 8
    maker: dict[Value, Statement] = field(default_factory=dict)
    kept: set[Value] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.maker = {value: step for step in self.steps for value in step.outputs}
        self.names = dict(zip(self.inputs, POOL, strict=False))
        self.uses: dict[Value, int] = {}
        self.reader: dict[Value, Statement | None] = {}
        for step in self.steps:
            for value in step.inputs:
                self.uses[value] = self.uses.get(value, 0) + 1
                self.reader[value] = step
        for value in self.outputs:
            self.uses[value] = self.uses.get(value, 0) + 1
            self.reader[value] = None  # read by the return statement
        self._choose_variables()

    # which values get variables

    def _choose_variables(self) -> None:
        """Set ``kept``."""
        for step in self.steps:
            if step.role == Role.CALL or len(step.outputs) > 1:
                self.kept.update(step.outputs)
            self.kept.update(v for v in step.outputs if self.uses.get(v, 0) != 1)
            if step.loop is not None:
                self.kept.update(v for v in step.inputs if v in self.maker)
        for step in self.steps:
            if step.role in (Role.NEURON, Role.SUM) and not self.kept.issuperset(step.outputs):
                reader = self.reader[step.outputs[0]]
                shared_view = reader is not None and reader.role == Role.VIEW and self.kept.issuperset(reader.outputs)
                if reader is not None and not shared_view:
                    self.kept.update(step.outputs)
        for step in self.steps:
            if self.kept.issuperset(step.outputs):
                self._shorten(step.inputs, partial(self._line, step))
        self._shorten(self.outputs, self._return)

    def _shorten(self, inputs: Sequence[Value], text: Callable[[], str]) -> None:
        """Give variables to parts of an expression until its line is short enough.

        Args:
            inputs: values that the expression reads.
            text: returns the line.
        """
        while len(self.indent + text().partition("\n")[0]) > WIDTH_CHARS:
            inner = [v for v in self._inner(inputs) if self.maker[v].role not in (Role.VIEW, Role.OTHER)]
            inner = inner or self._inner(inputs)
            if not inner:
                return
            total = len(text())
            lengths = {v: len(self._expression(v)[0]) for v in inner}
            boundary = min(inner, key=lambda v: max(lengths[v], total - lengths[v]))
            self.kept.add(boundary)
            self._shorten(self.maker[boundary].inputs, partial(self._line, self.maker[boundary]))

    def _inner(self, inputs: Sequence[Value]) -> list[Value]:
        """Return the values without variables that are written within an expression of these inputs."""
        inner: list[Value] = []
        for value in inputs:
            if value in self.maker and value not in self.kept:
                inner += [*self._inner(self.maker[value].inputs), value]
        return inner

    # text

    def _expression(self, value: Value) -> Text:
        if value.constant is not None:
            return value.constant, Rank.ATOM
        if value in self.kept or value not in self.maker:
            return self.names.get(value, "x"), Rank.ATOM
        return self._code(self.maker[value])

    def _code(self, step: Statement) -> Text:
        return step.code([self._expression(value) for value in step.inputs])

    def _line(self, step: Statement) -> str:
        """Return the line of a statement, with a variable of one letter; used to measure its length."""
        return "x = " + self._code(step)[0]

    def _return(self) -> str:
        return "return " + self.returned([self._expression(value)[0] for value in self.outputs])

    def _variables(self, inputs: Sequence[Value]) -> list[Value]:
        """Return the values with variables that an expression of these inputs reads."""
        variables: list[Value] = []
        for value in inputs:
            if value.constant is not None:
                continue
            if value in self.kept or value not in self.maker:
                variables.append(value)
            else:
                variables += self._variables(self.maker[value].inputs)
        return list(dict.fromkeys(variables))

    def _hint(self, step: Statement) -> str | None:
        """Return the name hint of a statement, or of the layer whose output it processes."""
        while step.hint is None and len(step.inputs) == 1:
            value = step.inputs[0]
            if value in self.kept or value not in self.maker:
                break
            step = self.maker[value]
        return step.hint

    def lines(self) -> list[str]:
        """Return the indented lines, with the axes in a comment wherever the layout changes."""
        statements = [step for step in self.steps if self.kept.issuperset(step.outputs)]
        reads = [self._variables(step.inputs) for step in statements] + [self._variables(self.outputs)]
        last = {value: i for i, values in enumerate(reads) for value in values}
        alive = {name: value for value, name in self.names.items() if value in last}
        shown = self.inputs[0].layout if self.inputs else ()
        lines: list[str] = []
        for i, step in enumerate(statements):
            code = self._code(step)[0]
            ending = [value for value in reads[i] if last[value] == i]
            before = [self.names[value] for value in reads[i]]
            for value in ending:
                alive.pop(self.names[value], None)
            for value in step.outputs:
                name = self._name(step, [self.names[v] for v in ending], alive, len(reads[i]) == 1)
                self.names[value] = name
                alive[name] = value
            target = ", ".join(self.names[value] for value in step.outputs)
            if step.loop is not None:
                if target != before[0]:
                    lines.append(f"{self.indent}{target} = {before[0]}")
                lines += [
                    f"{self.indent}for {step.loop[1]} in {step.loop[0]}:",
                    f"{self.indent}    {target} = {step.loop[1]}({target})",
                ]
                shown = step.outputs[-1].layout
                continue
            line = f"{self.indent}{target} = {code}"
            layout = step.outputs[-1].layout
            if layout != shown:
                comment = f"  # [{', '.join(layout)}]"
                if len(line + comment) <= WIDTH_CHARS + 10:
                    line += comment
                shown = layout
            lines.append(line)
        return [*lines, *textwrap.indent(self._return(), self.indent).splitlines()]

    def _name(self, step: Statement, ending: list[str], alive: dict[str, Value], unary: bool) -> str:
        """Return a variable for a statement's value: its hint, else the name of a value it replaces, else a free name.

        Args:
            step: the statement.
            ending: names of values that are not read after this statement.
            alive: name -> value that is still needed.
            unary: whether the statement reads only one variable.
        """
        hint = self._hint(step)
        if hint is not None:
            return next(n for n in (hint, *(f"{hint}{i}" for i in range(2, 1000))) if n not in alive)
        if unary and ending and (ending[0] in POOL or step.role == Role.VIEW) and ending[0] not in alive:
            return ending[0]
        return next(name for name in (*sorted(set(ending) & set(POOL), key=POOL.index), *POOL) if name not in alive)
