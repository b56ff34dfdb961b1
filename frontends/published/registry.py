"""The published models: their factories, the inputs they were trained on, and their numbers of parameters."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from svitc.frontends.published.e_spikeformer import ESpikeFormer
from svitc.frontends.published.meta_spikeformer import MetaSpikeFormer
from svitc.frontends.published.qkformer import QKFormer
from svitc.frontends.published.spike_driven_transformer import SpikeDrivenTransformer
from svitc.frontends.published.spikformer import Spikformer
from svitc.support.types import JsonMapping

HOME = "svitc.frontends.official"
FACTORIES: dict[str, Callable[..., nn.Module]] = {
    factory.__name__: factory
    for factory in (Spikformer, SpikeDrivenTransformer, MetaSpikeFormer, ESpikeFormer, QKFormer)
}
# parameters that the published code registers, counts and saves, but no forward reads
DEAD = {
    "Spikformer": r"pos_embed|norm\..*|block\.\d+\.norm[12]\..*",
    "SpikeDrivenTransformer": (
        r"block\.\d+\.attn\.talking_heads\.weight|patch_embed\.rpe_lif\.w|block\.\d+\.attn\.attn_lif\.w"
    ),
}
IMAGENET = (3, 224, 224)
CIFAR = (3, 32, 32)
EVENTS = (16, 2, 128, 128)


@dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
        factory: A key of FACTORIES.
        arguments: Arguments of the factory, JSON values.
        input: ``(C, H, W)``, or ``(T, C, H, W)`` for event frames.
        parameters: Number of parameters, including dead ones.
        dead: Number of parameters that no forward reads.
    """

    factory: str
    arguments: JsonMapping
    input: tuple[int, ...]
    parameters: int
    dead: int = 0

    def build(self, **override: object) -> nn.Module:
        """Return the model with newly initialized weights, with some arguments replaced."""
        return FACTORIES[self.factory](**{**self.arguments, **override})


def dead_parameters(model: nn.Module) -> dict[str, int]:
    """Return the name and size of each parameter that a published model's forward never reads."""
    pattern = DEAD.get(type(model).__name__)
    named = model.named_parameters()
    return {name: p.numel() for name, p in named if pattern and re.fullmatch(pattern, name)}


def _model(factory: str, shape: tuple[int, ...], counts: tuple[int, ...], **arguments: object) -> Published:
    steps = {"T": shape[0]} if len(shape) == 4 else {}
    common = {"T": 4, "num_classes": 1000, "in_channels": shape[-3], "mlp_ratio": 4.0}
    return Published(factory, {**common, **steps, **arguments}, shape, *counts)


def _spikformer(dim: int, heads: int, *counts: int, variant: str = "imagenet", **other: object) -> Published:
    shape = {"imagenet": IMAGENET, "cifar": CIFAR, "dvs": EVENTS}[variant]
    arguments = {"depths": 8, "variant": variant, "embed_dims": dim, "num_heads": heads}
    return _model("Spikformer", shape, counts, **{**arguments, **other})


def _sdt(dim: int, depth: int, *counts: int, shape: tuple[int, ...] = IMAGENET, **other: object) -> Published:
    arguments = {"pooling_stat": "1111", "dvs_mode": False, "spike_mode": "lif"}
    arguments |= {"embed_dims": dim, "depths": depth, "num_heads": 8}
    return _model("SpikeDrivenTransformer", shape, counts, **{**arguments, **other})


def _meta(*widths: int, count: int, distilled: bool = False) -> Published:
    steps = 4 if distilled else 1
    arguments = {"embed_dims": list(widths), "depths": [6, 2], "num_heads": 8, "T": steps}
    return _model("MetaSpikeFormer", IMAGENET, (count,), **arguments, distilled=distilled)


def _espikeformer(*widths: int, count: int) -> Published:
    arguments = {"embed_dims": list(widths), "depths": [6, 2], "num_heads": 8, "num_classes": 1000}
    return Published("ESpikeFormer", {**arguments, "in_channels": 3, "mlp_ratio": 4.0}, IMAGENET, count)


def _qkformer(dim: int, heads: int, *counts: int, variant: str = "imagenet", **other: object) -> Published:
    shape = {"imagenet": IMAGENET, "cifar": CIFAR, "dvs": EVENTS}[variant]
    depths = {"imagenet": [1, 2, 7], "cifar": [1, 1, 2], "dvs": [1, 1]}[variant]
    arguments = {"variant": variant, "embed_dims": dim, "num_heads": heads, "depths": depths}
    return _model("QKFormer", shape, counts, **{**arguments, **other}, official_bug=True)


