"""Models in the style of the published repositories, captured, and how their channels are silenced by hand."""

from __future__ import annotations

import re
from functools import partial

import numpy as np
import torch
from spikingjelly.activation_based import functional
from torch import nn

from support import published_parts as parts
from support import published_style as style
from support.plans import liven
from svitc.frontends.capture.capture import capture
from svitc.frontends.capture.model_rewrites import logits_of
from svitc.ir.graph import InputSpec
from svitc.ir.ops import is_neuron
from svitc.ir.pass_manager import Pipeline
from svitc.passes.pipelines import canonical_passes

DIM = 16


attention, mlp = partial(parts.SelfAttention, heads=2), partial(parts.Mlp, hidden=4 * DIM)


spikformer = partial(style.SpikformerStyle, attention, mlp)


# name -> (model, input shape)
CASES = {
    "spikformer": (spikformer, style.IMAGE),
    "spikformer, T = 1": (partial(spikformer, T=1), style.IMAGE),
    "spikformer, linear": (
        partial(style.SpikformerStyle, partial(attention, keys_first=False), partial(parts.LinearMlp, hidden=4 * DIM)),
        style.IMAGE,
    ),
    "spikformer, events": (partial(spikformer, channels=2), style.EVENTS),
    "fused": (partial(style.SpikformerStyle, partial(parts.FusedAttention, heads=2), mlp), style.IMAGE),
    "driven": (style.DrivenStyle, style.IMAGE),
    "driven, events": (partial(style.DrivenStyle, pool=True, channels=2), style.EVENTS),
    "meta": (style.MetaStyle, style.IMAGE),
    "integer": (style.IntegerStyle, style.IMAGE),
    "scaled": (style.ScaledStyle, style.IMAGE),
    "qk": (partial(style.QKStyle, together=False), style.IMAGE),
    "qk, fixed": (partial(style.QKStyle, together=True), style.IMAGE),
}


NORMS = [  # layer -> the batch norms behind it; the first rule that fits
    (r"(.*)\.0\.body\.0", [r"\1.0.body.1.bn"]),
    (r"(.*)\.0\.body\.2\.1", [r"\1.0.body.2.2", r"\1.1"]),
    (r"(.*)\.0", [r"\1.1"]),
    (r"(fc\d)", [r"\1_bn"]),
    (r"(.*_)(?:conv|linear)", [r"\1bn"]),
    (r"(.*?)(?:pw)?conv(\d)", [r"\1bn\2"]),
]


def build(case: str, seed: int = 0) -> tuple[nn.Module, InputSpec]:
    make, shape = CASES[case]
    torch.manual_seed(seed)
    model = make()
    liven(model, torch.Generator().manual_seed(seed))
    return model.eval(), InputSpec(shape)


def silence(model: nn.Module, path: str, rows: np.ndarray) -> None:
    layer = model.get_submodule(path)
    rule, patterns = next(each for each in NORMS if re.fullmatch(each[0], path))
    with torch.no_grad():
        layer.weight[rows] = 0
        if layer.bias is not None:
            layer.bias[rows] = 0
        for pattern in patterns:
            norm = model.get_submodule(re.sub(rule, pattern, path))
            norm.bias[rows] = 0
            norm.running_mean[rows] = 0


def currents(model: nn.Module, x: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What each neuron of the eager model receives, and the logits."""
    found: dict[str, torch.Tensor] = {}
    for name, m in model.named_modules():
        if is_neuron(m) or isinstance(m, parts.SPIKES):
            m.register_forward_pre_hook(lambda _, args, name=name: found.__setitem__(name, args[0]))
    functional.reset_net(model)
    with torch.no_grad():
        logits = logits_of(model(x))
    return found, logits


def captured(case: str, seed: int = 0):
    model, spec = build(case, seed)
    program = capture(model, spec, rewrite_model="fixed" in case)
    Pipeline(canonical_passes())(program)
    return program
