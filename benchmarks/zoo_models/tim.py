"""TIM: Shen et al., "TIM: An Efficient Temporal Interaction Module for Spiking Transformer", IJCAI 2024. Queries of
Spikformer's attention are mixed with a convolution of those of the step before, in a loop over steps; event frames."""

from __future__ import annotations

import torch
from spikingjelly.activation_based import neuron
from torch import nn

from .definition import Definition
from .layers import ConvNorm, SpikeMLP, Stem, lif


class TemporalInteraction(nn.Module):
    def __init__(self, width, alpha=0.5):
        super().__init__()
        self.interactor = nn.Conv1d(width, width, kernel_size=5, stride=1, padding=2, bias=True)
        self.in_lif = neuron.LIFNode(tau=2.0, v_threshold=0.3, detach_reset=True, step_mode="s")
        self.out_lif = neuron.LIFNode(tau=2.0, v_threshold=0.5, detach_reset=True, step_mode="m")
        self.alpha = nn.Parameter(torch.tensor(alpha))

    def forward(self, x):
        T, B, H, N, CoH = x.shape
        output = []
        state = torch.zeros_like(x[0])
        for i in range(T):
            if i == 0:
                state = x[i]
            else:
                mixed = self.interactor(state.flatten(0, 1).transpose(-1, -2)).transpose(-1, -2)
                mixed = self.in_lif(mixed).reshape(B, H, N, CoH).contiguous()
                state = mixed * self.alpha + x[i] * (1 - self.alpha)
            output.append(state)
        return self.out_lif(torch.stack(output))


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.q, self.q_lif = ConvNorm(dim, dim), lif()
        self.k, self.k_lif = ConvNorm(dim, dim), lif()
        self.v, self.v_lif = ConvNorm(dim, dim), lif()
        self.tim = TemporalInteraction(dim // heads)
        self.attn_lif, self.proj, self.proj_lif = lif(0.5), ConvNorm(dim, dim), lif()

    def forward(self, x):
        T, B, C, H, W = x.shape

        def heads_of(y):
            return y.flatten(3).transpose(-1, -2).reshape(T, B, H * W, self.heads, C // self.heads).transpose(2, 3)

        q, k, v = heads_of(self.q_lif(self.q(x))), heads_of(self.k_lif(self.k(x))), heads_of(self.v_lif(self.v(x)))
        q = self.tim(q)
        x = (q @ k.transpose(-2, -1)) @ v * 0.25
        x = self.attn_lif(x.transpose(3, 4).reshape(T, B, C, H, W))
        return self.proj_lif(self.proj(x))


class TIMSpikformer(nn.Module):
    def __init__(self, channels=2, dim=32, heads=4, depth=1, classes=10):
        super().__init__()
        self.patch_embed, self.embed_lif = Stem(channels, dim), lif()
        self.attn = nn.ModuleList(Attention(dim, heads) for _ in range(depth))
        self.mlp = nn.ModuleList(SpikeMLP(dim, 4 * dim) for _ in range(depth))
        self.head = nn.Linear(dim, classes)

    def forward(self, x):
        x = self.embed_lif(self.patch_embed(x))
        for attn, mlp in zip(self.attn, self.mlp, strict=True):
            x = x + attn(x)
            x = x + mlp(x)
        return self.head(x.flatten(3).mean(3).mean(0))


ZOO = {"tim": Definition(TIMSpikformer, (4, 2, 16, 16), "Shen et al., IJCAI 2024")}
