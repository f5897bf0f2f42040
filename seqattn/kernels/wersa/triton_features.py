"""Features of filtered tokens in Triton, never in memory: their maxima, sums over tokens, products, and gradients.

Rows are sequences of a head, (batch · heads, length, …). A token's value row comes in two parts, its values and the
`last` number that sums the weights. The exponents of "exp" are relative to a number per token, `ref`. A program goes
through the blocks of BM features or through a part of the tokens, in order: no result depends on the order of programs.
"""
# mypy: disallow-untyped-defs=False

import triton
import triton.language as tl

from seqattn.kernels.wersa.triton_filter import load_tile, multiply, multiply_sums


@triton.jit
def load_proj(p_proj, i_m, dim, features, BD: tl.constexpr, BM: tl.constexpr):
    """(BD, BM) of the scaled projection (dim, features)."""
    o_d, o_m = tl.arange(0, BD), i_m * BM + tl.arange(0, BM)
    mask = (o_d < dim)[:, None] & (o_m < features)[None, :]
    return tl.load(p_proj + o_d[:, None] * features + o_m[None, :], mask=mask, other=0)


@triton.jit
def load_sums(p_sums, i_row, i_m, features, values, ACC: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr):
    """(BM, BV) and (BM,) of row i_row of sums (rows, features, values + 1)."""
    o_m, o_v = i_m * BM + tl.arange(0, BM), tl.arange(0, BV)
    place = p_sums + (i_row * features + o_m) * (values + 1)
    mask = (o_m < features)[:, None] & (o_v < values)[None, :]
    block = tl.load(place[:, None] + o_v[None, :], mask=mask, other=0).to(ACC)
    return block, tl.load(place + values, mask=o_m < features, other=0).to(ACC)


@triton.jit
def store_sums(
    p_sums, i_row, i_m, block, last, features, values, BM: tl.constexpr, BV: tl.constexpr
):  # fmt: skip
    """The inverse of `load_sums`."""
    o_m, o_v = i_m * BM + tl.arange(0, BM), tl.arange(0, BV)
    place = p_sums + (i_row * features + o_m) * (values + 1)
    mask = (o_m < features)[:, None] & (o_v < values)[None, :]
    tl.store(place[:, None] + o_v[None, :], block, mask=mask)
    tl.store(place + values, last, mask=o_m < features)


@triton.jit
def products_of(
    x, proj, i_m, features, p_b, log_count, EXP: tl.constexpr, NORM: tl.constexpr, ACC: tl.constexpr,
    BM: tl.constexpr,
):  # fmt: skip
    """(BT, BM): x R / b, for "exp" with NORM less |x|² / 2b² + log √m; -inf beyond the features."""
    products = multiply(x, proj, ACC)
    if EXP:
        if NORM:
            wide = x.to(ACC) / tl.load(p_b).to(ACC)
            products -= (tl.sum(wide * wide, 1) / 2 + log_count)[:, None]
        o_m = i_m * BM + tl.arange(0, BM)
        products = tl.where((o_m < features)[None, :], products, float("-inf"))
    return products


