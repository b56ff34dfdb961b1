"""Rows of convolutions with only batch norms and zeros between them: what one convolution in their place would be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import fx, nn

from svitc.ir import ops
from svitc.ir.batch_norm import scale_and_shift
from svitc.ir.graph import BATCH_PROBE
from svitc.ir.program import Program

LINEAR = (nn.Conv2d, nn.BatchNorm2d, *ops.PADS)


@dataclass(frozen=True)
class Row:
    """Convolutions, batch norms and zeros, each read by the next alone.

    Attributes:
        nodes: from the first convolution to the last.
    """

    program: Program
    nodes: list[fx.Node]

    @classmethod
    def ending_at(cls, program: Program, node: fx.Node) -> Row | None:
        """The row whose last convolution is ``node``, or None where it is alone or goes on."""
        if not isinstance(program.module_of(node), nn.Conv2d) or _goes_on(program, node):
            return None
        nodes = [node]
        while isinstance(program.module_of(before := nodes[0].all_input_nodes[0]), LINEAR) and len(before.users) == 1:
            nodes.insert(0, before)
        while not isinstance(program.module_of(nodes[0]), nn.Conv2d):
            del nodes[0]
        return cls(program, nodes) if len(nodes) > 1 else None

    @property
    def layers(self) -> list[nn.Module]:
        return [module for node in self.nodes if (module := self.program.module_of(node)) is not None]

    @property
    def ends(self) -> tuple[nn.Conv2d, nn.Conv2d]:
        first, last = self.layers[0], self.layers[-1]
        assert isinstance(first, nn.Conv2d) and isinstance(last, nn.Conv2d)
        return first, last

    @property
    def window(self) -> nn.Conv2d:
        """The one convolution that slides, or else the first."""
        layers = [layer for layer in self.layers if isinstance(layer, nn.Conv2d)]
        return next(filter(_slides, layers), layers[0])

    def impossible(self) -> str | None:
        """Why no single convolution computes the same, or None."""
        slid = shifted = None  # the layer that did so
        for node in self.nodes:
            if not self.program.called_once(node):
                return f"{node.target} is called more than once"
            module = self.program.module_of(node)
            pads = _padding(module)
            if pads is None:
                return f"{node.target} pads one side more than the other"
            if any(pads) and shifted is not None:
                return f"{node.target} pads with zeros what {shifted} has shifted"
            if any(pads) and slid is not None:
                return f"{node.target} pads with zeros what the window of {slid} has seen"
            if _slides(module):
                if slid is not None:
                    return f"{slid} and {node.target} both slide a window"
                slid = node.target
            if ops.is_batch_norm(module) or getattr(module, "bias", None) is not None:
                shifted = node.target
        return None

    def apart(self) -> tuple[int, int]:
        """Bytes as stored, with batch norms folded, and multiply-accumulates of an image."""
        stored = work = 0
        for i, node in enumerate(self.nodes):
            module = self.program.module_of(node)
            if isinstance(module, nn.Conv2d):
                near = [*self.nodes[max(0, i - 1) : i], *node.users]  # a batch norm on either side leaves a bias here
                bias = module.bias is not None or any(ops.is_batch_norm(self.program.module_of(n)) for n in near)
                stored += 4 * (module.weight.numel() + bias * module.out_channels)
                work += self._positions(node) * module.weight.numel()
        return stored, work

    def together(self) -> tuple[int, int]:
        """The same of one dense convolution."""
        first, last = self.ends
        weights = first.in_channels * math.prod(self.window.kernel_size) * last.out_channels
        return 4 * (weights + last.out_channels), self._positions(self.nodes[-1]) * weights

    def _positions(self, node: fx.Node) -> int:
        """Pixels that one image has in a value, over all time steps."""
        batch, _, *image = self.program.shape_of(node)
        return math.prod((batch, *image)) // BATCH_PROBE

    def merged(self) -> nn.Conv2d:
        """The convolution that the row is, step by step from the identity, in float64, rounded once."""
        (first, last), window = self.ends, self.window
        weight = torch.eye(first.in_channels, dtype=torch.float64)[:, :, None, None]
        bias = torch.zeros(first.in_channels, dtype=torch.float64)
        high = wide = 0
        with torch.no_grad():
            for layer in self.layers:
                pads = _padding(layer)
                assert pads is not None
                high, wide = high + pads[0], wide + pads[1]
                if isinstance(layer, nn.Conv2d):
                    own = layer.weight.double().unflatten(0, (layer.groups, -1))
                    weight = weight.unflatten(0, (layer.groups, -1))
                    # one of the two is 1x1: a window that has been slid, or one that is about to be
                    weight = torch.einsum("gockl,gcimn->goikmln", own, weight).flatten(3, 4).flatten(4, 5).flatten(0, 1)
                    bias = torch.einsum("gockl,gc->go", own, bias.unflatten(0, (layer.groups, -1))).flatten()
                    bias = bias if layer.bias is None else bias + layer.bias.double()
                elif ops.is_batch_norm(layer):
                    scale, shift = scale_and_shift(layer)
                    weight, bias = weight * scale[:, None, None, None], bias * scale + shift
            one = nn.Conv2d(
                first.in_channels,
                last.out_channels,
                window.kernel_size,  # type: ignore[arg-type]
                window.stride,  # type: ignore[arg-type]
                (high, wide),
                window.dilation,  # type: ignore[arg-type]
                dtype=last.weight.dtype,
            )
            one.weight.copy_(weight)
            one.bias.copy_(bias)  # type: ignore[union-attr]
        return one


def _goes_on(program: Program, node: fx.Node) -> bool:
    """Whether a convolution's value goes, perhaps by way of batch norms and zeros, to one other convolution."""
    while len(node.users) == 1:
        module = program.module_of(node := next(iter(node.users)))
        if isinstance(module, nn.Conv2d) or not isinstance(module, LINEAR):
            return isinstance(module, nn.Conv2d)
    return False


def _slides(module: nn.Module | None) -> bool:
    """Whether a convolution sees more than the pixel that it computes."""
    return isinstance(module, nn.Conv2d) and (
        {*module.kernel_size, *module.stride} != {1} or any(module.padding)  # type: ignore[arg-type]
    )


def _padding(module: nn.Module | None) -> tuple[int, int] | None:
    """Zeros above and below, left and right; None where the sides differ."""
    if isinstance(module, ops.PADS):
        left, right, top, bottom = module.padding
        return (top, left) if (top, left) == (bottom, right) else None
    return (int(module.padding[0]), int(module.padding[1])) if isinstance(module, nn.Conv2d) else (0, 0)
