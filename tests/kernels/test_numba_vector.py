"""The sixteen-lane functions against NumPy, in kernels as small as they get."""

import numba
import numpy as np
import pytest

from seqattn.kernels import numba_vector
from seqattn.kernels.numba_vector import (
    LANES,
    NEAR,
    advance,
    broadcast,
    exp2_near,
    load,
    load_broadcast,
    maximum,
    pointer,
    store,
)

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])
ROUNDING = {np.float32: 2e-7, np.float64: 1e-15}
LARGEST = {np.float32: 126, np.float64: 1022}  # exponents of the normal numbers


def elementary(function):
    @numba.njit(error_model="numpy")
    def every(x, y):
        for at in range(0, x.size, LANES):
            store(pointer(y, 0), at, function(load(pointer(x, 0), at)))

    def call(x):
        padded = np.zeros(-(-x.size // LANES) * LANES, x.dtype)
        padded[: x.size] = x
        y = np.full_like(padded, np.nan)
        every(padded, y)
        return y[: x.size]

    return call


exp2, softplus, sigmoid = (elementary(getattr(numba_vector, name)) for name in ("exp2", "softplus", "sigmoid"))


@numba.njit(error_model="numpy")
def products(x, factors, y):
    for at in range(0, x.size, LANES):
        store(pointer(y, 0), at, exp2_near(load(pointer(x, 0), at), load(pointer(factors, 0), at)))


def assert_relative(got, expected, dtype, bound=None):
    assert got.dtype == dtype
    error = np.abs(got.astype(np.longdouble) - expected) / np.abs(expected)
    assert error.max() < (bound or ROUNDING[dtype])


@DTYPES
def test_exp2_over_the_normal_numbers(dtype):
    edges = np.arange(-LARGEST[dtype], LARGEST[dtype] + 1)
    halves = edges[:-1] + 0.5
    x = np.concatenate([edges, halves, np.random.default_rng(0).uniform(edges[0], edges[-1], 50_000)]).astype(dtype)
    assert_relative(exp2(x), np.exp2(x.astype(np.longdouble)), dtype)


@DTYPES
def test_exp2_is_exact_at_integers(dtype):
    x = np.arange(-LARGEST[dtype], LARGEST[dtype] + 1, dtype=dtype)
    np.testing.assert_array_equal(exp2(x), np.exp2(x))


@DTYPES
def test_exp2_beyond_the_normal_numbers(dtype):
    lowest = np.finfo(dtype).tiny
    low = np.array([-LARGEST[dtype] - 0.25, -1e4, -1e30, -np.inf], dtype)
    np.testing.assert_array_equal(exp2(low), np.full(4, lowest, dtype))
    high = np.array([LARGEST[dtype] + 2, 1e4, 1e30, np.inf], dtype)
    np.testing.assert_array_equal(exp2(high), np.full(4, np.inf, dtype))
    assert np.isnan(exp2(np.array([np.nan], dtype))).all()


@DTYPES
def test_exp2_near_of_a_product_of_numbers(dtype):
    generator = np.random.default_rng(0)
    x, factors = (generator.uniform(-np.sqrt(NEAR), np.sqrt(NEAR), 20_000).astype(dtype) for _ in range(2))
    x[:3], factors[:3] = (NEAR, -NEAR, 0), 1
    y = np.full_like(x, np.nan)
    products(x, factors, y)
    assert_relative(y, np.exp2(x.astype(np.longdouble) * factors.astype(np.longdouble)), dtype)
    products(x, np.ones_like(x), y)
    assert y.tobytes() == exp2(x).tobytes()
    x[::2] = np.nan
    products(x, factors, y)
    assert np.isnan(y[::2]).all()
    assert np.isfinite(y[1::2]).all()


@DTYPES
def test_softplus(dtype):
    x = np.concatenate([np.linspace(-80, 20, 20_001), np.linspace(-1, 1, 2_001)]).astype(dtype)
    expected = np.log1p(np.exp(x.astype(np.longdouble)))
    # the argument of an exponential loses as many bits as it has before the point
    bound = {np.float32: 1e-5, np.float64: 2e-14}[dtype]
    assert_relative(softplus(x), expected, dtype, bound)
    near_zero = np.abs(x) < 2
    assert_relative(softplus(x)[near_zero], expected[near_zero], dtype, {np.float32: 5e-7, np.float64: 2e-15}[dtype])


@DTYPES
def test_softplus_is_the_identity_above_20(dtype):
    x = np.array([np.nextafter(dtype(20), dtype(21)), 20.5, 30, 100, 1e30, np.inf], dtype)
    np.testing.assert_array_equal(softplus(x), x)
    assert softplus(np.array([20], dtype))[0] == pytest.approx(float(np.log1p(np.exp(dtype(20)))), rel=1e-7)


@DTYPES
def test_sigmoid(dtype):
    x = np.concatenate([np.linspace(-80, 80, 20_001), np.linspace(-1, 1, 2_001)]).astype(dtype)
    expected = 1 / (1 + np.exp(-x.astype(np.longdouble)))
    assert_relative(sigmoid(x), expected, dtype, {np.float32: 1e-5, np.float64: 2e-14}[dtype])
    near_zero = np.abs(x) < 2
    assert_relative(sigmoid(x)[near_zero], expected[near_zero], dtype, {np.float32: 5e-7, np.float64: 2e-15}[dtype])


@DTYPES
@pytest.mark.parametrize("function", [softplus, sigmoid], ids=["softplus", "sigmoid"])
def test_far_out_and_nan(function, dtype):
    far = function(np.array([-1e30, -np.inf, -200 if dtype == np.float32 else -1000], dtype))
    assert (far >= 0).all()
    assert (far <= np.finfo(dtype).tiny).all()
    assert np.isnan(function(np.array([np.nan], dtype))).all()
    if function is sigmoid:
        np.testing.assert_array_equal(function(np.array([100, 1e30, np.inf], dtype)), np.ones(3, dtype))


@numba.njit
def larger(x, y, out):
    store(pointer(out, 0), 0, maximum(load(pointer(x, 0), 0), load(pointer(y, 0), 0)))


@DTYPES
def test_maximum_takes_left_where_right_is_nan(dtype):
    x, y = np.random.default_rng(0).standard_normal((2, LANES)).astype(dtype)
    y[3] = np.nan
    x[4], y[4] = -np.inf, 1
    out = np.empty_like(x)
    larger(x, y, out)
    np.testing.assert_array_equal(out, np.where(np.isnan(y), x, np.maximum(x, y)))


@numba.njit
def move(source, first, second, out):
    start = advance(pointer(source, first), second)
    store(pointer(out, 0), 0, load(start, 1))
    store(pointer(out, 0), LANES, load_broadcast(start, 2))
    store(pointer(out, 0), 2 * LANES, broadcast(start[3]))


@DTYPES
def test_addresses_loads_and_broadcasts(dtype):
    source, out = np.arange(64, dtype=dtype), np.empty(3 * LANES, dtype)
    move(source, 7, 5, out)
    np.testing.assert_array_equal(out[:LANES], np.arange(13, 13 + LANES))
    np.testing.assert_array_equal(out[LANES : 2 * LANES], np.full(LANES, 14))
    np.testing.assert_array_equal(out[2 * LANES :], np.full(LANES, 15))


@numba.njit
def combine(x, y, out):
    a, b = load(pointer(x, 0), 0), load(pointer(y, 0), 0)
    store(pointer(out, 0), 0, a + b)
    store(pointer(out, 0), LANES, a - b)
    store(pointer(out, 0), 2 * LANES, a * b)


@DTYPES
def test_arithmetic_works_lane_by_lane(dtype):
    x, y = np.random.default_rng(0).standard_normal((2, LANES)).astype(dtype)
    out = np.empty(3 * LANES, dtype)
    combine(x, y, out)
    np.testing.assert_array_equal(out, np.concatenate([x + y, x - y, x * y]))


def test_the_elements_of_a_vector_are_of_one_kind():
    @numba.njit
    def mixed(x, y, out):
        store(pointer(out, 0), 0, load(pointer(x, 0), 0) + load(pointer(y, 0), 0))

    with pytest.raises(numba.TypingError):
        mixed(np.zeros(LANES, np.float32), np.zeros(LANES), np.zeros(LANES))
