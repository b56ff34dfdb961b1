"""Transformers that drop tokens, chosen by what they compute for each image.

SparseSpikformer: Liu et al., "SparseSpikformer: A Co-Design Framework for Token and Weight Pruning in Spiking
Transformer", ICASSP 2024. A small real-valued predictor (LayerNorm, GELU, LogSoftmax) scores tokens.

TP-Spikformer: "TP-Spikformer: Token Pruned Spiking Transformer", ICLR 2026, arXiv:2603.00527. Tokens are scored without
parameters, by their change over time and their difference from their neighbors; a block computes the best ones and
passes the others on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .definition import Definition
from .layers import MembraneMLP, Stem, lif


class TokenLinear(nn.Module):
    """Linear layer, batch norm and neuron on ``[T, B, N, C]``."""

    def __init__(self, width_in, width_out):
        super().__init__()
        self.linear, self.bn, self.lif = nn.Linear(width_in, width_out), nn.BatchNorm1d(width_out), lif()

    def forward(self, x):
        T, B, N, _ = x.shape
        x = self.linear(x.flatten(0, 1))
        x = self.bn(x.transpose(-1, -2)).transpose(-1, -2).reshape(T, B, N, -1).contiguous()
        return self.lif(x)


class TokenAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = TokenLinear(dim, dim), TokenLinear(dim, dim), TokenLinear(dim, dim)
        self.attn_lif, self.proj = lif(0.5), TokenLinear(dim, dim)

    def forward(self, x):
        T, B, N, C = x.shape
        q, k, v = (
            layer(x).reshape(T, B, N, self.heads, C // self.heads).permute(0, 1, 3, 2, 4).contiguous()
            for layer in (self.q, self.k, self.v)
        )
        attn = (q @ k.transpose(-2, -1)) * 0.125
        x = (attn @ v).transpose(2, 3).reshape(T, B, N, C).contiguous()
        return self.proj(self.attn_lif(x))


class TokenBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.attn = TokenAttention(dim, heads)
        self.mlp = nn.Sequential(TokenLinear(dim, 4 * dim), TokenLinear(4 * dim, dim))

    def forward(self, x):
        x = x + self.attn(x)
        return x + self.mlp(x)


class Predictor(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.inner = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.outer = nn.Sequential(nn.Linear(dim, dim // 2), nn.GELU(), nn.Linear(dim // 2, 2), nn.LogSoftmax(dim=-1))

    def forward(self, x, policy):
        x = self.inner(x)
        B, N, C = x.size()
        local = x[:, :, : C // 2]
        everywhere = (x[:, :, C // 2 :] * policy).sum(dim=1, keepdim=True) / torch.sum(policy, dim=1, keepdim=True)
        return self.outer(torch.cat([local, everywhere.expand(B, N, C // 2)], dim=-1))


def select_tokens(x, index):
    """Return tokens ``index`` ``[B, K]`` of ``[B, N, C]``."""
    B, N, C = x.size()
    offset = torch.arange(B, dtype=torch.long, device=x.device).view(B, 1) * N
    return x.reshape(B * N, C)[(index + offset).reshape(-1)].reshape(B, index.size(1), C)


class SparseSpikformer(nn.Module):
    def __init__(self, T=4, dim=32, heads=4, depth=3, pruned=(1, 2), ratio=(0.75, 0.5), classes=10):
        super().__init__()
        self.T, self.pruned, self.ratio = T, pruned, ratio
        self.patch_embed, self.embed_lif = Stem(3, dim), lif()
        self.block = nn.ModuleList(TokenBlock(dim, heads) for _ in range(depth))
        self.predictor = nn.ModuleList(Predictor(dim) for _ in pruned)
        self.head = nn.Linear(dim, classes)

    def forward(self, x):
        x = (x.unsqueeze(0)).repeat(self.T, 1, 1, 1, 1)
        x = self.embed_lif(self.patch_embed(x)).flatten(-2).transpose(-1, -2)
        T, B, tokens, C = x.shape
        decisions = []
        policy = torch.ones(B, tokens, 1, dtype=x.dtype, device=x.device)
        for i, block in enumerate(self.block):
            if i in self.pruned:
                stage = self.pruned.index(i)
                score = self.predictor[stage](x.mean(0), policy)[:, :, 0]
                count = int(tokens * self.ratio[stage])
                keep = torch.argsort(score, dim=1, descending=True)[:, :count]
                decisions.append(keep)
                policy = select_tokens(policy, keep)
                keep = keep.unsqueeze(0).repeat(T, 1, 1).reshape(T * B, -1)
                x = select_tokens(x.flatten(0, 1), keep).reshape(T, B, -1, C)
            x = block(x)
        x = self.head(x.mean(2).mean(0))
        return x, decisions


class TemporalChange(nn.Module):
    def forward(self, x):
        mean = torch.mean(x, dim=2)
        change = torch.abs(mean[1:] - mean[:-1]).mean(dim=0)
        return F.softmax(change.view(change.shape[0], -1), dim=1)


class LocalDifference(nn.Module):
    def __init__(self):
        super().__init__()
        self.cosine = nn.CosineSimilarity(dim=1, eps=1e-6)

    def forward(self, x):
        B, C = x.shape[1:3]
        x = torch.mean(x, dim=0)
        kernel = torch.ones(C, C, 3, 3, device=x.device) / 9.0
        around = F.conv2d(x, kernel, padding=1)
        return F.softmax(-self.cosine(x.view(B, C, -1), around.view(B, C, -1)), dim=1)


class KeptTokenBlock(nn.Module):
    """A block of the Spike-driven Transformer that computes only the tokens with the highest scores."""

    def __init__(self, dim, heads, ratio):
        super().__init__()
        self.ratio = ratio
        self.change, self.difference = TemporalChange(), LocalDifference()
        self.shortcut_lif, self.attn, self.mlp = lif(), TokenAttention(dim, heads), MembraneMLP(dim, 4 * dim)

    def forward(self, x):
        T, B, C, H, W = x.shape
        score = self.change(x) + self.difference(x)
        count = int(H * W * self.ratio)
        index = score.topk(count, dim=1).indices.unsqueeze(0).unsqueeze(2).expand(T, B, C, count)
        flat = x.flatten(3)
        kept = torch.gather(flat, 3, index)
        mixed = kept + self.attn(self.shortcut_lif(kept).transpose(-1, -2)).transpose(-1, -2)
        mixed = self.mlp(mixed.unsqueeze(-1)).squeeze(-1)
        return flat.scatter(3, index, mixed).reshape(T, B, C, H, W)


class TPSpikformer(nn.Module):
    def __init__(self, T=4, dim=32, heads=4, ratios=(0.75, 0.5), classes=10):
        super().__init__()
        self.T = T
        self.patch_embed = Stem(3, dim)
        self.block = nn.ModuleList(KeptTokenBlock(dim, heads, ratio) for ratio in ratios)
        self.head_lif, self.head = lif(), nn.Linear(dim, classes)

    def forward(self, x):
        x = (x.unsqueeze(0)).repeat(self.T, 1, 1, 1, 1)
        x = self.patch_embed(x)
        for block in self.block:
            x = block(x)
        x = self.head_lif(x.flatten(3).mean(3))
        return self.head(x).mean(0)


ZOO = {
    "sparsespikformer": Definition(SparseSpikformer, (3, 16, 16), "Liu et al., ICASSP 2024"),
    "tp-spikformer": Definition(TPSpikformer, (3, 32, 32), "arXiv:2603.00527, ICLR 2026"),
}
