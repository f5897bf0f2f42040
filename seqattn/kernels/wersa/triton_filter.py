"""The wavelet filter in Triton: a band matrix made from gains, times a tile of tokens.

M_l is the mean over a token's block of 2^l tokens, or causally over the last 2^l. The filter is Σ_l α_l M_l: α_0 is the
gain of level 1, α_l that of level l + 1 less that of level l, and the last the approximation's less that of level L. A
tile has at least 2^levels tokens, so that aligned blocks lie inside, and causal ones reach into the tile before.
"""
# mypy: disallow-untyped-defs=False

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from seqattn.kernels.wersa.haar import haar_transform
from seqattn.kernels.wersa.reference import filter_tokens

TOKENS = 64
"""Tokens of a tile; a filter of larger blocks runs in PyTorch."""
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def multiply(left, right, ACC: tl.constexpr):
    """The matrix product, summed in ACC."""
    if INTERPRETED:  # NumPy would multiply the bits of bfloat16
        left, right = left.to(ACC), right.to(ACC)
    return tl.dot(left, right, input_precision="ieee", out_dtype=ACC)


@triton.jit
def multiply_sums(left, sums, KIND: tl.constexpr, ACC: tl.constexpr):
    """left, in KIND, times sums in ACC.

    What gradients come to is a small difference of such products wherever values have a mean: bfloat16 takes two terms.
    """
    high = sums.to(KIND)
    product = multiply(left, high, ACC)
    if KIND != ACC:
        product += multiply(left, (sums - high.to(ACC)).to(KIND), ACC)
    return product


@triton.jit
def load_tile(p_x, i_row, o_t, length, dim, BD: tl.constexpr):
    """(BT, BD) of row i_row of (rows, length, dim), zeros outside."""
    o_c = tl.arange(0, BD)
    mask = ((o_t >= 0) & (o_t < length))[:, None] & (o_c < dim)[None, :]
    return tl.load(p_x + (i_row * length + o_t[:, None]) * dim + o_c[None, :], mask=mask, other=0)


@triton.jit
def load_gain(p_gains, i_b, o_t, length, bands, band, block, CAUSAL: tl.constexpr):
    """The gain of a band for tokens o_t: their own, or that of the first token of their block."""
    at = o_t if CAUSAL else o_t // block * block
    return tl.load(p_gains + (i_b * length + at) * bands + band, mask=(o_t >= 0) & (o_t < length), other=0)


@triton.jit
def member(o_t, o_s, block, CAUSAL: tl.constexpr):
    """(tokens t, tokens s): whether s counts for the mean at t."""
    if CAUSAL:
        behind = o_t[:, None] - o_s[None, :]
        return (behind >= 0) & (behind < block)
    return o_t[:, None] // block == o_s[None, :] // block


@triton.jit
def band_matrix(
    p_gains, i_b, o_t, o_s, length, ACC: tl.constexpr, LEVELS: tl.constexpr, CAUSAL: tl.constexpr
):  # fmt: skip
    """(t, s): how token s enters the filtered token t."""
    bands: tl.constexpr = LEVELS + 1
    previous = load_gain(p_gains, i_b, o_t, length, bands, 0, 2, CAUSAL).to(ACC)
    matrix = tl.where(o_t[:, None] == o_s[None, :], previous[:, None], 0.0).to(ACC)
    for level in tl.static_range(1, LEVELS + 1):
        block = 2**level
        coarser = 2 * block if level < LEVELS else block
        gain = load_gain(p_gains, i_b, o_t, length, bands, level, coarser, CAUSAL).to(ACC)
        share = ((gain - previous) / block)[:, None]
        matrix += tl.where(member(o_t, o_s, block, CAUSAL), share, 0.0).to(ACC)
        previous = gain
    return matrix


