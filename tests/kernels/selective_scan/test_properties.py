"""What must hold between scans of related inputs, on shapes and options that hypothesis draws."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import load
from torch.nn import functional as F

from seqattn.kernels import selective_scan

cases = load(Path(__file__).with_name("cases.py"))
Case, PER_STEP = cases.Case, cases.PER_STEP
OPTIONAL = ("D", "z", "delta_bias", "initial_state")
TOLERANCE = 1e-11
properties = settings(deadline=None, derandomize=True, max_examples=25)
WINDOWS = st.sampled_from([1, 2, 3, 8, 31, 32, 33, 40, 100])


@st.composite
def scans(draw, ragged=False, windows=WINDOWS, **fixed):
    length = draw(st.integers(1, 80))
    batch = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([None, 1, 2]))
    drawn = {
        "batch": batch,
        "length": length,
        "channels": draw(st.sampled_from([2, 6, 34])),
        "state": draw(st.sampled_from([1, 3])),
        "groups": groups,
        "window": draw(windows),
        "reverse": draw(st.booleans()),
        "softplus": draw(st.booleans()),
        "without": tuple(draw(st.sets(st.sampled_from(OPTIONAL)))),
        "lengths": tuple(draw(st.lists(st.integers(0, length), min_size=batch, max_size=batch))) if ragged else None,
    }
    return Case(**(drawn | fixed))


def flip(tensor, lengths=None):
    """Every sequence flipped at its own length."""
    if lengths is None:
        return tensor.flip(1)
    steps, ends = torch.arange(tensor.shape[1]), torch.tensor(lengths)[:, None]
    place = torch.where(steps < ends, ends - 1 - steps, steps)
    return tensor[torch.arange(len(tensor))[:, None], place]


def flip_results(results, lengths=None):
    flipped = {"out", *(f"grad_{name}" for name in PER_STEP)}
    return {name: flip(tensor, lengths) if name in flipped else tensor for name, tensor in results.items()}


def pieces(tensors, first, stop):
    return {name: tensor[:, first:stop] if name in PER_STEP else tensor for name, tensor in tensors.items()}


@properties
@given(scans(windows=st.just(1), ragged=True), st.sampled_from(["cpu", "reference"]))
def test_window_1_is_mamba(case, backend):
    tensors = case.draw()
    out, last = selective_scan(**tensors, **case.options(), return_last_state=True, backend=backend)
    zeros = torch.zeros(case.channels, dtype=torch.float64)
    ends = case.lengths or (case.length,) * case.batch
    step = tensors["delta"] + tensors.get("delta_bias", zeros)
    step = F.softplus(step) if case.softplus else step
    groups = case.groups or 1
    B, C = (
        tensors[name].unflatten(-1, (1, case.state) if case.groups is None else (case.state,))
        .repeat_interleave(case.channels // groups, dim=2)
        for name in ("B", "C")
    )  # fmt: skip
    for row, end in enumerate(ends):
        h = tensors["initial_state"][row] if "initial_state" in tensors else torch.zeros_like(tensors["A"])
        for t in range(end - 1, -1, -1) if case.reverse else range(end):
            drive = (step[row, t] * tensors["u"][row, t])[:, None] * B[row, t]
            h = torch.exp(step[row, t][:, None] * tensors["A"]) * h + drive
            y = (C[row, t] * h).sum(-1) + tensors.get("D", zeros) * tensors["u"][row, t]
            y = y * F.silu(tensors["z"][row, t]) if "z" in tensors else y
            torch.testing.assert_close(out[row, t], y, rtol=TOLERANCE, atol=TOLERANCE)
        torch.testing.assert_close(last[row], h, rtol=TOLERANCE, atol=TOLERANCE)
        assert not out[row, end:].any()


@properties
@given(scans(without=("D", "z", "initial_state"), windows=st.just(1), reverse=False))
def test_a_full_window_is_two_scans_less_the_token_itself(case):
    tensors, options = case.draw(), case.options()
    flipped = {name: flip(tensor) if name in PER_STEP else tensor for name, tensor in tensors.items()}
    both = selective_scan(**tensors, **options) + flip(selective_scan(**flipped, **options))
    # with a transition of 0 the state is the token's own input
    alone = selective_scan(**tensors | {"A": torch.full_like(tensors["A"], -1e9)}, **options)
    full = selective_scan(**tensors, **options | {"window": case.length})
    torch.testing.assert_close(full, both - alone, rtol=TOLERANCE, atol=TOLERANCE * case.length)


@properties
@given(scans(ragged=True))
def test_reverse_is_a_flip_at_each_sequence_end(case):
    tensors = case.draw()
    flipped = {name: flip(t, case.lengths) if name in PER_STEP else t for name, t in tensors.items()}
    got = cases.run(tensors, case.options())
    other = replace(case, reverse=not case.reverse).options()
    leaves = {name: tensor.requires_grad_() for name, tensor in flipped.items()}
    results = selective_scan(**leaves, **other, return_last_state=True)
    weights = [cases.eighths(result, seed) for seed, result in enumerate(results)]
    weights[0] = flip(weights[0], case.lengths)
    gradients = torch.autograd.grad(results, list(leaves.values()), weights)
    named = {f"grad_{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    expected = {"out": results[0].detach(), "last_state": results[1].detach()} | named
    cases.assert_close(got, flip_results(expected, case.lengths), TOLERANCE)


@properties
@given(scans(ragged=True), st.integers(0, 2**31))
def test_padding_changes_nothing(case, seed):
    tensors, other = case.draw(), case.draw(seed=seed)
    for row, end in enumerate(case.lengths):
        for name in set(PER_STEP) & set(tensors):
            other[name][row, :end] = tensors[name][row, :end]
    other |= {name: tensor for name, tensor in tensors.items() if name not in PER_STEP}
    cases.assert_same(cases.run(other, case.options()), cases.run(tensors, case.options()))


@properties
@given(scans(ragged=True), st.integers(1, 60))
def test_longer_padding_changes_nothing(case, extra):
    tensors = case.draw()
    padded = {
        name: torch.cat([tensor, tensor.new_full((len(tensor), extra, *tensor.shape[2:]), 7)], 1)
        if name in PER_STEP else tensor
        for name, tensor in tensors.items()
    }  # fmt: skip
    out, last = selective_scan(**tensors, **case.options(), return_last_state=True)
    longer, longer_last = selective_scan(**padded, **case.options(), return_last_state=True)
    assert torch.equal(longer[:, : case.length], out)
    assert not longer[:, case.length :].any()
    assert torch.equal(longer_last, last)


@properties
@given(scans(ragged=True), st.randoms(use_true_random=False))
def test_a_sequence_does_not_see_the_others(case, random):
    order = random.sample(range(case.batch), case.batch)
    tensors = case.draw()
    per_row = {*PER_STEP, "initial_state"}
    permuted = {name: tensor[order] if name in per_row else tensor for name, tensor in tensors.items()}
    lengths = tuple(case.lengths[row] for row in order)
    results = selective_scan(**tensors, **case.options(), return_last_state=True)
    other = selective_scan(**permuted, **replace(case, lengths=lengths).options(), return_last_state=True)
    for whole, shuffled in zip(results, other, strict=True):
        assert torch.equal(whole[order], shuffled)


@properties
@given(scans(ragged=True, groups=2))
def test_groups_are_separate_scans(case):
    tensors = case.draw()
    half = case.channels // 2
    out, last = selective_scan(**tensors, **case.options(), return_last_state=True)
    for group in range(2):
        mine = slice(group * half, (group + 1) * half)
        part = {
            name: tensor[mine] if name in ("A", "D", "delta_bias")
            else tensor[:, mine] if name == "initial_state"
            else tensor[:, :, group] if name in ("B", "C")
            else tensor[..., mine]
            for name, tensor in tensors.items()
        }  # fmt: skip
        part_out, part_last = selective_scan(**part, **case.options(), return_last_state=True)
        torch.testing.assert_close(part_out, out[..., mine], rtol=0, atol=1e-13)
        torch.testing.assert_close(part_last, last[:, mine], rtol=0, atol=1e-13)


@properties
@given(scans(ragged=True, windows=st.sampled_from([1, 3, 8, 33])), st.integers(0, 79))
def test_out_depends_on_earlier_steps_and_its_own_window(case, token):
    case = replace(case, softplus=True, without=OPTIONAL)
    u = (tensors := case.draw())["u"].requires_grad_()
    out = selective_scan(**tensors, **case.options())
    t = token % case.length
    (grad,) = torch.autograd.grad(out[:, t].sum(), u)
    for row, end in enumerate(case.lengths):
        places = [end - 1 - step if case.reverse else step for step in range(end)]
        seen = [
            t < end and (place <= places[t] or place // case.window == places[t] // case.window) for place in places
        ]
        seen += [False] * (case.length - end)
        assert grad[row].any(-1).tolist() == seen


@pytest.mark.parametrize("split", [1, 31, 32, 33, 50])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_a_state_handed_on_joins_two_scans(split, reverse):
    whole = Case(length=70, channels=17, reverse=reverse)
    tensors = {name: tensor.requires_grad_() for name, tensor in whole.draw().items()}
    cut = 70 - split if reverse else split
    parts = [pieces(tensors, 0, cut), pieces(tensors, cut, 70)]
    state, outs = tensors["initial_state"], []
    for part in reversed(parts) if reverse else parts:
        out, state = selective_scan(**part | {"initial_state": state}, **whole.options(), return_last_state=True)
        outs.append(out)
    joined = (torch.cat(outs[::-1] if reverse else outs, 1), state)
    expected = cases.run(tensors, whole.options())
    weights = [cases.eighths(result, seed) for seed, result in enumerate(joined)]
    gradients = torch.autograd.grad(joined, list(tensors.values()), weights)
    named = {f"grad_{name}": gradient for name, gradient in zip(tensors, gradients, strict=True)}
    cases.assert_close({"out": joined[0], "last_state": joined[1], **named}, expected, TOLERANCE)
