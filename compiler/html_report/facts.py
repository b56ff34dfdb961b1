"""What was asked, what came out, and the figures before and after, as words and rows of a table.

Reports of older versions have fewer keys, and any section may be empty: what is not known is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from svitc.support import human
from svitc.support.types import JsonDict


@dataclass(frozen=True)
class Figure:
    """A figure before and after.

    Attributes:
        name: what it is.
        before, after: as text; ``-`` where it does not apply.
        change: the change as text.
        share: what is left of it, where less is better; drawn as a bar.
        note: what is to be known of it.
        short: the change for a tile, or nothing.
        brief: the figures for a tile.
    """

    name: str
    before: str
    after: str
    change: str = ""
    share: float | None = None
    note: str = ""
    short: str = ""
    brief: str = ""


RUNTIMES = {
    "onnxruntime": "ONNX Runtime",
    "onnxruntime-web": "ONNX Runtime Web",
    "openvino": "OpenVINO",
    "reference": "ONNX's reference evaluator",
}


def runtime_name(name: str) -> str:
    """Return what a runtime is called by people."""
    return RUNTIMES.get(name, name or "the runtime")


def section(report: JsonDict, name: str) -> JsonDict:
    """Return a section of a report; empty where there is none."""
    found = report.get(name)
    return found if isinstance(found, dict) else {}


def model_name(report: JsonDict) -> str:
    """Return the name of the network's class or factory."""
    arch = str(section(report, "model").get("arch") or "the network")
    return arch.rpartition(":")[2].rpartition(".")[2] or arch


def title(report: JsonDict) -> str:
    """Return the heading: the network, and its bytes before and after."""
    memory = section(report, "memory")
    before, after = (human.byte_size(memory[f"{which}_bytes"]) for which in ("original", "compiled"))
    return f"{model_name(report)}: {before} became {after}"


def weight_words(report: JsonDict) -> str:
    """Return the type of the stored weights in words."""
    kind = section(report, "weights").get("type", "fp32")
    words = {
        "fp32": "32-bit floats",
        "mixed": "integers whose number of bits differs from layer to layer",
        "ternary": "the integers -1, 0 and 1",
    }
    return words.get(kind, f"integers of {str(kind).removeprefix('int')} bits")


def asked(report: JsonDict) -> str:
    """Return what was asked of the compilation."""
    budget = section(report, "budget")
    of, limit, words = budget.get("of"), budget.get("limit"), budget.get("text")
    if of == "latency":
        share, limit_ms = budget.get("limit_share"), budget.get("limit_ms")
        time = f"{human.share(share)} of the original's time" if share else human.milliseconds(limit_ms or 0.0)
        return f"to take at most {time} for an image"
    if limit is None:
        allowed = section(report, "promise").get("max_drop")
        loss = "the loss that was allowed" if allowed is None else f"a loss of {human.points(allowed)} points"
        return f"to make it as small as {loss} permits" if words is None else f"for {words}"
    if of == "parameters":
        return f"to keep at most {limit:,} parameters"
    original = section(report, "memory").get("original_bytes")
    if original and limit >= original:
        return "to keep every channel"
    share = f"{human.share(limit / original)} of the weights' bytes, " if original else ""
    return f"to keep at most {share}{human.byte_size(limit)}"


def quality(report: JsonDict) -> str:
    """Return what became of the accuracy, as the end of a sentence."""
    accuracy, agreement = section(report, "accuracy"), section(report, "agreement")
    if accuracy.get("images"):
        before, after = human.accuracy(accuracy["original"]), human.accuracy(accuracy["pruned"])
        return (
            f"it classifies {after} of {human.counted(accuracy['images'], 'image')} correctly, where the original "
            f"does {before}"
        )
    if agreement.get("images"):
        return (
            f"it gives {human.share(agreement['share'])} of {human.counted(agreement['images'], 'image')}, which "
            "have no labels, the same class as the original does"
        )
    prediction = section(report, "prediction")
    if prediction:
        low, high = (human.points(end) for end in prediction["interval"])
        return (
            f"it is predicted to lose {low} to {high} points of top-1 accuracy; nobody has measured it on real images"
        )
    return "its accuracy was not measured, since no images were given"


