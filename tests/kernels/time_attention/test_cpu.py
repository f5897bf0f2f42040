"""The CPU kernel against the reference: output and every gradient, scores far apart, odd shapes, blocks of any size."""

from functools import cache
from pathlib import Path

import pytest
import torch
from loading import load
from memory import with_poisoned_memory
from torch.utils._python_dispatch import TorchDispatchMode

from seqattn.kernels import time_attention
from seqattn.kernels.time_attention import cpu, cpu_far

cases = load(Path(__file__).with_name("cases.py"))
Case = cases.Case

RAGGED = {"batch": 5, "lengths": (0, 1, 15, 100, 300), "length": 300}
SHAPES = {
    "length-1": Case(length=1),
    "length-2-channel-1": Case(length=2, channels=1),
    "length-7-dim-1": Case(length=7, dim=1, channels=3),
    "length-63-query-1": Case(length=63, queries=1, dim=9, channels=17),
    "length-100-channels-65": Case(length=100, channels=65, heads=1, batch=1),
    "length-257": Case(length=257, channels=60, dim=16, batch=1),
    "all-observed": Case(length=100, observed=1.0),
    "hardly-observed": Case(length=100, observed=0.02),
    "single-observations": Case(observed=0.0),
    "ragged": Case(**RAGGED),
    "spread-10": Case(length=100, spread=10),
    "spread-100": Case(length=100, spread=100, channels=17),
    "spread-1000": Case(length=257, spread=1000, channels=17),
    "spread-1000-single": Case(spread=1000, observed=0.0),
    "spread-1000-ragged": Case(**RAGGED, spread=1000, dim=16),
}


@cache
def reference(case, dtype=torch.float64):
    """Results for the tensors of the case, rounded to dtype."""
    return cases.run(cases.widen(case.draw(dtype)), case.options(), "reference")


every_shape = pytest.mark.parametrize("case", SHAPES.values(), ids=SHAPES.keys())


@every_shape
def test_float64(case):
    tensors, options = case.draw(), case.options()
    cases.assert_close(cases.run(tensors, options), reference(case), tensors, 1e-10)


@every_shape
def test_float32(case):
    tensors, options = case.draw(torch.float32), case.options()
    cases.assert_close(cases.run(tensors, options), reference(case, torch.float32), tensors, 1e-4, forward=1e-5)


@pytest.mark.parametrize("name", ["ragged", "length-100-channels-65", "spread-10", "spread-1000-ragged"])
@pytest.mark.parametrize(("dtype", "bound", "rms"), [(torch.float16, 2e-3, 5e-3), (torch.bfloat16, 1.5e-2, 2e-2)])
def test_half_precision(name, dtype, bound, rms):
    tensors, options = SHAPES[name].draw(dtype), SHAPES[name].options()
    got = cases.run(tensors, options)
    expected = cases.run(cases.widen(tensors), options, "reference")
    cases.assert_close(got, expected, tensors, bound)
    for result, theirs in zip(got.values(), expected.values(), strict=True):
        assert result.dtype == dtype
        assert (result.double() - theirs).square().mean().sqrt() <= rms * theirs.square().mean().sqrt()


def test_values_of_float32_beside_half_precision():
    tensors, options = Case().draw(torch.bfloat16), {}
    tensors["values"] = tensors["values"].float()
    got, expected = cases.run(tensors, options), cases.run(cases.widen(tensors), options, "reference")
    assert [got[name].dtype for name in ("out", "grad_key", "grad_values")] == [
        torch.bfloat16, torch.bfloat16, torch.float32,
    ]  # fmt: skip
    cases.assert_close(got, expected, tensors, 1.5e-2)


@every_shape
@pytest.mark.parametrize("block", [1, 500])
def test_blocks_of_any_size_give_the_same(case, block, monkeypatch):
    if block == 1 and case.length > 100:
        pytest.skip("a block of one row takes a second there")
    monkeypatch.setattr(cpu, "BLOCK", block)
    tensors, options = case.draw(), case.options()
    cases.assert_close(cases.run(tensors, options), reference(case), tensors, 1e-10)


@every_shape
def test_both_ways_give_the_same(case, monkeypatch):
    monkeypatch.setattr(cpu, "NEAR", {torch.float64: -1.0})
    tensors, options = case.draw(), case.options()
    cases.assert_close(cases.run(tensors, options), reference(case), tensors, 1e-10)


def test_samples_are_far_or_near_one_by_one(monkeypatch):
    far = []
    attend = cpu_far.attend
    monkeypatch.setattr(cpu_far, "attend", lambda *arguments: far.append(arguments) or attend(*arguments))
    tensors = Case(batch=4, channels=17).draw(torch.float32)
    cases.run(tensors, {})
    assert not far
    tensors["key"][2] *= 1000
    got = cases.run(tensors, {})
    assert len(far) == 1
    cases.assert_close(got, cases.run(cases.widen(tensors), {}, "reference"), tensors, 1e-4, forward=1e-5)


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


def test_same_bits_for_any_number_of_threads_where_scores_are_far():
    case = SHAPES["spread-1000"]
    observations = torch.cat([case.draw()["values"][0], case.draw()["mask"][0].double()], dim=-1)
    results, before = [], torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        scores = 1000 * torch.randn(3, 7, 257, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        out, normaliser, base = cpu_far.attend(scores, observations)
        grad = cpu_far.differentiate(scores, observations, 1 / normaliser.clamp_min(1), out, base)
        results.append((out, normaliser, base, scores, grad))
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(got, expected) for got, expected in zip(other, results[0], strict=True))


class Largest(TorchDispatchMode):
    """The most elements of any tensor that was made."""

    elements = 0

    def __torch_dispatch__(self, function, kinds, arguments=(), options=None):
        made = function(*arguments, **options or {})
        if isinstance(made, torch.Tensor):
            self.elements = max(self.elements, made.untyped_storage().nbytes() // made.element_size())
        return made


@pytest.mark.parametrize("spread", [1, 1000])
def test_scores_never_lie_in_memory(spread):
    case = Case(queries=32, heads=4, length=3000, channels=17, spread=spread)
    arguments = tuple(case.draw(torch.float32).values())
    with Largest() as largest:
        results = cpu.forward(*arguments)
        cpu.backward(results[0], *arguments, *results, True)
    given = max(tensor.numel() for tensor in (*arguments, *results))
    assert largest.elements <= max(cpu.BLOCK, 2 * given)
    assert 17 * largest.elements < case.batch * case.queries * case.heads * case.length * case.channels


@pytest.mark.parametrize("name", ["ragged", "spread-1000-ragged"])
def test_any_strides(name):
    tensors, options = SHAPES[name].draw(), SHAPES[name].options()
    expected = cases.run(tensors, options)
    spread = {key: tensor.transpose(0, 1).contiguous().transpose(0, 1) for key, tensor in tensors.items()}
    spread["values"] = tensors["values"].repeat_interleave(2, dim=2)[..., ::2]
    cases.assert_close(cases.run(spread, options), expected, tensors, 1e-12)


@pytest.mark.parametrize("axis", ["batch", "length", "queries", "heads", "channels"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_empty_tensors(axis, backend):
    case = Case(**{axis: 0})
    results = cases.run(case.draw(), {}, backend)
    assert results["out"].shape == (case.batch, case.queries, case.heads, case.channels)
    assert all((tensor == 0).all() for tensor in results.values())


def test_gradients_only_where_asked_for():
    tensors = Case().draw()
    tensors["key"].requires_grad_()
    time_attention(**tensors).sum().backward()
    assert [name for name, tensor in tensors.items() if tensor.grad is not None] == ["key"]
