"""Streams: one token or some windows at a time, with a state that can be kept, saved and resumed."""

from pathlib import Path

import pytest
import torch
from loading import load

from seqattn.kernels import selective_scan, selective_scan_step

cases = load(Path(__file__).with_name("cases.py"))
Case, PER_STEP = cases.Case, cases.PER_STEP
BACKENDS = pytest.mark.parametrize("backend", ["reference", "cpu"])
STREAMS = pytest.mark.parametrize(
    ("case", "hop"),
    [
        pytest.param(Case(length=11), None, id="token-by-token"),
        pytest.param(Case(length=11, groups=2), None, id="token-by-token-groups"),
        pytest.param(Case(length=11, softplus=False, without=("z", "D", "delta_bias")), None, id="bare-tokens"),
        pytest.param(Case(length=11), 4, id="four-tokens-at-a-time"),
        pytest.param(Case(length=20, window=5, groups=3), 5, id="window-by-window"),
        pytest.param(Case(length=23, window=5), 5, id="shorter-last-window"),
        pytest.param(Case(length=23, window=5), 10, id="two-windows-at-a-time"),
        pytest.param(Case(length=90, window=40), 40, id="long-windows"),
    ],
)


def stream(tensors, case, hop, backend, between=lambda state: state):
    """out and the last state, `hop` steps at a time (None: single tokens); `between` handles the state."""
    parameters = {name: tensors[name] for name in ("A", "D", "delta_bias") if name in tensors}
    state, outs, start = tensors.get("initial_state"), [], 0
    while start < case.length:
        steps = hop or 1
        if case.window > 1 and (left := case.length - start) > case.window:
            steps = min(steps, left // case.window * case.window)
        part = {name: tensors[name][:, start : start + steps] for name in PER_STEP if name in tensors}
        if hop is None:
            part = {name: tensor.squeeze(1) for name, tensor in part.items()}
        out, state = selective_scan_step(
            state, **part, **parameters, delta_softplus=case.softplus, window=case.window, backend=backend
        )
        assert out.shape == part["u"].shape
        state = between(state)
        outs.append(out.unsqueeze(1) if hop is None else out)
        start += steps
    return torch.cat(outs, 1), state


@BACKENDS
@STREAMS
def test_a_stream_equals_the_whole_scan_with_every_gradient(case, hop, backend):
    tensors = case.draw()
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    results = stream(leaves, case, hop, backend)
    weights = [cases.eighths(result, seed) for seed, result in enumerate(results)]
    gradients = torch.autograd.grad(results, list(leaves.values()), weights)
    named = {f"grad_{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    got = {"out": results[0], "last_state": results[1], **named}
    cases.assert_close(got, cases.run(tensors, case.options(), "reference"), 1e-11)


@STREAMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_state_resumes_exactly(case, hop, dtype, tmp_path):
    tensors = case.draw(dtype)

    def through_a_file(state):
        torch.save(state, tmp_path / "state.pt")
        return torch.load(tmp_path / "state.pt", weights_only=True)

    kept, resumed = (stream(tensors, case, hop, "cpu", between) for between in (lambda state: state, through_a_file))
    for ours, theirs in zip(resumed, kept, strict=True):
        assert torch.equal(ours, theirs)


@STREAMS
def test_a_stream_in_single_precision(case, hop):
    tensors = case.draw(torch.float32)
    out, state = stream(tensors, case, hop, "cpu")
    whole, last = selective_scan(**cases.widen(tensors), **case.options(), return_last_state=True, backend="reference")
    assert (out.dtype, state.dtype) == (torch.float32, torch.float32)
    assert cases.relative_error(out, whole) < 1e-5
    assert cases.relative_error(state, last) < 1e-5


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_state_of_a_stream_keeps_its_precision(dtype, backend):
    case = Case(length=6, without=("initial_state",))
    _, state = stream(case.draw(dtype), case, None, backend)
    assert state.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert state.shape == (case.batch, case.channels, case.state)


def test_a_step_leaves_the_state_it_was_given_alone():
    tensors = Case(length=1).draw()
    state = tensors.pop("initial_state")
    before = state.clone()
    selective_scan_step(state, **tensors)
    assert torch.equal(state, before)


def test_truncated_backpropagation_through_a_detached_state():
    case = Case(length=12, without=("initial_state",))
    tensors = {name: tensor.requires_grad_() for name, tensor in case.draw().items()}
    out, _ = stream(tensors, case, 6, "cpu", torch.Tensor.detach)
    (grad,) = torch.autograd.grad(out[:, 6:].sum(), tensors["u"])
    assert not grad[:, :6].any()
    assert grad[:, 6:].all()


@pytest.mark.parametrize(
    ("shape", "window", "message"),
    [
        ((2, 6), 4, "one token was given, but window is 4"),
        ((2, 7, 6), 4, "7 steps are no multiple of window 4"),
    ],
    ids=["token-in-a-window", "broken-window"],
)
def test_a_broken_window_is_refused(shape, window, message):
    tensors = Case(length=7).draw()
    state = tensors.pop("initial_state")
    if len(shape) == 2:
        tensors |= {name: tensors[name][:, 0] for name in PER_STEP}
    assert tensors["u"].shape == shape
    with pytest.raises(ValueError, match=message):
        selective_scan_step(state, **tensors, window=window)


def test_a_state_of_the_wrong_shape_is_refused():
    tensors = Case(length=1).draw()
    tensors.pop("initial_state")
    with pytest.raises(ValueError, match=r"initial_state has shape \(2, 4, 6\)"):
        selective_scan_step(torch.zeros(2, 4, 6, dtype=torch.float64), **tensors)
