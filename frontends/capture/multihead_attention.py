"""``nn.MultiheadAttention``, as the operations that it computes: projections, products by heads, and a softmax."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F

from svitc.errors import UnsupportedError
from svitc.frontends.capture.user_line import user_line

# arguments of PyTorch's function that must be left as they are -> the value that they have then
_UNUSED = {"bias_k": None, "bias_v": None, "add_zero_attn": False, "key_padding_mask": None, "attn_mask": None}
_UNUSED |= {"static_k": None, "static_v": None, "is_causal": False}
_NAMES = (
    *("query", "key", "value", "width", "heads", "weight", "bias", "bias_k", "bias_v", "add_zero_attn", "dropout_p"),
    *("out_weight", "out_bias", "training", "key_padding_mask", "need_weights", "attn_mask", "separate"),
    *("q_weight", "k_weight", "v_weight", "static_k", "static_v", "average_attn_weights", "is_causal"),
)
_RENAMED = {
    "embed_dim_to_check": "width",
    "num_heads": "heads",
    "in_proj_weight": "weight",
    "in_proj_bias": "bias",
    "out_proj_weight": "out_weight",
    "out_proj_bias": "out_bias",
    "use_separate_proj_weight": "separate",
    **{f"{name}_proj_weight": f"{name}_weight" for name in "qkv"},
}


def multi_head_attention(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Compute ``F.multi_head_attention_forward`` of sequences ``[length, batch, width]`` in inference.

    Returns:
        The attention's result ``[length, batch, width]``, and its weights ``[batch, length, keys]`` or None.

    Raises:
        UnsupportedError: There is a mask, or another argument that is not supported.
    """
    given = dict(zip(_NAMES, args, strict=False)) | {_RENAMED.get(k, k): v for k, v in kwargs.items()}
    used = [name for name, value in _UNUSED.items() if given.get(name, value) is not value]
    query = given["query"]
    if used or query.dim() != 3:
        what = f"with {', '.join(used)}" if used else f"of {query.dim()} dimensions"
        raise UnsupportedError(
            f"MultiheadAttention {what} is not supported",
            where=user_line(),
            hint="Write the products out, or use F.scaled_dot_product_attention, which takes a mask.",
        )
    heads, length, batch = given["heads"], query.shape[0], query.shape[1]
    q, k, v = (x.unflatten(-1, (heads, -1)).permute(1, 2, 0, 3) for x in _projected(given))
    if given.get("need_weights", True):
        scores = (q * math.sqrt(1.0 / float(q.shape[-1]))) @ k.transpose(-2, -1)
        weights = torch.softmax(scores, dim=-1)
        y = weights @ v
        weights = weights.mean(dim=1) if given.get("average_attn_weights", True) else weights
    else:
        y, weights = F.scaled_dot_product_attention(q, k, v), None
    y = y.permute(2, 0, 1, 3).reshape(length * batch, given["width"])
    y = F.linear(y, given["out_weight"], given["out_bias"])
    return y.reshape(length, batch, -1), weights


def _projected(given: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Return queries, keys and values, each of ``[length, batch, width]``."""
    query, key, value, weight, bias = (given[name] for name in ("query", "key", "value", "weight", "bias"))
    width = given["width"]
    biases = (None, None, None) if bias is None else tuple(bias.chunk(3))
    if given.get("separate", False):
        weights = (given["q_weight"], given["k_weight"], given["v_weight"])
    elif query is key and key is value:
        q, k, v = F.linear(query, weight, bias).chunk(3, -1)
        return q, k, v
    elif key is value:
        k, v = F.linear(key, weight[width:], None if bias is None else bias[width:]).chunk(2, -1)
        return F.linear(query, weight[:width], biases[0]), k, v
    else:
        weights = tuple(weight.chunk(3))
    q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
    return q, k, v


__all__ = ["multi_head_attention"]
