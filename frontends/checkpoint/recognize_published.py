"""Loading a published model from its weights alone: which family they are of, and what else is the matter."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from svitc.errors import SvitcError, UnsupportedError
from svitc.frontends.checkpoint import weights
from svitc.frontends.checkpoint.reader import Contents
from svitc.frontends.checkpoint.recognize_spikingjelly import ALIKE, OWN_CODE, Recognized, recognize
from svitc.frontends.published import FACTORIES, PUBLISHED, Layout, layout
from svitc.frontends.published.registry import HOME
from svitc.frontends.state_dict import Shapes

# one of each layout, to compare names with
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
    """The factory that ``svitc.frontends.official:factory`` names, or None."""
    home, _, name = (arch or "").rpartition(":")
    return name if home == HOME and name in FACTORIES else None


def recognize_any(contents: Contents, shape: tuple[int, ...] | None, steps: int | None) -> Layout | Recognized:
    """The published model, or else SpikingJelly's, that a bare state dict is of.

    Raises:
        UnsupportedError: none; says which it is most like.
        InputError: one of SpikingJelly's, but incomplete.
    """
    found = layout(contents.state, contents.options, input_shape=shape, time_steps=steps)
    if found is not None:
        return found
    try:
        return recognize(contents.state, input_shape=shape, time_steps=steps or contents.time_steps)
    except UnsupportedError as error:
        raise _like_a_published(contents.state) or error from error


def summary(contents: Contents) -> str | None:
    """A sentence on what the weights are by their own names and shapes, for hints."""
    try:
        found = recognize_any(contents, None, None)
    except SvitcError:
        return None
    args: Mapping[str, Any] = found.arguments if isinstance(found, Layout) else found.arch_args
    shown = ("embed_dims", "depths", "num_classes", "in_channels", "mlp_ratio")
    sizes = ", ".join(f'"{key}": {json.dumps(args[key])}' for key in shown)
    kind = f"published {found.family}" if isinstance(found, Layout) else found.family
    return f"By their names and shapes they are a {kind} with {sizes}."


def stem(model: torch.nn.Module) -> str:
    """The key of a published model's first convolution."""
    return next(f"{name}.weight" for name, m in model.named_modules() if isinstance(m, torch.nn.Conv2d))


def _like_a_published(state: Mapping[str, torch.Tensor]) -> UnsupportedError | None:
    """An error that names the published layout that the weights resemble, if they do."""
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    patterns = _patterns(shapes)

    def alike(name: str) -> float:
        return len(patterns & _signature(name)) / max(1, len(patterns | _signature(name)))

    name = max(EXAMPLES, key=alike)
    if alike(name) < ALIKE / 2:
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
    """Names without the numbers of blocks and without counters, which old files lack."""
    names = (key for key in shapes if not key.endswith(weights.COUNTER) and not key.endswith(".w"))
    return frozenset(re.sub(r"^(\w+)\.\d+\.", r"\1.#.", key) for key in names)


@cache
def _signature(name: str) -> frozenset[str]:
    with torch.device("meta"):
        return _patterns({key: () for key in PUBLISHED[name].build().state_dict()})
