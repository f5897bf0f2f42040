"""What WersaAttention does before its output norm: equal gains, invariances, shifts, random directions."""

import math

import pytest
import torch
from torch import nn

from seqattn.layers.wersa import WersaAttention, random_directions


def tiny(**options):
    torch.manual_seed(0)
    return WersaAttention(8, 2, **({"levels": 3, "num_features": 16} | options)).double().eval()


def without_norm(gains, **options):
    """A layer without output norm whose gate gives these gains whatever the input."""
    layer = tiny(out_norm=False, eps=0.0, **options)
    nn.init.zeros_(layer.gate.mlp[3].weight)
    nn.init.zeros_(layer.gate.mlp[3].bias)
    layer.gate.scale_weights.data = 2 * torch.as_tensor(gains, dtype=torch.float64)
    return layer


def test_equal_gains_leave_rectified_attention_as_it_is_without_a_filter():
    x = torch.randn(2, 37, 8, dtype=torch.float64)
    one, third = without_norm([1.0] * 4), without_norm([1 / 3] * 4)
    q, k, v = one._heads(x)
    phi_q, phi_k = (torch.relu(rows @ one.random_q) for rows in (q, k))
    weights = phi_q @ phi_k.transpose(-1, -2)
    heads = weights / weights.sum(-1, keepdim=True) @ v
    torch.testing.assert_close(one(x), one.out_proj(heads.transpose(1, 2).flatten(2)), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(third(x), one(x), rtol=1e-11, atol=1e-12)


def test_attention_weights_are_positive_and_sum_to_one():
    layer = without_norm([0.9, 0.2, 1.1, 0.5])
    x = torch.randn(2, 37, 8, dtype=torch.float64)
    nn.init.zeros_(layer.v_proj.weight)
    nn.init.ones_(layer.v_proj.bias)
    nn.init.eye_(layer.out_proj.weight)
    nn.init.zeros_(layer.out_proj.bias)
    torch.testing.assert_close(layer(x), torch.ones_like(x), rtol=1e-12, atol=1e-12)
    layer.eps = 1e-2  # D / (D + eps)
    assert (layer(x) < 1).all()
    assert (layer(x) > 0.5).all()


def test_the_bandwidth_of_a_rectified_map_is_dead():
    layer = tiny(preset="port", out_norm=False)
    x = torch.randn(2, 37, 8, dtype=torch.float64)
    layer.eps = 0.0
    out = layer(x)
    out.square().sum().backward()
    assert layer.raw_bandwidth.grad.abs() < 1e-12 * layer.q_proj.weight.grad.norm()
    layer.raw_bandwidth.data += 3
    torch.testing.assert_close(layer(x), out, rtol=1e-12, atol=1e-13)
    for options in ({}, {"preset": "softmax", "feature_map": "relu"}):
        assert "raw_bandwidth" not in dict(tiny(**options).named_parameters())  # no parameter where it does nothing
    for options in ({"preset": "softmax"}, {"feature_map": "exp"}):
        exponential = tiny(**options)
        exponential(x).square().sum().backward()
        assert exponential.raw_bandwidth.grad.abs() > 1e-6


def test_a_common_factor_of_the_scale_weights_changes_nothing_in_a_rectified_layer():
    layer = tiny(out_norm=False, eps=0.0)
    x = torch.randn(2, 37, 8, dtype=torch.float64)
    out = layer(x)
    layer.gate.scale_weights.data *= 2.5
    torch.testing.assert_close(layer(x), out, rtol=1e-11, atol=1e-12)


def test_shifts_by_whole_blocks_move_the_output_and_others_do_not():
    layer = tiny(gate="global", out_norm=False, eps=0.0)
    nn.init.normal_(layer.gate.scale_weights)
    x = torch.randn(1, 64, 8, dtype=torch.float64)
    out = layer(x)
    for shift in (8, 16, 24):
        torch.testing.assert_close(layer(x.roll(shift, 1)), out.roll(shift, 1), rtol=1e-10, atol=1e-12)
    for shift in (1, 2, 4):
        assert (layer(x.roll(shift, 1)) - out.roll(shift, 1)).abs().max() > 1e-3 * out.abs().max()
    swapped = torch.arange(64).view(8, 2, 4).flip(1).flatten()  # the halves of every block of 8
    torch.testing.assert_close(layer(x[:, swapped]), out[:, swapped], rtol=1e-10, atol=1e-12)
    shuffled = torch.randperm(64)
    assert (layer(x[:, shuffled]) - out[:, shuffled]).abs().max() > 1e-3 * out.abs().max()
    layer.gate.scale_weights.data.fill_(0.7)
    nn.init.zeros_(layer.gate.mlp[3].weight)
    nn.init.zeros_(layer.gate.mlp[3].bias)  # all gains equal
    torch.testing.assert_close(layer(x[:, shuffled]), layer(x)[:, shuffled], rtol=1e-10, atol=1e-12)


def test_the_softmax_preset_starts_with_gains_of_one_and_the_scale_of_softmax_attention():
    layer = WersaAttention(32, 2, preset="softmax").eval()
    assert torch.equal(layer.gate(torch.randn(1, 9, 32), None), torch.ones(1, 9, 5))
    assert 1 / layer.bandwidth.item() ** 2 == pytest.approx(1 / math.sqrt(16))
    assert layer.random_q.shape == (16, 256)


def test_orthogonal_directions_have_the_lengths_of_normal_ones():
    drawn = random_directions(16, 40, orthogonal=True, generator=torch.Generator().manual_seed(0)).double()
    for block in drawn.split(16, dim=1):
        products = block.T @ block
        off = products - products.diag().diag()
        assert off.abs().max() < 1e-5
    means = random_directions(8, 20000, True, torch.Generator().manual_seed(2)).mean(1)
    assert means.abs().max() < 0.03  # no direction is preferred
    lengths = random_directions(8, 20000, True, torch.Generator().manual_seed(1)).square().sum(0)
    assert lengths.mean().item() == pytest.approx(8, rel=0.03)
    assert lengths.var().item() == pytest.approx(16, rel=0.1)
