"""The CPU kernel against the reference: odd shapes and options, extreme numbers, half precision."""

from pathlib import Path

import pytest
import torch
from loading import load

cases = load(Path(__file__).with_name("cases.py"))
Case = cases.Case
RAGGED = {"batch": len(cases.RAGGED), "length": max(cases.RAGGED), "lengths": cases.RAGGED, "channels": 3}
OPTIONAL = ("D", "z", "delta_bias", "initial_state")

SHAPES = {
    "length-1": Case(length=1),
    "length-1-window-8": Case(length=1, window=8),
    "length-2-window-3": Case(length=2, window=3),
    "length-7-reverse": Case(length=7, window=3, reverse=True),
    "length-63": Case(length=63, channels=3, window=8),
    "length-100-full-window": Case(length=100, window=100),
    "length-257": Case(length=257, channels=3, state=1),
    "length-500-window-32": Case(batch=1, length=500, channels=3, state=2, window=32),
    "channels-1": Case(channels=1, window=4),
    "channels-1-state-1": Case(channels=1, state=1),
    "channels-60": Case(length=40, channels=60, window=3),
    "channels-64-state-16": Case(length=40, channels=64, state=16),
    "channels-65": Case(length=40, channels=65, window=8, reverse=True),
    "channels-65-state-17": Case(length=33, channels=65, state=17),
    "state-1-long-window": Case(length=70, state=1, window=33),
    "state-17": Case(length=34, channels=17, state=17, window=17),
    "batch-9-channels-260": Case(batch=9, length=5, channels=260, state=2, window=2),
}
WINDOWS = {
    **{f"window-{window}": Case(length=100, channels=17, window=window) for window in (1, 3, 8, 17, 32, 33, 64, 100)},
    "window-200-of-100": Case(length=100, channels=17, window=200),
    "window-33-reverse": Case(length=100, channels=17, window=33, reverse=True),
    "window-33-whole-windows": Case(length=99, channels=17, window=33),
    "window-1000000": Case(length=31, window=1_000_000),
}
STATES = {  # in whole groups, beside them, and fewer than one
    f"states-{states}-window-{window}{'-reverse' if reverse else ''}": Case(
        length=70, channels=17, state=states, window=window, reverse=reverse
    )
    for states in (1, 2, 3, 4, 5, 7, 8)
    for window, reverse in ((1, False), (1, True), (4, True), (33, False), (65, False))
}
BORDERS = {
    f"length-{length}-window-{window}": Case(length=length, channels=3, state=5, window=window, reverse=True)
    for length in (15, 16, 17, 64, 65, 128, 129)
    for window in (1, 8)
}
LENGTHS = {
    f"ragged-window-{window}{'-reverse' if reverse else ''}": Case(**RAGGED, window=window, reverse=reverse)
    for window in (1, 3, 33, 100, 300)
    for reverse in (False, True)
} | {
    "ragged-groups": Case(**RAGGED | {"channels": 6}, groups=3, window=17),
    "all-lengths-0": Case(length=9, lengths=(0, 0), window=4),
}
OPTIONS = {
    "groups-1": Case(groups=1, window=3),
    "groups-2": Case(channels=34, groups=2, window=3),
    "groups-3-window-40": Case(length=90, channels=51, groups=3, window=40, reverse=True),
    "groups-as-channels": Case(groups=6, reverse=True),
    **{f"no-{name}": Case(without=(name,), window=3) for name in OPTIONAL},
    **{f"no-{name}-window-34": Case(length=80, without=(name,), window=34) for name in OPTIONAL},
    "bare": Case(without=OPTIONAL, softplus=False),
    "bare-window-34": Case(length=80, without=OPTIONAL, softplus=False, window=34),
    "softplus-alone": Case(without=OPTIONAL, reverse=True),
    "plain-step": Case(softplus=False, window=3),
    "plain-step-reverse-ragged": Case(softplus=False, window=35, length=80, reverse=True, lengths=(71, 36)),
}
LONG = {
    "length-1000": Case(length=1000, channels=60, state=16, window=8),
    "length-1000-reverse": Case(length=1000, channels=65, window=100, reverse=True, lengths=(1000, 517)),
    "length-2049": Case(length=2049, channels=3, state=16),
    "length-2049-window-17": Case(batch=1, length=2049, channels=64, window=17),
    "length-2049-full-window": Case(batch=1, length=2049, channels=6, window=2049, reverse=True),
}


