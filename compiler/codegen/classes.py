"""Classes of a generated source: one for all units of a structure, with arguments where numbers differ."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from svitc.codegen.constructors import Call, Constructors, Neurons, is_name
from svitc.codegen.operations import StatementBuilder
from svitc.codegen.partition import Letters, Partition, Tree, Unit
from svitc.codegen.quantized_classes import QUANTIZED_NAMES
from svitc.codegen.statements import POOL, Body

RESERVED = ("self", "T", "nn", "neuron", "surrogate", "torch", "range")  # names that a constructor uses
SLOT = re.compile("\ue000(\\d+)\ue000")


class Slots:
    """Numbers of a unit, in the order of its text, each as a mark to be filled in."""

    def __init__(self) -> None:
        self.found: list[tuple[Any, tuple]] = []

    def __call__(self, value: Any, key: tuple) -> str:
        self.found.append((value, key))
        return f"\ue000{len(self.found) - 1:02}\ue000"


@dataclass(eq=False)
class Draft:
    """A unit's class with marks for its numbers.

    Attributes:
        made: (name, constructor) of each attribute.
        body: lines of ``forward``.
        arguments: of ``forward``.
        slots: (number, what it counts).
    """

    unit: Unit
    made: list[tuple[str, Call | str]]
    body: list[str]
    arguments: list[str]
    slots: list[tuple[Any, tuple]]

    @property
    def template(self) -> str:
        parts = [f"{name} = {made}" for name, made in self.made]
        return "\n".join([*parts, *self.body, *self.arguments, str(self.unit.tree.numbered)])


@dataclass(eq=False)
class Class:
    """A class of the source, and the units that are its instances.

    Attributes:
        arguments: name of a constructor argument -> (what it is, its slots).
    """

    drafts: list[Draft]
    name: str = ""
    arguments: dict[str, tuple[str, list[int]]] = field(default_factory=dict)

    def values(self, draft: Draft) -> dict[str, Any]:
        """The constructor's arguments for one unit."""
        return {name: draft.slots[slots[0]][0] for name, (_, slots) in self.arguments.items()}