def verified(report: JsonDict) -> str:
    """Return in a sentence whether the file was found to be the network."""
    verify = section(report, "verify")
    runtime = section(verify, "runtime")
    where = f"in {runtime_name(str(runtime.get('name', '')))} {runtime.get('version', '')}".strip()
    if verify.get("status") == "passed":
        return f"The file was compared {where} with the network in PyTorch, neuron by neuron, and computes the same."
    place = verify.get("first_divergence")
    return f"The file does not compute what the network does: it differs first at {place}. Do not deploy it."


def lead(report: JsonDict) -> str:
    """Return in one sentence what was asked and what came out."""
    memory = section(report, "memory")
    size = f"{human.byte_size(memory['compiled_bytes'])} of weights ({human.share(memory['ratio'])})"
    first = f"svitc was asked {asked(report)}, and wrote a file with {size}, stored as {weight_words(report)}: "
    sentences = f"{first}{quality(report)}.", running_tokens(report), low_ranks(report), raw_input(report)
    return " ".join(sentence for sentence in sentences if sentence)


def raw_input(report: JsonDict) -> str:
    """Return in a sentence that the file takes bytes; nothing where it takes floats."""
    described = section(report, "input")
    if described.get("dtype") != "uint8":
        return ""
    channels, height, width = described["shape"]
    kind = "gray" if channels == 1 else "RGB"
    return f"It takes the bytes of {height} x {width} pixels, {kind}, and normalizes them itself."


def low_ranks(report: JsonDict) -> str:
    """Return in a sentence which convolutions are stored as two of a low rank; nothing where none is."""
    layers = section(report, "ranks")
    each = [f"{name} (rank {entry['rank']} of {entry['outputs']})" for name, entry in layers.items()]
    return f"Stored as two smaller convolutions: {', '.join(each)}." if each else ""


def running_tokens(report: JsonDict) -> str:
    """Return in a sentence that some tokens stop before the blocks; nothing where all run."""
    stages = section(report, "tokens").values()
    shares = sorted({stage["kept"] / stage["of"] for stage in stages})
    if not shares:
        return ""
    low, high = human.share(shares[0]), human.share(shares[-1])
    return f"In the blocks {low if low == high else f'{low} to {high}'} of the tokens run; the others keep their value."


def promise(report: JsonDict) -> str:
    """Return what is promised of accuracy, and which images chose and confirmed the plan; nothing without a promise."""
    promised = section(report, "promise")
    words = str(promised.get("text") or "")
    if not words:
        return ""
    told = f"{words[:1].upper()}{words[1:]}."
    if promised.get("choosing_images"):
        told += (
            f" The plan was chosen on {human.counted(promised['choosing_images'], 'image')} of "
            f"{promised.get('choosing')}, and confirmed on {promised['images']:,} others."
        )
    return told + (" This is of the network before fine-tuning." if promised.get("before_finetuning") else "")


def figures(report: JsonDict) -> list[Figure]:
    """Return all figures before and after that are known."""
    return [
        *_sizes(report),
        *_accuracies(report),
        *_outputs(report),
        *_energies(report),
        *_times(report),
    ]


def _counted(name: str, before: float, after: float, words: Any, note: str = "") -> Figure:
    ratio = after / before if before else 1.0
    a, b, left = words(before), words(after), human.share(ratio)
    return Figure(name, a, b, f"{left} is left", ratio, note, left, f"left: {a} → {b}")


def _sizes(report: JsonDict) -> Iterator[Figure]:
    memory, parameters = section(report, "memory"), section(report, "parameters")
    yield _counted("Weights in the file", memory["original_bytes"], memory["compiled_bytes"], human.byte_size)
    if parameters:
        dead = parameters.get("dead")
        note = f"{dead:,} parameters that nothing computes with were not counted" if dead else ""
        yield _counted("Parameters", parameters["original"], parameters["compiled"], "{:,}".format, note)
    macs = section(report, "macs")
    if macs:
        note = "products that the layers would compute if every neuron fired, over all time steps"
        yield _counted("Multiply-accumulates of an image", macs["original"], macs["compiled"], human.millions, note)


