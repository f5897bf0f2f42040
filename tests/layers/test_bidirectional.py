"""The bidirectional wrapper: its two directions, shared or separate parameters, padding."""

import math

import pytest
import torch

from seqattn.layers.bidirectional import BidirectionalMamba


@pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
@pytest.mark.parametrize("combine", ["add", "concat"])
def test_is_its_two_directions(combine, shared):
    torch.manual_seed(0)
    module = BidirectionalMamba(6, combine=combine, shared=shared, d_state=5).double()
    assert len(module.mixers) == (1 if shared else 2)
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    left_to_right, right_to_left = module.mixers[0](x), module.mixers[-1](x.flip(1)).flip(1)
    together = left_to_right + right_to_left if combine == "add" else torch.cat([left_to_right, right_to_left], -1)
    out = module(x)
    torch.testing.assert_close(out, together, rtol=1e-10, atol=1e-12)
    out.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())


@pytest.mark.parametrize("combine", ["add", "concat"])
def test_padding_changes_nothing(combine):
    torch.manual_seed(0)
    module = BidirectionalMamba(6, combine=combine).double()
    x, lengths = torch.randn(3, 9, 6, dtype=torch.float64), torch.tensor([9, 4, 0])
    for row, end in enumerate(lengths):
        x[row, end:] = math.nan
    out = module(x, lengths)
    for row, end in enumerate(lengths):
        assert (out[row, end:] == 0).all()
        torch.testing.assert_close(out[row : row + 1, :end], module(x[row : row + 1, :end]), rtol=1e-10, atol=1e-12)


def test_an_unknown_combination_is_named():
    with pytest.raises(ValueError, match=r"combine is 'mean': it must be \"add\" or \"concat\""):
        BidirectionalMamba(6, combine="mean")
