"""What holds for WERSA attention of any shape: the filter's algebra, invariances, streaming, causality, padding."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import load
from torch.utils.flop_counter import FlopCounterMode

from seqattn.kernels import (
    haar_transform,
    inverse_haar_transform,
    wersa_attention,
    wersa_attention_step,
)
from seqattn.kernels.wersa.reference import filter_tokens

cases = load(Path(__file__).with_name("cases.py"))
Case = cases.Case
LENGTHS, LEVELS = (1, 2, 5, 64, 100, 257), (1, 2, 4, 6)
anywhere = settings(deadline=None, derandomize=True, max_examples=25)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("levels", LEVELS)
def test_haar_reconstructs_and_keeps_the_energy(length, levels):
    x = normal(2, 3, length, 4)
    bands = haar_transform(x, levels)
    assert [band.shape[2] for band in bands] == [
        -(-length // 2 ** min(level, levels)) for level in range(1, levels + 2)
    ]
    torch.testing.assert_close(inverse_haar_transform(bands, length), x, rtol=1e-12, atol=1e-12)
    energy = sum(band.square().sum() for band in bands)
    torch.testing.assert_close(energy, x.square().sum(), rtol=1e-12, atol=1e-12)
    other = haar_transform(x.transpose(1, 2), levels, dim=1)
    for band, transposed in zip(bands, other, strict=True):
        assert torch.equal(band, transposed.transpose(1, 2))
    single = inverse_haar_transform(haar_transform(x.float(), levels), length)
    torch.testing.assert_close(single, x.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("levels", LEVELS)
def test_the_filter_is_its_token_form_self_adjoint_and_bounded(length, levels):
    x, y, gains = normal(2, 1, length, 3), normal(2, 1, length, 3, seed=1), normal(2, length, levels + 1, seed=2)
    filtered = filter_tokens(x, gains, causal=False)
    steps, terms, means = torch.arange(length), 0, [x]
    for level in range(1, levels + 1):
        block = steps // 2**level
        member = (block[:, None] == block).double() / 2**level  # zeros behind the end count too
        means.append(member @ x)
        own = gains[:, None, block * 2**level, level - 1, None]
        terms = terms + own * (means[-2] - means[-1])
    terms = terms + gains[:, None, steps // 2**levels * 2**levels, levels, None] * means[-1]
    torch.testing.assert_close(filtered, terms, rtol=1e-12, atol=1e-12)
    adjoint = filter_tokens(y, gains, causal=False)
    torch.testing.assert_close((filtered * y).sum(), (x * adjoint).sum(), rtol=1e-11, atol=1e-11)
    assert filtered.norm() <= gains.abs().max() * x.norm() * (1 + 1e-12)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_equal_gains_only_scale(causal, length):
    x = normal(1, 2, length, 3)
    for value in (1.0, 0.3):
        filtered = filter_tokens(x, torch.full((1, length, 5), value, dtype=torch.float64), causal)
        torch.testing.assert_close(filtered, value * x, rtol=1e-12, atol=1e-12)


def test_the_causal_filter_moves_with_its_input():
    x, gains = normal(1, 1, 60, 2), normal(1, 1, 4).expand(1, 60, 4)
    filtered = filter_tokens(x, gains, causal=True)
    for shift in (1, 3, 8):
        moved = filter_tokens(x.roll(shift, 2), gains, causal=True)
        torch.testing.assert_close(moved[:, :, shift + 7 :], filtered[:, :, 7:-shift], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("feature_map", ["relu", "exp"])
@pytest.mark.parametrize("causal", [False, True], ids=["both-sides", "causal"])
def test_linear_attention_is_the_masked_quadratic_form(backend, feature_map, causal):
    case = Case(length=70, feature_map=feature_map, causal=causal, eps=0.0)
    tensors = case.draw()
    q, k = (filter_tokens(tensors[name], tensors["gains"], causal) for name in "qk")
    proj, b = tensors["proj_q"], tensors["bandwidth"]
    if feature_map == "relu":
        phi_q, phi_k = ((rows @ proj).relu() for rows in (q, k))
    else:
        phi_q, phi_k = (
            torch.exp(rows @ proj / b - rows.square().sum(-1, keepdim=True) / (2 * b**2)) for rows in (q, k)
        )
    weights = phi_q @ phi_k.transpose(-1, -2)
    weights = weights.tril() if causal else weights
    expected = weights / weights.sum(-1, keepdim=True) @ tensors["v"]
    got = wersa_attention(**tensors, **case.options(), backend=backend)
    # a token whose rectified weights all vanish has no output
    defined = weights.sum(-1, keepdim=True) > 1e-3
    torch.testing.assert_close(got.where(defined, 0), expected.where(defined, 0), rtol=1e-9, atol=1e-10)


@st.composite
def any_case(draw, **fixed):
    feature_map, causal = draw(st.sampled_from(["relu", "exp"])), draw(st.booleans())
    length = draw(st.integers(1, 40))
    options = {
        "batch": 3, "length": length, "dim": draw(st.integers(2, 9)), "value_dim": draw(st.integers(1, 9)),
        "features": draw(st.integers(4, 33)), "levels": draw(st.integers(1, 6)), "feature_map": feature_map,
        "tied": draw(st.booleans()), "causal": causal,
        "lengths": tuple(draw(st.lists(st.integers(0, length), min_size=3, max_size=3))),
    }  # fmt: skip
    return Case(**options | fixed)


@anywhere
@given(any_case(), st.integers(0, 2**31), st.integers(0, 9))
def test_padding_changes_nothing_whatever_it_holds(case, seed, more):
    tensors, options = case.draw(seed=seed), case.options()
    clean = cases.run(tensors, options)
    padded = {}
    for name, tensor in tensors.items():
        if name in ("q", "k", "v", "gains"):
            axis = 1 if name == "gains" else 2
            shape = list(tensor.shape)
            shape[axis] = more
            longer = torch.cat([tensor, tensor.new_full(shape, float("nan"))], axis)
            for row, end in enumerate(case.lengths):
                longer[row].narrow(axis - 1, end, longer.shape[axis] - end).fill_(float("nan"))
            padded[name] = longer
        else:
            padded[name] = tensor
    weights = torch.nn.functional.pad(cases.eighths(clean["out"]), (0, 0, 0, more), value=1.0)
    past = (torch.arange(case.length + more) >= options["lengths"][:, None])[:, None, :, None]
    for backend in ("cpu", "reference"):
        got = cases.run(padded, options, backend, weights)
        torch.testing.assert_close(got["out"][:, :, : case.length], clean["out"], rtol=1e-9, atol=1e-11)
        assert (got["out"].where(past, 0) == 0).all()
        for name in ("grad_q", "grad_k", "grad_v"):
            assert (got[name].where(past, 0) == 0).all()
            error = (got[name][:, :, : case.length] - clean[name]).abs().max()
            assert error <= 1e-7 * (clean[name].abs().max() + clean["grad_v"].abs().max())


@anywhere
@given(any_case(causal=True, lengths=None), st.integers(0, 2**31), st.data())
def test_streaming_is_the_whole_sequence(case, seed, data):
    tensors, options = case.draw(seed=seed), case.options()
    whole = wersa_attention(**tensors, **options)
    rest = {name: tensor for name, tensor in tensors.items() if name not in ("q", "k", "v", "gains")}
    step_options = {name: options[name] for name in ("levels", "feature_map", "eps")}
    state, pieces, at = None, [], 0
    while at < case.length:
        stop = min(case.length, at + data.draw(st.integers(1, 7)))
        parts = {name: tensors[name][:, :, at:stop] for name in ("q", "k", "v")}
        out, state = wersa_attention_step(state, gains=tensors["gains"][:, at:stop], **parts, **rest, **step_options)
        pieces.append(out)
        at = stop
    streamed = torch.cat(pieces, dim=2)
    scale = whole.abs().max().clamp_min(1)
    assert (streamed - whole).abs().max() < 1e-9 * scale


@anywhere
@given(any_case(causal=True, lengths=None), st.integers(0, 2**31), st.data())
def test_no_bit_of_the_future_enters(case, seed, data):
    tensors, options = case.draw(seed=seed), case.options()
    edit = data.draw(st.integers(0, case.length - 1))
    edited = {name: tensor.clone() for name, tensor in tensors.items()}
    for name in ("q", "k", "v"):
        edited[name][:, :, edit:] = 3 * normal(*edited[name][:, :, edit:].shape, seed=1)
    edited["gains"][:, edit:] += 1
    for backend in ("cpu", "reference"):
        before, after = (wersa_attention(**given, **options, backend=backend) for given in (tensors, edited))
        assert torch.equal(before[:, :, :edit], after[:, :, :edit])


@anywhere
@given(any_case(), st.integers(0, 2**31))
def test_sequences_and_heads_do_not_see_each_other(case, seed):
    tensors, options = case.draw(seed=seed), case.options()
    out = wersa_attention(**tensors, **options)
    rest = {name: tensors[name] for name in tensors if name not in ("q", "k", "v", "gains")}
    order = torch.tensor([2, 0, 1])
    shuffled = {name: tensors[name][order] for name in ("q", "k", "v", "gains")}
    moved = wersa_attention(**shuffled, **rest, **options | {"lengths": options["lengths"][order]})
    torch.testing.assert_close(moved, out[order], rtol=1e-9, atol=1e-11)
    poisoned = {name: tensor.clone() for name, tensor in tensors.items()}
    poisoned["q"][1, 0] = float("nan")
    poisoned["k"][1, 0] = float("nan")
    got = wersa_attention(**poisoned, **options)
    assert torch.equal(got[[0, 2]], out[[0, 2]])
    assert torch.equal(got[1, 1], out[1, 1])


def test_values_stay_between_their_least_and_largest():
    case = Case(length=90, eps=0.0)
    tensors = case.draw()
    out = wersa_attention(**tensors, **case.options())
    low, high = (getattr(tensors["v"], name)(2, keepdim=True) for name in ("amin", "amax"))
    assert ((out >= low - 1e-12) & (out <= high + 1e-12)).all()


def test_rectified_attention_ignores_scales():
    case = Case(length=90, eps=0.0)
    tensors = case.draw()
    out = wersa_attention(**tensors, **case.options())
    for name, factor in (("bandwidth", 3.7), ("q", 2.5), ("k", 0.2), ("gains", 1.7), ("proj_q", 4.0)):
        scaled = tensors | {name: tensors[name] * factor}
        torch.testing.assert_close(wersa_attention(**scaled, **case.options()), out, rtol=1e-9, atol=1e-11)
    per_query = tensors | {"q": tensors["q"] * torch.linspace(0.5, 2, 2, dtype=torch.float64)[:, None, None, None]}
    torch.testing.assert_close(wersa_attention(**per_query, **case.options()), out, rtol=1e-9, atol=1e-11)


def test_operations_per_token_do_not_depend_on_the_length():
    def operations(length):
        q, k, v = (normal(1, 1, length, 32) for _ in range(3))
        with FlopCounterMode(display=False) as counter:
            wersa_attention(q, k, v, normal(1, 5), normal(32, 64), levels=4, backend="reference")
        return counter.get_total_flops() / length

    # 8 dim features, and 4 features for the sum of the weights
    assert operations(1024) == operations(8192) == pytest.approx(8 * 32 * 64 + 4 * 64)


def test_wrong_bands_are_refused():
    bands = haar_transform(normal(1, 10, 2), 2)
    with pytest.raises(ValueError, match=r"the bands have \[5, 3, 3\] coefficients"):
        inverse_haar_transform(bands, 20)
    with pytest.raises(ValueError, match="levels is 0"):
        haar_transform(normal(1, 10, 2), 0)
