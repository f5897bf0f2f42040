"""The encoder layer against torch's own, and its two attention paths against each other."""

import math

import pytest
import torch

from seqattn.layers.encoder import EncoderLayer, sinusoid_table


def test_equals_torch_encoder_layer():
    torch.manual_seed(0)
    ours = EncoderLayer(12, 3, 20).double().eval()
    theirs = torch.nn.TransformerEncoderLayer(12, 3, 20, dropout=0.0, batch_first=True).double().eval()
    names = {
        "self_attn.in_proj_weight": "in_proj.weight", "self_attn.in_proj_bias": "in_proj.bias",
        "self_attn.out_proj.weight": "out_proj.weight", "self_attn.out_proj.bias": "out_proj.bias",
        "linear1.weight": "ff1.weight", "linear1.bias": "ff1.bias", "linear2.weight": "ff2.weight",
        "linear2.bias": "ff2.bias", "norm1.weight": "norm1.weight", "norm1.bias": "norm1.bias",
        "norm2.weight": "norm2.weight", "norm2.bias": "norm2.bias",
    }  # fmt: skip
    state = ours.state_dict()
    theirs.load_state_dict({theirs_name: state[our_name] for theirs_name, our_name in names.items()})
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    expected = theirs(x, src_key_padding_mask=~mask)
    torch.testing.assert_close(ours(x, mask)[0][mask], expected[mask], rtol=1e-10, atol=1e-12)
    with_weights, weights = ours(x, mask, return_weights=True)
    torch.testing.assert_close(with_weights[mask], expected[mask], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 7, dtype=torch.float64))
    assert (weights[1, :, :, 4:] == 0).all()


def test_heads_must_divide_channels():
    with pytest.raises(ValueError, match="3 heads do not divide 10 channels"):
        EncoderLayer(10, 3, 4)


def test_sinusoid_table():
    table = sinusoid_table(50, 6, torch.zeros((), dtype=torch.float64))
    assert table.shape == (50, 6)
    assert math.isclose(table[7, 2], math.sin(7 * 10000 ** (-2 / 6)), rel_tol=1e-14)
    assert math.isclose(table[7, 3], math.cos(7 * 10000 ** (-2 / 6)), rel_tol=1e-14)
    assert sinusoid_table(3, 5, torch.zeros(())).dtype == torch.float32
