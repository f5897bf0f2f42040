"""Fused convolutions against the six they replace."""

import pytest
import torch
from torch.nn import functional as F

from seqattn.layers.inception import (
    CBAM,
    KERNEL_SIZES,
    InceptionConv,
    SegmentExtractor,
    gather_taps,
    scatter_taps,
)  # fmt: skip


def six_convolutions(conv, x):
    """The published formula on (batch, segments, steps, channels): six convolutions, then their mean."""
    outputs = []
    for kernel, bias, size in zip(conv.kernels, conv.biases, KERNEL_SIZES, strict=True):
        weight = kernel.permute(2, 1, 0) if conv.grows else kernel.flip(0).permute(1, 2, 0)  # (out, in, taps)
        outputs.append(F.conv1d(x.flatten(0, 1).transpose(1, 2), weight, bias, padding=size // 2))
    return torch.stack(outputs).mean(0).transpose(1, 2).unflatten(0, x.shape[:2])


@pytest.mark.parametrize("steps", [1, 2, 5, 6, 7, 13])
@pytest.mark.parametrize(("channels_in", "channels_out"), [(3, 17), (17, 3), (5, 5)])
def test_fused_convolution_is_the_mean_of_six(steps, channels_in, channels_out):
    torch.manual_seed(0)
    conv = InceptionConv(channels_in, channels_out).double()
    for bias in conv.biases:
        torch.nn.init.normal_(bias)
    x = torch.randn(2, 3, steps, channels_in, dtype=torch.float64, requires_grad=True)
    inputs = [x, *conv.parameters()]
    out = conv([x])[0]
    weights = torch.randn_like(out)
    grads = torch.autograd.grad((out * weights).sum(), inputs)
    expected = six_convolutions(conv, x)
    expected_grads = torch.autograd.grad((expected * weights).sum(), inputs)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-12, atol=1e-12)


def test_sets_of_segments_do_not_mix():
    conv = InceptionConv(4, 6).double()
    sets = [torch.randn(2, n, steps, 4, dtype=torch.float64) for n, steps in ((3, 5), (1, 12), (7, 2))]
    for joint, x in zip(conv(sets), sets, strict=True):
        torch.testing.assert_close(joint, conv([x])[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("taps", [1, 3, 11])
@pytest.mark.parametrize("steps", [1, 4, 9])
def test_gather_and_scatter_are_adjoint(taps, steps):
    x = torch.randn(2, steps, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, steps, 3 * taps, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close((gather_taps(x, taps) * y).sum(), (x * scatter_taps(y, taps)).sum())
    torch.autograd.gradcheck(lambda t: gather_taps(t, taps), (x,))
    torch.autograd.gradcheck(lambda t: scatter_taps(t, taps), (y,))
    torch.autograd.gradgradcheck(lambda t: gather_taps(t, taps), (x,))


def test_gates_ignore_masked_steps():
    torch.manual_seed(0)
    gate = CBAM(8, reduction=2).double()
    short = torch.randn(2, 1, 4, 8, dtype=torch.float64)
    long = torch.cat([short, torch.full((2, 1, 3, 8), 1e3, dtype=torch.float64)], dim=2)
    mask = (torch.arange(7) < 4).expand(2, 1, 7)
    expected_channel = gate(short)[1]
    torch.testing.assert_close(gate(long, mask)[1], expected_channel, rtol=1e-12, atol=1e-12)
    assert (gate(long)[1] - expected_channel).abs().max() > 1e-3


@pytest.mark.parametrize(("channels", "hidden"), [(64, 1024), (5, 3), (16, 16)])
def test_parameter_count(channels, hidden):
    module = SegmentExtractor(channels, hidden)
    assert sum(parameter.numel() for parameter in module.parameters()) == module.parameter_count(channels, hidden)
