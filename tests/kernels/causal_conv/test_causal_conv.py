"""The depthwise convolution and its SiLU against nn.Conv1d, in both directions."""

import pytest
import torch
from torch.nn import functional as F

from seqattn.kernels.causal_conv import causal_conv_silu
from seqattn.kernels.causal_conv.public import convolution

# the CPU kernel goes 64 steps and 16 channels at a time
SHAPES = [
    (2, 37, 6, 4), (1, 2, 3, 4), (3, 9, 1, 1), (2, 10, 17, 3), (2, 1, 4, 7), (1, 64, 16, 4), (1, 65, 33, 4),
    (2, 130, 16, 5), (1, 66, 5, 80), (2, 200, 40, 80), (2, 1, 16, 4), (2, 3, 17, 7), (1, 129, 31, 1),
]  # fmt: skip
EMPTY = [(1, 0, 4, 4), (0, 5, 4, 4), (2, 5, 0, 4), (1, 0, 16, 4), (0, 5, 16, 4)]
WAYS = {"kernel": causal_conv_silu, "torch": convolution}


def named(shape):
    return "b{}-l{}-c{}-k{}".format(*shape)


def expected_of(x, weight, bias, reverse=False):
    if reverse:
        return expected_of(x.flip(1), weight, bias).flip(1)
    taps = weight.shape[2]
    out = torch.conv1d(x.mT, weight, bias, padding=taps - 1, groups=x.shape[2])
    return F.silu(out[..., : x.shape[1]].mT)


def random_inputs(shape, bias=True, dtype=torch.float64):
    torch.manual_seed(0)
    batch, length, channels, taps = shape
    inputs = [torch.randn(size, dtype=dtype) for size in ((batch, length, channels), (channels, 1, taps), (channels,))]
    return [tensor.requires_grad_() for tensor in (inputs if bias else inputs[:2])]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("shape", SHAPES, ids=named)
@pytest.mark.parametrize("way", WAYS)
def test_equals_conv1d_with_every_gradient(way, shape, reverse, bias):
    inputs = random_inputs(shape, bias)
    x, weight, offset = inputs if bias else (*inputs, None)
    expected, out = expected_of(x, weight, offset, reverse), WAYS[way](x, weight, offset, reverse)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(out)
    got, wanted = (torch.autograd.grad(y, inputs, grad) for y in (out, expected))
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_gradients_by_finite_differences(reverse):
    torch.autograd.gradcheck(lambda *given: causal_conv_silu(*given, reverse), random_inputs((2, 7, 17, 4)))


@pytest.mark.parametrize("shape", SHAPES + EMPTY, ids=named)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_keeps_shape_and_dtype(shape, dtype):
    x, weight, bias = (tensor.detach() for tensor in random_inputs(shape, dtype=torch.float32))
    out = causal_conv_silu(x.to(dtype), weight, bias)
    assert out.shape == x.shape
    assert out.dtype == dtype
    if x.numel():
        tolerance = 1e-5 if dtype == torch.float32 else 5e-2
        expected = expected_of(x, weight, bias)
        torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance * expected.abs().max())


@pytest.mark.parametrize("shape", EMPTY, ids=named)
def test_nothing_has_gradients_of_nothing(shape):
    inputs = random_inputs(shape)
    gradients = torch.autograd.grad(causal_conv_silu(*inputs).sum(), inputs, allow_unused=True)
    assert all(gradient is None or (gradient == 0).all() for gradient in gradients)


def test_a_strided_input_is_read_right():
    wide = torch.randn(2, 19, 32, dtype=torch.float64)
    weight = torch.randn(16, 1, 4, dtype=torch.float64)
    for x in (wide[..., 16:], wide[..., ::2], wide[:, :16, :].mT[:, :9], wide[:1, :, :16].expand(3, -1, -1)):
        torch.testing.assert_close(causal_conv_silu(x, weight, None), expected_of(x.contiguous(), weight, None))


def test_extreme_values_and_nan():
    weight = torch.ones(16, 1, 1)
    x = torch.tensor([-1e4, -100.0, -0.0, 100.0, 3e38, torch.nan, 1.0]).view(1, 7, 1).repeat(1, 1, 16).requires_grad_()
    out = causal_conv_silu(x, weight, None)
    torch.testing.assert_close(out, F.silu(x), equal_nan=True)
    (ours,), (theirs,) = (torch.autograd.grad(y.sum(), x) for y in (out, F.silu(x)))
    torch.testing.assert_close(ours, theirs, equal_nan=True)


def test_threads_do_not_change_results():
    inputs, results = random_inputs((3, 150, 40, 4), dtype=torch.float32), []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        out = causal_conv_silu(*inputs)
        results.append([out, *torch.autograd.grad(out.sum(), inputs)])
    torch.set_num_threads(before)
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_operator_registrations():
    x, weight, bias = random_inputs((2, 5, 20, 4))
    torch.library.opcheck(torch.ops.seqattn.causal_conv_silu_cpu, (x, weight, bias, True))
    torch.library.opcheck(torch.ops.seqattn.causal_conv_silu_cpu, (x, weight, None, False))


def test_torch_func_takes_the_way_through_torch():
    x, weight, bias = random_inputs((2, 5, 20, 4))
    grad = torch.func.grad(lambda given: causal_conv_silu(given, weight, bias).sum())(x.detach())
    torch.testing.assert_close(grad, torch.autograd.grad(causal_conv_silu(x, weight, bias).sum(), x)[0])