def _accuracies(report: JsonDict) -> Iterator[Figure]:
    accuracy, agreement = section(report, "accuracy"), section(report, "agreement")
    if accuracy.get("images"):
        before, after = (
            f"{human.accuracy(accuracy[which])} ({human.share_interval(accuracy[f'{which}_interval'])})"
            for which in ("original", "pruned")
        )
        points = f"{human.change(accuracy['drop'])} points"
        change = f"{points} ({human.change_interval(accuracy['drop_interval'])})"
        note = f"on {human.counted(accuracy['images'], 'image')}; below the figures their 95% confidence intervals"
        brief = f"{human.accuracy(accuracy['original'])} before, {points}"
        short = human.accuracy(accuracy["pruned"])
        yield Figure("Top-1 accuracy", before, after, change, None, note, short, brief)
    if agreement.get("images"):
        same = human.share(agreement["share"])
        note = (
            f"on {human.counted(agreement['images'], 'image')} without labels; below the figure its 95% interval. "
            "This is no accuracy: the original may be wrong"
        )
        after = f"{same} ({human.share_interval(agreement['interval'])})"
        yield Figure(
            "Same class as the original",
            "-",
            after,
            "",
            None,
            note,
            same,
            f"of {human.counted(agreement['images'], 'image')}",
        )
    prediction = section(report, "prediction")
    if prediction:
        low, high = prediction["interval"]
        change = f"{human.change(prediction['loss'])} points ({human.change_interval((low, high))})"
        note = f"predicted from {prediction['images']:,} {prediction['basis']} images, not measured"
        yield Figure("Predicted change of top-1", "-", "-", change, None, note)


def _outputs(report: JsonDict) -> Iterator[Figure]:
    outputs = section(report, "outputs")
    for name, error in section(outputs, "relative_errors").items():
        note = "sum of squared differences, relative to the sum of the original's squares"
        yield Figure(f"Relative error of {name}", "-", f"{error:.3g}", "", None, note)
    metric = section(outputs, "metric")
    if metric:
        before, after = f"{metric['original']:.4f}", f"{metric['compiled']:.4f}"
        yield Figure(str(metric["name"]), before, after, f"{-metric['drop']:+.4f}", None, "your metric; more is better")


def _energies(report: JsonDict) -> Iterator[Figure]:
    energy = section(report, "energy")
    before, after = section(energy, "original"), section(energy, "compiled")
    if before and after:
        note = (
            f"estimated from what fires on {human.counted(energy['images'], 'image')} and {energy['table']}'s "
            "table; not measured"
        )
        same = section(energy, "saved").get("total_same_memory")
        if same is not None and abs(same - (energy["saved"].get("total") or 0.0)) > 0.01:
            note += (
                f". The weights now fit into a memory that takes less; in the same one {human.share(1 - same)} is left"
            )
        yield _counted("Energy of an image", before["pj"], after["pj"], human.joules, note)
        fired = f"{human.share(before['rate'])}", f"{human.share(after['rate'])}"
        yield Figure("Firing rate", *fired, "", None, "mean over all neurons: spikes in a time step")


def _times(report: JsonDict) -> Iterator[Figure]:
    budget, streaming, anytime = (section(report, name) for name in ("budget", "streaming", "anytime"))
    if budget.get("original_ms") and budget.get("compiled_ms"):
        note = f"median of {budget.get('pairs', 'some')} pairs of runs on the machine that compiled it"
        before, after = budget["original_ms"], budget["compiled_ms"]
        yield _counted("Time of an image", before, after, human.milliseconds, note)
    else:
        yield Figure("Time of an image", "-", "-", "", None, "not measured; svitc bench FOLDER measures it")
    if anytime:
        steps = f"{anytime['mean_steps']:.2f}"
        change = f"{human.share(anytime['mean_steps'] / anytime['time_steps'])} on average"
        note = (
            f"inference stops when it is sure: at most {human.points(anytime['max_drop'])} points are lost by that, "
            f"with {anytime['confidence']:.0%} confidence on images like those that it was tested on"
        )
        yield Figure(
            "Time steps of an image", f"{anytime['time_steps']}", steps, change, None, note, steps, "on average"
        )
    if streaming:
        note = "what one time step passes on to the next, for one stream"
        yield Figure("States", "-", human.byte_size(streaming["bytes"]), "", None, note)


__all__ = ["Figure", "figures", "lead", "model_name", "section", "title", "verified"]
