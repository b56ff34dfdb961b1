"""Mixtures of experts whose routing is dense, so that one graph holds it.

SEMM: Zhou et al., "Spiking Transformer with Experts Mixture", NeurIPS 2024: a router of spikes, experts are heads of
attention (EMSA) and blocks of channels of the MLP (EMSP); their spikes are joined by products and sums.

SDT with MoE: the Spike-driven Transformer (Yao et al., NeurIPS 2023), whose MLPs are softly mixed as in Puigcerver et
al., "From Sparse to Soft Mixtures of Experts", ICLR 2024: softmax gates per token weigh the experts.
"""

from __future__ import annotations

import torch
from torch import nn

from .definition import Definition
from .layers import ConvNorm, MembraneMLP, Stem, lif, split_heads


class ExpertAttention(nn.Module):
    """EMSA: each expert is a head with its own query, and keys and values that all share; the router gates heads."""

    def __init__(self, dim, experts):
        super().__init__()
        self.experts, self.width = experts, dim // experts
        self.router, self.router_lif = ConvNorm(dim, experts), lif()
        self.k, self.k_lif = ConvNorm(dim, self.width), lif()
        self.v, self.v_lif = ConvNorm(dim, self.width), lif()
        self.q = nn.ModuleList(ConvNorm(dim, self.width) for _ in range(experts))
        self.q_lif = nn.ModuleList(lif() for _ in range(experts))
        self.attn_lif = nn.ModuleList(lif(0.5) for _ in range(experts))
        self.proj, self.proj_lif = ConvNorm(dim, dim), lif()

    def forward(self, x):
        T, B, _C, H, W = x.shape
        gates = self.router_lif(self.router(x))
        k = self.k_lif(self.k(x)).flatten(3)
        v = self.v_lif(self.v(x)).flatten(3)
        outputs = []
        for i in range(self.experts):
            q = self.q_lif[i](self.q[i](x)).flatten(3)
            attn = q.transpose(-2, -1) @ k
            y = self.attn_lif[i]((v @ attn.transpose(-2, -1)) * 0.125).reshape(T, B, self.width, H, W)
            outputs.append(y * gates[:, :, i : i + 1])
        return self.proj_lif(self.proj(torch.cat(outputs, dim=2)))


class ExpertMLP(nn.Module):
    """EMSP: experts are groups of hidden channels after a depthwise convolution, gated by their spikes."""

    def __init__(self, dim, experts, hidden):
        super().__init__()
        self.experts = experts
        self.up, self.up_lif = ConvNorm(dim, hidden), lif()
        self.router, self.router_lif = ConvNorm(dim, experts), lif()
        self.dwconv, self.dw_lif = ConvNorm(hidden, hidden, 3, groups=hidden), lif()
        self.down, self.down_lif = ConvNorm(hidden, dim), lif()

    def forward(self, x):
        gates = self.router_lif(self.router(x))
        x = self.up_lif(self.up(x))
        y = self.dw_lif(self.dwconv(x))
        groups = torch.stack(torch.chunk(y, self.experts, dim=2), dim=2)
        x = x + (groups * gates.unsqueeze(3)).flatten(2, 3)
        return self.down_lif(self.down(x))


class SEMM(nn.Module):
    def __init__(self, T=4, dim=32, experts=4, depth=2, classes=10):
        super().__init__()
        self.T = T
        self.patch_embed, self.embed_lif = Stem(3, dim), lif()
        self.attn = nn.ModuleList(ExpertAttention(dim, experts) for _ in range(depth))
        self.mlp = nn.ModuleList(ExpertMLP(dim, experts, 2 * dim) for _ in range(depth))
        self.head = nn.Linear(dim, classes)

    def forward(self, x):
        x = self.embed_lif(self.patch_embed(x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)))
        for attn, mlp in zip(self.attn, self.mlp, strict=True):
            x = x + attn(x)
            x = x + mlp(x)
        return self.head(x.flatten(3).mean(3).mean(0))


class SpikeDrivenAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.shortcut_lif = lif()
        self.q, self.q_lif = ConvNorm(dim, dim), lif()
        self.k, self.k_lif = ConvNorm(dim, dim), lif()
        self.v, self.v_lif = ConvNorm(dim, dim), lif()
        self.talking_heads_lif, self.proj = lif(0.5), ConvNorm(dim, dim, bias=True)

    def forward(self, x):
        T, B, C, H, W = x.shape
        identity = x
        x = self.shortcut_lif(x)
        q = split_heads(self.q_lif(self.q(x)), self.heads)
        k = split_heads(self.k_lif(self.k(x)), self.heads)
        v = split_heads(self.v_lif(self.v(x)), self.heads)
        kv = self.talking_heads_lif(k.mul(v).sum(dim=-2, keepdim=True))
        x = q.mul(kv).transpose(3, 4).reshape(T, B, C, H, W).contiguous()
        return self.proj(x) + identity


class SoftExperts(nn.Module):
    def __init__(self, dim, experts, hidden):
        super().__init__()
        self.gate = nn.Linear(dim, experts)
        self.experts = nn.ModuleList(MembraneMLP(dim, hidden) for _ in range(experts))

    def forward(self, x):
        weights = torch.softmax(self.gate(x.permute(0, 1, 3, 4, 2)), dim=-1)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=-1)
        return torch.einsum("tbhwe,tbchwe->tbchw", weights, outputs)


class SDTMixture(nn.Module):
    def __init__(self, T=4, dim=32, heads=4, depth=2, experts=3, classes=10):
        super().__init__()
        self.T = T
        self.patch_embed = Stem(3, dim)
        self.block = nn.ModuleList(
            nn.Sequential(SpikeDrivenAttention(dim, heads), SoftExperts(dim, experts, 2 * dim)) for _ in range(depth)
        )
        self.head_lif, self.head = lif(), nn.Linear(dim, classes)

    def forward(self, x):
        x = self.patch_embed((x.unsqueeze(0)).repeat(self.T, 1, 1, 1, 1))
        for block in self.block:
            x = block(x)
        return self.head(self.head_lif(x.flatten(3).mean(3))).mean(0)


ZOO = {
    "semm": Definition(SEMM, (3, 16, 16), "Zhou et al., NeurIPS 2024"),
    "sdt-moe": Definition(SDTMixture, (3, 16, 16), "Yao et al., NeurIPS 2023; Puigcerver et al., ICLR 2024"),
}
