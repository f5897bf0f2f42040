"""The reference against the scan's dense matrix; numerical derivatives of the reference and the CPU kernel."""

from pathlib import Path

import pytest
import torch
from loading import load
from torch.nn import functional as F

from seqattn.kernels import selective_scan

cases = load(Path(__file__).with_name("cases.py"))
Case = cases.Case
SMALL = {"batch": 2, "length": 5, "channels": 4, "state": 2}


def dense_scan(u, delta, A, B, C, window):
    """M of the specification's kernel form: out_t = Σ_s M_{t,s} u_s; one group, no option."""
    length = u.shape[1]
    until = F.pad(delta.cumsum(1), (0, 0, 1, 0))  # Σ of the steps before t, (batch, length + 1, channels)
    t, s = torch.arange(length)[:, None], torch.arange(length)
    earlier = until[:, 1:, None] - until[:, None, 1:]  # Σ_{j=s+1..t}, (batch, t, s, channels)
    later = until[:, None, :-1] - until[:, :-1, None]  # Σ_{j=t..s-1}
    elapsed = torch.where((s <= t)[..., None], earlier, later)
    decay = torch.exp(elapsed[..., None] * A)  # (batch, t, s, channels, state)
    M = torch.einsum("btn,btscn,bsc,bsn->btsc", C, decay, delta, B)
    seen = (s <= t) | (s // window == t // window)
    return torch.einsum("btsc,bsc->btc", M.where(seen[..., None], 0), u)


@pytest.mark.parametrize("window", [1, 4, 11, 30])
def test_equals_the_dense_matrix(window):
    case = Case(length=11, channels=3, window=window, softplus=False, without=("D", "z", "delta_bias", "initial_state"))
    tensors = case.draw()
    got = cases.run(tensors, case.options(), "reference")
    leaves = [tensor.clone().requires_grad_() for tensor in tensors.values()]
    out = dense_scan(*leaves, window)
    assert cases.relative_error(got["out"], out) < 1e-12
    # entry n of the last state: the last output of a scan whose C is the n-th unit vector
    state = torch.zeros_like(got["last_state"])
    for n in range(case.state):
        pick = torch.zeros_like(tensors["C"])
        pick[..., n] = 1
        state[..., n] = dense_scan(*list(tensors.values())[:4], pick, 1)[:, -1]
    assert cases.relative_error(got["last_state"], state) < 1e-12


@pytest.mark.parametrize("window", [1, 4, 11])
def test_gradients_equal_those_of_the_dense_matrix(window):
    case = Case(length=11, channels=3, window=window, softplus=False, without=("D", "z", "delta_bias", "initial_state"))
    ours, dense = ([t.requires_grad_() for t in case.draw().values()] for _ in range(2))
    out = selective_scan(*ours, window=window, backend="reference")
    weight = cases.eighths(out, 0)
    expected = torch.autograd.grad(dense_scan(*dense, window), dense, weight)
    for got, theirs in zip(torch.autograd.grad(out, ours, weight), expected, strict=True):
        assert cases.relative_error(got, theirs) < 1e-12


def test_options_around_the_dense_matrix():
    case = Case(length=9, channels=3, window=4, without=("initial_state",))
    tensors = case.draw()
    out = selective_scan(**tensors, **case.options(), backend="reference")
    step = F.softplus(tensors["delta"] + tensors["delta_bias"])
    inner = dense_scan(*(step if name == "delta" else tensors[name] for name in ("u", "delta", "A", "B", "C")), 4)
    expected = (inner + tensors["D"] * tensors["u"]) * F.silu(tensors["z"])
    assert cases.relative_error(out, expected) < 1e-12


def test_groups_repeat_over_neighbouring_channels():
    case = Case(channels=6, groups=3, window=4)
    tensors = case.draw()
    repeated = tensors | {name: tensors[name].repeat_interleave(2, dim=2) for name in ("B", "C")}
    by_group, by_channel = (cases.run(each, case.options(), "reference") for each in (tensors, repeated))
    assert cases.relative_error(by_group["out"], by_channel["out"]) < 1e-14
    for name in ("grad_B", "grad_C"):
        summed = by_channel[name].unflatten(2, (3, 2)).sum(3)
        assert cases.relative_error(by_group[name], summed) < 1e-14


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(**SMALL), id="every-option"),
        pytest.param(Case(**SMALL, window=3), id="window-3"),
        pytest.param(Case(**SMALL, window=5, reverse=True), id="full-window-reverse"),
        pytest.param(Case(**SMALL, window=3, reverse=True, lengths=(4, 1)), id="ragged-reverse"),
        pytest.param(Case(**SMALL, window=2, lengths=(0, 5), groups=2), id="empty-sequence-groups"),
        pytest.param(Case(**SMALL, window=7, softplus=False), id="plain-step"),
        pytest.param(Case(**SMALL, window=3, without=("D", "z", "delta_bias", "initial_state")), id="bare"),
        pytest.param(Case(**SMALL, softplus=False, without=("D", "z", "delta_bias", "initial_state")), id="bare-plain"),
    ],
)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_gradcheck(backend, case):
    tensors = case.draw()
    names = list(tensors)

    def results(*values):  # out and the last state
        named = dict(zip(names, values, strict=True))
        return selective_scan(**named, **case.options(), return_last_state=True, backend=backend)

    assert torch.autograd.gradcheck(results, [t.requires_grad_() for t in tensors.values()], fast_mode=False)


def test_half_precision_keeps_its_state_in_float32():
    case = Case(length=200, without=("initial_state",))
    tensors = case.draw(torch.bfloat16)
    out, last = selective_scan(**tensors, **case.options(), return_last_state=True, backend="reference")
    wide = selective_scan(**cases.widen(tensors), **case.options(), return_last_state=True, backend="reference")
    assert (out.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    assert cases.relative_error(last, wide[1]) < 1e-5
