"""Recognize a published model from a loaded checkpoint, by names and shapes of its weights and its saved options.

Weights show the family, widths, depths, classes and input channels. What they do not show is taken from the options
that the training script saved beside them, or else from the most similar published model, with a note to the user.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from svitc.errors import InputError
from svitc.frontends.published.registry import EVENTS, FACTORIES, HOME, PUBLISHED, Published
from svitc.frontends.published.shape_readers import read
from svitc.frontends.state_dict import (
    AVERAGED,
    AVERAGES,
    WEIGHTS,
    divisors,
    find_weights,
    is_average,
    prefixes,
    strip_prefixes,
    within,
)
from svitc.support.types import JsonDict, JsonMapping

# names of an option in the published scripts; the first one that is present counts
TIME_STEPS = ("time_steps", "time_step", "T", "timestep", "timesteps", "num_steps")
IMAGE_SIZE = ("img_size", "input_size")
# the published code uses these numbers of heads whatever the options say
HARD_CODED_HEADS = {"QKFormer (cifar)": 8, "QKFormer (dvs)": 16, "MetaSpikeFormer": 8, "ESpikeFormer": 8}


@dataclass(frozen=True)
class Layout:
    """The model that a state dict belongs to.

    Attributes:
        family: Name of the factory, with its variant in parentheses where it has any.
        like: The most similar published model, a key of PUBLISHED.
        factory: A key of FACTORIES.
        arguments: Arguments of the factory, JSON values.
        input_shape: ``(C, H, W)``, or ``(T, C, H, W)`` for event frames.
        assumptions: Name of each argument that neither weights nor options determine -> a sentence for the user.
    """

    family: str
    like: str
    factory: str
    arguments: JsonDict
    input_shape: tuple[int, ...]
    assumptions: dict[str, str] = field(default_factory=dict)

    @property
    def arch(self) -> str:
        """The factory as ``module:factory``."""
        return f"{HOME}:{self.factory}"

    def build(self) -> nn.Module:
        """Return the model with newly initialized weights."""
        return FACTORIES[self.factory](**self.arguments)


def unwrap(checkpoint: JsonMapping, ema: bool = False) -> tuple[JsonDict, JsonDict]:
    """Return the state dict and the saved options of a training script's checkpoint.

    Args:
        checkpoint: What ``torch.load`` returned; it may be a bare state dict.
        ema: Take the averaged weights.

    Returns:
        The weights, without prefixes of wrappers, and the options that are plain values, ``{}`` where there are none.

    Raises:
        InputError: The checkpoint holds no weights, or no averaged weights.
    """
    try:
        path, state = find_weights(checkpoint, AVERAGED if ema else WEIGHTS)
    except ValueError as error:
        entries = ", ".join(map(str, error.args[0]))
        raise InputError(
            f"the checkpoint holds weights in several entries ({entries})",
            hint="Save one of them as a file of its own: torch.save(checkpoint[…], …).",
        ) from error
    if ema and not path:
        if AVERAGES in checkpoint:  # the file is the average itself
            return strip_prefixes({str(k): v for k, v in checkpoint.items()}), {}
        weights = find_weights(checkpoint)[1]  # a module that holds the model and its average, as Lightning's do
        averages = [prefix for prefix in prefixes(weights) if is_average(prefix)]
        if len(averages) == 1:
            return strip_prefixes(within(weights, averages[0])), {}
        present = ", ".join(map(str, list(checkpoint)[:5]))
        raise InputError(f"the checkpoint holds no averaged weights (it has {present})", hint="Leave out --ema.")
    if not any(hasattr(value, "shape") for value in state.values()):
        present = ", ".join(map(str, list(state)[:5])) or "nothing"
        raise InputError(f"the checkpoint holds no weights (it has {present})", hint="svitc reads a state_dict.")
    args = None if not path else checkpoint.get("args")
    options = vars(args) if isinstance(args, argparse.Namespace) else args
    options = options if isinstance(options, Mapping) else {}
    plain = (bool, int, float, str, list, tuple)
    return strip_prefixes({str(k): v for k, v in state.items()}), {
        str(k): v for k, v in options.items() if isinstance(v, plain)
    }


def layout(
    state_dict: JsonMapping,
    args: JsonMapping | None = None,
    *,
    input_shape: tuple[int, ...] | None = None,
    time_steps: int | None = None,
) -> Layout | None:
    """Return the published layout of a state dict, or None where it has no published one.

    Args:
        args: Options of the training script, as ``unwrap`` returns them.
        input_shape: Shape of the input where it is known; it is assumed otherwise.
        time_steps: Number of time steps where it is known.
    """
    state = strip_prefixes(state_dict)
    recognized = read({key: tuple(value.shape) for key, value in state.items() if hasattr(value, "shape")})
    return recognized and _Completion(*recognized, args or {}, input_shape, time_steps).layout()


class _Completion:
    """Arguments read from weights, and the search for those that weights do not show."""

    def __init__(
        self,
        factory: str,
        arguments: JsonDict,
        args: JsonMapping,
        shape: tuple[int, ...] | None,
        steps: int | None,
    ) -> None:
        self.factory, self.arguments, self.args, self.shape = factory, arguments, args, shape
        variant = arguments.get("variant")
        self.family = f"{factory} ({variant})" if variant else factory
        self.steps = steps or (shape[0] if shape and len(shape) == 4 else self.option(*TIME_STEPS))
        side = self.option(*IMAGE_SIZE)
        self.size = shape[-2:] if shape else (side, side) if side else None
        self.name, self.like = min(PUBLISHED.items(), key=lambda item: self.distance(item[1]))
        self.notes: dict[str, str] = {}

    def option(self, *names: str) -> int | None:
        """Return the first of these saved options that is a positive whole number."""
        values = (self.args.get(name) for name in names)
        return next((v for v in values if type(v) is int and v > 0), None)

    def distance(self, p: Published) -> tuple[float, ...]:
        """Return how much a published model differs; the first number matters most."""
        ours, theirs = self.arguments, p.arguments

        def differs(name: str) -> bool:
            return ours.get(name) != theirs.get(name)

        def gap(name: str) -> float:
            pair = (d[name] if isinstance(d[name], list) else [d[name]] for d in (ours, theirs))
            our_sum, their_sum = map(sum, pair)
            return abs(our_sum - their_sum)

        if p.factory != self.factory:
            return (1.0,)
        image = abs(math.log2(self.size[0] / p.input[-2])) if self.size else 0.0
        # another data set matters more than a few blocks
        data = gap("depths") + 3 * differs("num_classes")
        flags = differs("variant"), differs("in_channels"), image, differs("distilled")
        return (0.0, *flags, data, gap("embed_dims"))

    def layout(self) -> Layout:
        """Return the layout with all arguments."""
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
            self.arguments["official_bug"] = (
                True  # the weights belong to the published code, which --rewrite-model corrects
            )
        if "num_heads" not in self.arguments:
            self.arguments["num_heads"] = self.heads()
        shape = tuple(self.shape)
        return Layout(self.family, self.name, self.factory, self.arguments, shape, self.notes)

    def assume(self, name: str, value: object, why: str) -> None:
        """Note for the user that an argument is assumed, and how to override it."""
        shown = json.dumps(value)
        override = f"override with --arch-args '{json.dumps({name: value})}'"
        self.notes[name] = f"{name} = {shown} ({why}); {override}"

    def take(self, name: str, kind: type, worth_a_note: bool = True) -> None:
        """Set an argument to its saved option, or else to the published model's value."""
        option = self.args.get(name)
        self.arguments[name] = option if isinstance(option, kind) else self.like.arguments[name]
        if not isinstance(option, kind) and worth_a_note:
            self.assume(name, self.arguments[name], f"published {self.name}")

    def heads(self) -> int:
        """Return the number of heads, with a note unless the options say it."""
        width, theirs = self.arguments["embed_dims"], self.like.arguments
        if self.factory == "QKFormer":
            widths = [width // 2**i for i in range(len(self.arguments["depths"]))]
        else:
            widths = width[:1:-1] if isinstance(width, list) else [width]  # only stages 3 and 4 have heads
        possible = list(divisors(*widths)) or [1]
        option, hard_coded = self.option("num_heads"), HARD_CODED_HEADS.get(self.family)
        if self.family == "Spikformer (cifar)" and option in possible:  # the other scripts do not pass it on
            assert option is not None
            return option
        if hard_coded is not None and hard_coded in possible:
            heads, why = hard_coded, "hard-coded in the published models"
        elif theirs["embed_dims"] == width:
            heads, why = theirs["num_heads"], f"published {self.name}"
        else:
            last = theirs["embed_dims"][-1] if isinstance(width, list) else theirs["embed_dims"]
            head_width = last / theirs["num_heads"]
            heads = min(possible, key=lambda n: abs(widths[0] / n - head_width))
            why = f"heads {widths[0] // heads} wide, nearest to the {head_width:g} of the published {self.name}"
        self.assume("num_heads", heads, why)
        return heads
