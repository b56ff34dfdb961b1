"""Hand-written programs: a module whose forward is already canonical, and the views that it is made of."""

from __future__ import annotations

import einops
from spikingjelly.activation_based import neuron
from torch import fx, nn

from svitc.ir.graph import InputSpec
from svitc.ir.program import Program, Stage

EVENTS = (4, 3, 8, 6)  # [t, c, y, x]


class Leaves(fx.Tracer):
    """Layers are not looked into."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def written(model: nn.Module, shape: tuple[int, ...] = EVENTS, stage: Stage = Stage.INFERENCE) -> Program:
    """A program of exactly the operations that the model's forward writes down, which are canonical ones."""
    program = Program(fx.GraphModule(model.eval(), Leaves().trace(model)), InputSpec(shape), stage)
    program.retype()
    return program


def view(x: fx.Proxy, pattern: str, **sizes: int) -> fx.Proxy:
    return x.tracer.create_proxy("call_function", einops.rearrange, (x, pattern), sizes)


def frames(x: fx.Proxy) -> fx.Proxy:
    """Steps beside the batch, as convolutions want them."""
    return view(x, "t b c y x -> (t b) c y x")


def steps(x: fx.Proxy) -> fx.Proxy:
    return view(x, "(t b) c y x -> t b c y x", t=4)


def tokens(x: fx.Proxy) -> fx.Proxy:
    """``[t, b, n, c]``"""
    return view(x, "t b c y x -> t b (y x) c")


def lif(**k) -> nn.Module:
    return neuron.LIFNode(**{"step_mode": "m", **k})