@triton.jit
def filter_kernel(
    p_x, p_gains, p_out, heads, length, dim, LEVELS: tl.constexpr, CAUSAL: tl.constexpr, ADJOINT: tl.constexpr,
    ACC: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """out = the filter of x, or its adjoint."""
    i_row, i_t = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i_b = i_row // heads
    o_t = i_t * BT + tl.arange(0, BT)
    out = tl.zeros((BT, BD), ACC)
    for neighbour in tl.static_range(2 if CAUSAL else 1):
        o_s = o_t + (neighbour * BT if ADJOINT else -neighbour * BT)
        x = load_tile(p_x, i_row, o_s, length, dim, BD).to(ACC)
        if ADJOINT:
            matrix = tl.trans(band_matrix(p_gains, i_b, o_s, o_t, length, ACC, LEVELS, CAUSAL))
        else:
            matrix = band_matrix(p_gains, i_b, o_t, o_s, length, ACC, LEVELS, CAUSAL)
        out += multiply(matrix, x, ACC)
    o_c = tl.arange(0, BD)
    mask = (o_t < length)[:, None] & (o_c < dim)[None, :]
    place = (i_row * length + o_t[:, None]) * dim + o_c[None, :]
    tl.store(p_out + place, out.to(p_out.dtype.element_ty), mask=mask)


@triton.jit
def gain_kernel(
    p_x, p_grad, p_out, length, dim, LEVELS: tl.constexpr, CAUSAL: tl.constexpr, ACC: tl.constexpr, BT: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """out (rows, length, levels + 1): the product of each token's gradient with its bands."""
    i_row, i_t = tl.program_id(0).to(tl.int64), tl.program_id(1)
    o_t = i_t * BT + tl.arange(0, BT)
    x = load_tile(p_x, i_row, o_t, length, dim, BD).to(ACC)
    grad = load_tile(p_grad, i_row, o_t, length, dim, BD).to(ACC)
    before = load_tile(p_x, i_row, o_t - BT, length, dim, BD).to(ACC)
    place = p_out + (i_row * length + o_t) * (LEVELS + 1)
    finer = x
    for level in tl.static_range(1, LEVELS + 1):
        block = 2**level
        own = tl.where(member(o_t, o_t, block, CAUSAL), 1.0 / block, 0.0).to(ACC)
        mean = multiply(own, x, ACC)
        if CAUSAL:
            earlier = tl.where(member(o_t, o_t - BT, block, CAUSAL), 1.0 / block, 0.0).to(ACC)
            mean += multiply(earlier, before, ACC)
        tl.store(place + level - 1, tl.sum((finer - mean) * grad, 1), mask=o_t < length)
        finer = mean
    tl.store(place + LEVELS, tl.sum(finer * grad, 1), mask=o_t < length)


def filtered(x: Tensor, gains: Tensor, causal: bool) -> Tensor:
    """The filter of x (batch, heads, length, dim), contiguous; gains (batch, length, levels + 1), contiguous."""
    if 2 ** (gains.shape[2] - 1) > TOKENS:
        return filter_tokens(x.to(gains.dtype), gains, causal).to(x.dtype).contiguous()
    out = torch.empty_like(x)
    _launch(filter_kernel, x, gains, causal, x, gains, out, x.shape[1], *x.shape[2:], ADJOINT=False)
    return out


def filter_gradient(grad: Tensor, x: Tensor, gains: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """The gradients of x, in the dtype of gains, and of gains from that of the filtered x, contiguous."""
    if 2 ** (gains.shape[2] - 1) > TOKENS:
        return _gradient_in_pytorch(grad.to(gains.dtype), x.to(gains.dtype), gains, causal)
    out = torch.empty_like(x, dtype=gains.dtype)
    _launch(filter_kernel, x, gains, causal, grad, gains, out, x.shape[1], *x.shape[2:], ADJOINT=True)
    products = gains.new_empty(*x.shape[:3], gains.shape[2])
    _launch(gain_kernel, x, gains, causal, x, grad, products, *x.shape[2:])
    return out, products.sum(1) if causal else _to_first_tokens(products.sum(1))


def _launch(kernel, like: Tensor, gains: Tensor, causal: bool, *arguments, **constants) -> None:
    batch, heads, length, dim = like.shape
    levels = gains.shape[2] - 1
    tokens = max(16, 2**levels)
    grid = (batch * heads, triton.cdiv(length, tokens))
    kernel[grid](
        *arguments, LEVELS=levels, CAUSAL=causal, ACC=tl.float64 if gains.dtype == torch.float64 else tl.float32,
        BT=tokens, BD=max(16, triton.next_power_of_2(dim)), **constants,
    )  # fmt: skip


def _to_first_tokens(products: Tensor) -> Tensor:
    """(batch, length, levels + 1): what a block's tokens hold, at its first token."""
    levels, length = products.shape[2] - 1, products.shape[1]
    out = torch.zeros_like(products)
    for band in range(levels + 1):
        block = 2 ** min(band + 1, levels)
        padded = torch.nn.functional.pad(products[..., band], (0, -length % block))
        out[:, ::block, band] = padded.unflatten(1, (-1, block)).sum(-1)
    return out


def _gradient_in_pytorch(grad: Tensor, x: Tensor, gains: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """`filter_gradient` for blocks that outgrow a tile."""
    of_gains, levels = torch.zeros_like(gains), gains.shape[2] - 1
    if not causal:
        for band, pair in enumerate(zip(haar_transform(x, levels), haar_transform(grad, levels), strict=True)):
            of_gains[:, :: 2 ** min(band + 1, levels), band] = (pair[0] * pair[1]).sum((1, 3))
        return filter_tokens(grad, gains, causal).contiguous(), of_gains
    mean = x
    for level in range(levels):
        finer, mean = mean, (mean + _shifted(mean, 2**level)) / 2
        of_gains[..., level] = ((finer - mean) * grad).sum((1, 3))
    of_gains[..., levels] = (mean * grad).sum((1, 3))
    shares = torch.diff(gains, dim=2, prepend=torch.zeros_like(gains[..., :1]))[:, None, ..., None]
    of_mean = shares[..., levels, :] * grad
    for level in range(levels - 1, -1, -1):
        of_mean = (of_mean + _shifted(of_mean, -(2**level))) / 2 + shares[..., level, :] * grad
    return of_mean.contiguous(), of_gains


def _shifted(x: Tensor, steps: int) -> Tensor:
    """x, `steps` tokens later, or earlier where that is negative, with zeros for what comes in."""
    length = x.shape[2]
    steps = max(-length, min(length, steps))
    kept = x[:, :, : length - steps] if steps > 0 else x[:, :, -steps:]
    return torch.nn.functional.pad(kept, (0, 0, max(0, steps), max(0, -steps)))
