"""Constructors: expressions that create the layers of a model, and functions that create its neurons."""

from __future__ import annotations

import keyword
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import fx, nn

from svitc.codegen.partition import Tree, bare_parameter
from svitc.codegen.quantized_classes import definition, fixed_point
from svitc.ir import ops, standalone_layers
from svitc.ir.axes import Dim
from svitc.ir.program import Program, Stage
from svitc.serialization.layer_schema import START, describe_layer
from svitc.support.types import JsonDict

WIDTH_CHARS = 100  # longest line of the generated source, without comments
# Autograd functions that neurons of a source may need, and the classes of neurons with what they need
FUNCTIONS = (standalone_layers.Integer, standalone_layers.Heaviside)
STANDALONE: dict[type, tuple[type, ...]] = {
    standalone_layers.IntegerSpike: (standalone_layers.Integer,),
    standalone_layers.Step: (standalone_layers.Heaviside,),
    standalone_layers.LeakyNeuron: FUNCTIONS,
}
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
# Identifies what a number counts: ids of axes, or a tuple of strings. Equal keys mean the same quantity.
Key: TypeAlias = tuple[object, ...]
Number: TypeAlias = Callable[[float, Key], str]  # function from a number and its key to the text for it


@dataclass
class Call:
    """Call expression that can be broken into several lines.

    Attributes:
        head: text before the arguments, such as ``nn.Sequential(``.
        items: (keyword or None, argument).
        tail: text after the arguments, such as ``)``.
    """

    head: str
    items: Sequence[tuple[str | None, Call | str]]
    tail: str = ")"

    def __str__(self) -> str:
        return self.head + ", ".join(f"{k}={v}" if k else str(v) for k, v in self.items) + self.tail

    def lines(self, before: str, indent: str, after: str = "") -> Iterator[str]:
        """Yield the lines of the call: one line if it fits, else one line for each argument.

        Args:
            before: text before the call.
            indent: spaces before each line.
            after: text after the call.
        """
        text = f"{indent}{before}{self}{after}"
        if len(text) <= WIDTH_CHARS or not self.items:
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
        """Return a copy of the call in which ``change`` was applied to all texts."""
        items = [(k, v.with_text(change) if isinstance(v, Call) else change(v)) for k, v in self.items]
        return Call(change(self.head), items, self.tail)


def is_name(text: str) -> bool:
    """Return whether a text can be used as a Python name."""
    return text.isidentifier() and not keyword.iskeyword(text)


def access(tree: Tree, path: Sequence[str]) -> str:
    """Return the expression that accesses a layer or parameter through ``self``.

    Args:
        tree: the part of the model that ``self`` represents.
        path: components of the path from ``tree`` on.
    """
    text, parent = "self", tree
    for part in path:
        if parent.numbered:
            text += f"[{part}]"
        else:
            text = f"{text}.{part}" if is_name(part) else f'getattr({text}, "{part}")'
        parent = parent.children.get(part, Tree())
    return text


