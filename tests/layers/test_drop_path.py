import pytest
import torch

from seqattn.layers.drop_path import DropPath


def test_drops_whole_sequences_at_the_rate_and_keeps_the_mean():
    torch.manual_seed(0)
    out = DropPath(0.2).train()(torch.ones(4000, 3, 2))
    assert out.unique().tolist() == [0.0, 1.25]
    assert (out == out[:, :1, :1]).all()
    assert out.mean().item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(("rate", "training"), [(0.5, False), (0.0, True)], ids=["evaluation", "rate-0"])
def test_otherwise_changes_nothing(rate, training):
    x = torch.randn(3, 4, 2)
    assert DropPath(rate).train(training)(x) is x


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_rate_is_below_1(rate):
    with pytest.raises(ValueError, match=f"rate is {rate}"):
        DropPath(rate)