def every(*tables):
    return [pytest.param(case, id=name) for table in tables for name, case in table.items()]


def both(case, dtype=torch.float64, **changes):
    """What the kernel gives in `dtype`, and the reference in float64 on the same numbers."""
    tensors = case.draw(dtype) | changes
    return cases.run(tensors, case.options()), cases.run(cases.widen(tensors), case.options(), "reference")


@pytest.mark.parametrize("case", every(SHAPES, WINDOWS, STATES, BORDERS, LENGTHS, OPTIONS))
def test_equals_the_reference(case):
    got, expected = both(case)
    cases.assert_close(got, expected, 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("case", every(LONG))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_reference_on_long_sequences(case, dtype):
    got, expected = both(case, dtype)
    if dtype == torch.float64:
        cases.assert_close(got, expected, 1e-10)
    else:
        cases.assert_close(got, expected, 1e-4, summed=5e-4, forward=1e-5)


@pytest.mark.parametrize("case", [*every(SHAPES, WINDOWS), *every(STATES, BORDERS, LENGTHS, OPTIONS)[::2]])
def test_single_precision(case):
    got, expected = both(case, torch.float32)
    cases.assert_close(got, expected, 1e-4, summed=5e-4, forward=1e-5)
    assert {tensor.dtype for tensor in got.values()} == {torch.float32}


@pytest.mark.parametrize(
    "case",
    every({
        "window-1": Case(length=100, channels=17),
        "window-8-reverse": Case(length=100, channels=17, window=8, reverse=True),
        "window-33-ragged": Case(length=100, channels=6, groups=2, window=33, lengths=(63, 100)),
        "bare": Case(length=63, channels=6, without=OPTIONAL),
    }),
)  # fmt: skip
@pytest.mark.parametrize("parameters", ["float32", "half"])
@pytest.mark.parametrize(
    ("dtype", "largest", "mean_square"), [(torch.bfloat16, 1.5e-2, 2e-2), (torch.float16, 2e-3, 5e-3)],
    ids=["bfloat16", "float16"],
)  # fmt: skip
def test_half_precision(dtype, largest, mean_square, parameters, case):
    tensors = case.draw(dtype)
    if parameters == "float32":
        wide = case.draw(torch.float32, seed=1)
        tensors |= {name: wide[name] for name in ("A", "D", "delta_bias", "initial_state") if name in wide}
    got, expected = both(case, dtype, **tensors)
    for name, tensor in got.items():
        like = {"out": dtype, "last_state": torch.float32}
        assert tensor.dtype == like.get(name) or tensor.dtype == tensors[name.removeprefix("grad_")].dtype, name
        assert cases.relative_error(tensor, expected[name]) <= largest, name
        difference, theirs = tensor.double() - expected[name], expected[name]
        assert difference.square().mean().sqrt() <= mean_square * theirs.square().mean().sqrt(), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("window", [1, 3, 40])
def test_decay_below_every_number(window, dtype):
    case = Case(length=80, channels=17, window=window)
    tensors = case.draw(dtype)
    scale = 300.0 if dtype == torch.float32 else 2000.0
    got, expected = both(case, dtype, A=tensors["A"] * torch.linspace(0, scale, 17, dtype=dtype)[:, None])
    if dtype == torch.float64:
        cases.assert_close(got, expected, 1e-10)
    else:
        cases.assert_close(got, expected, 1e-4, summed=5e-4, forward=1e-5)


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float32, 88.0), (torch.float64, 709.0)], ids=str)
@pytest.mark.parametrize("window", [1, 3, 40])
def test_growth_to_infinity(window, dtype, largest):
    # every step multiplies the state of channel c by exp(c/8 · largest): from channel 9 on beyond every number at once
    case = Case(length=50, channels=17, state=1, softplus=False, window=window, without=("D", "z", "delta_bias"))
    tensors = {name: torch.ones_like(tensor) for name, tensor in case.draw(dtype).items()}
    tensors["A"] = largest * torch.arange(17, dtype=dtype)[:, None] / 8
    got, expected = (cases.run(tensors, case.options(), backend) for backend in ("cpu", "reference"))
    assert torch.isinf(expected["last_state"][:, 9:]).all()
    # a transition beyond every number times the nothing that a window begins with is NaN, by the recurrence
    assert not torch.isfinite(expected["out"][:, :, 9:]).any()
    assert torch.isfinite(expected["out"][:, :, 0]).all()
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    for name in ("out", "last_state"):
        torch.testing.assert_close(got[name], expected[name], rtol=tolerance, atol=0, equal_nan=True)


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_positive_A_grows(dtype, window):
    case = Case(length=12, window=window)
    got, expected = both(case, dtype, A=case.draw(dtype)["A"].abs() / 4)
    tolerance = {"tolerance": 1e-10} if dtype == torch.float64 else {"tolerance": 1e-4, "summed": 5e-4, "forward": 1e-5}
    cases.assert_close(got, expected, **tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "raw",
    [(-100.0, 100.0), (19.0, 21.0), (20.0, 20.0), (-21.0, -19.0), (-1e-3, 1e-3), (35.0, 38.0)],
    ids=["far-out", "threshold", "exactly-20", "small", "zero", "above"],
)
def test_softplus_over_its_whole_range(raw, dtype):
    # one step and one channel per value, each compared on its own scale
    steps = torch.linspace(*raw, 33, dtype=dtype)
    case = Case(batch=1, length=1, channels=33, state=1, without=OPTIONAL)
    tensors = {name: torch.ones_like(tensor) for name, tensor in case.draw(dtype).items()} | {
        "delta": steps[None, None]
    }
    tensors["A"] = -torch.ones(33, 1, dtype=dtype)
    got, expected = both(case, dtype, **tensors)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    for name in ("out", "last_state", "grad_u", "grad_delta"):
        torch.testing.assert_close(got[name].double(), expected[name], rtol=tolerance, atol=1e-37)


