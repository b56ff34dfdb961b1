"""Infer the factory of a published model, and the factory's sizes, from names and shapes of weights."""

from __future__ import annotations

from collections.abc import Callable

from svitc.frontends.state_dict import Shapes, depth, ratio
from svitc.support.types import JsonDict

Reader = Callable[[Shapes], tuple[str, JsonDict]]  # returns the name of a factory, and its arguments


def read(shapes: Shapes) -> tuple[str, JsonDict] | None:
    """Return the factory and its arguments for a state dict, or None where it is of no published family."""
    reader = next((r for layers, r in READERS if all(f"{layer}.weight" in shapes for layer in layers)), None)
    if reader is None or any(0 in shape for shape in shapes.values()):
        return None
    try:
        factory, arguments = reader(shapes)
    except (KeyError, IndexError, ValueError):
        return None  # the names fit, but not the shapes
    depths = arguments["depths"]
    blocks = sum(depths) if isinstance(depths, list) else depths
    # the names in a file may claim any number of blocks
    return (factory, arguments) if blocks <= len(shapes) else None


def _common_sizes(shapes: Shapes, stem: str) -> JsonDict:
    """Return width, classes and input channels, from the head and the first convolution."""
    classes, width = shapes["head.weight"]
    return {"embed_dims": width, "num_classes": classes, "in_channels": shapes[f"{stem}.weight"][1]}


def _spikformer(shapes: Shapes) -> tuple[str, JsonDict]:
    sizes = _common_sizes(shapes, "patch_embed.proj_conv")
    fc1 = shapes.get("block.0.mlp.fc1_linear.weight") or shapes["block.0.mlp.fc1_conv.weight"]
    variant = {2: "cifar", 3: "dvs", 4: "imagenet"}[len(fc1)]
    mlp = ratio([(sizes["embed_dims"], fc1[0])])
    arguments = {"variant": variant, **sizes, "depths": depth(shapes, "block"), "mlp_ratio": mlp}
    if variant == "dvs":
        arguments["tokens"] = shapes["pos_embed"][1]
    return "Spikformer", arguments


def _sdt(shapes: Shapes) -> tuple[str, JsonDict]:
    sizes = _common_sizes(shapes, "patch_embed.proj_conv")
    mlp = ratio([(sizes["embed_dims"], shapes["block.0.mlp.fc1_conv.weight"][0])])
    arguments = {**sizes, "depths": depth(shapes, "block"), "mlp_ratio": mlp}
    arguments["num_heads"] = shapes["block.0.attn.talking_heads.weight"][0]
    arguments["spike_mode"] = "plif" if any(key.endswith(".w") for key in shapes) else "lif"
    return "SpikeDrivenTransformer", arguments


def _four_stages(shapes: Shapes) -> JsonDict:
    layers = ("downsample1_2", "downsample2", "downsample3", "downsample4")
    widths = [shapes[f"{layer}.encode_conv.weight"][0] for layer in layers]
    mlp = ratio([(widths[0], shapes["ConvBlock1_2.0.conv1.weight"][0])])
    sizes = _common_sizes(shapes, "downsample1_1.encode_conv") | {"embed_dims": widths, "mlp_ratio": mlp}
    return {**sizes, "depths": [depth(shapes, "block3"), depth(shapes, "block4")]}


def _meta(shapes: Shapes) -> tuple[str, JsonDict]:
    return "MetaSpikeFormer", {**_four_stages(shapes), "distilled": "head_kd.weight" in shapes}


def _espikeformer(shapes: Shapes) -> tuple[str, JsonDict]:
    sizes = _four_stages(shapes)
    if sizes["in_channels"] == 2:
        raise ValueError("the models for events have these names, but other neurons, which run over time")
    return "ESpikeFormer", sizes


def _qkformer(shapes: Shapes) -> tuple[str, JsonDict]:
    sizes = _common_sizes(shapes, "patch_embed1.proj_conv")
    stages = 3 if "patch_embed3.proj_res_conv.weight" in shapes else 2
    variant = "dvs" if stages == 2 else "imagenet" if "stage1.0.mlp.fc1_conv.weight" in shapes else "cifar"
    fc1 = shapes[f"stage1.0.mlp.{'fc' if variant == 'imagenet' else 'mlp'}1_conv.weight"]
    depths = [depth(shapes, f"stage{i}") for i in range(1, stages + 1)]
    arguments = {**sizes, "depths": depths, "mlp_ratio": ratio([(fc1[1], fc1[0])])}
    return "QKFormer", {"variant": variant, **arguments}


# layers whose names identify a family, the most specific first
READERS: tuple[tuple[tuple[str, ...], Reader], ...] = (
    (("patch_embed.rpe_conv", "block.0.attn.talking_heads", "block.0.mlp.fc1_conv"), _sdt),
    (("patch_embed.rpe_conv", "block.0.attn.q_linear", "block.0.mlp.fc1_linear"), _spikformer),
    (("patch_embed.rpe_conv", "block.0.attn.q_conv", "block.0.mlp.fc1_conv"), _spikformer),
    (("downsample1_1.encode_conv", "ConvBlock1_1.0.Conv.pwconv1", "block3.0.attn.q_conv.0.body.0"), _meta),
    (("downsample1_1.encode_conv", "ConvBlock1_1.0.Conv.pwconv1.0", "block3.0.attn.q_conv.0"), _espikeformer),
    (("patch_embed1.proj_conv", "patch_embed1.proj_res_conv", "stage1.0.tssa.q_conv"), _qkformer),
)
