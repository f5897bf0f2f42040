"""What users call: the arguments are checked here, once for every backend."""

from numbers import Integral
from typing import NoReturn

import torch
from torch import Tensor

from seqattn.kernels.arguments import check_float, check_kind, check_lengths, check_shape, check_tensors
from seqattn.kernels.backend import implementation
from seqattn.kernels.wersa.step import wersa_step

FEATURE_MAPS = ("relu", "exp")
MAX_LEVELS = 40
"""More than any sequence needs; strides of 2^levels rows still are int64."""
IMPLEMENTATIONS = {
    "reference": ("seqattn.kernels.wersa.reference", "wersa_attention_reference"),
    "cpu": ("seqattn.kernels.wersa.cpu", "wersa_attention_cpu"),
    "triton": ("seqattn.kernels.wersa.triton", "wersa_attention_triton"),
}


def wersa_attention(
    q: Tensor, k: Tensor, v: Tensor, gains: Tensor, proj_q: Tensor, proj_k: Tensor | None = None, *, levels: int,
    feature_map: str = "relu", bandwidth: Tensor | None = None, causal: bool = False, lengths: Tensor | None = None,
    eps: float = 1e-6, backend: str = "auto",
) -> Tensor:  # fmt: skip
    """Wavelet-enhanced random-feature attention (WERSA, arXiv:2507.08637): cost and memory linear in length.

    q and k are filtered along their length, every Haar band (see `haar_transform`) multiplied by its gain; with the
    features phi of the filtered tokens,

        out_i = Σ_j phi(q_i)·phi(k_j) v_j / (Σ_j phi(q_i)·phi(k_j) + eps)

    summed over all tokens, or with `causal` over j ≤ i. `feature_map="relu"` is phi(x) = max(0, x R / b) / √m, whose
    products tend to the arc-cosine kernel as m grows where R is shared; independent matrices for q and k have no
    dependence on content in that limit. `feature_map="exp"` is phi(x) = exp(x R / b - |x|² / 2b²) / √m, whose limit,
    for R of standard normal entries, is softmax attention with scale 1 / b². Features never lie in memory.

    Args:
        q, k: (batch, heads, length, dim), one dtype: float64, float32, bfloat16 or float16. v: (…, value_dim).
        gains: (batch, length, levels + 1), per token, or (batch, levels + 1) for whole sequences: detail levels,
            finest first, then the approximation. Coefficient j of level l takes the gain of token j 2^l, the first of
            the block it covers.
        proj_q, proj_k: R of queries and keys, (dim, features); proj_k None means one for both.
        levels: of the filter, 1 to 40; it mixes tokens within aligned blocks of 2^levels. Levels beyond the length
            cost next to nothing, and only scale the mean.
        bandwidth: b, a positive scalar tensor; None means 1. With "relu" it cancels up to eps.
        causal: attend to tokens up to one's own, and filter with the undecimated transform of the last 2^l tokens,
            with gains of every token.
        lengths: (batch,) integers in [0, length]. What lies past an end changes nothing; out is 0 there.
        eps: added to the normaliser of "relu" only; that of "exp" is kept above 1e-30.
        backend: "auto", "reference", "cpu" or "triton"; see `seqattn.kernels.use_backend`.

    gains, proj_q, proj_k and bandwidth are of q's dtype or float32 (float64 beside float64 only). Arithmetic is in
    float64 for float64 and in float32 otherwise. Differentiable in every floating argument, in forward mode by the
    reference only. NaN stays in its own sequence and head.

    Returns:
        (batch, heads, length, value_dim) in q's dtype.

    Raises:
        ValueError: shapes, devices, dtypes, lengths, levels or backend do not fit, or gains of whole sequences are
            given with `causal`; the message names the argument.
        NotImplementedError: a kernel is asked for a derivative in forward mode (`torch.func.jvp`).
    """
    _check_arguments(q, k, v, gains, proj_q, proj_k, bandwidth, levels, feature_map, causal)
    if lengths is not None:
        check_lengths(lengths, "q", q, q.shape[2], _fail)
    attend = implementation("wersa_attention", IMPLEMENTATIONS, backend, q, k, v, gains, proj_q, proj_k, bandwidth)
    with torch.autocast(q.device.type, enabled=False):  # which would compute products of float32 in half precision
        out, *_ = attend(
            q, k, v, gains, proj_q, proj_k, bandwidth, lengths, int(levels), feature_map, causal, float(eps)
        )
    return out.to(q.dtype)


