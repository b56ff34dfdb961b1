"""Networks with several outputs and dense maps: detection, segmentation, U-Net.

SpikeYOLO: Luo et al., "Integer-Valued Training and Spike-Driven Inference Spiking Neural Network for High-performance
and Energy-efficient Object Detection", ECCV 2024. Here: I-LIF, blocks of separable and plain convolutions, a neck that
upsamples and concatenates, and a head that returns boxes and class scores per scale.

Spike2Former: Lei et al., "Spike2Former: Efficient Spiking Transformer for High-performance Image Segmentation", AAAI
2025. Here: NI-LIF, a pixel decoder, and a decoder of learned queries that returns a dictionary of classes and masks.

Spiking U-Net: Li et al., "Deep multi-threshold spiking-UNet for image processing", Neurocomputing 2024. Here: LIF,
transposed convolutions, skips by concatenation, and a map of classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .definition import Definition
from .layers import ConvNorm, lif
from .neurons import IntegerLIF, NormalizedIntegerLIF


class SpikeConv(nn.Module):
    """Neuron, convolution and norm, with a membrane shortcut where the shape stays."""

    def __init__(self, width_in, width_out, kernel=3, stride=1, spike=IntegerLIF):
        super().__init__()
        self.lif, self.conv = spike(), ConvNorm(width_in, width_out, kernel, stride)
        self.residual = width_in == width_out and stride == 1

    def forward(self, x):
        y = self.conv(self.lif(x))
        return x + y if self.residual else y


class SeparableBlock(nn.Module):
    def __init__(self, dim, spike=IntegerLIF):
        super().__init__()
        self.lif1, self.pw1 = spike(), ConvNorm(dim, 2 * dim)
        self.lif2, self.dw = spike(), ConvNorm(2 * dim, 2 * dim, 7, groups=2 * dim)
        self.lif3, self.pw2 = spike(), ConvNorm(2 * dim, dim)
        self.conv1, self.conv2 = SpikeConv(dim, 4 * dim, spike=spike), SpikeConv(4 * dim, dim, spike=spike)

    def forward(self, x):
        x = x + self.pw2(self.lif3(self.dw(self.lif2(self.pw1(self.lif1(x))))))
        return x + self.conv2(self.conv1(x))


class Head(nn.Module):
    """Boxes as distributions over distances, and class scores, per scale."""

    def __init__(self, widths, classes, bins=4):
        super().__init__()
        self.bins = bins
        self.box = nn.ModuleList(nn.Sequential(SpikeConv(w, 16), SpikeConv(16, 4 * bins, 1)) for w in widths)
        self.cls = nn.ModuleList(nn.Sequential(SpikeConv(w, 16), SpikeConv(16, classes, 1)) for w in widths)
        self.register_buffer("distance", torch.arange(bins, dtype=torch.float))

    def forward(self, features):
        maps = [
            torch.cat((box(x), cls(x)), 2).mean(0) for x, box, cls in zip(features, self.box, self.cls, strict=True)
        ]
        flat = torch.cat([m.flatten(2) for m in maps], 2)
        box, cls = flat.split((4 * self.bins, flat.shape[1] - 4 * self.bins), 1)
        B, _, anchors = box.shape
        box = box.view(B, 4, self.bins, anchors).softmax(2)
        box = torch.einsum("bkna,n->bka", box, self.distance)
        return torch.cat((box, cls.sigmoid()), 1), maps


class SpikeYOLO(nn.Module):
    def __init__(self, T=2, dim=16, classes=4):
        super().__init__()
        self.T = T
        self.stem = ConvNorm(3, dim, 7, 2)
        self.stage1, self.down2 = SeparableBlock(dim), SpikeConv(dim, 2 * dim, stride=2)
        self.stage2, self.down3 = SeparableBlock(2 * dim), SpikeConv(2 * dim, 2 * dim, stride=2)
        self.stage3, self.lateral = SeparableBlock(2 * dim), SpikeConv(2 * dim, dim, 1)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.merge = SpikeConv(3 * dim, dim)
        self.detect = Head((dim, 2 * dim), classes)

    def forward(self, x):
        x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        p2 = self.stage2(self.down2(self.stage1(self.stem(x))))
        p3 = self.stage3(self.down3(p2))
        T, B, _, H, W = p3.shape
        top = self.lateral(p3)
        top = self.up(top.flatten(0, 1)).reshape(T, B, -1, 2 * H, 2 * W)
        return self.detect([self.merge(torch.cat([top, p2], dim=2)), p3])


class QueryAttention(nn.Module):
    """Attention of queries ``[T, B, Q, C]`` over tokens ``[T, B, N, C]``, without softmax."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.q_in, self.q, self.q_lif = NormalizedIntegerLIF(), nn.Linear(dim, dim), NormalizedIntegerLIF()
        self.kv_in, self.k, self.v = NormalizedIntegerLIF(), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.k_lif, self.v_lif, self.attn_lif = (NormalizedIntegerLIF() for _ in range(3))
        self.proj, self.norm = nn.Linear(dim, dim), nn.LayerNorm(dim)

    def split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(2, 3)

    def forward(self, queries, tokens):
        q = self.split(self.q_lif(self.q(self.q_in(queries))))
        tokens = self.kv_in(tokens)
        k, v = self.split(self.k_lif(self.k(tokens))), self.split(self.v_lif(self.v(tokens)))
        x = torch.einsum("tbhqn,tbhnd->tbhqd", torch.einsum("tbhqd,tbhnd->tbhqn", q, k) * self.scale, v)
        x = self.attn_lif(x.transpose(2, 3).flatten(3))
        return self.norm(queries + self.proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.cross, self.self_attn = QueryAttention(dim, heads), QueryAttention(dim, heads)
        self.ffn = nn.Sequential(
            NormalizedIntegerLIF(), nn.Linear(dim, 2 * dim), NormalizedIntegerLIF(), nn.Linear(2 * dim, dim)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, queries, tokens, position):
        queries = self.cross(queries + position, tokens)
        queries = self.self_attn(queries + position, queries + position)
        return self.norm(queries + self.ffn(queries))


class Spike2Former(nn.Module):
    def __init__(self, T=2, dim=32, heads=4, queries=16, layers=2, classes=5):
        super().__init__()
        self.T = T
        self.stem = ConvNorm(3, dim // 2, 7, 2)
        self.stage1 = SeparableBlock(dim // 2, NormalizedIntegerLIF)
        self.down = SpikeConv(dim // 2, dim, stride=2, spike=NormalizedIntegerLIF)
        self.stage2 = SeparableBlock(dim, NormalizedIntegerLIF)
        self.lateral = SpikeConv(dim // 2, dim, 1, spike=NormalizedIntegerLIF)
        self.mask_features = SpikeConv(dim, dim, 3, spike=NormalizedIntegerLIF)
        self.query_feature, self.query_embed = nn.Embedding(queries, dim), nn.Embedding(queries, dim)
        self.level_embed = nn.Parameter(torch.randn(1, dim) * 0.5)
        self.layers = nn.ModuleList(DecoderLayer(dim, heads) for _ in range(layers))
        self.cls_lif, self.class_embed = NormalizedIntegerLIF(), nn.Linear(dim, classes + 1)
        self.mask_embed = nn.Sequential(NormalizedIntegerLIF(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.apply(self.init_weights)

    def init_weights(self, module):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.7)

    def predict(self, queries, features):
        classes = self.class_embed(self.cls_lif(queries)).mean(0)
        masks = torch.einsum("tbqc,tbchw->tbqhw", self.mask_embed(queries), features).mean(0)
        return classes, masks

    def forward(self, x):
        x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        T, B = x.shape[:2]
        fine = self.stage1(self.stem(x))
        coarse = self.stage2(self.down(fine))
        up = F.interpolate(coarse.flatten(0, 1), scale_factor=2, mode="bilinear", align_corners=False)
        features = self.mask_features(self.lateral(fine) + up.unflatten(0, (T, B)))
        tokens = coarse.flatten(3).transpose(2, 3) + self.level_embed[0]
        queries = self.query_feature.weight.expand(T, B, -1, -1)
        position = self.query_embed.weight.expand(T, B, -1, -1)
        outputs = []
        for layer in self.layers:
            queries = layer(queries, tokens, position)
            outputs.append(self.predict(queries, features))
        classes, masks = outputs[-1]
        return {
            "pred_logits": classes,
            "pred_masks": masks,
            "aux_outputs": [{"pred_logits": a, "pred_masks": b} for a, b in outputs[:-1]],
        }


class DoubleConv(nn.Module):
    def __init__(self, width_in, width_out):
        super().__init__()
        self.conv1, self.lif1 = ConvNorm(width_in, width_out, 3), lif()
        self.conv2, self.lif2 = ConvNorm(width_out, width_out, 3), lif()

    def forward(self, x):
        return self.lif2(self.conv2(self.lif1(self.conv1(x))))


class Up(nn.Module):
    def __init__(self, width_in, width_out):
        super().__init__()
        self.up, self.bn, self.lif = nn.ConvTranspose2d(width_in, width_out, 2, 2), nn.BatchNorm2d(width_out), lif()
        self.conv = DoubleConv(2 * width_out, width_out)

    def forward(self, x, skip):
        T, B, _, H, W = x.shape
        x = self.lif(self.bn(self.up(x.flatten(0, 1))).view(T, B, -1, 2 * H, 2 * W))
        dy, dx = skip.size(3) - x.size(3), skip.size(4) - x.size(4)
        x = F.pad(x, (dx // 2, dx - dx // 2, dy // 2, dy - dy // 2))
        return self.conv(torch.cat([skip, x], dim=2))


class SpikingUNet(nn.Module):
    def __init__(self, T=4, dim=16, classes=5):
        super().__init__()
        self.T = T
        self.inc, self.down1, self.down2 = DoubleConv(3, dim), DoubleConv(dim, 2 * dim), DoubleConv(2 * dim, 4 * dim)
        self.pool = nn.MaxPool2d(2)
        self.up1, self.up2 = Up(4 * dim, 2 * dim), Up(2 * dim, dim)
        self.outc = nn.Conv2d(dim, classes, 1)

    def halve(self, x):
        T, B, C, H, W = x.shape
        return self.pool(x.flatten(0, 1)).view(T, B, C, H // 2, W // 2)

    def forward(self, x):
        x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        x1 = self.inc(x)
        x2 = self.down1(self.halve(x1))
        x = self.down2(self.halve(x2))
        x = self.up2(self.up1(x, x2), x1)
        return self.outc(x.mean(0))


ZOO = {
    "spikeyolo": Definition(SpikeYOLO, (3, 32, 32), "Luo et al., ECCV 2024"),
    "spike2former": Definition(Spike2Former, (3, 32, 32), "Lei et al., AAAI 2025"),
    "spiking-unet": Definition(SpikingUNet, (3, 16, 16), "Li et al., Neurocomputing 2024"),
}
