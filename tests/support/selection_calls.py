"""Calls that choose elements by their values, for ``support.calls``."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

STEPS, TOKENS, KEPT = 2, 36, 20


def score(s, x):
    """Return a score ``[N, tokens]`` of spikes ``[T, N, tokens, C]``, which two tokens never share."""
    return s.score(x.mean(0))[..., 0] + s.bias


def tokens_of(x):
    """Return spikes ``[T, N, C, H, W]`` as ``[T, N, tokens, C]``."""
    return x.flatten(3).transpose(2, 3)


def image_of(x):
    """Return the inverse of ``tokens_of``, of whichever number of tokens."""
    return x.transpose(2, 3).unflatten(3, (2, -1))


def gathered(s, x):
    x = tokens_of(x)
    index = score(s, x).topk(KEPT, dim=1).indices
    return image_of(x.gather(2, index[None, :, :, None].expand(STEPS, -1, -1, x.shape[3])))


def taken_along(s, x):
    x = tokens_of(x)
    rate = x.mean((0, 3))  # with many ties
    index = torch.sort(rate, dim=1, stable=True, descending=True).indices[:, :KEPT]
    return image_of(torch.take_along_dim(x, index[None, :, :, None], 2))


def counted_through_the_batch(s, x):
    x = tokens_of(x)
    index = score(s, x).argsort(dim=1, descending=True)[:, :KEPT]
    index = index.unsqueeze(0).repeat(STEPS, 1, 1).flatten(0, 1)
    offset = torch.arange(index.shape[0]).view(-1, 1) * TOKENS
    flat = x.reshape(-1, x.shape[3])[(index + offset).reshape(-1)]
    return image_of(flat.reshape(STEPS, -1, KEPT, x.shape[3]))


def rows_and_positions(s, x):
    x = tokens_of(x)
    index = score(s, x).topk(KEPT, dim=-1, largest=False)[1]
    return image_of(torch.stack([step[torch.arange(step.shape[0])[:, None], index] for step in x]))


def scattered(s, x):
    flat = tokens_of(x)
    index = score(s, flat).topk(KEPT, dim=1).indices[None, :, :, None].expand(STEPS, -1, -1, flat.shape[3])
    return x * 0.5 + flat.scatter(2, index, flat.gather(2, index) * 2).transpose(2, 3).unflatten(3, (6, 6))


def masked(s, x):
    flat = tokens_of(x)
    rate = score(s, flat)
    mask = torch.zeros_like(rate).scatter_(1, rate.topk(KEPT, dim=1).indices, 1.0)
    return (flat * mask[None, :, :, None]).transpose(2, 3).unflatten(3, (6, 6))


def best_alone(s, x):
    flat = tokens_of(x)
    best = score(s, flat).argmax(dim=1, keepdim=True)
    value, place = score(s, flat).max(dim=1, keepdim=True)
    lowest = score(s, flat).argmin(1)
    factor = (best + place).float() * 0.01 + value + lowest[:, None] * 0.02
    return x * factor[None, :, :, None, None].sigmoid()


def sorted_values(s, x):
    values, index = score(s, tokens_of(x)).sort(dim=1, descending=True)
    return x + (values + index.to(x.dtype) * 0.01)[None, :, None].unflatten(3, (6, 6))


def similar(s, x):
    flat = x.flatten(3)
    first = F.cosine_similarity(flat, s.w * flat.mean(3, keepdim=True), dim=2, eps=1e-6)
    second = nn.CosineSimilarity(dim=2)(flat, flat.mean(0, keepdim=True))
    return x * (first - second).unflatten(2, (6, 6)).unsqueeze(2)


SELECTIONS = {
    "topk and gather of tokens": gathered,
    "stable sort and take_along_dim": taken_along,
    "argsort, counted through the batch": counted_through_the_batch,
    "topk, rows and positions": rows_and_positions,
    "scatter of tokens": scattered,
    "mask of the best tokens": masked,
    "argmax, argmin, max(dim)": best_alone,
    "sort: values": sorted_values,
}
