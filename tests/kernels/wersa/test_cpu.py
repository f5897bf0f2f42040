"""The CPU kernel against the reference: output and every gradient, odd shapes, ragged batches, blocks of any size."""

from pathlib import Path

import pytest
import torch
from loading import load
from memory import with_poisoned_memory

from seqattn.kernels import wersa_attention
from seqattn.kernels.wersa import cpu, cpu_causal, cpu_filter

cases = load(Path(__file__).with_name("cases.py"))
Case = cases.Case

RAGGED = {"batch": 5, "lengths": (0, 1, 15, 100, 300), "length": 300}
SHAPES = {
    "length-1": Case(length=1),
    "length-2": Case(length=2, levels=1),
    "length-7-levels-9": Case(length=7, levels=9),
    "length-63": Case(length=63, dim=1, value_dim=1),
    "length-100-features-1": Case(length=100, features=1, dim=3),
    "length-257-levels-6": Case(length=257, levels=6, dim=17, value_dim=16),
    "untied": Case(length=100, tied=False, features=65),
    "global-gains": Case(length=100, gates="global"),
    "ragged": Case(**RAGGED),
    "ragged-global-untied": Case(**RAGGED, gates="global", tied=False, levels=5),
    "exp": Case(length=100, feature_map="exp"),
    "exp-length-1": Case(length=1, feature_map="exp"),
    "exp-ragged-untied": Case(**RAGGED, feature_map="exp", tied=False),
    "exp-global": Case(length=63, feature_map="exp", gates="global", levels=7),
    "causal": Case(length=257, causal=True, levels=4, dim=17),
    "causal-length-1": Case(length=1, causal=True),
    "causal-levels-7": Case(length=100, causal=True, levels=7),
    "levels-40": Case(length=20, levels=40),
    "causal-levels-40": Case(length=20, causal=True, levels=40),
    "causal-ragged-untied": Case(**RAGGED, causal=True, tied=False),
    "causal-exp": Case(length=257, causal=True, feature_map="exp"),
    "causal-exp-ragged-untied": Case(**RAGGED, causal=True, feature_map="exp", tied=False),
    "no-eps": Case(length=63, eps=0.0),
}
every_shape = pytest.mark.parametrize("case", SHAPES.values(), ids=SHAPES.keys())


@every_shape
def test_float64(case):
    tensors, options = case.draw(), case.options()
    cases.assert_close(cases.run(tensors, options), cases.run(tensors, options, "reference"), 1e-10)


@pytest.mark.parametrize(
    # with one channel or feature, or one key, the weights of some queries nearly vanish, and dividing by them is no
    # matter of rounding
    "case",
    [pytest.param(case, id=name) for name, case in SHAPES.items() if min(case.dim, case.features, case.length) > 3],
)
def test_float32(case):
    tensors, options = case.draw(torch.float32), case.options()
    expected = cases.run(cases.widen(tensors), options, "reference")
    cases.assert_close(cases.run(tensors, options), expected, 1e-4, forward=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("length", [500, 1000, 2049])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"feature_map": "exp"}], ids=["relu", "causal", "exp"])
def test_long_sequences(length, options):
    case = Case(length=length, dim=64, value_dim=65, features=128, **options)
    tensors = case.draw(torch.float32, seed=1)  # of which no feature changes its sign by rounding
    expected = cases.run(cases.widen(tensors), case.options(), "reference")
    cases.assert_close(cases.run(tensors, case.options()), expected, 1e-4, forward=1e-5)


