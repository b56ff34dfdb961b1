"""Constructors: the tree of a model's layers as the expressions that make them."""

from __future__ import annotations

import keyword
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from svitc.codegen.partition import Tree, bare_parameter
from svitc.codegen.quantized_classes import definition, fixed_point
from svitc.ir import ops, standalone_layers
from svitc.ir.program import Program, Stage
from svitc.serialization.layer_schema import describe_layer

WIDTH = 100
NEURON_NAMES = {"LIFNode": "lif", "IFNode": "if_node", "ParametricLIFNode": "plif", "ILIFNode": "ilif"}
DEFAULTS = {
    "stride": 1,
    "padding": 0,
    "dilation": 1,
    "groups": 1,
    "bias": True,
    "eps": 1e-5,
    "momentum": 0.1,
    "affine": True,
    "ceil_mode": False,
    "count_include_pad": True,
    "divisor_override": None,
}
Number = Callable[[Any, tuple], str]  # a number and what it counts -> its text


@dataclass
class Call:
    """A call as text that can be broken over lines.

    Attributes:
        head, tail: ``nn.Sequential(`` and ``)``.
        items: (keyword or None, argument).
    """

    head: str
    items: Sequence[tuple[str | None, Call | str]]
    tail: str = ")"

    def __str__(self) -> str:
        return self.head + ", ".join(f"{k}={v}" if k else str(v) for k, v in self.items) + self.tail

    def lines(self, before: str, indent: str, after: str = "") -> Iterator[str]:
        """``before`` and the call, on one line if it fits, else one argument a line."""
        text = f"{indent}{before}{self}{after}"
        if len(text) <= WIDTH or not self.items:
            yield text
            return
        yield f"{indent}{before}{self.head}"
        inner = indent + "    "
        for key, item in self.items:
            start = f"{key}=" if key else ""
            if isinstance(item, Call):
                yield from item.lines(start, inner, ",")
            else:
                yield f"{inner}{start}{item},"
        yield f"{indent}{self.tail}{after}"

    def with_text(self, change: Callable[[str], str]) -> Call:
        """The call with every text in it changed."""
        items = [(k, v.with_text(change) if isinstance(v, Call) else change(v)) for k, v in self.items]
        return Call(change(self.head), items, self.tail)


def is_name(text: str) -> bool:
    return text.isidentifier() and not keyword.iskeyword(text)


def access(tree: Tree, path: Sequence[str]) -> str:
    """The expression for what lies at a path below ``self``."""
    text, here = "self", tree
    for part in path:
        if here.numbered:
            text += f"[{part}]"
        else:
            text = f"{text}.{part}" if is_name(part) else f'getattr({text}, "{part}")'
        here = here.children.get(part, Tree())
    return text


class Neurons:
    """One short function for each kind of neuron in a program; thresholds that differ are its argument.

    What only matters in training, surrogates and ``detach_reset``, is left out where the program does not train.

    Attributes:
        kinds: of neurons with membranes.
        integer: whether there are neurons without, which need a class of their own.
    """

    def __init__(self, program: Program) -> None:
        self.integer = False
        self.trains = program.stage < Stage.INFERENCE
        self.kinds: list[dict[str, Any]] = []
        thresholds: list[Counter[float]] = []
        for node in program.neurons():
            module = program.module_of(node)
            assert module is not None
            if not ops.has_state(module):
                self.integer = True
                continue
            entry = describe_layer(str(node.target), module)
            kind, threshold = self._kind(entry)
            if kind not in self.kinds:
                self.kinds.append(kind)
                thresholds.append(Counter())
            thresholds[self.kinds.index(kind)][threshold] += 1
        self.usual = [counts.most_common(1)[0][0] for counts in thresholds]
        self.several = [len(counts) > 1 for counts in thresholds]
        used: Counter[str] = Counter()
        self.names: list[str] = []
        for kind in self.kinds:
            name = NEURON_NAMES[kind["type"]]
            used[name] += 1
            self.names.append(name if used[name] == 1 else f"{name}{used[name]}")

    def _kind(self, entry: dict[str, Any]) -> tuple[dict[str, Any], float]:
        dropped = {"v_threshold"} if self.trains else {"v_threshold", "detach_reset"}
        if not self.trains and entry["surrogate"]["type"] != "MultiLevelSpikeCount":  # that one counts the spikes
            dropped.add("surrogate")
        return {k: v for k, v in entry.items() if k not in dropped}, entry["v_threshold"]

    def text(self, entry: dict[str, Any]) -> str:
        """The call that makes a neuron."""
        if entry["type"] == ops.IntegerSpike.__name__:
            return f"IntegerSpike({entry['levels']}{', half_up=True' if entry['rounding'] == 'half_up' else ''})"
        kind, threshold = self._kind(entry)
        i = self.kinds.index(kind)
        return f"{self.names[i]}({'' if threshold == self.usual[i] else threshold})"

    def definitions(self) -> Iterator[str]:
        if self.integer:
            yield from definition(standalone_layers.Integer)
            yield from definition(standalone_layers.IntegerSpike)
        for kind, name, usual, several in zip(self.kinds, self.names, self.usual, self.several, strict=True):
            arguments: list[tuple[str | None, Call | str]] = []
            for key in ("tau", "decay_input"):
                if key in kind:
                    arguments.append((key, repr(kind[key])))
            arguments.append(("v_threshold", "v_threshold" if several else repr(usual)))
            for key in ("v_reset", "detach_reset"):
                if key in kind:
                    arguments.append((key, repr(kind[key])))
            if "surrogate" in kind:
                arguments.append(("surrogate_function", surrogate_text(kind["surrogate"])))
            arguments.append(("step_mode", '"m"'))
            yield f"def {name}({f'v_threshold={usual}' if several else ''}):"
            yield from Call(f"neuron.{kind['type']}(", arguments).lines("return ", "    ")
            yield ""
            yield ""