def wersa_attention_step(
    state: dict[str, Tensor] | None, q: Tensor, k: Tensor, v: Tensor, gains: Tensor, proj_q: Tensor,
    proj_k: Tensor | None = None, *, levels: int, feature_map: str = "relu", bandwidth: Tensor | None = None,
    eps: float = 1e-6,
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    """The next tokens of a causal stream: (out, new state), what `wersa_attention(causal=True)` gives there.

    Args:
        state: as the previous call returned it, None at the start: plain tensors, to keep, save and resume from; per
            head features · (value_dim + 1) sums, and the last 2^levels - 1 rows of q and k, or as many as there were.
        q, k, v: (batch, heads, tokens, dim), any number of tokens. gains: (batch, tokens, levels + 1).
        Others: as in `wersa_attention`.

    Raises:
        ValueError: as `wersa_attention`, or the state was made by a call with other shapes, levels or feature_map.
    """
    _check_arguments(q, k, v, gains, proj_q, proj_k, bandwidth, levels, feature_map, causal=True)
    with torch.autocast(q.device.type, enabled=False):
        return wersa_step(state, q, k, v, gains, proj_q, proj_k, bandwidth, int(levels), feature_map, float(eps))


def _check_arguments(
    q: Tensor, k: Tensor, v: Tensor, gains: Tensor, proj_q: Tensor, proj_k: Tensor | None, bandwidth: Tensor | None,
    levels: int, feature_map: str, causal: bool,
) -> None:  # fmt: skip
    named = {
        "q": q, "k": k, "v": v, "gains": gains, "proj_q": proj_q, "proj_k": proj_k, "bandwidth": bandwidth
    }  # fmt: skip
    given = {name: tensor for name, tensor in named.items() if tensor is not None}
    check_tensors(_fail, **given)
    if q.ndim != 4:
        _fail(f"q has shape {tuple(q.shape)}: it must be (batch, heads, length, dim)")
    check_float("q", q, _fail)
    if isinstance(levels, bool) or not isinstance(levels, Integral) or not 1 <= levels <= MAX_LEVELS:
        _fail(f"levels is {levels}: it must be an integer from 1 to {MAX_LEVELS}")
    if feature_map not in FEATURE_MAPS:
        _fail(f"feature_map is {feature_map!r}: it must be one of {', '.join(FEATURE_MAPS)}")
    batch, _, length, dim = q.shape
    check_shape("k", k, q.shape, "q and levels", _fail)
    if v.ndim != 4 or v.shape[:3] != q.shape[:3]:
        _fail(f"v has shape {tuple(v.shape)}: it must be {(*q.shape[:3], 'value_dim')} to go with q")
    if causal and gains.ndim == 2:
        _fail(
            f"gains has shape {tuple(gains.shape)}: gains of a whole sequence depend on its future, so causal needs "
            f"one per token, {(batch, length, levels + 1)}"
        )
    check_shape(
        "gains", gains, (batch, levels + 1) if gains.ndim == 2 else (batch, length, levels + 1), "q and levels", _fail
    )
    if proj_q.ndim != 2 or proj_q.shape[0] != dim or proj_q.shape[1] < 1:
        _fail(f"proj_q has shape {tuple(proj_q.shape)}: it must be ({dim}, features) with at least 1 feature")
    if proj_k is not None:
        check_shape("proj_k", proj_k, proj_q.shape, "q and levels", _fail)
    if bandwidth is not None:
        check_shape("bandwidth", bandwidth, (), "q and levels", _fail)
    for name, tensor in given.items():
        check_kind(name, tensor, "q", q, name in ("q", "k", "v"), _fail)


def _fail(message: str) -> NoReturn:
    raise ValueError(f"wersa_attention: {message}")
