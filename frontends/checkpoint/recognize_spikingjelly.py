"""Recognition of SpikingJelly's SViTs from the names and shapes of the weights in a bare state dict.

The number of heads, the number of time steps, the sizes of image and patch, and the constants of neurons cannot be
seen in the weights. They are assumed to be those of published configurations, and each assumption is reported
together with the option that overrides it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from svitc.errors import InputError, UnsupportedError
from svitc.frontends.checkpoint import spikingjelly_families
from svitc.frontends.checkpoint.spikingjelly_families import PUBLISHED, Family
from svitc.frontends.checkpoint.weights import COUNTER, first
from svitc.frontends.state_dict import Shapes, divisors, strip_prefixes
from svitc.support.types import JsonDict

MIN_SIMILARITY = 0.8  # fraction of key patterns in common (intersection over union) that a family needs
OWN_CODE = "Give the model's own code: --arch module:factory or path/to/file.py:factory, and --arch-args."
TIME_STEPS = 4  # in every published configuration for static images
EVENT_SHAPE = (16, 2, 128, 128)  # (T, C, H, W) of DVS data sets, as Spikformer and SDT were trained on them
SMALL_IMAGE_PIXELS = 64  # side of an image; up to it published models use patches of 4 pixels, above it 16


@dataclass(frozen=True)
class Recognized:
    """The model that a state dict belongs to.

    Attributes:
        family: class name of the model.
        arch: ``module:factory`` that builds it.
        arch_args: arguments of the factory, JSON values.
        input_shape: ``(C, H, W)``, or ``(T, C, H, W)`` for event frames.
        assumptions: what the weights do not show: name of the argument -> a sentence for the user.
    """

    family: str
    arch: str
    arch_args: JsonDict
    input_shape: tuple[int, ...]
    assumptions: dict[str, str]


def recognize(
    state_dict: Mapping[str, torch.Tensor],
    *,
    input_shape: tuple[int, ...] | None = None,
    time_steps: int | None = None,
) -> Recognized:
    """Recognize a state dict of one of SpikingJelly's SViTs.

    Args:
        state_dict: name -> tensor.
        input_shape: shape of the input where it is known; it is assumed otherwise.
        time_steps: number of time steps where it is known.

    Raises:
        UnsupportedError: it is of none of these families; the message names the most similar one and the differences.
        InputError: it is of one of them, but a weight that shows a size of the model is missing.
    """
    shapes = {key: tuple(value.shape) for key, value in strip_prefixes(state_dict).items()}
    family = _family(shapes)
    try:
        args = family.read(shapes)
    except (KeyError, ValueError, IndexError) as error:
        what = error.args[0] if isinstance(error, KeyError) else "a weight that shows one of its sizes"
        raise InputError(
            f"the weights look like those of SpikingJelly's {family.title}, but {what} is missing "
            "or has another shape than it should",
            hint="The file is incomplete, or of a variant. " + OWN_CODE,
        ) from error
    notes: dict[str, str] = {}
    if input_shape is None:
        input_shape, why = assumed_input(args["in_channels"], args["num_classes"], family)
        if len(input_shape) == 4 and time_steps is not None:
            input_shape = (time_steps, *input_shape[1:])
        notes["input_shape"] = shape_note(input_shape, why)
    if len(input_shape) == 4:
        args["T"] = input_shape[0]
    elif time_steps is not None:
        args["T"] = time_steps
    else:
        args["T"] = TIME_STEPS
        notes["T"] = f"T = {TIME_STEPS} (every published {family.name}); override with --time-steps"
    _assume_arguments(family, args, input_shape, notes)
    _assume_neurons(family, args, shapes, notes)
    return Recognized(family.name, f"{spikingjelly_families.HOME}:{family.name}", args, input_shape, notes)


def assumed_input(channels: int, classes: int, family: Family | None = None) -> tuple[tuple[int, ...], str]:
    """Return the input shape that usually goes with a number of input channels and classes, and the reason."""
    if channels == 2:
        return EVENT_SHAPE, "two input channels, as event cameras have"
    if channels == 1:
        return (1, 28, 28), "one input channel, as MNIST has"
    if (family is not None and family.variant == "CIFAR") or (channels == 3 and classes in (10, 100)):
        return (channels, 32, 32), f"{classes} classes, as CIFAR has"
    return (channels, 224, 224), "the published ImageNet models' size"


def shape_note(shape: tuple[int, ...], why: str) -> str:
    """Return the sentence that reports an assumed input shape."""
    text = ",".join(map(str, shape))
    return f"input shape = {text} ({why}); override with --input-shape {text}"


def _family(shapes: Shapes) -> Family:
    """Return the family of a state dict. Raises UnsupportedError where it is of none."""
    names = [key for key in shapes if not key.endswith(".w")]  # .w: the time constant of a ParametricLIF
    patterns = {spikingjelly_families.pattern(key) for key in names}

    def similarity(family: Family) -> tuple[float, float]:
        return _overlap(patterns, family.signature), _overlap(_words(names), _words(family.signature))

    family = max(spikingjelly_families.FAMILIES, key=similarity)
    if similarity(family)[0] >= MIN_SIMILARITY:
        return family
    families = ", ".join(dict.fromkeys(f.name for f in spikingjelly_families.FAMILIES))
    begin = first(names)
    if not any(re.search(r"attn|attention|qkv|\bq_", key) for key in names):
        raise UnsupportedError(
            "the weights are not a spiking vision transformer's: none belongs to an attention layer (they "
            f"begin with {begin}); the known families are {families}",
            hint=OWN_CODE,
        )
    # the keys of blocks repeat, so block 0 stands for all of them
    unknown = [key for key in names if spikingjelly_families.pattern(key) not in family.signature]
    lacking = sorted(key.replace(".#.", ".0.") for key in family.signature - patterns)
    differences = [f"does not have {first(unknown)}"] if unknown else []
    differences += [f"would have {first(lacking)}"] if lacking else []
    raise UnsupportedError(
        f"the weights are of no family that svitc knows ({families}). They look most like SpikingJelly's "
        f"{family.title}, which {' and '.join(differences)}",
        hint="An official repository's model is not interchangeable with SpikingJelly's. " + OWN_CODE,
    )


def _words(keys: Iterable[str]) -> set[str]:
    return {word for key in keys for word in key.split(".")}


def _overlap(first_names: Iterable[str], second_names: Iterable[str]) -> float:
    """Return intersection over union of two sets of names, without the batch norms' counters."""
    one, other = ({name for name in names if not name.endswith(COUNTER)} for names in (first_names, second_names))
    return len(one & other) / max(1, len(one | other))


