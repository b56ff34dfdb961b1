"""Classes of a generated source: one for all units of the same structure, with arguments for numbers that differ."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from svitc.codegen.constructors import Call, Constructors, Key, Neurons, Number, is_name
from svitc.codegen.operations import StatementBuilder
from svitc.codegen.partition import Letters, Partition, Tree, Unit
from svitc.codegen.quantized_classes import QUANTIZED_NAMES
from svitc.codegen.statements import POOL, Body

RESERVED = ("self", "T", "nn", "neuron", "surrogate", "torch", "range")  # names that a constructor uses
SLOT = re.compile("\ue000(\\d+)\ue000")


class Slots:
    """Numbers in a unit's source, in the order of the text. Calling this object returns a placeholder for a number.

    Attributes:
        numbers: (number, key of what it counts) for each placeholder.
    """

    def __init__(self) -> None:
        self.numbers: list[tuple[float, Key]] = []

    def __call__(self, value: float, key: Key) -> str:
        self.numbers.append((value, key))
        return f"\ue000{len(self.numbers) - 1:02}\ue000"


@dataclass(eq=False)
class Draft:
    """Class of a unit, with placeholders for its numbers.

    Attributes:
        unit: the part of the model.
        assignments: (name, constructor) of each attribute.
        body: lines of ``forward``.
        arguments: argument names of ``forward``.
        slots: (number, key of what it counts) for each placeholder.
    """

    unit: Unit
    assignments: list[tuple[str, Call | str]]
    body: list[str]
    arguments: list[str]
    slots: list[tuple[float, Key]]

    @property
    def template(self) -> str:
        """The text with placeholders, which is equal for units that can share a class."""
        parts = [f"{name} = {constructor}" for name, constructor in self.assignments]
        return "\n".join([*parts, *self.body, *self.arguments, str(self.unit.tree.numbered)])


@dataclass(eq=False)
class Class:
    """Class of the generated source, and the units that are its instances.

    Attributes:
        drafts: one for each unit.
        name: name of the class.
        arguments: name of a constructor argument -> (its meaning, indices of its slots).
    """

    drafts: list[Draft]
    name: str = ""
    arguments: dict[str, tuple[str, list[int]]] = field(default_factory=dict)

    def values(self, draft: Draft) -> dict[str, float]:
        """Return the constructor's arguments for a unit."""
        return {name: draft.slots[slots[0]][0] for name, (_, slots) in self.arguments.items()}


