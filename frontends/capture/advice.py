"""What to write instead of an operation that svitc cannot represent."""

from __future__ import annotations

_PARTS = "Compute with real and imaginary parts apart; a Fourier transform is a product with constant matrices."
_CHOICE = "Return the scores, and choose outside of the model; inside, a mask from a comparison can choose."
_SCATTER = "Put the parts together with torch.cat, or multiply with a constant matrix of zeros and ones."
_DYNAMIC = "Its size depends on the data; multiply by the mask, which keeps the shape."
_LOSS = "Compute losses outside of the model, or only while training (if self.training)."
_SOLVE = "Of parameters alone it is computed once, while capturing; of activations there is no form of it."
_FLOAT = "svitc compiles float32: cast only while training, or not at all."
_INTEGERS = "Cast with .long(), or leave the numbers as floats."
_LOOP = "Write a loop over the positions, with x[..., i], and stack the results."
_ADVICE = {
    **dict.fromkeys(("sort", "msort", "median", "nanmedian", "mode", "quantile", "kthvalue"), _CHOICE),
    **dict.fromkeys(("argmax", "argmin", "argsort", "topk", "unique", "searchsorted", "bucketize"), _CHOICE),
    **dict.fromkeys(("nonzero", "masked_select", "argwhere", "bincount", "histc"), _DYNAMIC),
    **dict.fromkeys(("scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy", "index_fill"), _SCATTER),
    **dict.fromkeys(("index_put", "put", "masked_scatter", "index_reduce"), _SCATTER),
    **dict.fromkeys(("complex", "view_as_real", "view_as_complex", "polar", "angle", "conj", "real", "imag"), _PARTS),
    **dict.fromkeys(("stft", "istft"), _PARTS),
    **dict.fromkeys(("half", "bfloat16"), _FLOAT),
    **dict.fromkeys(("byte", "short", "char"), _INTEGERS),
    **dict.fromkeys(("cumprod", "cummax", "cummin", "logcumsumexp"), _LOOP),
    **dict.fromkeys(("inverse", "det", "logdet", "slogdet", "pinverse", "svd", "qr", "cholesky", "matrix_exp"), _SOLVE),
    **dict.fromkeys(("cross_entropy", "mse_loss", "nll_loss", "l1_loss", "smooth_l1_loss", "kl_div"), _LOSS),
    **dict.fromkeys(("binary_cross_entropy", "binary_cross_entropy_with_logits", "cosine_embedding_loss"), _LOSS),
    "as_strided": "Write reshape, transpose, or x.unfold(dimension, size, step).",
    "nan_to_num": "Keep what is divided by away from 0 instead, as in x / (y + 1e-6).",
    **dict.fromkeys(("isnan", "isinf", "isfinite"), "Check values outside of the model, or in an assert."),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), "Write the cell and a loop over the steps."),
    "grid_sample": "With a grid that does not depend on the input, multiply with a constant matrix.",
}
_LIST = "svitc inspect --supported lists what is; rewrite the layer with those, or report it."


def advice(name: str) -> str:
    """Return what to write instead of an operation, by its name in a model's code."""
    if name.startswith("fft"):
        return _PARTS
    return _SOLVE if name.startswith("linalg_") else _ADVICE.get(name, _ADVICE.get(name.strip("_"), _LIST))


__all__ = ["advice"]
