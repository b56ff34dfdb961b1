"""Spiking Wavelet Transformer: Fang et al., "Spiking Wavelet Transformer", ECCV 2024. Tokens are mixed by a Haar
transform of spikes of both signs, a learned product per block of channels (einsum) and convolutions beside it."""

from __future__ import annotations

import torch
from torch import nn

from .definition import Definition
from .layers import MembraneMLP, Stem, lif
from .neurons import SignedIF


def haar_matrix(size):
    """Return the orthonormal Haar matrix; the size is a power of 2."""
    if size == 1:
        return torch.ones(1, 1)
    averages = torch.kron(haar_matrix(size // 2), torch.tensor([1.0, 1.0]))
    differences = torch.kron(torch.eye(size // 2), torch.tensor([1.0, -1.0]))
    matrix = torch.vstack((averages, differences))
    return matrix / torch.linalg.norm(matrix, dim=1, keepdim=True)


class HaarForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.column_neuron = SignedIF()

    def build(self, size, device):
        self.H = haar_matrix(size).to(device)

    def forward(self, x):
        x = torch.matmul(x, self.H.T)
        return torch.matmul(self.H, self.column_neuron(x))


class HaarInverse(nn.Module):
    def __init__(self):
        super().__init__()
        self.row_neuron, self.column_neuron = SignedIF(), SignedIF()

    def build(self, size, device):
        self.H = haar_matrix(size).to(device)

    def forward(self, x):
        x = torch.matmul(self.row_neuron(x), self.H)
        return torch.matmul(self.H.T, self.column_neuron(x))


class FrequencyMixer(nn.Module):
    def __init__(self, dim, blocks):
        super().__init__()
        self.blocks, self.block_size = blocks, dim // blocks
        self.built = False
        self.x_neuron, self.haar_neuron = lif(), lif()
        self.haar_forward, self.haar_inverse = HaarForward(), HaarInverse()
        self.forward_bn, self.multiply_bn, self.inverse_bn = (nn.BatchNorm2d(dim) for _ in range(3))
        self.haar_weight = nn.Parameter(0.5 * torch.randn(blocks, self.block_size, self.block_size))
        self.conv1 = nn.Conv2d(self.block_size, self.block_size, 1)
        self.conv2 = nn.Conv2d(self.block_size, self.block_size, 3, padding=1)
        self.conv1_bn, self.conv2_bn = nn.BatchNorm2d(dim), nn.BatchNorm2d(dim)

    def forward(self, x):
        T, B, C, H, W = x.shape
        if not self.built:
            self.haar_forward.build(H, x.device)
            self.haar_inverse.build(H, x.device)
            self.built = True
        x = self.x_neuron(x)
        haar = self.haar_forward(x)
        haar = self.forward_bn(haar.flatten(0, 1).contiguous()).reshape(T, B, C, H, W).contiguous()
        haar = self.haar_neuron(haar)
        haar = haar.reshape(T * B, self.blocks, self.block_size, H, W).permute(0, 3, 4, 1, 2).contiguous()
        haar = torch.einsum("...bd,bdk->...bk", haar, self.haar_weight)
        haar = haar.reshape(T * B, H, W, C).permute(0, 3, 1, 2).contiguous()
        haar = self.multiply_bn(haar).reshape(T, B, C, H, W).contiguous()
        haar = self.haar_inverse(haar)
        haar = self.inverse_bn(haar.reshape(T * B, C, H, W)).reshape(T, B, C, H, W).contiguous()
        x = x.reshape(T * B * self.blocks, self.block_size, H, W).contiguous()
        conv1 = self.conv1_bn(self.conv1(x).reshape(T * B, -1, H, W)).reshape(T, B, -1, H, W).contiguous()
        conv2 = self.conv2_bn(self.conv2(x).reshape(T * B, -1, H, W)).reshape(T, B, -1, H, W).contiguous()
        return haar + conv1 + conv2


class Block(nn.Module):
    def __init__(self, dim, blocks):
        super().__init__()
        self.mixer, self.mlp = FrequencyMixer(dim, blocks), MembraneMLP(dim, 4 * dim)

    def forward(self, x):
        x = x + self.mixer(x)
        return self.mlp(x)


class SWformer(nn.Module):
    def __init__(self, T=4, dim=32, blocks=4, depth=2, classes=10):
        super().__init__()
        self.T = T
        self.patch_embed = Stem(3, dim)
        self.block = nn.ModuleList(Block(dim, blocks) for _ in range(depth))
        self.head_lif, self.head = lif(), nn.Linear(dim, classes)

    def forward(self, x):
        x = (x.unsqueeze(0)).repeat(self.T, 1, 1, 1, 1)
        x = self.patch_embed(x)
        for block in self.block:
            x = block(x)
        x = self.head_lif(x).flatten(3).mean(3)
        return self.head(x.mean(0))


ZOO = {"swformer": Definition(SWformer, (3, 16, 16), "Fang et al., ECCV 2024")}
