"""The depthwise convolution against nn.Conv1d, in both directions."""

import pytest
import torch

from seqattn.layers.causal_conv import causal_conv

SHAPES = [(2, 37, 6, 4), (1, 2, 3, 4), (3, 9, 1, 1), (2, 10, 17, 3), (2, 1, 4, 7), (1, 0, 4, 4), (0, 5, 4, 4)]


def named(shape):
    return "b{}-l{}-c{}-k{}".format(*shape)


def torch_conv(x, weight, bias):
    taps = weight.shape[2]
    out = torch.conv1d(x.mT, weight, bias, padding=taps - 1, groups=x.shape[2])
    return out[..., : x.shape[1]].mT


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("shape", SHAPES[:5], ids=named)
def test_equals_conv1d_with_every_gradient(shape, reverse, bias):
    torch.manual_seed(0)
    batch, length, channels, taps = shape
    x = torch.randn(batch, length, channels, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(channels, 1, taps, dtype=torch.float64, requires_grad=True)
    offset = torch.randn(channels, dtype=torch.float64, requires_grad=True) if bias else None
    inputs = [x, weight] if offset is None else [x, weight, offset]
    expected = torch_conv(x.flip(1), weight, offset).flip(1) if reverse else torch_conv(x, weight, offset)
    out = causal_conv(x, weight, offset, reverse)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(out)
    got, wanted = (torch.autograd.grad(y, inputs, grad) for y in (out, expected))
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=named)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_keeps_shape_and_dtype(shape, dtype):
    batch, length, channels, taps = shape
    x, weight, bias = torch.randn(batch, length, channels), torch.randn(channels, 1, taps), torch.randn(channels)
    out = causal_conv(x.to(dtype), weight, bias)
    assert out.shape == x.shape
    assert out.dtype == dtype
    if x.numel():
        torch.testing.assert_close(out.float(), torch_conv(x, weight, bias), rtol=5e-2, atol=5e-2)


def test_a_strided_input_is_read_right():
    wide = torch.randn(2, 9, 12, dtype=torch.float64)
    weight = torch.randn(6, 1, 4, dtype=torch.float64)
    for x in (wide[..., 6:], wide[..., ::2], wide[:, :6, :].mT[:, :9, :6], wide[:1, :, :6].expand(3, -1, -1)):
        torch.testing.assert_close(causal_conv(x, weight, None), torch_conv(x.contiguous(), weight, None))