@pytest.mark.parametrize(("dtype", "tiny"), [(torch.float32, 1e-42), (torch.float64, 1e-315)], ids=str)
@pytest.mark.parametrize("window", [1, 3])
def test_denormal_inputs(window, dtype, tiny):
    case = Case(length=9, window=window)
    tensors = case.draw(dtype)
    tensors |= {"u": tensors["u"] * tiny, "initial_state": tensors["initial_state"] * tiny}
    got, expected = (cases.run(tensors, case.options(), backend) for backend in ("cpu", "reference"))
    assert expected["out"].any()
    step = 2.0**-1074 if dtype == torch.float64 else 2.0**-149
    for name in ("out", "last_state"):
        assert (got[name] - expected[name]).abs().max() <= 64 * step, name


def test_a_state_that_decays_into_denormals():
    case = Case(length=64, channels=17, state=2, softplus=False, without=("delta_bias",))
    tensors = case.draw(torch.float32)
    tensors |= {"delta": torch.ones_like(tensors["delta"]), "A": torch.full_like(tensors["A"], -1.6)}
    tensors["u"][:, 1:] = 0
    got, expected = (cases.run(tensors, case.options(), backend) for backend in ("cpu", "reference"))
    assert expected["last_state"].any()
    assert (expected["last_state"].abs() < 2.0**-126).all()
    for name, theirs in expected.items():  # a denormal number is good to one unit in its last place, 2^-149
        torch.testing.assert_close(got[name], theirs, rtol=1e-4, atol=max(64 * 2.0**-149, 1e-5 * theirs.abs().max()))