def _override(name: str, value: object) -> str:
    return f"override with --arch-args '{json.dumps({name: value})}'"


def _assume_arguments(family: Family, args: JsonDict, shape: tuple[int, ...], notes: dict[str, str]) -> None:
    """Add heads, patches and the type of attention to ``args``, and the assumptions to ``notes``."""
    height, width = shape[-2:]
    small = max(height, width) <= SMALL_IMAGE_PIXELS
    size = f"{height}x{width} images"
    if family.name == "Spikformer":
        args |= {"img_size_h": height, "img_size_w": width, "patch_size": 4 if small else 16}
        like = "spikformer_cifar10" if small else "spikformer_s"
        notes["patch_size"] = f"patch_size = {args['patch_size']} ({size}, as in the published {like}); " + _override(
            "patch_size", args["patch_size"]
        )
    if family.name == "SpikeDrivenTransformer":
        args["pooling_stat"] = "0011" if small else "1111"
        like = "the CIFAR models" if small else "the published sdt_8_384"
        notes["pooling_stat"] = f"pooling_stat = {args['pooling_stat']!r} ({size}, as in {like}); " + _override(
            "pooling_stat", args["pooling_stat"]
        )
    if family.name == "QKFormer":
        args["qka_type"] = "token"
        why = "qka_type = 'token' (published qkformer_10_384); "
        notes["qka_type"] = why + _override("qka_type", "token")
    if family.name != "MaxFormer":  # its class computes the number of heads from the width
        heads, why = _heads(family, args)
        args["num_heads"] = heads
        notes["num_heads"] = f"num_heads = {json.dumps(heads)} ({why}); " + _override("num_heads", heads)


def _heads(family: Family, args: JsonDict) -> tuple[int | list[int], str]:
    """Return the assumed number of heads, and the reason.

    It is that of the published model of the same width. Where there is none, it is the number that gives heads of
    about the same width as in the most similar published model.
    """
    staged = isinstance(args["depths"], list)
    width, blocks = args["embed_dims"], sum(args["depths"]) if staged else args["depths"]
    published = [p for p in PUBLISHED if p.family == family.name]
    near = min(published, key=lambda p: (abs(p.width - width), abs(p.depth - blocks)))
    if near.width == width:
        heads, why = near.heads, f"published {near.name}"
    else:
        widths = (width // 4, width // 2, width) if staged else (width,)
        heads = min(divisors(*widths), key=lambda n: abs(width / n - near.head_width))
        why = f"heads {width // heads} wide, nearest to the {near.head_width} of the published {near.name}"
    if family.name == "SpikeDrivenTransformer":
        why += "; any number computes the same"
    return ([heads] * 3 if staged else heads), why


def _assume_neurons(family: Family, args: JsonDict, shapes: Shapes, notes: dict[str, str]) -> None:
    """Add the neuron class to ``args`` where the weights show it, and the assumptions to ``notes``."""
    if any(key.endswith(".w") for key in shapes):
        args["spiking_neuron"] = "ParametricLIFNode"
        notes["neurons"] = (
            "neurons are ParametricLIFNode with threshold 1.0 and a hard reset to 0 (SpikingJelly's "
            "defaults; the file has their time constants); " + _override("v_threshold", 1.0)
        )
    else:
        notes["neurons"] = (
            f"neurons are LIFNode with tau 2.0, threshold 1.0 (0.5 after attention) and a hard reset to 0 "
            f"(published {family.name}); " + _override("spiking_neuron", "IFNode")
        )
