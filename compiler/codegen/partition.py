"""Units of a program: the parts of the model that become classes in its generated source.

A unit is a top-level part of the model's tree of layers (``patch_embed``), or an element of a list of large
parts (``blocks.0``). The scope of each node determines the unit that it belongs to; nodes outside of all units belong
to the root, which is the class ``Model``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import einops
import torch
from torch import fx, nn

from svitc.ir import axes, ops
from svitc.ir.einops_pattern import parse_pattern
from svitc.ir.graph import attribute_of, readers_through
from svitc.ir.program import Program
from svitc.ir.views import regrouped, retarget

MIN_UNIT_LAYERS = 3  # a part with fewer layers does not become a class
MIN_ELEMENT_LAYERS = 5  # a list becomes a list of units if an element has at least this many layers
MAX_INPUTS, MAX_OUTPUTS = 3, 2  # values that enter and leave a unit


@dataclass(eq=False)
class Tree:
    """Part of the model: a layer, a bare parameter, or a container of layers and parameters.

    Attributes:
        path: components of the path from the model on.
        children: name -> part, in graph order.
        layer: node that calls the layer, if this part is one.
        parameter: node that reads the bare parameter, if this part is one.
    """

    path: tuple[str, ...] = ()
    children: dict[str, Tree] = field(default_factory=dict)
    layer: fx.Node | None = None
    parameter: fx.Node | None = None

    @property
    def is_leaf(self) -> bool:
        """Whether this part is a layer or a bare parameter."""
        return self.layer is not None or self.parameter is not None

    @property
    def name(self) -> str:
        """The path with dots."""
        return ".".join(self.path)

    @property
    def numbered(self) -> bool:
        """Whether this part is a list: the names of the children are 0, 1, …, with few gaps."""
        names = list(self.children)
        if self.is_leaf or not names or not all(n.isascii() and n.isdecimal() and str(int(n)) == n for n in names):
            return False
        no_parameters = all(c.parameter is None for c in self.children.values())
        return no_parameters and max(map(int, names)) < 2 * len(names) + 8

    @property
    def sequential(self) -> bool:
        """Whether this part is a list that contains only layers."""
        return self.numbered and all(c.layer is not None for c in self.children.values())

    def count(self) -> int:
        """Return the number of layers in this part."""
        return int(self.layer is not None) + sum(c.count() for c in self.children.values())

    def has_large_list(self) -> bool:
        """Return whether this part is, or contains, a list with large elements."""
        if self.numbered and any(c.count() >= MIN_ELEMENT_LAYERS for c in self.children.values()):
            return True
        return any(c.has_large_list() for c in self.children.values())

    def at(self, path: tuple[str, ...]) -> Tree:
        """Return the part at a path that is relative to this one."""
        tree = self
        for part in path:
            tree = tree.children[part]
        return tree


def tree_of(program: Program) -> Tree:
    """Return the tree of a program's layers and bare parameters."""
    root = Tree()
    layers = {str(n.target) for n in program.graph.nodes if n.op == "call_module"}
    for node in program.graph.nodes:
        target = str(node.target)
        is_bare_parameter = node.op == "get_attr" and target.rpartition(".")[0] not in layers
        if node.op != "call_module" and not is_bare_parameter:
            continue
        tree = root
        for part in target.split("."):
            tree = tree.children.setdefault(part, Tree((*tree.path, part)))
        if node.op == "get_attr":
            tree.parameter = tree.parameter or node
        else:
            tree.layer = tree.layer or node
    return root


@dataclass(eq=False)
class Unit:
    """Part of the model that becomes an instance of a class.

    Attributes:
        tree: layers of the unit.
        nodes: operations of the unit, in graph order.
        inputs: nodes outside of the unit whose values it reads.
        outputs: nodes of the unit whose values are read outside of it.
    """

    tree: Tree
    nodes: list[fx.Node] = field(default_factory=list)
    inputs: list[fx.Node] = field(default_factory=list)
    outputs: list[fx.Node] = field(default_factory=list)


def find_units(tree: Tree) -> Iterator[Tree]:
    """Yield the parts that should become units. No unit contains another one."""
    for child in tree.children.values():
        if child.is_leaf:
            continue
        if child.numbered and any(c.count() >= MIN_ELEMENT_LAYERS for c in child.children.values()):
            parts = list(child.children.values())
        elif child.has_large_list():
            parts = [child]
        else:
            parts = []
            if child.count() >= MIN_UNIT_LAYERS:
                yield child
        for part in parts:
            if part is child or part.has_large_list():
                yield from find_units(part)
            elif part.count() >= MIN_UNIT_LAYERS:
                yield part