class Classes:
    """All classes for the units of a program.

    Args:
        partition: units of the program.
        neurons: neurons of the program.
        letters: letters of axes in comments and patterns.
        steps: number of time steps T, or None if there is no single one.

    Attributes:
        all: the classes, in the order of the source.
        of_unit: path of a unit -> its class and its draft.
    """

    def __init__(self, partition: Partition, neurons: Neurons, letters: Letters, steps: int | None) -> None:
        self.partition, self.neurons, self.letters, self.T = partition, neurons, letters, steps
        self.program = partition.program
        self.all = self._classes()
        self.of_unit = {d.unit.tree.path: (c, d) for c in self.all for d in c.drafts}

    def _classes(self) -> list[Class]:
        by_template: dict[str, Class] = {}
        for unit in self.partition.units:
            draft = self._draft(unit)
            by_template.setdefault(draft.template, Class([])).drafts.append(draft)
        classes = list(by_template.values())
        taken = {"Model", "Layers", "Path", "Integer", "IntegerSpike", "Heaviside", "Step", "LeakyNeuron"}
        taken |= set(QUANTIZED_NAMES)
        for class_ in classes:
            paths = [draft.unit.tree.path for draft in class_.drafts]
            names = list(dict.fromkeys(class_name(path) for path in paths))
            name = names[0] if len(names) == 1 else names[0].rstrip("0123456789") or "Part"
            class_.name = next(n for n in (name, *(f"{name}_{i}" for i in range(2, 1000))) if n not in taken)
            taken.add(class_.name)
            if len(class_.drafts) > 1:
                class_.arguments = self._arguments(class_)
        return classes

    def _draft(self, unit: Unit) -> Draft:
        slots = Slots()
        constructors = Constructors(self.program, self.neurons)
        assignments = attributes(unit.tree, constructors, slots)
        statements = StatementBuilder(self.program, unit.tree, self.letters, slots, self.T)
        body = Body(
            statements.of(unit.nodes),
            [statements.value(n) for n in unit.inputs],
            [statements.value(n) for n in unit.outputs],
        )
        return Draft(unit, assignments, body.lines(), list(POOL[: len(unit.inputs)]), slots.numbers)

    def _arguments(self, class_: Class) -> dict[str, tuple[str, list[int]]]:
        """Return the constructor arguments of a class: numbers that differ between its units, by what they count.

        Returns:
            name of an argument -> (its meaning, indices of its slots).
        """
        differing: dict[tuple, list[int]] = {}
        for i in range(len(class_.drafts[0].slots)):
            if len({draft.slots[i][0] for draft in class_.drafts}) > 1:
                key = tuple(draft.slots[i][1] if draft.slots[i][1] != ("scale",) else i for draft in class_.drafts)
                differing.setdefault(key, []).append(i)
        result: dict[str, tuple[str, list[int]]] = {}
        for slots in differing.values():
            name, meaning = self._meaning(class_.drafts[0], slots[0])
            taken = {*result, *RESERVED, *self.neurons.names}
            if any(self._in_body(class_.drafts[0], slot) for slot in slots):
                taken.update(class_.drafts[0].unit.tree.children)  # the argument becomes an attribute like them
            name = next(n for n in (name, *(f"{name}{i}" for i in range(2, 1000))) if n not in taken)
            result[name] = (meaning, slots)
        return result

    def _meaning(self, draft: Draft, slot: int) -> tuple[str, str]:
        """Return a name for the argument that replaces a slot, and its meaning."""
        key = draft.slots[slot][1]
        if key == ("scale",):
            return "scale", "a factor"
        unit, prefix = draft.unit, len(draft.unit.tree.path)
        entering = {id(a) for n in unit.inputs for dim in self.program.type_of(n) for a in dim}
        leaving = {id(a) for n in unit.outputs for dim in self.program.type_of(n) for a in dim}
        group = next((g for g in self.program.groups if id(g.axis) == key[-1]), None)
        if group is None:
            if key[-1] in self.letters.heads:
                return "heads", "attention heads"
            letters = [a.letter for n in unit.nodes for dim in self.program.type_of(n) for a in dim if id(a) == key[-1]]
            name = {"y": "rows", "x": "columns"}.get(letters[0] if letters else "", "size")
            return name, f"{name} of pixels" if name != "size" else "elements of an axis"
        if key[-1] in entering:
            return ("width", "channels in and out") if key[-1] in leaving else ("width_in", "channels in")
        producers = [p for p in group.producers if tuple(p.split(".")[:prefix]) == unit.tree.path]
        paths = [p.split(".")[prefix:] for p in producers]
        if key[-1] in leaving:
            return "width", "channels out"
        labels = list(dict.fromkeys(label(path) for path in paths)) or ["size"]
        name = "".join(labels) if all(len(text) == 1 for text in labels) else labels[0]
        return name, "channels of " + ", ".join(".".join(path) for path in paths)

    def lines(self, class_: Class) -> list[str]:
        """Return the source of a class."""
        first = class_.drafts[0]
        names = {slot: name for name, (_, slots) in class_.arguments.items() for slot in slots}

        def fill(text: str) -> str:
            return SLOT.sub(lambda m: names.get(int(m[1]), repr(first.slots[int(m[1])][0])), text)

        stored = [name for name, (_, slots) in class_.arguments.items() if any(self._in_body(first, s) for s in slots)]

        def fill_body(text: str) -> str:
            return SLOT.sub(
                lambda m: "self." + n if (n := names.get(int(m[1]))) else repr(first.slots[int(m[1])][0]),
                text,
            )

        shapes = [
            " and ".join(shape(self.letters.layout(n)) for n in nodes)
            for nodes in (first.unit.inputs, first.unit.outputs)
        ]
        head = f"{runs([d.unit.tree.name for d in class_.drafts])}: {shapes[0]} -> {shapes[1]}."
        arguments = "".join(f", {name}" for name in class_.arguments)
        meanings = [f"{name}: {meaning}" for name, (meaning, _) in class_.arguments.items()]
        assignments = [(name, c.with_text(fill) if isinstance(c, Call) else fill(c)) for name, c in first.assignments]
        return [
            *class_head(class_.name, first.unit.tree, head, meanings),
            f"    def __init__(self{arguments}):",
            *constructor_lines(first.unit.tree, assignments),
            *(f"        self.{name} = {name}" for name in stored),
            "",
            f"    def forward(self, {', '.join(first.arguments)}):",
            *map(fill_body, first.body),
        ]

    @staticmethod
    def _in_body(draft: Draft, slot: int) -> bool:
        return any(int(m[1]) == slot for line in draft.body for m in SLOT.finditer(line))

    def instance(self, tree: Tree) -> str | None:
        """Return the expression that creates a unit, None for any other part of the model."""
        if tree.path not in self.of_unit:
            return None
        class_, draft = self.of_unit[tree.path]
        return f"{class_.name}({', '.join(f'{name}={value!r}' for name, value in class_.values(draft).items())})"