@pytest.mark.parametrize("case", [SHAPES[name] for name in ("ragged", "exp-ragged-untied", "causal-exp-ragged-untied")])
@pytest.mark.parametrize(("dtype", "bound", "rms"), [(torch.float16, 2e-3, 5e-3), (torch.bfloat16, 1.5e-2, 2e-2)])
def test_half_precision(case, dtype, bound, rms):
    tensors, options = case.draw(dtype), case.options()
    got = wersa_attention(**tensors, **options)
    expected = wersa_attention(**cases.widen(tensors), **options, backend="reference")
    assert got.dtype == dtype
    assert cases.relative_error(got, expected) < bound
    assert (got.double() - expected).square().mean().sqrt() < rms * expected.square().mean().sqrt()
    gradients = cases.run(tensors, options)
    assert all(gradients[f"grad_{name}"].dtype == tensors[name].dtype for name in tensors)


@pytest.mark.parametrize("feature_map", ["relu", "exp"])
@pytest.mark.parametrize("causal", [False, True], ids=["both-sides", "causal"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 2e-3), (torch.bfloat16, 1.5e-2)])
def test_gradients_in_half_precision_of_values_with_a_mean(feature_map, causal, dtype, bound):
    case = Case(length=300, dim=16, value_dim=16, features=64, feature_map=feature_map, causal=causal, mean=5.0)
    tensors, options = case.draw(dtype), case.options()
    cases.assert_close(cases.run(tensors, options), cases.run(cases.widen(tensors), options, "reference"), bound)


def test_large_inputs_in_float16_do_not_overflow():
    tensors = {name: 60 * tensor if name in "qk" else tensor for name, tensor in Case().draw(torch.float16).items()}
    results = cases.run(tensors, Case().options())
    assert results["out"].isfinite().all()
    assert results["grad_v"].isfinite().all()


@every_shape
@pytest.mark.parametrize(("rows", "chunk"), [(64, 16), (1, 1)], ids=["blocks-of-64", "blocks-of-1"])
def test_blocks_of_any_size_give_the_same(case, rows, chunk, monkeypatch):
    if rows == 1 and case.length > 100:
        pytest.skip("a block of one token takes a second there")
    monkeypatch.setattr(cpu, "ROWS", rows)
    monkeypatch.setattr(cpu_causal, "CHUNK", chunk)
    monkeypatch.setattr(cpu_filter, "ROWS", rows)
    tensors, options = case.draw(), case.options()
    cases.assert_close(cases.run(tensors, options), cases.run(tensors, options, "reference"), 1e-10)


@every_shape
def test_nothing_is_read_from_unwritten_memory(case, monkeypatch):
    tensors, options = case.draw(), case.options()
    expected = cases.run(tensors, options)
    got = with_poisoned_memory(monkeypatch, lambda: cases.run(tensors, options))
    for name, theirs in expected.items():
        assert torch.equal(got[name], theirs), name


