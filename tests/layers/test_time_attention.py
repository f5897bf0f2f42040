"""TimeAttention against the published module's golden values and against the formula, one channel at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from loading import load

from seqattn.errors import SeqattnError
from seqattn.kernels import time_attention
from seqattn.layers.time_attention import TimeAttention
from seqattn.layers.time_embedding import TimeEmbedding, query_times

ROOT = Path(__file__).parents[2]
GOLDEN = np.load(ROOT / "tests" / "golden" / "ehr.npz")
THEIRS = {"query": "linears.0", "key": "linears.1", "out": "linears.2"}

golden_weights = load(ROOT / "tests" / "golden_weights.py")


def golden(name):
    value = torch.from_numpy(GOLDEN[name])
    return value.double() if value.is_floating_point() else value


def error(got, name):
    expected = golden(name)
    return ((got - expected).abs().max() / expected.abs().max()).item()


def test_golden():
    weights = golden_weights.official_state_dict(GOLDEN, "time_attention/")
    embedding, layer = TimeEmbedding(16).double(), TimeAttention(16, 8, 5, 16).double()
    named = {f"{kind}.{part}": getattr(getattr(embedding, kind), part) for kind in ("linear", "periodic")
             for part in ("weight", "bias")}  # fmt: skip
    named |= {f"time_attn_ts.{theirs}.{part}": getattr(getattr(layer, ours), part) for ours, theirs in THEIRS.items()
              for part in ("weight", "bias")}  # fmt: skip
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(weights[name])
    values, times = golden("inputs/small/ts").requires_grad_(), golden("inputs/small/ts_times").requires_grad_()
    mask, lengths = golden("inputs/small/ts_mask") != 0, golden("inputs/small/n_rows")
    query, key = embedding(query_times(6, times)), embedding(times)
    query.retain_grad()
    key.retain_grad()
    assert error(query[None], "time_attention/q_embedding") < 1e-12
    assert error(key, "time_attention/k_embedding") < 1e-12
    out = layer(query, key, values, mask, lengths)
    assert error(out, "time_attention/out") < 1e-10
    heads = time_attention(*layer._projected(query, key), values, mask)  # (batch, queries, heads, channels)
    assert error(heads.transpose(1, 2), "time_attention/core_values") < 5e-7
    seen = mask.any(1)[:, None, None].expand(-1, 8, 6, -1).double()
    assert error(seen, "time_attention/core_flags") < 5e-7
    (out * golden_weights.loss_weight("time_attention", out.shape)).sum().backward()
    assert error(query.grad[None], "time_attention/grad_q_embedding") < 1e-9
    assert error(key.grad, "time_attention/grad_k_embedding") < 1e-9
    assert error(values.grad.where(mask, 0), "time_attention/grad_ts") < 1e-9
    assert error(times.grad, "time_attention/grad_ts_times") < 1e-9
    norms = dict(zip(map(str, GOLDEN["time_attention/names"]), GOLDEN["time_attention/grad_norms"], strict=True))
    assert norms.keys() == named.keys()
    for name, parameter in named.items():
        wanted, got = norms[name], parameter.grad.norm().item()
        assert abs(got - wanted) <= 1e-6 * wanted + 1e-8 * max(norms.values()), name


def problem(flags="seen", **options):
    torch.manual_seed(0)
    layer = TimeAttention(8, 2, 3, 5, flags=flags, **options).double()
    query, key = torch.randn(4, 8, dtype=torch.float64), torch.randn(2, 7, 8, dtype=torch.float64)
    values, mask = torch.randn(2, 7, 3, dtype=torch.float64), torch.rand(2, 7, 3) < 0.4
    mask[0, :, 2] = False  # never observed
    mask[1] = False
    mask[1, 3, 0] = True  # a single observation
    return layer, (query, key, values, mask)


def plain(layer, query, key, values, mask):
    """Per patient, head and channel; the density with the share of attention on rows that observe the channel."""
    out = torch.zeros(len(values), len(query), layer.heads, 2, values.shape[2], dtype=values.dtype)
    q, k = layer.query(query).chunk(layer.heads, -1), layer.key(key).chunk(layer.heads, -1)
    for patient, head, channel in np.ndindex(len(values), layer.heads, values.shape[2]):
        observed = mask[patient, :, channel]
        scores = (q[head] @ k[head][patient].T / q[head].shape[1] ** 0.5).exp()
        if observed.any():
            weights = scores[:, observed]
            out[patient, :, head, 0, channel] = weights @ values[patient, observed, channel] / weights.sum(1)
            out[patient, :, head, 1, channel] = (
                1 if layer.flags == "seen" else weights.sum(1) / scores[:, mask[patient].any(1)].sum(1)
            )
    return out.flatten(2) @ layer.out.weight.T + layer.out.bias


@pytest.mark.parametrize("flags", ["seen", "density"])
def test_is_the_published_formula(flags):
    layer, arguments = problem(flags)
    torch.testing.assert_close(layer(*arguments), plain(layer, *arguments), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("flags", ["seen", "density"])
def test_what_is_not_observed_changes_nothing(flags):
    layer, (query, key, values, mask) = problem(flags)
    expected = layer(query, key, values, mask)
    poisoned = values.where(mask, torch.nan)
    torch.testing.assert_close(layer(query, key, poisoned, mask), expected, rtol=1e-12, atol=1e-12)
    longer = [torch.cat([x, torch.ones_like(x[:, :2])], 1) for x in (key, poisoned, mask)]
    longer[2][:, 7:] = False
    longer[1][:, 7:] = torch.nan
    again = layer(query, *longer, torch.tensor([7, 7]))
    torch.testing.assert_close(again, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("flags", ["seen", "density"])
def test_gradients_are_finite_and_reach_every_parameter(flags):
    layer, (query, key, values, mask) = problem(flags, dropout=0.2)
    poisoned = values.where(mask, torch.nan).requires_grad_()
    layer(query, key, poisoned, mask).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or name == "key.bias", name  # scores shift alike for all rows
    assert poisoned.grad.where(mask, 0).isfinite().all()
    assert poisoned.grad[mask].any()


def test_dropout_keeps_the_mean_and_leaves_flags_alone():
    layer, (query, key, values, mask) = problem(dropout=0.5)
    expected = layer.eval()(query, key, values, mask)
    layer.train()
    drawn = torch.stack([layer(query, key, values, mask) for _ in range(2000)])
    assert drawn.std(0).max() > 0.01
    torch.testing.assert_close(drawn.mean(0), expected, rtol=0.1, atol=0.05)
    zeros = torch.zeros_like(values)
    assert torch.equal(layer(query, key, zeros, mask), layer(query, key, zeros, mask))


def test_row_weights_are_attention_over_rows_with_an_observation():
    layer, (query, key, values, mask) = problem()
    weights = layer.row_weights(query, key, mask)
    assert weights.shape == (2, 2, 4, 7)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 4, dtype=weights.dtype))
    assert not weights[1, :, :, [0, 1, 2, 4, 5, 6]].any()
    complete = mask.any(-1, keepdim=True).expand_as(mask)
    averages = time_attention(*layer._projected(query, key), values, complete)
    torch.testing.assert_close(torch.einsum("bhql,blc->bqhc", weights, values), averages, rtol=1e-10, atol=1e-12)


def test_bad_input():
    with pytest.raises(SeqattnError, match="3 heads do not divide embed_time=8"):
        TimeAttention(8, 3, 2, 4)
    with pytest.raises(SeqattnError, match='flags is \'all\': it must be "seen" or "density"'):
        TimeAttention(8, 2, 2, 4, flags="all")
