"""The spiking vision transformers of SpikingJelly 2.0: factories, published configurations and recognizable sizes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from spikingjelly.activation_based import model as models
from torch import nn

from svitc.frontends.checkpoint import neuron_json
from svitc.frontends.state_dict import Shapes, depth, ratio
from svitc.support.types import JsonDict, JsonMapping

HOME = "spikingjelly.activation_based.model"

# the factories that a file may name -> the submodule of HOME that defines them
KNOWN = {
    "Spikformer": "spikformer",
    "spikformer_ti": "spikformer",
    "spikformer_s": "spikformer",
    "spikformer_cifar10": "spikformer",
    "SpikeDrivenTransformer": "spike_driven_transformer",
    "sdt_8_384": "spike_driven_transformer",
    "QKFormer": "qkformer",
    "qkformer_10_384": "qkformer",
    "MaxFormer": "maxformer",
    "maxformer_10_384": "maxformer",
    "maxformer_cifar": "maxformer",
}


@dataclass(frozen=True)
class Published:
    """A published configuration, from which the number of heads of a recognized model is taken.

    Attributes:
        name: name of the configuration.
        family: class name of the model.
        width: channels of the last stage.
        depth: number of blocks, all stages together.
        heads: number of heads in every stage.
    """

    name: str
    family: str
    width: int
    depth: int
    heads: int

    @property
    def head_width(self) -> int:
        """Number of channels of a head in the last stage."""
        return self.width // self.heads


PUBLISHED = (
    Published("spikformer_s", "Spikformer", 384, 6, 12),
    Published("spikformer_cifar10", "Spikformer", 384, 4, 12),
    Published("spikformer_ti", "Spikformer", 256, 4, 8),
    Published("sdt_8_384", "SpikeDrivenTransformer", 384, 8, 8),
    Published("qkformer_10_384", "QKFormer", 384, 10, 6),
)


@dataclass(frozen=True)
class Family:
    """One of SpikingJelly's SViT classes, and how the shapes of its weights show its sizes.

    Attributes:
        name: name of the class, which is also the factory.
        variant: a variant of the class with other weights; "" for the usual one.
        small: arguments of a small instance; the names of its weights are the family's signature.
        stem: state dict key of the first convolution.
        read: function from shapes to the arguments that they show. Raises KeyError for a key that is missing.
    """

    name: str
    variant: str
    small: JsonMapping
    stem: str
    read: Callable[[Shapes], JsonDict]

    @property
    def title(self) -> str:
        """Name of the class, with the variant in parentheses."""
        return f"{self.name} ({self.variant})" if self.variant else self.name

    @property
    def signature(self) -> frozenset[str]:
        """Key patterns of the family (see ``pattern``), without the parameters of neurons."""
        return _signature(self.title)


def pattern(key: str) -> str:
    """Return a state dict key without the number of its block, to compare models of different depths."""
    return re.sub(r"^(blocks?|stage\d|layers?)\.\d+\.", r"\1.#.", key)


@cache
def _signature(title: str) -> frozenset[str]:
    family = next(f for f in FAMILIES if f.title == title)
    return frozenset(pattern(key) for key in build(family.name, family.small).state_dict())


def build(factory: str, arguments: JsonMapping) -> nn.Module:
    """Build a model on the meta device, where tensors have shapes but no memory.

    Args:
        factory: a name of ``KNOWN``.
        arguments: JSON values; ``spiking_neuron`` is the name of a neuron.

    Raises:
        Exception: any error that the factory raises for wrong arguments.
    """
    with torch.device("meta"):
        return getattr(models, factory)(**neuron_json.from_json(arguments))


def known_factory(arch: str) -> str | None:
    """Return the factory of ``KNOWN`` that ``module:factory``, or a name without module, stands for, or None."""
    module, colon, name = arch.rpartition(":")
    if name in KNOWN and (not colon or module in (HOME, f"{HOME}.{KNOWN[name]}")):
        return name
    return None


def family_of(model: nn.Module) -> Family:
    """Return the family of a model that a factory of ``KNOWN`` built."""
    keys = model.state_dict().keys()
    return next(f for f in FAMILIES if type(model).__name__ == f.name and f.stem in keys)


def _ends(shapes: Shapes, stem: str) -> JsonDict:
    """Return the arguments that the first and the last layer show."""
    classes, width = shapes["head.weight"]
    return {"in_channels": shapes[stem][1], "num_classes": classes, "embed_dims": width}


def _spikformer(shapes: Shapes) -> JsonDict:
    sizes = _ends(shapes, "patch_embed.stages.0.conv_bn.block.0.weight")
    hidden = shapes["blocks.0.mlp.fc1.0.weight"][0]
    return {**sizes, "depths": depth(shapes, "blocks"), "mlp_ratio": ratio([(sizes["embed_dims"], hidden)])}


def _sdt(shapes: Shapes) -> JsonDict:
    sizes = _ends(shapes, "patch_embed.stages.0.0.weight")
    hidden = shapes["blocks.0.mlp.fc1.weight"][0]
    return {**sizes, "depths": depth(shapes, "blocks"), "mlp_ratio": ratio([(sizes["embed_dims"], hidden)])}


def _staged(shapes: Shapes, stem: str, first: str, rest: str) -> JsonDict:
    """Return the arguments that the weights of a model with three stages show.

    Args:
        stem: state dict key of the first convolution.
        first: prefix of the MLP in a block of stage 1.
        rest: prefix of the MLP in a block of the other stages.
    """
    sizes = _ends(shapes, stem)
    depths = [depth(shapes, f"stage{i}") for i in (1, 2, 3)]
    pairs = []
    for stage, (blocks, mlp) in enumerate(zip(depths, (first, rest, rest), strict=True), 1):
        if blocks:
            pairs.append((sizes["embed_dims"] // 2 ** (3 - stage), shapes[f"stage{stage}.0.{mlp}fc1.weight"][0]))
    return {**sizes, "depths": depths, "mlp_ratio": ratio(pairs)}


def _qkformer(shapes: Shapes) -> JsonDict:
    return _staged(shapes, "patch_embed1.conv1.weight", "mlp.", "mlp.")


def _maxformer(shapes: Shapes) -> JsonDict:
    return _staged(shapes, "patch_embed1.conv1.weight", "mlp.", "mlp.")


def _maxformer_cifar(shapes: Shapes) -> JsonDict:
    return {**_staged(shapes, "patch_embed1.conv.weight", "", "mlp."), "cifar": True}


FAMILIES = (
    Family(
        "Spikformer",
        "",
        {"embed_dims": 8, "num_heads": 1, "depths": 1},
        "patch_embed.stages.0.conv_bn.block.0.weight",
        _spikformer,
    ),
    Family(
        "SpikeDrivenTransformer",
        "",
        {"embed_dims": 8, "num_heads": 1, "depths": 1},
        "patch_embed.stages.0.0.weight",
        _sdt,
    ),
    Family(
        "QKFormer",
        "",
        {"embed_dims": 8, "num_heads": (1, 1, 1), "depths": (1, 1, 1)},
        "patch_embed1.conv1.weight",
        _qkformer,
    ),
    Family("MaxFormer", "", {"embed_dims": 8, "depths": (1, 1, 1)}, "patch_embed1.conv1.weight", _maxformer),
    Family(
        "MaxFormer",
        "CIFAR",
        {"embed_dims": 8, "depths": (1, 1, 1), "cifar": True},
        "patch_embed1.conv.weight",
        _maxformer_cifar,
    ),
)
