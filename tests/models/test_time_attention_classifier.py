import pytest
import torch
from torch.nn import functional as F

from seqattn.errors import SeqattnError
from seqattn.models.time_attention_classifier import TimeAttentionClassifier

SMALL = {
    "num_steps": 6, "embed_dim": 8, "embed_time": 8, "num_heads": 2, "time_heads": 2, "num_layers": 1, "dropout": 0.0,
}  # fmt: skip


def small(**options):
    torch.manual_seed(0)
    return TimeAttentionClassifier(3, 4, **(SMALL | options)).eval()


def series():
    torch.manual_seed(1)
    times = 48 * torch.rand(5, 20).sort(1).values
    return times, torch.randn(5, 20, 3), torch.rand(5, 20, 3) < 0.4


def test_three_tensors_in_logits_out():
    model, (times, values, mask) = small(window=48.0), series()
    logits = model(times, values, mask)
    assert logits.shape == (5, 4)
    torch.testing.assert_close(small()(times / 48, values, mask), logits)
    torch.testing.assert_close(model(times, values.masked_fill(~mask, torch.nan)), logits)


def test_padding_changes_nothing():
    model, (times, values, mask) = small(window=48.0, encoder="lstm"), series()
    lengths = torch.tensor([20, 13, 1, 0, 7])
    padded = [x.clone() for x in (times, values, mask)]
    for row, length in enumerate(lengths):
        padded[0][row, length:], padded[1][row, length:], padded[2][row, length:] = torch.nan, torch.nan, True
    logits = model(*padded, lengths)
    for row, length in enumerate(lengths):
        alone = model(*(x[row : row + 1, :length] for x in (times, values, mask)))
        torch.testing.assert_close(logits[row : row + 1], alone, rtol=1e-4, atol=1e-5)


def test_learns_when_something_happened():
    model, (times, values, mask) = small(window=48.0, time_init="spread").train(), series()
    label = torch.arange(5) % 4
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(times, values, mask), label)
        loss.backward()
        optimizer.step()
    assert loss < 0.05


def test_bad_input():
    with pytest.raises(SeqattnError, match="window is 0: it must be positive"):
        small(window=0)
    with pytest.raises(SeqattnError, match=r"values has shape \(5, 20, 2\): it must be \(batch, length, 3\)"):
        small()(torch.zeros(5, 20), torch.zeros(5, 20, 2))
