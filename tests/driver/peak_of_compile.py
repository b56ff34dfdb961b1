"""Print how many times the bytes of its weights a compilation takes at its peak, the model itself included."""

import sys

import torch
from spikingjelly.activation_based import neuron
from torch import nn

import svitc
from svitc.support.hardware import forget_peak, peak, resident


class Wide(nn.Module):
    """A network of one pixel, in which hardly anything but weights takes memory."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.fires = nn.Conv2d(3, width, 1), neuron.LIFNode(tau=2.0, step_mode="m")
        self.second, self.fires_again = nn.Conv2d(width, width, 1), neuron.LIFNode(tau=2.0, step_mode="m")
        self.third, self.fires_at_last = nn.Conv2d(width, width, 1), neuron.LIFNode(tau=2.0, step_mode="m")
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[N, 3, 1, 1]`` to scores ``[N, 4]``, over two time steps."""
        spikes = self.fires(self.first(x).unsqueeze(0).repeat(2, 1, 1, 1, 1))
        spikes = self.fires_again(self.second(spikes.flatten(0, 1)).unflatten(0, (2, -1)))
        spikes = self.fires_at_last(self.third(spikes.flatten(0, 1)).unflatten(0, (2, -1)))
        return self.head(spikes.mean((3, 4))).mean(0)


def compile_wide(width: int) -> nn.Module:
    """Compile a network to half of its bytes, and return it."""
    torch.manual_seed(0)
    model = Wide(width).eval()
    program = svitc.capture(model, svitc.InputSpec((3, 1, 1)))
    svitc.compile(program, 0.5, policy="uniform", no_data="uniform", images=1)
    return model


if __name__ == "__main__":
    torch.set_num_threads(1)
    compile_wide(16)  # imports everything
    forget_peak()
    start = resident()
    weights = sum(p.nbytes for p in compile_wide(int(sys.argv[1])).parameters())
    print((peak() - start) / weights)
