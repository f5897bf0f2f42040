import pytest
import torch

from seqattn.errors import SeqattnError
from seqattn.layers.self_attention import SelfAttention


def test_is_the_softmax_of_scaled_products_over_valid_steps():
    torch.manual_seed(0)
    layer, lengths = SelfAttention(6, heads=2).double(), torch.tensor([7, 3])
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    out = layer(x, lengths)
    for row, length in enumerate(lengths):
        valid = x[row, :length]
        query, key, value = (valid @ weight.T for weight in layer.in_proj.weight.chunk(3))
        heads = [
            ((query[:, part] @ key[:, part].T) / 3**0.5).softmax(-1) @ value[:, part]
            for part in (slice(0, 3), slice(3, 6))
        ]
        expected = torch.cat(heads, dim=-1) @ layer.out_proj.weight.T
        torch.testing.assert_close(out[row, :length], expected, rtol=1e-12, atol=1e-12)
        assert (out[row, length:] == 0).all()


def test_padding_changes_nothing_not_even_a_gradient():
    torch.manual_seed(0)
    layer, lengths = SelfAttention(6, heads=2), torch.tensor([7, 3, 0])
    x = torch.randn(3, 7, 6)
    poisoned = x.clone()
    poisoned[1, 3:] = poisoned[2] = float("nan")
    for given in (x, poisoned):
        layer.zero_grad()
        out = layer(given, lengths)
        out.square().sum().backward()
        if given is x:
            expected = [out.detach(), *(parameter.grad.clone() for parameter in layer.parameters())]
    for got, wanted in zip([out, *(parameter.grad for parameter in layer.parameters())], expected, strict=True):
        assert torch.equal(got, wanted)
        assert got.isfinite().all()


def test_heads_divide_the_width():
    with pytest.raises(SeqattnError, match="3 heads do not divide d_model=8"):
        SelfAttention(8, heads=3)