@every_shape
def test_same_bits_twice(case):
    tensors, options = case.draw(torch.float32), case.options()
    first, second = (cases.run(tensors, options) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_any_strides():
    case = SHAPES["ragged-global-untied"]
    tensors, options = case.draw(), case.options()
    expected = cases.run(tensors, options)
    spread = {
        name: tensor.transpose(1, 2).contiguous().transpose(1, 2) if tensor.ndim == 4 else tensor.clone()
        for name, tensor in tensors.items()
    }
    spread["proj_q"] = tensors["proj_q"].T.contiguous().T
    spread["gains"] = tensors["gains"].repeat_interleave(2, dim=1)[:, ::2]
    got = cases.run(spread, options)
    cases.assert_close(got, expected, 1e-12)
    alike = tensors | {"q": tensors["q"][:, :1].expand_as(tensors["q"])}
    copied = alike | {"q": alike["q"].contiguous()}
    cases.assert_close(cases.run(alike, options), cases.run(copied, options), 1e-12)


@pytest.mark.parametrize("shape", [{"batch": 0}, {"length": 0}, {"heads": 0}], ids=["batch", "length", "heads"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(
    "options", [{}, {"causal": True}, {"feature_map": "exp"}, {"feature_map": "exp", "causal": True}]
)
def test_empty_tensors(shape, backend, options):
    case = Case(**shape, **options)
    results = cases.run(case.draw(), case.options(), backend)
    assert results["out"].shape == (case.batch, case.heads, case.length, case.value_dim)
    assert all((tensor == 0).all() for tensor in results.values())


def test_gradients_only_where_asked_for():
    case = Case()
    tensors = case.draw()
    tensors["v"].requires_grad_()
    out = wersa_attention(**tensors, **case.options())
    out.sum().backward()
    assert [name for name, tensor in tensors.items() if tensor.grad is not None] == ["v"]


def test_a_bandwidth_of_none_is_one():
    case = Case(feature_map="exp")
    tensors = {name: tensor for name, tensor in case.draw().items() if name != "bandwidth"}
    results = cases.run(tensors, case.options())
    expected = cases.run(tensors | {"bandwidth": torch.tensor(1.0, dtype=torch.float64)}, case.options())
    assert expected.pop("grad_bandwidth") != 0
    cases.assert_close(results, expected, 0.0)


WINDOWS = {  # blocks of 16 tokens in chunks of up to 8; halos of 1, 3, 15 and 31 tokens, and one of the whole sequence
    f"length-{length}-levels-{levels}": Case(batch=1, length=length, levels=levels, causal=True)
    for length, levels in ((15, 1), (16, 4), (17, 4), (31, 5), (33, 5), (47, 2), (48, 2), (65, 5), (97, 4), (97, 40))
}
WINDOWS |= {
    "ragged": Case(batch=4, length=65, levels=4, causal=True, lengths=(0, 16, 33, 65)),
    "exp-ragged": Case(batch=4, length=65, levels=4, causal=True, feature_map="exp", lengths=(0, 16, 33, 65)),
    "exp": Case(batch=1, length=97, levels=5, causal=True, feature_map="exp", tied=False),
}


def in_small_windows(monkeypatch):
    monkeypatch.setattr(cpu, "ROWS", 64)  # 32 of causal attention
    monkeypatch.setattr(cpu_causal, "CHUNK", 8)
    monkeypatch.setattr(cpu_filter, "ROWS", 4)


@pytest.mark.parametrize("case", WINDOWS.values(), ids=WINDOWS.keys())
def test_causal_windows_meet(case, monkeypatch):
    in_small_windows(monkeypatch)
    tensors, options = case.draw(), case.options()
    cases.assert_close(cases.run(tensors, options), cases.run(tensors, options, "reference"), 1e-10)


@pytest.mark.parametrize("case", WINDOWS.values(), ids=WINDOWS.keys())
def test_causal_windows_read_neither_unwritten_memory_nor_padding(case, monkeypatch):
    in_small_windows(monkeypatch)
    tensors, options = case.draw(), case.options()
    expected = cases.run(tensors, options)
    ends = (case.length,) * case.batch if case.lengths is None else case.lengths
    for name in ("q", "k", "v", "gains"):
        for row, end in enumerate(ends):
            tensors[name][row].narrow(0 if name == "gains" else 1, end, case.length - end).fill_(float("nan"))
    got = with_poisoned_memory(monkeypatch, lambda: cases.run(tensors, options))
    for name, theirs in expected.items():
        assert torch.equal(got[name], theirs), name


@pytest.mark.parametrize("feature_map", ["relu", "exp"])
@pytest.mark.parametrize("edit", [1, 15, 16, 33, 64])
def test_no_bit_of_the_future_enters_a_window(feature_map, edit, monkeypatch):
    in_small_windows(monkeypatch)
    case = Case(batch=1, length=65, levels=4, causal=True, feature_map=feature_map)
    tensors = case.draw(torch.float32)
    edited = {name: tensor.clone() for name, tensor in tensors.items()}
    for name in ("q", "k", "v"):
        edited[name][:, :, edit:] *= -3
    edited["gains"][:, edit:] += 1
    before, after = (wersa_attention(**given, **case.options()) for given in (tensors, edited))
    assert torch.equal(before[:, :, :edit], after[:, :, :edit])