@triton.jit
def features_of(
    x, proj, ref, m_t, i_m, features, p_b, log_count, EXP: tl.constexpr, NORM: tl.constexpr, KIND: tl.constexpr,
    ACC: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """(BT, BM) in ACC, 0 for tokens outside the mask m_t; rounded to KIND, alike for sums of values and of weights."""
    products = products_of(x, proj, i_m, features, p_b, log_count, EXP, NORM, ACC, BM)
    phi = tl.exp(products - ref[:, None]) if EXP else tl.maximum(products, 0.0)
    return tl.where(m_t[:, None], phi, 0.0).to(KIND).to(ACC)


@triton.jit
def load_ref(p_ref, i_row, o_t, m_t, length, EXP: tl.constexpr, ACC: tl.constexpr):
    """What exponents are relative to, (BT,)."""
    if EXP:
        return tl.load(p_ref + i_row * length + o_t, mask=m_t, other=0).to(ACC)
    return tl.zeros(o_t.shape, ACC)


@triton.jit
def maximum_kernel(
    p_x, p_proj, p_out, length, dim, features, p_b, log_count, NORM: tl.constexpr, ACC: tl.constexpr,
    BT: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """out (rows, length): each token's largest exponent."""
    i_row, o_t = tl.program_id(0).to(tl.int64), tl.program_id(1) * BT + tl.arange(0, BT)
    x = load_tile(p_x, i_row, o_t, length, dim, BD)
    largest = tl.full((BT,), float("-inf"), ACC)
    i_m = 0
    while i_m * BM < features:
        proj = load_proj(p_proj, i_m, dim, features, BD, BM)
        products = products_of(x, proj, i_m, features, p_b, log_count, True, NORM, ACC, BM)
        largest = tl.maximum(largest, tl.max(products, 1))
        i_m += 1
    tl.store(p_out + i_row * length + o_t, largest, mask=o_t < length)


@triton.jit
def sum_kernel(
    p_x, p_proj, p_ref, p_rows, p_last, p_ends, p_out, heads, length, dim, features, values, part, p_b,
    log_count, EXP: tl.constexpr, NORM: tl.constexpr, KIND: tl.constexpr, ACC: tl.constexpr, BT: tl.constexpr,
    BD: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """out (parts, rows, features, values + 1): Σ phi [rows, last] over `part` tokens each."""
    i_row, i_m, i_p = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    end = tl.load(p_ends + i_row // heads).to(tl.int32)
    proj = load_proj(p_proj, i_m, dim, features, BD, BM)
    block, total = tl.zeros((BM, BV), ACC), tl.zeros((BM,), ACC)
    start, stop = i_p * part, tl.minimum((i_p + 1) * part, end)
    while start < stop:
        o_t = start + tl.arange(0, BT)
        m_t = o_t < end
        x = load_tile(p_x, i_row, o_t, length, dim, BD)
        ref = load_ref(p_ref, i_row, o_t, m_t, length, EXP, ACC)
        phi = features_of(x, proj, ref, m_t, i_m, features, p_b, log_count, EXP, NORM, KIND, ACC, BM)
        rows = load_tile(p_rows, i_row, o_t, length, values, BV).to(KIND)
        last = tl.load(p_last + i_row * length + o_t, mask=m_t, other=0).to(ACC)
        block += multiply(tl.trans(phi).to(KIND), rows, ACC)
        total += tl.sum(phi * last[:, None], 0)
        start += BT
    i_out = i_p.to(tl.int64) * tl.num_programs(0) + i_row
    store_sums(p_out, i_out, i_m, block, total, features, values, BM, BV)


@triton.jit
def read_kernel(
    p_x, p_proj, p_ref, p_sums, p_ends, p_rows, p_last, heads, length, dim, features, values, p_b, log_count,
    EXP: tl.constexpr, NORM: tl.constexpr, KIND: tl.constexpr, ACC: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
    BM: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """rows and last = phi · sums."""
    i_row, o_t = tl.program_id(0).to(tl.int64), tl.program_id(1) * BT + tl.arange(0, BT)
    m_t = o_t < tl.load(p_ends + i_row // heads).to(tl.int32)
    x, ref = load_tile(p_x, i_row, o_t, length, dim, BD), load_ref(p_ref, i_row, o_t, m_t, length, EXP, ACC)
    rows, last = tl.zeros((BT, BV), ACC), tl.zeros((BT,), ACC)
    i_m = 0
    while i_m * BM < features:
        proj = load_proj(p_proj, i_m, dim, features, BD, BM)
        phi = features_of(x, proj, ref, m_t, i_m, features, p_b, log_count, EXP, NORM, KIND, ACC, BM)
        block, total = load_sums(p_sums, i_row, i_m, features, values, ACC, BM, BV)
        rows += multiply_sums(phi.to(KIND), block, KIND, ACC)
        last += tl.sum(phi * total[None, :], 1)
        i_m += 1
    store_rows(p_rows, p_last, i_row, o_t, rows, last, length, values, BV)


@triton.jit
def store_rows(p_rows, p_last, i_row, o_t, rows, last, length, values, BV: tl.constexpr):
    """Value rows and their last numbers to (rows, length, values) and (rows, length)."""
    o_v = tl.arange(0, BV)
    mask = (o_t < length)[:, None] & (o_v < values)[None, :]
    tl.store(p_rows + (i_row * length + o_t[:, None]) * values + o_v[None, :], rows, mask=mask)
    tl.store(p_last + i_row * length + o_t, last, mask=o_t < length)


@triton.jit
def before_map(phi, grad, EXP: tl.constexpr):
    """The gradient of what goes into the feature map."""
    return grad * phi if EXP else tl.where(phi > 0, grad, 0.0)


@triton.jit
def store_gradient(
    p_grad, p_band, i_row, o_t, x, grad, of_norms, length, dim, p_b, EXP: tl.constexpr, NORM: tl.constexpr,
    ACC: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The gradient of x from that through the products and the gradients' sum over exponents, and bandwidth's part."""
    wide, bandwidth = x.to(ACC), tl.load(p_b).to(ACC)
    band = -tl.sum(wide * grad, 1) / bandwidth
    if EXP and NORM:
        band += of_norms * tl.sum(wide * wide, 1) / (bandwidth * bandwidth * bandwidth)
        grad -= wide * (of_norms / (bandwidth * bandwidth))[:, None]
    o_c = tl.arange(0, BD)
    mask = (o_t < length)[:, None] & (o_c < dim)[None, :]
    tl.store(p_grad + (i_row * length + o_t[:, None]) * dim + o_c[None, :], grad, mask=mask)
    tl.store(p_band + i_row * length + o_t, band, mask=o_t < length)


@triton.jit
def gradient_kernel(
    p_x, p_proj, p_ref, p_rows, p_last, p_sums, p_ends, p_grad, p_band, heads, length, dim, features, values, p_b,
    log_count, EXP: tl.constexpr, NORM: tl.constexpr, KIND: tl.constexpr, ACC: tl.constexpr,
    BT: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """grad (rows, length, dim): that of x, where sums · [rows, last] is the gradient of phi; band: bandwidth's."""
    i_row, o_t = tl.program_id(0).to(tl.int64), tl.program_id(1) * BT + tl.arange(0, BT)
    m_t = o_t < tl.load(p_ends + i_row // heads).to(tl.int32)
    x, ref = load_tile(p_x, i_row, o_t, length, dim, BD), load_ref(p_ref, i_row, o_t, m_t, length, EXP, ACC)
    rows = load_tile(p_rows, i_row, o_t, length, values, BV).to(KIND)
    last = tl.load(p_last + i_row * length + o_t, mask=m_t, other=0).to(ACC)
    grad, of_norms = tl.zeros((BT, BD), ACC), tl.zeros((BT,), ACC)
    i_m = 0
    while i_m * BM < features:
        proj = load_proj(p_proj, i_m, dim, features, BD, BM)
        phi = features_of(x, proj, ref, m_t, i_m, features, p_b, log_count, EXP, NORM, KIND, ACC, BM)
        block, total = load_sums(p_sums, i_row, i_m, features, values, ACC, BM, BV)
        of_phi = multiply_sums(rows, tl.trans(block), KIND, ACC)
        before = before_map(phi, of_phi + last[:, None] * total[None, :], EXP)
        grad += multiply(before.to(KIND), tl.trans(proj).to(KIND), ACC)
        of_norms += tl.sum(before, 1)
        i_m += 1
    store_gradient(p_grad, p_band, i_row, o_t, x, grad, of_norms, length, dim, p_b, EXP, NORM, ACC, BD)


@triton.jit
def proj_kernel(
    p_x, p_proj, p_ref, p_rows, p_last, p_sums, p_ends, p_out, heads, length, dim, features, values, p_b,
    log_count, EXP: tl.constexpr, NORM: tl.constexpr, KIND: tl.constexpr, ACC: tl.constexpr, BT: tl.constexpr,
    BD: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """out (rows, dim, features): the gradient of the scaled projection, of one row each."""
    i_row, i_m = tl.program_id(0).to(tl.int64), tl.program_id(1)
    end = tl.load(p_ends + i_row // heads).to(tl.int32)
    proj = load_proj(p_proj, i_m, dim, features, BD, BM)
    block, total = load_sums(p_sums, i_row, i_m, features, values, ACC, BM, BV)
    out, start = tl.zeros((BD, BM), ACC), 0
    while start < end:
        o_t = start + tl.arange(0, BT)
        m_t = o_t < end
        x, ref = load_tile(p_x, i_row, o_t, length, dim, BD), load_ref(p_ref, i_row, o_t, m_t, length, EXP, ACC)
        phi = features_of(x, proj, ref, m_t, i_m, features, p_b, log_count, EXP, NORM, KIND, ACC, BM)
        rows = load_tile(p_rows, i_row, o_t, length, values, BV).to(KIND)
        last = tl.load(p_last + i_row * length + o_t, mask=m_t, other=0).to(ACC)
        of_phi = multiply_sums(rows, tl.trans(block), KIND, ACC)
        before = before_map(phi, of_phi + last[:, None] * total[None, :], EXP)
        out += multiply(tl.trans(x).to(KIND), before.to(KIND), ACC)
        start += BT
    o_d, o_m = tl.arange(0, BD), i_m * BM + tl.arange(0, BM)
    mask = (o_d < dim)[:, None] & (o_m < features)[None, :]
    tl.store(p_out + (i_row * dim + o_d[:, None]) * features + o_m[None, :], out, mask=mask)