class Classes:
    """The classes of a program's units.

    Args:
        partition: of the program.
        neurons: of the program.
        letters: names of axes.
        steps: T.
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
        taken = {"Model", "Layers", "Path", "Integer", "IntegerSpike", *QUANTIZED_NAMES}
        for each in classes:
            paths = [draft.unit.tree.path for draft in each.drafts]
            full = list(dict.fromkeys(class_name(path) for path in paths))
            name = full[0] if len(full) == 1 else full[0].rstrip("0123456789") or "Part"
            each.name = next(n for n in (name, *(f"{name}_{i}" for i in range(2, 1000))) if n not in taken)
            taken.add(each.name)
            if len(each.drafts) > 1:
                each.arguments = self._arguments(each)
        return classes

    def _draft(self, unit: Unit) -> Draft:
        slots = Slots()
        constructors = Constructors(self.program, self.neurons)
        made = attributes(unit.tree, constructors, slots)
        steps = StatementBuilder(self.program, unit.tree, self.letters, slots, self.T)
        body = Body(
            steps.of(unit.nodes),
            [steps.value(n) for n in unit.inputs],
            [steps.value(n) for n in unit.outputs],
        )
        return Draft(unit, made, body.lines(), list(POOL[: len(unit.inputs)]), slots.found)

    def _arguments(self, each: Class) -> dict[str, tuple[str, list[int]]]:
        """Numbers in which the units differ, by what they count."""
        differing: dict[tuple, list[int]] = {}
        for i in range(len(each.drafts[0].slots)):
            if len({draft.slots[i][0] for draft in each.drafts}) > 1:
                key = tuple(draft.slots[i][1] if draft.slots[i][1] != ("scale",) else i for draft in each.drafts)
                differing.setdefault(key, []).append(i)
        result: dict[str, tuple[str, list[int]]] = {}
        for slots in differing.values():
            name, meaning = self._meaning(each.drafts[0], slots[0])
            taken = {*result, *RESERVED, *self.neurons.names}
            if any(self._in_body(each.drafts[0], slot) for slot in slots):
                taken.update(each.drafts[0].unit.tree.children)  # it becomes an attribute beside them
            name = next(n for n in (name, *(f"{name}{i}" for i in range(2, 1000))) if n not in taken)
            result[name] = (meaning, slots)
        return result

    def _meaning(self, draft: Draft, slot: int) -> tuple[str, str]:
        """A name for an argument, and what it counts."""
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
        inside = [p for p in group.producers if tuple(p.split(".")[:prefix]) == unit.tree.path]
        paths = [p.split(".")[prefix:] for p in inside]
        if key[-1] in leaving:
            return "width", "channels out"
        labels = list(dict.fromkeys(label(path) for path in paths)) or ["size"]
        name = "".join(labels) if all(len(each) == 1 for each in labels) else labels[0]
        return name, "channels of " + ", ".join(".".join(path) for path in paths)

    def lines(self, each: Class) -> list[str]:
        first = each.drafts[0]
        names = {slot: name for name, (_, slots) in each.arguments.items() for slot in slots}

        def fill(text: str) -> str:
            return SLOT.sub(lambda m: names.get(int(m[1]), repr(first.slots[int(m[1])][0])), text)

        stored = [name for name, (_, slots) in each.arguments.items() if any(self._in_body(first, s) for s in slots)]

        def fill_body(text: str) -> str:
            return SLOT.sub(
                lambda m: "self." + n if (n := names.get(int(m[1]))) else repr(first.slots[int(m[1])][0]),
                text,
            )

        shapes = [
            " and ".join(shape(self.letters.layout(n)) for n in nodes)
            for nodes in (first.unit.inputs, first.unit.outputs)
        ]
        head = f"{runs([d.unit.tree.name for d in each.drafts])}: {shapes[0]} -> {shapes[1]}."
        arguments = "".join(f", {name}" for name in each.arguments)
        made = [(name, m.with_text(fill) if isinstance(m, Call) else fill(m)) for name, m in first.made]
        return [
            *class_head(each.name, first.unit.tree, head, [f"{n}: {what}" for n, (what, _) in each.arguments.items()]),
            f"    def __init__(self{arguments}):",
            *constructor_lines(first.unit.tree, made),
            *(f"        self.{name} = {name}" for name in stored),
            "",
            f"    def forward(self, {', '.join(first.arguments)}):",
            *map(fill_body, first.body),
        ]

    @staticmethod
    def _in_body(draft: Draft, slot: int) -> bool:
        return any(int(m[1]) == slot for line in draft.body for m in SLOT.finditer(line))

    def instance(self, tree: Tree) -> str | None:
        """The call that makes a unit, None for any other part."""
        if tree.path not in self.of_unit:
            return None
        each, draft = self.of_unit[tree.path]
        return f"{each.name}({', '.join(f'{name}={value!r}' for name, value in each.values(draft).items())})"


def literal(value: Any, key: tuple) -> str:
    return repr(value)


def attributes(tree: Tree, constructors: Constructors, number: Any) -> list[tuple[str, Call | str]]:
    """Name and constructor of each part directly below a class."""
    if tree.numbered:
        return [("", item) for item in constructors.listed(tree, number)]
    return [(name, constructors.part(child, number)) for name, child in tree.children.items()]


def class_head(name: str, tree: Tree, head: str, arguments: list[str]) -> list[str]:
    base = "nn.ModuleList" if tree.numbered else "nn.Module"
    lines = [f"class {name}({base}):", f'    """{head}']
    if arguments:
        lines += ["", *(f"    {each}" for each in arguments), '    """', ""]
    else:
        lines[-1] += '"""'
        lines.append("")
    return lines


def constructor_lines(tree: Tree, made: list[tuple[str, Call | str]]) -> list[str]:
    """The body of ``__init__``."""
    indent = " " * 8
    if tree.numbered:
        return list(Call("super().__init__([", [(None, item) for _, item in made], "])").lines("", indent))
    lines = [f"{indent}super().__init__()"]
    for name, item in made:
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
    """``Block`` for ``blocks.0``, ``Stage3`` for ``stage3.4``, ``PatchEmbed`` for ``patch_embed``."""
    words = [part for part in path if not part.isdecimal()]
    last = words[-1] if words else "part"
    if path[-1].isdecimal() and last.endswith("s") and not last.endswith("ss"):
        last = last[:-1]
    name = "".join(word[:1].upper() + word[1:] for word in re.split(r"[_\W]+", last))
    return name if is_name(name) else "Part"


def label(path: Sequence[str]) -> str:
    """The argument's name for what a layer makes: ``fc1`` of mlp.fc1.0, ``q`` of attn.q_conv."""
    words = [part for part in path if not part.isdecimal()]
    last = re.sub(r"(_(conv|bn|linear|proj))+$", "", words[-1]) if words else ""
    return last.replace("-", "_") if is_name(last.replace("-", "_")) and last not in POOL else "size"


def runs(names: Sequence[str]) -> str:
    """``blocks.0 to blocks.7, head``."""
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
    return f"[{', '.join(layout)}]"