# The number of heads of a Spikformer for ImageNet is that for which its scale, 0.125, is d ** -0.5.
PUBLISHED: dict[str, Published] = {
    "spikformer_8_384": _spikformer(384, 6, 16_828_312, 12_288),
    "spikformer_8_512": _spikformer(512, 8, 29_705_768, 16_384),
    "spikformer_8_768": _spikformer(768, 12, 66_363_208, 24_576),
    "spikformer_cifar10": _spikformer(384, 12, 9_330_874, 6_144, variant="cifar", depths=4, num_classes=10),
    "spikformer_cifar10dvs": _spikformer(
        256, 16, 2_585_610, 18_944, variant="dvs", depths=2, num_classes=10, tokens=64
    ),
    "sdt_8_384": _sdt(384, 8, 16_816_536, 512),
    "sdt_6_512": _sdt(512, 6, 23_373_736, 384),
    "sdt_8_512": _sdt(512, 8, 29_689_896, 512),
    "sdt_10_512": _sdt(512, 10, 36_006_056, 640),
    "sdt_8_768": _sdt(768, 8, 66_339_144, 512),
    "sdt_cifar10_2_256": _sdt(256, 2, 2_567_082, 128, shape=CIFAR, pooling_stat="0011", num_classes=10),
    "sdt_cifar10_2_512": _sdt(512, 2, 10_233_546, 128, shape=CIFAR, pooling_stat="0011", num_classes=10),
    "sdt_cifar100_2_256": _sdt(256, 2, 2_590_212, 128, shape=CIFAR, pooling_stat="0011", num_classes=100),
    "sdt_cifar100_2_512": _sdt(512, 2, 10_279_716, 128, shape=CIFAR, pooling_stat="0011", num_classes=100),
    "sdt_cifar10dvs": _sdt(
        256, 2, 2_566_794, 128, shape=(10, 2, 64, 64), pooling_stat="0011", num_classes=10, dvs_mode=True
    ),
    "sdt_gesture": _sdt(256, 2, 2_567_051, 128, shape=EVENTS, pooling_stat="0111", num_classes=11),
    "metaspikformer_15m": _meta(64, 128, 256, 360, count=15_112_208),
    "metaspikformer_8_384": _meta(96, 192, 384, 480, count=31_333_864),
    "metaspikformer_8_512": _meta(128, 256, 512, 640, count=55_350_248),
    "metaspikformer_8_512_distilled": _meta(128, 256, 512, 640, count=55_991_248, distilled=True),
    "metaspikformer_8_768": _meta(192, 384, 768, 960, count=123_741_160),
    "espikeformer_t": _espikeformer(24, 48, 96, 128, count=2_702_048),
    "espikeformer_s": _espikeformer(32, 64, 128, 192, count=5_105_608),
    "espikeformer_m": _espikeformer(48, 96, 192, 240, count=10_023_112),
    "espikeformer_l": _espikeformer(64, 128, 256, 360, count=18_987_504),
    "qkformer_10_384": _qkformer(384, 6, 16_473_688),
    "qkformer_10_512": _qkformer(512, 8, 29_079_336),
    "qkformer_10_768": _qkformer(768, 12, 64_962_760),
    "qkformer_cifar10": _qkformer(384, 8, 6_706_234, variant="cifar", num_classes=10),
    "qkformer_cifar100": _qkformer(384, 8, 6_740_884, variant="cifar", num_classes=100),
    "qkformer_cifar10dvs": _qkformer(256, 16, 1_504_138, variant="dvs", num_classes=10, mlp_ratio=1.0),
    "qkformer_gesture": _qkformer(256, 16, 1_999_371, variant="dvs", num_classes=11),
}

# top-1 in percent, where the authors state it for this configuration and input: tables of the repositories'
# README files; Spikformer from QKFormer's; the distilled Meta-SpikeFormer and E-SpikeFormer from the abstracts of
# arXiv 2404.03663 and 2411.16061
TOP1 = {
    "spikformer_8_768": 74.81,
    "sdt_8_384": 72.28,
    "sdt_6_512": 74.11,
    "sdt_8_512": 74.57,
    "sdt_10_512": 74.66,
    "metaspikeformer_8_512_distilled": 80.0,
    "espikeformer_m": 78.5,
    "espikeformer_l": 79.8,
    "qkformer_10_384": 78.80,
    "qkformer_10_512": 82.04,
    "qkformer_10_768": 84.22,
}