def literal(value: float, _: Key) -> str:
    """Return a number as text."""
    return repr(value)


def attributes(tree: Tree, constructors: Constructors, number: Number) -> list[tuple[str, Call | str]]:
    """Return name and constructor of each attribute of a class; for a list, the names are empty.

    Args:
        tree: the part of the model that the class represents.
        constructors: writes the constructors.
        number: writes numbers.
    """
    if tree.numbered:
        return [("", item) for item in constructors.listed(tree, number)]
    return [(name, constructors.part(child, number)) for name, child in tree.children.items()]


def class_head(name: str, tree: Tree, head: str, arguments: list[str]) -> list[str]:
    """Return the first lines of a class: its name, base class and docstring.

    Args:
        name: name of the class.
        tree: the part of the model that the class represents.
        head: first line of the docstring.
        arguments: lines of the docstring about arguments.
    """
    base = "nn.ModuleList" if tree.numbered else "nn.Module"
    lines = [f"class {name}({base}):", f'    """{head}']
    if arguments:
        lines += ["", *(f"    {line}" for line in arguments), '    """', ""]
    else:
        lines[-1] += '"""'
        lines.append("")
    return lines


def constructor_lines(tree: Tree, assignments: list[tuple[str, Call | str]]) -> list[str]:
    """Return the body of ``__init__``, which sets the attributes that ``attributes`` returns."""
    indent = " " * 8
    if tree.numbered:
        return list(Call("super().__init__([", [(None, item) for _, item in assignments], "])").lines("", indent))
    lines = [f"{indent}super().__init__()"]
    for name, item in assignments:
        parameter = tree.children[name].parameter
        if parameter is not None and not str(item).startswith("nn.Parameter("):
            lines.append(f'{indent}self.register_buffer("{name}", {item})')
        elif not is_name(name):
            method = "register_parameter" if parameter is not None else "add_module"
            lines += Call(f"self.{method}(", [(None, f'"{name}"'), (None, item)]).lines("", indent)
        elif isinstance(item, Call):
            lines += item.lines(f"self.{name} = ", indent)
        else:
            lines.append(f"{indent}self.{name} = {item}")
    return lines


def class_name(path: Sequence[str]) -> str:
    """Return the name of a class: ``Block`` for ``blocks.0``, ``Stage3`` for ``stage3.4``."""
    words = [part for part in path if not part.isdecimal()]
    last = words[-1] if words else "part"
    if path[-1].isdecimal() and last.endswith("s") and not last.endswith("ss"):
        last = last[:-1]
    name = "".join(word[:1].upper() + word[1:] for word in re.split(r"[_\W]+", last))
    return name if is_name(name) else "Part"


def label(path: Sequence[str]) -> str:
    """Return an argument name for the channels of a layer: ``fc1`` for ``mlp.fc1.0``, ``q`` for ``attn.q_conv``."""
    words = [part for part in path if not part.isdecimal()]
    last = re.sub(r"(_(conv|bn|linear|proj))+$", "", words[-1]) if words else ""
    return last.replace("-", "_") if is_name(last.replace("-", "_")) and last not in POOL else "size"


def runs(names: Sequence[str]) -> str:
    """Return paths as text, with ranges for consecutive numbers: ``blocks.0 to blocks.7, head``."""
    texts: list[str] = []
    for _, group in itertools.groupby(enumerate(names), lambda p: (p[1].rpartition(".")[0], _number(p[1]) - p[0])):
        members = [name for _, name in group]
        texts.append(
            members[0] if len(members) == 1 else f"{members[0]}{' to ' if len(members) > 2 else ', '}{members[-1]}"
        )
    return ", ".join(texts)


def _number(name: str) -> int:
    last = name.rpartition(".")[2]
    return int(last) if last.isdecimal() else 0


def shape(layout: Sequence[str]) -> str:
    """Return a layout as text: ``[t, b, c, n]``."""
    return f"[{', '.join(layout)}]"
