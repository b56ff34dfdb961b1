"""Replace neurons that a model writes out by hand by canonical neurons that compute the same, bit for bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import PurePath

from torch import fx, nn

from svitc.errors import UnsupportedError
from svitc.frontends.capture.effects import has_effect
from svitc.frontends.capture.integer_spikes import register
from svitc.frontends.capture.neuron_fit import fit
from svitc.frontends.capture.neuron_regions import Region, find_regions, skip_single_steps
from svitc.frontends.capture.step_regions import find_step_regions
from svitc.ir.neuron_dynamics import dynamics_of


class NotOverTime(UnsupportedError):
    """A recognized neuron turns out to run over another dimension than time.

    Attributes:
        number: Which of the graph's regions it was.
    """

    def __init__(self, number: int, text: str, where: str | None) -> None:
        super().__init__(text, where=where)
        self.number = number


def recognize_neurons(graph: fx.Graph, model: nn.Module, ignored: Collection[int] = ()) -> list[str]:
    """Rewrite a raw graph in place; new neurons are registered in ``model``.

    Args:
        graph: The raw graph.
        model: What it was recorded of.
        ignored: Numbers of the regions that stay ordinary operations.

    Returns:
        A sentence for each place in the model's code that defines such neurons.
    """
    skip_single_steps(graph)
    graph.eliminate_dead_code(has_effect)
    found: Counter[tuple[str, str]] = Counter()
    for number, region in enumerate(find_regions(graph, model)):
        if number in ignored:
            continue
        # the joined result belongs to the loop, also where a step ends in operations that are not the neuron's
        source = str(region.joined.meta.get("source") or "")
        neuron = fit(region)
        if neuron is not None:
            _replace(graph, model, region, neuron).meta["region"] = number
            found[source, summary(neuron)] += 1
    return [_sentence(source, text, count) for (source, text), count in found.items()]


def recognize_step_neurons(graph: fx.Graph, model: nn.Module) -> list[str]:
    """Rewrite neurons that are called once for each time step as calls of single-step neurons, in place.

    Args:
        graph: The raw graph.
        model: What it was recorded of; new neurons are registered in it.

    Returns:
        A sentence for each place in the model's code that defines such neurons.
    """
    skip_single_steps(graph)
    graph.eliminate_dead_code(has_effect)
    found: Counter[tuple[str, str]] = Counter()
    for region in find_step_regions(graph, model):
        outputs = list(region.results)
        source = str(outputs[0].meta.get("source") or "")
        neuron = fit(region)
        if neuron is not None:
            _replace_steps(graph, model, region, outputs, neuron)
            found[source, summary(neuron)] += 1
    return [_sentence(source, text, count) for (source, text), count in found.items()]


def summary(neuron: nn.Module) -> str:
    """Return a neuron's kind and parameters, such as ``LIF (keep 0.5, threshold 1, hard reset)``."""
    dynamics = dynamics_of(neuron)
    kind = "LIF" if dynamics.kind == "Leaky" else dynamics.kind
    parts = [f"keep {dynamics.keep:.6g}"] if dynamics.leaks else []
    parts += [f"input times {dynamics.gain:.6g}"] if dynamics.gain != 1 else []
    parts += [f"threshold {dynamics.threshold:.6g}"]
    parts += [f"up to {dynamics.max_spikes} spikes"] if dynamics.counts else []
    parts += ["soft reset" if dynamics.reset is None else "hard reset"]
    return f"{kind} ({', '.join(parts)})"


def _sentence(source: str, text: str, count: int) -> str:
    path, _, line = source.rpartition(":")
    place = f" ({PurePath(path).name}:{line})" if path else ""
    neurons = "1 neuron written by hand{} is" if count == 1 else f"{count} neurons written by hand{{}} are"
    return f"{neurons.format(place)} recognized as {text}; in training, the gradient is that of an arc tangent"


def _replace(graph: fx.Graph, model: nn.Module, region: Region, neuron: nn.Module) -> fx.Node:
    """Put a call of a neuron in the place of a region, and return it."""
    scope = str(region.joined.meta.get("scope") or "")
    meta = {k: v for k, v in region.joined.meta.items() if k != "function"}
    x = region.x

    def call(target: str, *args: object) -> None:
        nonlocal x
        value = getattr(x.meta["val"], target)(*args)
        x = graph.call_method(target, (x, *args))  # type: ignore[arg-type]
        x.meta.update(meta, val=value)

    with graph.inserting_before(region.joined):
        if region.dim is None:
            call("unsqueeze", 0)
            call("repeat", region.steps, *[1] * (x.meta["val"].ndim - 1))
        elif region.dim != 0:
            rank = x.meta["val"].ndim
            call("permute", region.dim, *[i for i in range(rank) if i != region.dim])
        path = register(graph, model, scope, neuron)
        spikes = graph.call_module(path, (x,))
        spikes.meta.update(meta, val=x.meta["val"].clone(), scope=path)
        y = _finish(graph, region, spikes, region.joined.meta["val"])
        x = y
        if region.joined_dim != 0:
            rank = region.joined.meta["val"].ndim
            order = list(range(1, rank))
            order.insert(region.joined_dim, 0)
            x.meta["val"] = region.joined.meta["val"].permute(
                region.joined_dim, *[i for i in range(rank) if i != region.joined_dim]
            )
            call("permute", *order)
    region.joined.replace_all_uses_with(x)
    for node in (region.joined, *reversed(region.nodes)):
        if not node.users:
            graph.erase_node(node)
    return spikes


def _replace_steps(
    graph: fx.Graph, model: nn.Module, region: Region, outputs: list[fx.Node], neuron: nn.Module
) -> None:
    """Put a call of a single-step neuron in the place of each step of a region.

    Args:
        outputs: The results of the steps, with the operations of ``region.after``.
    """
    neuron.step_mode = "s"  # type: ignore[assignment]
    path = register(graph, model, str(outputs[0].meta.get("scope") or ""), neuron)
    for x, output in zip(region.inputs, outputs, strict=True):
        meta = {k: v for k, v in output.meta.items() if k != "function"}
        with graph.inserting_before(output):
            spikes = graph.call_module(path, (x,))
            spikes.meta.update(meta, scope=path)
            output.replace_all_uses_with(_finish(graph, region, spikes, output.meta["val"]))
    graph.eliminate_dead_code(has_effect)


def _finish(graph: fx.Graph, region: Region, spikes: fx.Node, value: object) -> fx.Node:
    """Emit the operations that steps end with behind the neuron."""
    y = spikes
    for node in region.after:
        inner = next(a for a in node.all_input_nodes if a not in region.numbers)
        y = graph.node_copy(node, lambda n, inner=inner, y=y: y if n is inner else n)  # type: ignore[misc]
        y.meta.update({k: v for k, v in node.meta.items() if k != "function"}, val=value)
        y.meta.pop("function", None)
    return y


__all__ = ["NotOverTime", "recognize_neurons", "recognize_step_neurons", "summary"]
