"""Recognition of a published model, or one of SpikingJelly's, from the names and shapes of its weights."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from functools import cache

import torch

from svitc.errors import SvitcError, UnsupportedError
from svitc.frontends.checkpoint import weights
from svitc.frontends.checkpoint.reader import Contents
from svitc.frontends.checkpoint.recognize_spikingjelly import MIN_SIMILARITY, OWN_CODE, Recognized, recognize
from svitc.frontends.published import FACTORIES, PUBLISHED, Layout, layout
from svitc.frontends.published.registry import HOME
from svitc.frontends.state_dict import Shapes, is_average, prefixes, strip_prefixes, within
from svitc.support.types import JsonMapping

# one published model of each layout, whose names unrecognized weights are compared with
EXAMPLES = (
    "spikformer_8_384",
    "spikformer_cifar10",
    "spikformer_cifar10dvs",
    "sdt_8_384",
    "metaspikformer_15m",
    "espikeformer_t",
    "qkformer_10_384",
    "qkformer_cifar10",
    "qkformer_cifar10dvs",
)


def known_factory(arch: str | None) -> str | None:
    """Return the factory that ``svitc.frontends.official:factory`` names, or None for any other ``arch``."""
    home, _, name = (arch or "").rpartition(":")
    return name if home == HOME and name in FACTORIES else None


def recognize_any(contents: Contents, shape: tuple[int, ...] | None, steps: int | None) -> Layout | Recognized:
    """Recognize the model of a bare state dict, as a published model or else as one of SpikingJelly's.

    Args:
        shape: shape of the input, where it is known.
        steps: number of time steps, where it is known.

    Raises:
        UnsupportedError: it is neither; the message names the most similar model.
        InputError: it is one of SpikingJelly's models, but incomplete.
    """
    recognized = layout(contents.state, contents.options, input_shape=shape, time_steps=steps)
    if recognized is not None:
        return recognized
    try:
        return recognize(contents.state, input_shape=shape, time_steps=steps or contents.time_steps)
    except UnsupportedError as error:
        raise _like_a_published(contents.state) or error from error


def recognize_within(contents: Contents, shape: tuple[int, ...] | None, steps: int | None) -> Layout | Recognized:
    """Recognize a state dict, or the part of it below one prefix, to which ``contents.state`` is then reduced."""
    contents.state = dict(weights.without_leftovers(contents.state))
    try:
        return recognize_any(contents, shape, steps)
    except UnsupportedError:
        state = contents.state
        for prefix in sorted(prefixes(state), key=is_average):
            contents.state = strip_prefixes(within(state, prefix))
            with contextlib.suppress(SvitcError):
                recognized = recognize_any(contents, shape, steps)
                contents.notes.append(weights.prefix_note(state, prefix))
                return recognized
        contents.state = state
        raise


def summary(contents: Contents) -> str | None:
    """Describe in one sentence, for hints, what model the weights have; None where it is not recognized."""
    try:
        recognized = recognize_any(contents, None, None)
    except SvitcError:
        return None
    is_published = isinstance(recognized, Layout)
    args: JsonMapping = recognized.arguments if isinstance(recognized, Layout) else recognized.arch_args
    shown = ("embed_dims", "depths", "num_classes", "in_channels", "mlp_ratio")
    sizes = ", ".join(f'"{key}": {json.dumps(args[key])}' for key in shown)
    kind = f"published {recognized.family}" if is_published else recognized.family
    return f"By their names and shapes they are a {kind} with {sizes}."


def stem(model: torch.nn.Module) -> str:
    """Return the state dict key of a published model's first convolution."""
    return next(f"{name}.weight" for name, m in model.named_modules() if isinstance(m, torch.nn.Conv2d))


def _like_a_published(state: Mapping[str, torch.Tensor]) -> UnsupportedError | None:
    """Return an error that names the most similar published model, or None where the weights resemble none."""
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    patterns = _patterns(shapes)

    def similarity(name: str) -> float:
        return len(patterns & _signature(name)) / max(1, len(patterns | _signature(name)))

    name = max(EXAMPLES, key=similarity)
    if similarity(name) < MIN_SIMILARITY / 2:
        return None
    unknown = [key for key in shapes if not _patterns({key: ()}) <= _signature(name)]
    lacking = sorted(key.replace("#", "0") for key in _signature(name) - patterns)
    differences = [f"does not have {weights.first(unknown)}"] if unknown else []
    differences += [f"would have {weights.first(lacking)}"] if lacking else []
    differences = differences or ["has the same names, but other shapes or another input"]
    return UnsupportedError(
        f"the weights look most like the published {name} ({PUBLISHED[name].factory}), which "
        + " and ".join(differences),
        hint="A variant of it, perhaps. " + OWN_CODE,
    )


def _patterns(shapes: Shapes) -> frozenset[str]:
    """Return the names without block numbers, and without the batch norms' counters, which old files lack."""
    names = (key for key in shapes if not key.endswith(weights.COUNTER) and not key.endswith(".w"))
    return frozenset(re.sub(r"^(\w+)\.\d+\.", r"\1.#.", key) for key in names)


@cache
def _signature(name: str) -> frozenset[str]:
    with torch.device("meta"):
        return _patterns({key: () for key in PUBLISHED[name].build().state_dict()})
