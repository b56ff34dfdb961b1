"""Recognise a published model from a checkpoint that is loaded already: names, shapes and saved options only.

Weights tell family, widths, depths, classes and input channels. What they cannot tell is taken from the
options that the training script saved beside them, or else from the most similar published model, with a note.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from svitc.errors import InputError
from svitc.frontends.published.registry import EVENTS, FACTORIES, HOME, PUBLISHED, Published
from svitc.frontends.published.shape_readers import read
from svitc.frontends.state_dict import divisors, strip_prefixes

WEIGHTS = ("state_dict", "model", "model_state_dict", "net")
AVERAGED = ("state_dict_ema", "model_ema")
# what the published scripts call an option; the first that is there counts
TIME_STEPS = ("time_steps", "time_step", "T")
IMAGE_SIZE = ("img_size", "input_size")
# the published code has these whatever the options say
HARD_CODED_HEADS = {"QKFormer (cifar)": 8, "QKFormer (dvs)": 16, "MetaSpikeFormer": 8, "ESpikeFormer": 8}


@dataclass(frozen=True)
class Layout:
    """What a state dict is of.

    Attributes:
        family: the factory, and its variant in brackets where it has some.
        like: the most similar published model, a key of PUBLISHED.
        factory: a key of FACTORIES.
        arguments: of the factory, JSON values.
        input_shape: ``(C, H, W)``, or ``(T, C, H, W)`` for event frames.
        assumptions: what neither weights nor options tell: name of the argument -> a sentence for the user.
    """

    family: str
    like: str
    factory: str
    arguments: dict[str, Any]
    input_shape: tuple[int, ...]
    assumptions: dict[str, str] = field(default_factory=dict)

    @property
    def arch(self) -> str:
        """``module:factory``."""
        return f"{HOME}:{self.factory}"

    def build(self) -> nn.Module:
        """The model, with fresh weights."""
        return FACTORIES[self.factory](**self.arguments)


def unwrap(checkpoint: Mapping[str, Any], ema: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """State dict, without wrappers' prefixes, and saved options of a training script's checkpoint.

    Args:
        checkpoint: what ``torch.load`` returned; a bare state dict is one, too.
        ema: take the averaged weights.

    Returns:
        The weights, and the options that are plain values, ``{}`` where there are none.

    Raises:
        InputError: there are no averaged weights, or no weights.
    """
    names = AVERAGED if ema else WEIGHTS
    found = next((name for name in names if isinstance(checkpoint.get(name), Mapping)), None)
    if ema and found is None:
        held = ", ".join(map(str, list(checkpoint)[:5]))
        raise InputError(f"the checkpoint holds no averaged weights (it has {held})", hint="Leave out --ema.")
    state = checkpoint if found is None else checkpoint[found]
    if not any(hasattr(value, "shape") for value in state.values()):
        held = ", ".join(map(str, list(state)[:5])) or "nothing"
        raise InputError(f"the checkpoint holds no weights (it has {held})", hint="svitc reads a state_dict.")
    args = None if found is None else checkpoint.get("args")
    options = vars(args) if isinstance(args, argparse.Namespace) else args
    options = options if isinstance(options, Mapping) else {}
    plain = (bool, int, float, str, list, tuple)
    return strip_prefixes({str(k): v for k, v in state.items()}), {
        str(k): v for k, v in options.items() if isinstance(v, plain)
    }


def layout(
    state_dict: Mapping[str, Any],
    args: Mapping[str, Any] | None = None,
    *,
    input_shape: tuple[int, ...] | None = None,
    time_steps: int | None = None,
) -> Layout | None:
    """The published layout of a state dict, or None where it has none of them.

    Args:
        args: options of the training script, as ``unwrap`` returns them.
        input_shape: the input's shape, where it is known; it is assumed otherwise.
        time_steps: the number of time steps, where it is known.
    """
    state = strip_prefixes(state_dict)
    found = read({key: tuple(value.shape) for key, value in state.items() if hasattr(value, "shape")})
    return found and _Completion(*found, args or {}, input_shape, time_steps).layout()


class _Completion:
    """Adds to sizes read from weights what they do not tell."""

    def __init__(
        self,
        factory: str,
        arguments: dict[str, Any],
        args: Mapping[str, Any],
        shape: tuple[int, ...] | None,
        steps: int | None,
    ) -> None:
        self.factory, self.arguments, self.args, self.shape = factory, arguments, args, shape
        variant = arguments.get("variant")
        self.family = f"{factory} ({variant})" if variant else factory
        self.steps = steps or (shape[0] if shape and len(shape) == 4 else self.said(*TIME_STEPS))
        side = self.said(*IMAGE_SIZE)
        self.size = shape[-2:] if shape else (side, side) if side else None
        self.name, self.like = min(PUBLISHED.items(), key=lambda item: self.distance(item[1]))
        self.notes: dict[str, str] = {}

    def said(self, *names: str) -> int | None:
        """The first of these options that is a positive number."""
        values = (self.args.get(name) for name in names)
        return next((v for v in values if type(v) is int and v > 0), None)

    def distance(self, p: Published) -> tuple[float, ...]:
        """How unlike a published model is, most telling first."""
        ours, theirs = self.arguments, p.arguments

        def differ(name: str) -> bool:
            return ours.get(name) != theirs.get(name)

        def apart(name: str) -> float:
            pair = (d[name] if isinstance(d[name], list) else [d[name]] for d in (ours, theirs))
            one, other = map(sum, pair)
            return abs(one - other)

        if p.factory != self.factory:
            return (1.0,)
        image = abs(math.log2(self.size[0] / p.input[-2])) if self.size else 0.0
        # a few blocks more or less say less than the data set
        data = apart("depths") + 3 * differ("num_classes")
        flags = differ("variant"), differ("in_channels"), image, differ("distilled")
        return (0.0, *flags, data, apart("embed_dims"))

    def layout(self) -> Layout:
        channels = self.arguments["in_channels"]
        events = channels == 2
        if self.factory != "ESpikeFormer":
            if self.steps is None:
                self.steps, why = self.like.arguments["T"], f"published {self.name}"
                if events and len(self.like.input) == 3:
                    self.steps, why = EVENTS[0], "two input channels, as event cameras have"
                self.notes["T"] = f"T = {self.steps} ({why}); override with --time-steps"
            self.arguments["T"] = self.steps
        if self.shape is None:
            image = (channels, *(self.size or self.like.input[-2:]))
            self.shape = (self.steps, *image) if events and self.steps else image
            if self.size is None:
                text = ",".join(map(str, self.shape))
                note = f"input shape = {text} (published {self.name}); override with --input-shape {text}"
                self.notes["input_shape"] = note
        if self.factory == "SpikeDrivenTransformer":
            self.take("pooling_stat", str)
            self.take("dvs_mode", bool, worth_a_note=events)
        if self.factory == "QKFormer":
            self.arguments["official_bug"] = True  # weights are of the published code; --fix mends what it does
        if "num_heads" not in self.arguments:
            self.arguments["num_heads"] = self.heads()
        shape = tuple(self.shape)
        return Layout(self.family, self.name, self.factory, self.arguments, shape, self.notes)

    def assume(self, name: str, value: Any, why: str) -> None:
        shown = json.dumps(value)
        override = f"override with --arch-args '{json.dumps({name: value})}'"
        self.notes[name] = f"{name} = {shown} ({why}); {override}"

    def take(self, name: str, kind: type, worth_a_note: bool = True) -> None:
        """An argument as the options have it, or else as the published model has it."""
        said = self.args.get(name)
        self.arguments[name] = said if isinstance(said, kind) else self.like.arguments[name]
        if not isinstance(said, kind) and worth_a_note:
            self.assume(name, self.arguments[name], f"published {self.name}")

    def heads(self) -> int:
        """The number of heads, with a note unless the file says it."""
        width, theirs = self.arguments["embed_dims"], self.like.arguments
        if self.factory == "QKFormer":
            widths = [width // 2**i for i in range(len(self.arguments["depths"]))]
        else:
            widths = width[:1:-1] if isinstance(width, list) else [width]  # only stages 3 and 4 have heads
        possible = list(divisors(*widths)) or [1]
        said, hard = self.said("num_heads"), HARD_CODED_HEADS.get(self.family)
        if self.family == "Spikformer (cifar)" and said in possible:  # the other scripts do not pass it on
            assert said is not None
            return said
        if hard is not None and hard in possible:
            heads, why = hard, "hard-coded in the published models"
        elif theirs["embed_dims"] == width:
            heads, why = theirs["num_heads"], f"published {self.name}"
        else:
            last = theirs["embed_dims"][-1] if isinstance(width, list) else theirs["embed_dims"]
            wide = last / theirs["num_heads"]
            heads = min(possible, key=lambda n: abs(widths[0] / n - wide))
            why = f"heads {widths[0] // heads} wide, nearest to the {wide:g} of the published {self.name}"
        self.assume("num_heads", heads, why)
        return heads