class Partition:
    """Assignment of a program's nodes to units, so that the units can be called one after the other.

    Attributes:
        program: copy of the program that shares its layers, but not its graph.
        tree: the tree of all layers.
        owner: node -> its unit, or None if it belongs to the root.
        units: in the order of calls.
        steps: the root's nodes and the units, in an order in which they can be computed.
    """

    def __init__(self, program: Program) -> None:
        self.program = copy_graph(program)
        self.tree = tree_of(self.program)
        self.owner: dict[fx.Node, Unit | None] = {}
        self.units = [Unit(tree) for tree in find_units(self.tree)]
        self._assign()
        self._share_views()
        self._chain_views()
        self._hoist_views()
        while (invalid := self._invalid_unit()) is not None:
            for node in invalid.nodes:
                self.owner[node] = None
            self.units.remove(invalid)
        self.steps = self._schedule()
        self.units = [step for step in self.steps if isinstance(step, Unit)]

    def _assign(self) -> None:
        by_path = {unit.tree.path: unit for unit in self.units}
        for node in self.program.graph.nodes:
            scope = str(node.target) if node.op in ("call_module", "get_attr") else str(node.meta.get("scope") or "")
            path = tuple(scope.split("."))
            candidates = (by_path.get(path[:i]) for i in range(len(path), 0, -1))
            unit = None if node.op in ("placeholder", "output") else next((u for u in candidates if u), None)
            self.owner[node] = unit
        for node in self.program.graph.nodes:
            unit = self.owner[node.all_input_nodes[0]] if self._unowned_view(node) else None
            if unit is not None and all(
                self.owner[reader] is unit for reader in readers_through(node, self._unowned_view)
            ):
                self.owner[node] = unit  # a repeat that a pass has moved behind the first layer of a unit
        for node in self.program.graph.nodes:
            if node.op == "get_attr" and any(self.owner[user] is not self.owner[node] for user in node.users):
                self.owner[node] = None
        self._collect()

    def _unowned_view(self, node: fx.Node) -> bool:
        return node.target in ops.VIEWS and self.owner[node] is None

    def _collect(self) -> None:
        """Set the nodes, inputs and outputs of every unit."""
        for unit in self.units:
            unit.nodes = [n for n in self.program.graph.nodes if self.owner[n] is unit]
            inside = set(unit.nodes)
            read = [a for n in unit.nodes for a in n.all_input_nodes if a not in inside]
            unit.inputs = list(dict.fromkeys(read))
            unit.outputs = [n for n in unit.nodes if n.op != "get_attr" and not inside.issuperset(n.users)]

    def _share_views(self) -> None:
        """Merge equal views within a unit."""
        seen: dict[tuple, fx.Node] = {}
        for node in list(self.program.graph.nodes):
            if node.target not in ops.VIEWS:
                continue
            key = (id(self.owner[node]), node.target, node.args, tuple(sorted(node.kwargs.items())))
            first = seen.setdefault(key, node)
            if first is not node:
                node.replace_all_uses_with(first)
                del self.owner[node]
                self.program.graph.erase_node(node)
        self._collect()

    def _chain_views(self) -> None:
        """Chain several views of a value within a unit: the others read the view that keeps time as a dimension.

        Only views that merge or split adjacent axes are chained. They do not change the memory layout, so that
        the result stays the same, bit for bit.
        """
        for value in list(self.program.graph.nodes):
            readers: dict[int, list[fx.Node]] = {}
            for node in value.users:
                if node.target is einops.rearrange and self._keeps_order(node):
                    readers.setdefault(id(self.owner[node]), []).append(node)
            for views in readers.values():
                first = next((n for n in sorted(views) if len(views) > 1 and not self._merges_time(n)), None)
                if first is None:
                    continue
                value.append(first)
                for node in views:
                    types = [self.program.type_of(n) for n in (first, node)]
                    flat = [[axis for dim in dims for axis in dim] for dims in types]
                    if node is not first and flat[0] == flat[1]:  # they differ if an axis of size 1 was removed
                        retarget(node, first, *regrouped(*types))
        self.program.retype()
        self._collect()

    def _hoist_views(self) -> None:
        """Move the first view of a unit to the root, if other units of the same list do not have it.

        For example, the first block of a stage often begins with the view from pixels to tokens.
        """
        layouts: dict[tuple[str, ...], list[tuple]] = {}
        for unit in self.units:
            if unit.inputs:
                layouts.setdefault(unit.tree.path[:-1], []).append(self._dims(unit.inputs[0]))
        for unit in self.units:
            if len(unit.inputs) != 1:
                continue
            readers = [n for n in unit.nodes if unit.inputs[0] in n.all_input_nodes]
            if len(readers) == 1 and readers[0].target is einops.rearrange:
                layout = self._dims(readers[0])
                if layout != self._dims(unit.inputs[0]) and layout in layouts[unit.tree.path[:-1]]:
                    self.owner[readers[0]] = None
        self._collect()

    def _dims(self, node: fx.Node) -> tuple[tuple[axes.Kind, ...], ...]:
        """Return the kinds of the axes in each dimension of a value."""
        return tuple(tuple(axis.kind for axis in dim) for dim in self.program.type_of(node))

    def _merges_time(self, node: fx.Node) -> bool:
        return any(len(dim) > 1 and any(a.kind == axes.Kind.TIME for a in dim) for dim in self.program.type_of(node))

    def _keeps_order(self, node: fx.Node) -> bool:
        """Return whether a view only merges and splits axes.

        The pattern decides, because an axis can occur in two dimensions of a value.
        """
        left, right = parse_pattern(str(node.args[1]))
        return [letter for dim in left for letter in dim] == [letter for dim in right for letter in dim]

    def _invalid_unit(self) -> Unit | None:
        """Return a unit that cannot be a single call, or None.

        Such a unit has too many inputs or outputs, or one of its inputs depends on one of its outputs.
        """
        self._collect()
        for unit in sorted(self.units, key=lambda u: len(u.nodes)):
            if not 1 <= len(unit.inputs) <= MAX_INPUTS or not 1 <= len(unit.outputs) <= MAX_OUTPUTS:
                return unit
            visited: set[fx.Node] = set()
            pending = [user for out in unit.outputs for user in out.users if self.owner[user] is not unit]
            while pending:
                node = pending.pop()
                other = self.owner[node]
                if other is unit:
                    return unit
                for reached in other.nodes if other else [node]:
                    if reached not in visited:
                        visited.add(reached)
                        pending += [user for user in reached.users if other is None or self.owner[user] is not other]
        return None

    def _schedule(self) -> list[fx.Node | Unit]:
        """Return the root's nodes and the units, in graph order as far as their inputs are available."""
        done: set[fx.Node] = set()
        waiting: list[fx.Node | Unit] = list(dict.fromkeys(self.owner[n] or n for n in self.program.graph.nodes))
        steps: list[fx.Node | Unit] = []
        while waiting:
            ready = next(s for s in waiting if done.issuperset(s.inputs if isinstance(s, Unit) else s.all_input_nodes))
            waiting.remove(ready)
            steps.append(ready)
            done.update(ready.nodes if isinstance(ready, Unit) else [ready])
        return steps


