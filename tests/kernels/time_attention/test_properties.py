"""What holds for time attention of any shape: averages, channels, padding, and what was never observed."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import load

from seqattn.kernels import time_attention

cases = load(Path(__file__).with_name("cases.py"))
Case = cases.Case
BACKENDS = ("cpu", "reference")
anywhere = settings(deadline=None, derandomize=True, max_examples=25)
either = pytest.mark.parametrize("backend", BACKENDS)
SPREADS = (1, 10, 100, 1000)


@st.composite
def any_case(draw, **fixed):
    length = draw(st.integers(1, 40))
    options = {
        "batch": 3, "queries": draw(st.integers(1, 9)), "heads": draw(st.integers(1, 3)), "length": length,
        "dim": draw(st.integers(1, 9)), "channels": draw(st.integers(1, 20)), "spread": draw(st.sampled_from(SPREADS)),
        "observed": draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
        "lengths": tuple(draw(st.lists(st.integers(0, length), min_size=3, max_size=3))),
    }  # fmt: skip
    return Case(**options | fixed)


@pytest.mark.parametrize("spread", SPREADS)
@either
def test_it_is_the_softmax_of_every_channel(backend, spread):
    tensors = Case(spread=spread, channels=3).draw()
    out = time_attention(**tensors, backend=backend)
    for sample in range(2):
        for channel in range(3):
            observed = tensors["mask"][sample, :, channel]
            scores = torch.einsum("qhd,lhd->qhl", tensors["query"], tensors["key"][sample, observed]) / 2
            expected = scores.softmax(-1) @ tensors["values"][sample, observed, channel]
            torch.testing.assert_close(out[sample, ..., channel], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("spread", SPREADS)
@either
def test_a_single_observation_is_the_average(backend, spread, dtype):
    tensors = Case(spread=spread, observed=0.0).draw(dtype)
    tensors["query"] *= 4
    results = cases.run(tensors, {}, backend)
    values = (tensors["values"] * tensors["mask"]).sum(1)[:, None, None]
    torch.testing.assert_close(results["out"], values.expand_as(results["out"]), rtol=1e-6, atol=0)
    scale = cases.eighths(results["out"]).abs().max() * tensors["values"].abs().max() * spread
    assert all(results[f"grad_{name}"].abs().max() < 1e-4 * scale for name in ("query", "key"))


@either
def test_a_channel_never_observed_is_zero_and_so_are_its_gradients(backend):
    for spread in SPREADS:
        tensors = Case(spread=spread).draw()
        tensors["values"][0, :, 1] = float("nan")
        tensors["mask"][1] = False
        results = cases.run(tensors, {}, backend)
        assert all(result.isfinite().all() for result in results.values())
        assert (results["out"][0, ..., 1] == 0).all()
        assert (results["out"][1] == 0).all()
        assert (results["grad_key"][1] == 0).all()
        assert (results["grad_values"].where(tensors["mask"], 0) == results["grad_values"]).all()


@pytest.mark.parametrize("spread", [1, 1000])
@either
def test_an_observation_far_below_the_others_counts_for_its_channel(backend, spread):
    query, key = torch.ones(1, 1, 1), torch.tensor([300.0, 0.0, -300.0, -302.0]).reshape(1, 4, 1, 1) * spread
    mask = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1]])[None]
    values = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.0, 4.0]])[None]
    share = torch.sigmoid(torch.tensor(-2.0 * spread, dtype=torch.float64)).item()
    out = time_attention(query, key, values, mask, backend=backend)
    torch.testing.assert_close(out.flatten(), torch.tensor([1.0, 3.0 + share]), rtol=1e-6, atol=0)


@anywhere
@given(any_case(), st.integers(0, 2**31), st.integers(0, 9))
def test_padding_and_unobserved_values_change_nothing_whatever_they_hold(case, seed, more):
    tensors, options = case.draw(seed=seed), case.options()
    steps = torch.arange(case.length)
    observed = tensors["mask"] & (steps < options["lengths"][:, None])[..., None]
    clean = cases.run(tensors, options)
    padded = {"query": tensors["query"], "mask": torch.nn.functional.pad(tensors["mask"], (0, 0, 0, more), value=True)}
    nan = float("nan")
    key = tensors["key"].masked_fill(~observed.any(-1)[..., None, None], nan)
    padded["key"] = torch.nn.functional.pad(key, (0, 0, 0, 0, 0, more), value=nan)
    padded["values"] = torch.nn.functional.pad(
        tensors["values"].masked_fill(~observed, nan), (0, 0, 0, more), value=nan
    )
    for backend in BACKENDS:
        got = cases.run(padded, options, backend)
        for name in ("grad_key", "grad_values"):
            assert (got[name][:, case.length :] == 0).all()
            got[name] = got[name][:, : case.length]
        assert (got["grad_values"].masked_fill(observed, 0) == 0).all()
        assert (got["grad_key"][~observed.any(-1)] == 0).all()
        cases.assert_close(got, clean, tensors, 1e-9)


@anywhere
@given(any_case(), st.integers(0, 2**31))
def test_samples_heads_queries_and_channels_do_not_see_each_other(case, seed):
    tensors, options = case.draw(seed=seed), case.options()
    out = time_attention(**tensors, **options)
    order, head, channel = torch.tensor([2, 0, 1]), case.heads - 1, case.channels - 1
    parts = {name: tensors[name][order] for name in ("key", "values", "mask")}
    moved = time_attention(tensors["query"], **parts, lengths=options["lengths"][order])
    torch.testing.assert_close(moved, out[order], rtol=1e-9, atol=1e-11)
    alone = time_attention(
        tensors["query"][:1, head:], tensors["key"][:, :, head:], tensors["values"][..., channel:],
        tensors["mask"][..., channel:], **options,
    )  # fmt: skip
    torch.testing.assert_close(alone, out[:, :1, head:, channel:], rtol=1e-9, atol=1e-11)


@anywhere
@given(any_case(), st.integers(0, 2**31))
def test_the_order_of_rows_and_a_shift_of_all_keys_change_nothing(case, seed):
    tensors, options = case.draw(seed=seed), case.options()
    tensors["mask"] &= (torch.arange(case.length) < options["lengths"][:, None])[..., None]
    out = time_attention(**tensors)
    mixed = {name: tensors[name].flip(1) for name in ("key", "values", "mask")}
    torch.testing.assert_close(time_attention(tensors["query"], **mixed), out, rtol=1e-9, atol=1e-11)
    shifted = tensors | {"key": tensors["key"] + 4}
    torch.testing.assert_close(time_attention(**shifted), out, rtol=1e-8, atol=1e-10)


@anywhere
@given(any_case(), st.integers(0, 2**31))
def test_averages_stay_between_the_least_and_the_largest_observed_value(case, seed):
    tensors, options = case.draw(seed=seed), case.options()
    observed = tensors["mask"] & (torch.arange(case.length) < options["lengths"][:, None])[..., None]
    seen = observed.any(1)[:, None, None]
    low = tensors["values"].masked_fill(~observed, torch.inf).amin(1)[:, None, None].where(seen, 0)
    high = tensors["values"].masked_fill(~observed, -torch.inf).amax(1)[:, None, None].where(seen, 0)
    out = time_attention(**tensors, **options)
    assert ((out >= low - 1e-12) & (out <= high + 1e-12)).all()


@either
def test_nan_stays_where_it_belongs(backend):
    case = Case(batch=3, heads=2, observed=1.0)
    tensors = case.draw()
    tensors["mask"][:] = True
    clean = time_attention(**tensors, backend=backend)
    values = tensors["values"].clone()
    values[1, 3, 2] = float("nan")
    got = time_attention(**tensors | {"values": values}, backend=backend)
    assert got[1, ..., 2].isnan().all()
    got[1, ..., 2] = clean[1, ..., 2]
    torch.testing.assert_close(got, clean, rtol=1e-12, atol=1e-12)
    key = tensors["key"].clone()
    key[1, 3, 1] = float("nan")
    got = time_attention(**tensors | {"key": key}, backend=backend)
    assert got[1, :, 1].isnan().all()
    got[1, :, 1] = clean[1, :, 1]
    torch.testing.assert_close(got, clean, rtol=1e-12, atol=1e-12)


@either
def test_nan_of_a_query_stays_in_its_query_and_head(backend):
    tensors, lengths = Case().draw(), torch.tensor([0, 30])
    clean = time_attention(**tensors, lengths=lengths, backend=backend)
    tensors["query"][2, 1] = float("nan")
    got = cases.run(tensors, {"lengths": lengths}, backend)
    assert got["out"][1, 2, 1].isnan().any()
    got["out"][:, 2, 1] = clean[:, 2, 1]
    torch.testing.assert_close(got["out"], clean, rtol=1e-12, atol=1e-12)
    assert (got["grad_values"][0] == 0).all()


@either
def test_a_mask_of_numbers_counts_what_is_not_zero(backend):
    tensors = Case().draw()
    expected = time_attention(**tensors, backend=backend)
    for dtype in (torch.float32, torch.int64, torch.uint8):
        assert torch.equal(time_attention(**tensors | {"mask": tensors["mask"].to(dtype)}, backend=backend), expected)
    halves = tensors["mask"] * 0.5
    assert torch.equal(time_attention(**tensors | {"mask": halves}, backend=backend), expected)
