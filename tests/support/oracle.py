"""The pruning oracle. It owes nothing to svitc's group code: ties between layers are written down by hand, as read in
SpikingJelly's model sources, and the masked network is SpikingJelly's own eager model in float64.

A pruned program computes what the unpruned one computes when whatever produces the removed channels (weights, biases,
shift and mean of batch norms) is set to zero, so that their neurons never fire.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from spikingjelly.activation_based import functional
from torch import nn

# group (named by its first producing layer) -> every eager layer that produces the same channels
TIES: dict[str, dict[str, list[str]]] = {
    "spikformer": {
        r"patch_embed\.stages\.3\.conv_bn\.block\.0": [
            r"patch_embed\.stages\.3\.conv_bn\.block\.0",
            r"patch_embed\.positional_encoding\.conv_bn\.block\.0",
            r"blocks\.\d+\.attn\.proj_conv_bn\.0",
            r"blocks\.\d+\.mlp\.fc2\.0",
        ],
    },
    "sdt": {
        r"patch_embed\.final_stage\.0": [
            r"patch_embed\.final_stage\.0",
            r"patch_embed\.rpe_conv",
            r"blocks\.\d+\.attn\.proj_conv",
            r"blocks\.\d+\.mlp\.fc2",
        ],
        r"(blocks\.\d+\.attn)\.q_conv": [r"{1}\.[qkv]_conv"],
    },
    "qkformer": {
        r"patch_embed1\.conv3": [
            r"patch_embed1\.conv3",
            r"patch_embed1\.shortcut\.0",
            r"stage1\.\d+\.attn\.proj_conv_bn\.0",
            r"stage1\.\d+\.mlp\.fc2",
        ],
        r"patch_embed([23])\.conv2": [
            r"patch_embed{1}\.conv2",
            r"patch_embed{1}\.shortcut\.0",
            r"stage{1}\.\d+\.attn\.proj_conv_bn\.0",
            r"stage{1}\.\d+\.mlp\.fc2",
        ],
    },
    "maxformer": {
        r"patch_embed1\.conv3": [
            r"patch_embed1\.conv3",
            r"patch_embed1\.shortcut\.0",
            r"stage1\.\d+\.dwconv",
            r"stage1\.\d+\.mlp\.fc2",
        ],
        r"patch_embed1\.branch\.1": [r"patch_embed1\.branch\.1", r"patch_embed1\.shortcut\.1", r"stage1\.\d+\.fc2"],
        r"patch_embed([23])\.shortcut\.0": [
            r"patch_embed{1}\.shortcut\.0",
            r"patch_embed{1}\.conv2",
            r"stage{1}\.\d+\.dwconv",
            r"stage{1}\.\d+\.mlp\.fc2",
            r"stage{1}\.\d+\.attn\.proj_conv_bn\.0",
            r"stage{1}\.\d+\.attn\.proj\.0",
        ],
    },
}

# layer -> the batch norm behind it, first rule that fits
BATCH_NORMS = [
    (r"(.*)\.0", r"\1.1"),
    (r"(.*\.branch)\.1", r"\1.2"),
    (r"(.*\.shortcut)\.1", r"\1.2"),
    (r"(.*)\.rpe_conv", r"\1.rpe_bn"),
    (r"(.*)\.([a-z]+)_conv", r"\1.\2_bn"),
    (r"(.*)\.dwconv", r"\1.bn"),
    (r"(.*)\.(?:conv|fc)(\d)", r"\1.bn\2"),
    (r"(.*)\.conv", r"\1.bn"),
]


def batch_norm_of(model: nn.Module, path: str) -> nn.Module:
    for pattern, replacement in BATCH_NORMS:
        if re.fullmatch(pattern, path):
            norm = model.get_submodule(re.sub(pattern, replacement, path))
            assert isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)), path
            return norm
    raise AssertionError(f"no batch norm is written down for {path}")


def silence(model: nn.Module, path: str, rows: np.ndarray) -> None:
    """Make filters ``rows`` of a layer, and what its batch norm does to them, zero."""
    layer, norm = model.get_submodule(path), batch_norm_of(model, path)
    index = torch.from_numpy(rows)
    with torch.no_grad():
        layer.weight[index] = 0
        if layer.bias is not None:
            layer.bias[index] = 0
        norm.bias[index] = 0
        norm.running_mean[index] = 0


def _inner_residual(model: nn.Module, path: str) -> bool:
    return path.endswith("fc1") and getattr(model.get_submodule(path.rpartition(".")[0]), "residual", False)


def mask_eager(model: nn.Module, family: str, removed: dict[str, np.ndarray], channel_attention: bool = False) -> None:
    """Silence the removed channels of every group in SpikingJelly's own model.

    Args:
        removed: group name -> flat indices of removed channels.
        channel_attention: QKFormer's token attention leaves q and k apart, its channel attention ties them.
    """
    layers = [name for name, m in model.named_modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Linear))]
    for group, rows in removed.items():
        fused = re.fullmatch(r"(.*\.(?:qkv|qk)(?:_conv_bn)?\.0)\.([qkv])", group)
        if fused:
            path, block = fused[1], fused[2]
            count = 3 if "qkv" in path else 2
            width = model.get_submodule(path).weight.shape[0] // count
            tied = {"q": [0, 1], "v": [2]}[block] if count == 3 or channel_attention else {"q": [0], "k": [1]}[block]
            for part in tied:
                silence(model, path, rows + part * width)
            continue
        for pattern, producers in TIES[family].items():
            found = re.fullmatch(pattern, group)
            if found:
                wanted = [p.replace("{1}", re.escape(found[1]) if found.groups() else "") for p in producers]
                for name in layers:
                    # an MLP as wide as its block adds its input after the first layer, too
                    inner = name.replace("fc1", "fc2") if _inner_residual(model, name) else name
                    if any(re.fullmatch(p, inner) for p in wanted):
                        silence(model, name, rows)
                break
        else:
            silence(model, group, rows)  # a group of its own: one layer produces it


@dataclass
class EagerRun:
    currents: dict[str, torch.Tensor]
    logits: torch.Tensor


def run_eager(model: nn.Module, x: torch.Tensor) -> EagerRun:
    """Run the eager model and keep what each neuron receives."""
    from svitc.ir.ops import is_neuron

    currents: dict[str, torch.Tensor] = {}
    hooks = [
        m.register_forward_pre_hook(lambda _, args, name=name: currents.__setitem__(name, args[0]))
        for name, m in model.named_modules()
        if is_neuron(m)
    ]
    functional.reset_net(model)
    with torch.no_grad():
        logits = model(x)
    functional.reset_net(model)
    for hook in hooks:
        hook.remove()
    return EagerRun(currents, logits)


def eager_current(run: EagerRun, path: str) -> torch.Tensor:
    """What the neuron at a program's path received; a neuron split off a fused one reads its block."""
    if path in run.currents:
        return run.currents[path]
    owner, _, block = path.rpartition(".")
    names = "qkv" if "qkv" in owner else "qk"
    return run.currents[owner].chunk(len(names), dim=2)[names.index(block)]
