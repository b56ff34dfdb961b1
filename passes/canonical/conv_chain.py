"""Chains of convolutions with only batch norms and zero padding between them, and the single convolution they equal."""

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
class ConvChain:
    """Convolutions, batch norms and zero padding, each read only by the next.

    Attributes:
        program: the program.
        nodes: from the first convolution to the last.
    """

    program: Program
    nodes: list[fx.Node]

    @classmethod
    def ending_at(cls, program: Program, node: fx.Node) -> ConvChain | None:
        """Return the chain whose last convolution is ``node``, or None where it is alone or the chain continues."""
        if not isinstance(program.module_of(node), nn.Conv2d) or _continues(program, node):
            return None
        nodes = [node]
        while (
            isinstance(program.module_of(previous := nodes[0].all_input_nodes[0]), LINEAR) and len(previous.users) == 1
        ):
            nodes.insert(0, previous)
        while not isinstance(program.module_of(nodes[0]), nn.Conv2d):
            del nodes[0]
        return cls(program, nodes) if len(nodes) > 1 else None

    @property
    def layers(self) -> list[nn.Module]:
        """Return the modules of the chain, in order."""
        return [module for node in self.nodes if (module := self.program.module_of(node)) is not None]

    @property
    def ends(self) -> tuple[nn.Conv2d, nn.Conv2d]:
        """Return the first and the last convolution."""
        first, last = self.layers[0], self.layers[-1]
        assert isinstance(first, nn.Conv2d) and isinstance(last, nn.Conv2d)
        return first, last

    @property
    def window(self) -> nn.Conv2d:
        """Return the convolution that slides a window, or else the first."""
        layers = [layer for layer in self.layers if isinstance(layer, nn.Conv2d)]
        return next(filter(_slides, layers), layers[0])

    def impossible(self) -> str | None:
        """Return why no single convolution computes the same, or None."""
        slid_by = shifted_by = None
        for node in self.nodes:
            if not self.program.called_once(node):
                return f"{node.target} is called more than once"
            module = self.program.module_of(node)
            pads = _padding(module)
            if pads is None:
                return f"{node.target} pads one side more than the other"
            if any(pads) and shifted_by is not None:
                return f"{node.target} pads with zeros what {shifted_by} has shifted"
            if any(pads) and slid_by is not None:
                return f"{node.target} pads with zeros what the window of {slid_by} has seen"
            if _slides(module):
                if slid_by is not None:
                    return f"{slid_by} and {node.target} both slide a window"
                slid_by = node.target
            if ops.is_batch_norm(module) or getattr(module, "bias", None) is not None:
                shifted_by = node.target
        return None

    def apart(self) -> tuple[int, int]:
        """Return the cost of the chain as it is.

        Returns:
            bytes as stored, with batch norms folded, and multiply-accumulates per image.
        """
        stored_bytes = macs = 0
        for i, node in enumerate(self.nodes):
            module = self.program.module_of(node)
            if isinstance(module, nn.Conv2d):
                # a batch norm on either side leaves a bias in the convolution when it is folded
                near = [*self.nodes[max(0, i - 1) : i], *node.users]
                bias = module.bias is not None or any(ops.is_batch_norm(self.program.module_of(n)) for n in near)
                stored_bytes += 4 * (module.weight.numel() + bias * module.out_channels)
                macs += self._positions(node) * module.weight.numel()
        return stored_bytes, macs

    def together(self) -> tuple[int, int]:
        """Return the same cost for one dense convolution."""
        first, last = self.ends
        weights = first.in_channels * math.prod(self.window.kernel_size) * last.out_channels
        return 4 * (weights + last.out_channels), self._positions(self.nodes[-1]) * weights

    def _positions(self, node: fx.Node) -> int:
        """Return the number of pixels of one image in a value, over all time steps."""
        batch, _, *image = self.program.shape_of(node)
        return math.prod((batch, *image)) // BATCH_PROBE

    def merged(self) -> nn.Conv2d:
        """Return the single convolution that the chain equals, composed in float64 and rounded once."""
        (first, last), window = self.ends, self.window
        weight = torch.eye(first.in_channels, dtype=torch.float64)[:, :, None, None]
        bias = torch.zeros(first.in_channels, dtype=torch.float64)
        pad_height = pad_width = 0
        with torch.no_grad():
            for layer in self.layers:
                pads = _padding(layer)
                assert pads is not None
                pad_height, pad_width = pad_height + pads[0], pad_width + pads[1]
                if isinstance(layer, nn.Conv2d):
                    kernel = layer.weight.double().unflatten(0, (layer.groups, -1))
                    weight = weight.unflatten(0, (layer.groups, -1))
                    # one of the two is 1x1: only one layer of the chain slides a window
                    weight = (
                        torch.einsum("gockl,gcimn->goikmln", kernel, weight).flatten(3, 4).flatten(4, 5).flatten(0, 1)
                    )
                    bias = torch.einsum("gockl,gc->go", kernel, bias.unflatten(0, (layer.groups, -1))).flatten()
                    bias = bias if layer.bias is None else bias + layer.bias.double()
                elif ops.is_batch_norm(layer):
                    scale, shift = scale_and_shift(layer)
                    weight, bias = weight * scale[:, None, None, None], bias * scale + shift
            merged = nn.Conv2d(
                first.in_channels,
                last.out_channels,
                window.kernel_size,  # type: ignore[arg-type]
                window.stride,  # type: ignore[arg-type]
                (pad_height, pad_width),
                window.dilation,  # type: ignore[arg-type]
                dtype=last.weight.dtype,
            )
            merged.weight.copy_(weight)
            merged.bias.copy_(bias)  # type: ignore[union-attr]
        return merged


def _continues(program: Program, node: fx.Node) -> bool:
    """Return whether a value leads only to one other convolution, perhaps through batch norms and zero padding."""
    while len(node.users) == 1:
        module = program.module_of(node := next(iter(node.users)))
        if isinstance(module, nn.Conv2d) or not isinstance(module, LINEAR):
            return isinstance(module, nn.Conv2d)
    return False


def _slides(module: nn.Module | None) -> bool:
    """Return whether a convolution uses more than the pixel at which it computes."""
    return isinstance(module, nn.Conv2d) and (
        {*module.kernel_size, *module.stride} != {1} or any(module.padding)  # type: ignore[arg-type]
    )


def _padding(module: nn.Module | None) -> tuple[int, int] | None:
    """Return the zeros above and below, and left and right; None where opposite sides differ."""
    if isinstance(module, ops.PADS):
        left, right, top, bottom = module.padding
        return (top, left) if (top, left) == (bottom, right) else None
    return (int(module.padding[0]), int(module.padding[1])) if isinstance(module, nn.Conv2d) else (0, 0)
