"""What users call: the arguments are checked here, once for every backend."""

from typing import NoReturn

import torch
from torch import Tensor

from seqattn.kernels.arguments import check_float, check_kind, check_lengths, check_shape, check_tensors
from seqattn.kernels.backend import implementation

IMPLEMENTATIONS = {
    "reference": ("seqattn.kernels.time_attention.reference", "time_attention_reference"),
    "cpu": ("seqattn.kernels.time_attention.cpu", "time_attention_cpu"),
    "triton": ("seqattn.kernels.time_attention.triton", "time_attention_triton"),
}


def time_attention(
    query: Tensor, key: Tensor, values: Tensor, mask: Tensor, *, lengths: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """Attention of query times to the observations of every channel (mTAND, arXiv:2101.10318, equations 3 and 4).

    With scores S_l = query_i · key_l / √dim, which all channels share, and the rows l at which channel c was observed,

        out_ic = Σ_l exp(S_l) values_lc / Σ_l exp(S_l)     for every sample, query i and head

    A channel that was never observed in a sample is 0 there: published code averages its values over all rows, padding
    included, which is 0 too for values that are 0 where nothing was observed. The sums are two matrix products with
    one exponential for all channels, exact for scores of any range; scores of every channel never lie in memory.

    Args:
        query: (queries, heads, dim), the same for all samples: float64, float32, bfloat16 or float16.
        key: (batch, length, heads, dim), of query's dtype.
        values: (batch, length, channels), of query's dtype or float32 (float64 beside float64 only).
        mask: (batch, length, channels) of any real dtype, not 0 where a value was observed. What values hold elsewhere,
            and keys of rows without any observation, change nothing, NaN included.
        lengths: (batch,) integers in [0, length]; rows past an end count as unobserved.
        backend: "auto", "reference", "cpu" or "triton"; see `seqattn.kernels.use_backend`.

    Arithmetic is in float64 for float64 and in float32 otherwise. Differentiable in query, key and values. NaN in an
    observed value stays in its sample and channel, NaN in a key in its sample and head.

    Returns:
        (batch, queries, heads, channels) in query's dtype.

    Raises:
        ValueError: shapes, devices, dtypes, lengths or backend do not fit; the message names the argument.
        NotImplementedError: a kernel is asked for a derivative in forward mode (`torch.func.jvp`).
    """
    _check_arguments(query, key, values, mask)
    if lengths is not None:
        check_lengths(lengths, "key", key, key.shape[1], _fail)
    attend = implementation("time_attention", IMPLEMENTATIONS, backend, query, key, values)
    observed = mask.bool()
    if lengths is not None:
        observed = observed & (torch.arange(key.shape[1], device=key.device) < lengths[:, None])[..., None]
    with torch.autocast(query.device.type, enabled=False):  # which would compute products of float32 in half precision
        out, *_ = attend(query, key, values, observed)
    return out.to(query.dtype)


def _check_arguments(query: Tensor, key: Tensor, values: Tensor, mask: Tensor) -> None:
    check_tensors(_fail, query=query, key=key, values=values, mask=mask)
    if query.ndim != 3 or query.shape[2] < 1:
        _fail(f"query has shape {tuple(query.shape)}: it must be (queries, heads, dim) with dim at least 1")
    check_float("query", query, _fail)
    if key.ndim != 4 or key.shape[2:] != query.shape[1:]:
        _fail(f"key has shape {tuple(key.shape)}: it must be {('batch', 'length', *query.shape[1:])} to go with query")
    if values.ndim != 3 or values.shape[:2] != key.shape[:2]:
        _fail(f"values has shape {tuple(values.shape)}: it must be {(*key.shape[:2], 'channels')} to go with key")
    check_shape("mask", mask, values.shape, "values", _fail)
    check_kind("key", key, "query", query, True, _fail)
    check_kind("values", values, "query", query, False, _fail)
    if mask.device != query.device:
        _fail(f"mask is on {mask.device}, query on {query.device}: move them to one device")
    if mask.dtype.is_complex:
        _fail(f"mask is {mask.dtype}: it must be bool, or real numbers that are not 0 where a value was observed")


def _fail(message: str) -> NoReturn:
    raise ValueError(f"time_attention: {message}")
