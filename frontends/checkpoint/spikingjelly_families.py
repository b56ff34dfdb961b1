"""The SViTs of SpikingJelly 2.0: the factories that a file may name, and published configurations."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from spikingjelly.activation_based import model as models
from torch import nn

from svitc.frontends.checkpoint import neuron_json
from svitc.frontends.state_dict import Shapes, depth, ratio

HOME = "spikingjelly.activation_based.model"

# factory -> the submodule of HOME that defines it
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
    """A published configuration: what is assumed of a model of its width.

    Attributes:
        depth: blocks in all.
        heads: of every stage.
    """

    name: str
    family: str
    width: int
    depth: int
    heads: int

    @property
    def head_width(self) -> int:
        """Channels of a head in the last stage."""
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
    """One of SpikingJelly's SViT classes, and how its sizes show in the shapes of its weights.

    Attributes:
        name: of the class, which is also its factory.
        variant: told apart by its weights, though the class is the same; "" for the usual one.
        small: arguments of its smallest instance, whose keys are the family's signature.
        stem: key of the first convolution.
        read: shapes -> the arguments that weights can tell. Raises KeyError for a key that is missing.
    """

    name: str
    variant: str
    small: Mapping[str, Any]
    stem: str
    read: Callable[[Shapes], dict[str, Any]]

    @property
    def title(self) -> str:
        return f"{self.name} ({self.variant})" if self.variant else self.name

    @property
    def signature(self) -> frozenset[str]:
        """Key patterns of the family, without the neurons' parameters."""
        return _signature(self.title)


def pattern(key: str) -> str:
    """A key with the number of its block left out, so that models of different depth compare."""
    return re.sub(r"^(blocks?|stage\d|layers?)\.\d+\.", r"\1.#.", key)


@cache
def _signature(title: str) -> frozenset[str]:
    family = next(f for f in FAMILIES if f.title == title)
    return frozenset(pattern(key) for key in build(family.name, family.small).state_dict())


def build(factory: str, arguments: Mapping[str, Any]) -> nn.Module:
    """An SViT of the table on the meta device: shapes without memory, so that no size is too large.

    Args:
        factory: a name of KNOWN.
        arguments: JSON values; ``spiking_neuron`` by name.

    Raises:
        Exception: whatever the factory raises for arguments that it does not like.
    """
    with torch.device("meta"):
        return getattr(models, factory)(**neuron_json.from_json(arguments))


def known_factory(arch: str) -> str | None:
    """The factory of KNOWN that ``module:factory``, or its bare name, stands for, or None."""
    module, colon, name = arch.rpartition(":")
    if name in KNOWN and (not colon or module in (HOME, f"{HOME}.{KNOWN[name]}")):
        return name
    return None


def family_of(model: nn.Module) -> Family:
    """The family of a model that a factory of KNOWN built."""
    keys = model.state_dict().keys()
    return next(f for f in FAMILIES if type(model).__name__ == f.name and f.stem in keys)


def _ends(shapes: Shapes, stem: str) -> dict[str, Any]:
    """What the first and the last layer tell."""
    classes, width = shapes["head.weight"]
    return {"in_channels": shapes[stem][1], "num_classes": classes, "embed_dims": width}


def _spikformer(shapes: Shapes) -> dict[str, Any]:
    sizes = _ends(shapes, "patch_embed.stages.0.conv_bn.block.0.weight")
    hidden = shapes["blocks.0.mlp.fc1.0.weight"][0]
    return {**sizes, "depths": depth(shapes, "blocks"), "mlp_ratio": ratio([(sizes["embed_dims"], hidden)])}


def _sdt(shapes: Shapes) -> dict[str, Any]:
    sizes = _ends(shapes, "patch_embed.stages.0.0.weight")
    hidden = shapes["blocks.0.mlp.fc1.weight"][0]
    return {**sizes, "depths": depth(shapes, "blocks"), "mlp_ratio": ratio([(sizes["embed_dims"], hidden)])}


def _staged(shapes: Shapes, stem: str, first: str, rest: str) -> dict[str, Any]:
    sizes = _ends(shapes, stem)
    depths = [depth(shapes, f"stage{i}") for i in (1, 2, 3)]
    pairs = []
    for stage, (blocks, mlp) in enumerate(zip(depths, (first, rest, rest), strict=True), 1):
        if blocks:
            pairs.append((sizes["embed_dims"] // 2 ** (3 - stage), shapes[f"stage{stage}.0.{mlp}fc1.weight"][0]))
    return {**sizes, "depths": depths, "mlp_ratio": ratio(pairs)}


def _qkformer(shapes: Shapes) -> dict[str, Any]:
    return _staged(shapes, "patch_embed1.conv1.weight", "mlp.", "mlp.")


def _maxformer(shapes: Shapes) -> dict[str, Any]:
    return _staged(shapes, "patch_embed1.conv1.weight", "mlp.", "mlp.")


def _maxformer_cifar(shapes: Shapes) -> dict[str, Any]:
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