def copy_graph(program: Program) -> Program:
    """Return a copy of a program that shares its layers, but has another graph, which can be changed."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    twin = Program(fx.GraphModule(program.module, graph), program.input, program.stage, program.info)
    twin.retype()
    return twin


class Letters:
    """Letters of axes in comments and patterns: t, b, c, y and x; h and d for heads; n for all pixels.

    Attributes:
        heads: ids of the axes of attention heads.
        inner: ids of the axes of the channels in a head.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.heads = {id(g.head_axis) for g in program.groups if g.head_axis is not None}
        self.inner = {id(g.axis) for g in program.groups if g.head_axis is not None}

    def of(self, dim: axes.Dim, otherwise: str = "c") -> str:
        """Return one letter for a product of axes, ``otherwise`` if the axes are of different kinds."""
        kinds = {axis.kind for axis in dim}
        if kinds == {axes.Kind.TIME}:
            return "t"
        if kinds == {axes.Kind.BATCH}:
            return "b"
        if kinds == {axes.Kind.PIXEL}:
            return "n" if len(dim) > 1 else dim[0].letter
        if kinds == {axes.Kind.CHANNEL}:
            if len(dim) == 1:
                return "h" if id(dim[0]) in self.heads else "d" if id(dim[0]) in self.inner else "c"
            return "c"
        return otherwise

    def layout(self, node: fx.Node) -> tuple[str, ...]:
        """Return the dimensions of a value as texts: ``("t", "b", "(h d)", "n")``."""
        texts = []
        for dim in self.program.type_of(node):
            parts: list[str] = []
            for axis in dim:
                letter = self.of((axis,))
                if axis.kind == axes.Kind.PIXEL and parts and parts[-1] in ("n", "y"):
                    parts[-1] = "n"
                else:
                    parts.append(letter)
            texts.append("1" if not parts else parts[0] if len(parts) == 1 else f"({' '.join(parts)})")
        return tuple(texts)


def bare_parameter(program: Program, tree: Tree) -> tuple[torch.Tensor, bool]:
    """Return the value of a bare parameter or buffer, and whether it is a parameter."""
    assert tree.parameter is not None
    value = attribute_of(program.module, str(tree.parameter.target))
    return value, isinstance(value, nn.Parameter)