class Neurons:
    """Functions of the source that create neurons, one for each kind of neuron; the threshold can be an argument.

    Arguments that only matter for training, the surrogate and ``detach_reset``, are left out if the program cannot be
    trained.

    Attributes:
        kinds: descriptions of the different neurons with membranes, without their thresholds.
        names: name of the function for each kind.
        usual: most common threshold of each kind.
        several: for each kind, whether there are different thresholds.
        standalone: classes of neurons that the source has to define.
        trains: whether the program can be trained.
    """

    def __init__(self, program: Program) -> None:
        self.standalone: set[type] = set()
        self.trains = program.stage < Stage.INFERENCE
        self.kinds: list[JsonDict] = []
        thresholds: list[Counter[float]] = []
        for node in program.neurons():
            module = program.module_of(node)
            assert module is not None
            if type(module) not in ops.NEURONS:
                self.standalone |= {kind for kind in STANDALONE if isinstance(module, kind)}
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

    def _kind(self, entry: JsonDict) -> tuple[JsonDict, float]:
        """Return a neuron's description without its threshold, and the threshold."""
        dropped = {"v_threshold"} if self.trains else {"v_threshold", "detach_reset"}
        # MultiLevelSpikeCount matters for inference, too: it limits the number of spikes
        if not self.trains and entry["surrogate"]["type"] != "MultiLevelSpikeCount":
            dropped.add("surrogate")
        return {k: v for k, v in entry.items() if k not in dropped}, entry["v_threshold"]

    def text(self, entry: JsonDict) -> str:
        """Return the expression that creates the neuron of a description."""
        if entry["type"] == ops.IntegerSpike.__name__:
            return f"IntegerSpike({entry['levels']}{', half_up=True' if entry['rounding'] == 'half_up' else ''})"
        if entry["type"] == ops.Step.__name__:
            return f"Step({entry['threshold']!r}{', strict=True' if entry['strict'] else ''})"
        if entry["type"] == ops.LeakyNeuron.__name__:
            usual = {"gain": 1.0, "threshold": 1.0, "hard_reset": True, "strict": False, "levels": 1}
            changed = "".join(f", {key}={entry[key]!r}" for key, value in usual.items() if entry[key] != value)
            return f"LeakyNeuron({entry['keep']!r}{changed})"
        kind, threshold = self._kind(entry)
        i = self.kinds.index(kind)
        return f"{self.names[i]}({'' if threshold == self.usual[i] else threshold})"

    def definitions(self) -> Iterator[str]:
        """Yield the lines of the functions and classes for neurons."""
        functions = {function for kind in self.standalone for function in STANDALONE[kind]}
        for part in (*(f for f in FUNCTIONS if f in functions), *(k for k in STANDALONE if k in self.standalone)):
            yield from definition(part)
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
            call = Call(f"neuron.{kind['type']}(", arguments)
            if START in kind:
                yield from call.lines("node = ", "    ")
                yield f'    node.set_reset_value("v", {kind[START]!r})  # where the membrane starts'
                yield "    node.reset()"
                yield "    return node"
            else:
                yield from call.lines("return ", "    ")
            yield ""
            yield ""


def surrogate_text(entry: JsonDict) -> str:
    """Return the expression that creates a surrogate function, such as ``surrogate.ATan(alpha=2.0)``."""
    values = {k: v for k, v in entry.items() if k != "type"}
    if entry["type"] == "MultiLevelSpikeCount":
        levels, window = values["max_spike_count"], (values["grad_min"], values["grad_max"])
        extra = "" if window == (0.0, float(levels)) else f", grad_window={window}"
        return f"surrogate.MultiLevelSpikeCount({levels}{extra})"
    return f"surrogate.{entry['type']}({', '.join(f'{k}={v!r}' for k, v in values.items())})"


class Constructors:
    """Writer of the expressions that create the parts of a model.

    Args:
        program: typed.
        neurons: neurons of the program.
        unit: function from a part of the model to the expression that creates it, or None if it is not a unit.
    """

    def __init__(
        self, program: Program, neurons: Neurons, unit: Callable[[Tree], str | None] = lambda tree: None
    ) -> None:
        self.program, self.neurons, self.unit = program, neurons, unit

    def part(self, tree: Tree, number: Number) -> Call | str:
        """Return the constructor of a part of the model; ``number`` writes channel counts."""
        unit_call = self.unit(tree)
        if unit_call is not None:
            return unit_call
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
            constructor = self.part(child, number)
            if is_name(name):
                named.append((name, constructor))
            else:
                odd.append((None, f'"{name}": {constructor}'))
        if odd:
            named.append((None, Call("**{", odd, "}")))
        return Call("Layers(", named)

    def listed(self, tree: Tree, number: Number) -> list[Call | str]:
        """Return the constructors of a list's elements; removed elements, such as dropout, become an identity."""
        last = max(map(int, tree.children))
        present = {int(name): child for name, child in tree.children.items()}
        return [self.part(present[i], number) if i in present else "nn.Identity()" for i in range(last + 1)]

    def parameter(self, tree: Tree) -> str:
        """Return the expression that creates a bare parameter or buffer."""
        value, learns = bare_parameter(self.program, tree)
        kind = "" if str(value.dtype) == "torch.float32" else f", dtype={value.dtype}"
        zeros = f"torch.zeros({tuple(value.shape)}{kind})"
        return f"nn.Parameter({zeros})" if learns else zeros

    def layer(self, node: fx.Node, number: Number) -> Call | str:
        """Return the constructor of the layer that a node calls, without arguments that have the default value."""
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
            channel_dim = -1 if isinstance(module, nn.Linear) else 1
            target_key = _key(target[channel_dim])
            counts = {"in": _key(source[channel_dim]), "out": target_key, "num": target_key}
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


def _key(dim: Dim) -> Key:
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
