import math

import pytest
import torch

from seqattn.errors import SeqattnError
from seqattn.layers.time_embedding import TimeEmbedding, query_times


def test_one_straight_line_and_sines():
    torch.manual_seed(0)
    layer, t = TimeEmbedding(4).double(), torch.tensor([[0.0, 0.3, 1.0], [-0.1, 0.5, 0.7]], dtype=torch.float64)
    out = layer(t)
    assert out.shape == (2, 3, 4)
    line = layer.linear.weight.item() * t + layer.linear.bias.item()
    torch.testing.assert_close(out[..., 0], line, rtol=1e-14, atol=0)
    for index in range(3):
        wave = torch.sin(t * layer.periodic.weight[index].item() + layer.periodic.bias[index].item())
        torch.testing.assert_close(out[..., index + 1], wave, rtol=1e-14, atol=1e-15)


def test_spread_frequencies_tell_moments_apart():
    torch.manual_seed(0)
    spread = TimeEmbedding(64, "spread", steps=48)
    weights = spread.periodic.weight[:, 0]
    assert weights.min().item() == pytest.approx(math.pi)
    assert weights.max().item() == pytest.approx(48 * math.pi, rel=1e-5)
    assert spread.periodic.bias.abs().max() > 2

    def neighbours(layer):
        out = layer(torch.tensor([0.5, 0.5 + 2 / 48]))
        return torch.cosine_similarity(out[0], out[1], dim=0).item()

    assert neighbours(TimeEmbedding(64)) > 0.99 > 0.7 > neighbours(spread)


def test_times_stay_in_float32_under_autocast_and_beside_half_weights():
    torch.manual_seed(0)
    layer, t = TimeEmbedding(16, "spread", steps=1000), torch.linspace(0, 1, 1001)
    expected = layer(t)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(t), expected)
    half = layer.bfloat16()
    assert half(t).dtype == torch.bfloat16
    assert half(t)[:, 1].unique().numel() > 100  # bfloat16 has 129 numbers between 0.5 and 1


@pytest.mark.parametrize(("steps", "expected"), [(1, [0.0]), (3, [0.0, 0.5, 1.0])])
def test_queries_include_both_ends(steps, expected):
    assert query_times(steps, torch.zeros(1, dtype=torch.float64)).tolist() == expected


def test_bad_input():
    with pytest.raises(SeqattnError, match="width is 1: it must be at least 2"):
        TimeEmbedding(1)
    with pytest.raises(SeqattnError, match='init is \'wide\': it must be "default" or "spread"'):
        TimeEmbedding(4, "wide")