def surrogate_text(entry: dict[str, Any]) -> str:
    """``surrogate.ATan(alpha=2.0)``."""
    values = {k: v for k, v in entry.items() if k != "type"}
    if entry["type"] == "MultiLevelSpikeCount":
        levels, window = values["max_spike_count"], (values["grad_min"], values["grad_max"])
        extra = "" if window == (0.0, float(levels)) else f", grad_window={window}"
        return f"surrogate.MultiLevelSpikeCount({levels}{extra})"
    return f"surrogate.{entry['type']}({', '.join(f'{k}={v!r}' for k, v in values.items())})"


class Constructors:
    """Makes the expression for any part of the tree.

    Args:
        program: typed.
        neurons: of the program.
        unit: part of the tree -> the call that makes it where it is a unit of its own.
    """

    def __init__(
        self, program: Program, neurons: Neurons, unit: Callable[[Tree], str | None] = lambda tree: None
    ) -> None:
        self.program, self.neurons, self.unit = program, neurons, unit

    def part(self, tree: Tree, number: Number) -> Call | str:
        """The constructor of a part; ``number`` writes channel counts."""
        made = self.unit(tree)
        if made is not None:
            return made
        if tree.layer is not None:
            return self.layer(tree.layer, number)
        if tree.parameter is not None:
            return self.parameter(tree)
        if tree.numbered:
            items = self.listed(tree, number)
            if tree.sequential:
                return Call("nn.Sequential(", [(None, item) for item in items])
            texts = [str(item) for item in items]
            if len(texts) > 1 and len(set(texts)) == 1 and len(texts[0]) < 60:
                return f"nn.ModuleList({texts[0]} for _ in range({len(texts)}))"
            return Call("nn.ModuleList([", [(None, item) for item in items], "])")
        named: list[tuple[str | None, Call | str]] = []
        odd: list[tuple[str | None, Call | str]] = []
        for name, child in tree.children.items():
            made_child = self.part(child, number)
            if is_name(name):
                named.append((name, made_child))
            else:
                odd.append((None, f'"{name}": {made_child}'))
        if odd:
            named.append((None, Call("**{", odd, "}")))
        return Call("Layers(", named)

    def listed(self, tree: Tree, number: Number) -> list[Call | str]:
        """The elements of a list; what fell away in the capture (dropout) is an identity."""
        last = max(map(int, tree.children))
        present = {int(name): child for name, child in tree.children.items()}
        return [self.part(present[i], number) if i in present else "nn.Identity()" for i in range(last + 1)]

    def parameter(self, tree: Tree) -> str:
        value, learns = bare_parameter(self.program, tree)
        kind = "" if str(value.dtype) == "torch.float32" else f", dtype={value.dtype}"
        zeros = f"torch.zeros({tuple(value.shape)}{kind})"
        return f"nn.Parameter({zeros})" if learns else zeros

    def layer(self, node: fx.Node, number: Number) -> Call | str:
        module = self.program.module_of(node)
        assert module is not None
        entry = describe_layer(str(node.target), module)
        if ops.is_neuron(module):
            return self.neurons.text(entry)
        kind = entry.pop("type")
        if isinstance(module, ops.FixedPoint):
            return fixed_point(module)
        for key, value in entry.items():
            if isinstance(value, list) and len(set(value)) == 1:
                entry[key] = value[0]
            elif isinstance(value, list):
                entry[key] = tuple(value)
        items: list[tuple[str | None, Call | str]] = []
        if isinstance(module, ops.PADS):
            return Call(f"nn.{kind}(", [(None, repr(entry["padding"]))])
        if isinstance(module, ops.POOLS):
            window = entry.pop("kernel_size")
            stride = entry.pop("stride")
            items.append((None, repr(window)))
            if stride not in (None, window):
                items.append(("stride", repr(stride)))
        else:
            dims = self.program.parameters_of(node)
            source, target = self.program.type_of(node.all_input_nodes[0]), self.program.type_of(node)
            where = -1 if isinstance(module, nn.Linear) else 1
            counts = {"in": _key(source[where]), "out": _key(target[where]), "num": _key(target[where])}
            for key in [k for k in entry if k.endswith(("_channels", "_features"))]:
                items.append((None, number(entry.pop(key), counts[key.partition("_")[0]])))
            if "kernel_size" in entry:
                items.append((None, repr(entry.pop("kernel_size"))))
            groups = entry.get("groups", 1)
            if groups > 1 and groups == module.in_channels and not dims["weight"][1]:
                entry["groups"] = number(groups, counts["in"])
        for key, value in entry.items():
            if key not in DEFAULTS or value != DEFAULTS[key]:
                items.append((key, value if key == "groups" and isinstance(value, str) else repr(value)))
        return Call(f"{kind}(" if ops.is_quantized(module) else f"nn.{kind}(", items)


def _key(dim: tuple) -> tuple:
    return tuple(id(axis) for axis in dim)


LAYERS_CLASS = '''\
class Layers(nn.Module):
    """Layers and bare parameters by name."""

    def __init__(self, /, **parts):
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            elif isinstance(part, nn.Parameter):
                self.register_parameter(name, part)
            else:
                self.register_buffer(name, part)
'''

LAYERS_CLASS_SHORT = '''\
class Layers(nn.Module):
    """Layers by name."""

    def __init__(self, /, **layers):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
'''
