"""mamba-ssm's interface: golden vectors, its published test's grid with every gradient, layouts, streams, mistakes."""

import inspect
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from loading import load
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from seqattn.compat.mamba_ssm import Mamba, mamba_inner_fn, selective_scan_fn, selective_scan_ref
from seqattn.layers import mamba

TESTS = Path(__file__).parents[1]
GOLDEN = np.load(TESTS / "golden" / "selective_scan.npz")
# relative and absolute, as in mamba-ssm's test; gradients of half-precision inputs round once more
TOLERANCES = {torch.float32: (6e-4, 2e-3), torch.float16: (3e-3, 5e-3), torch.bfloat16: (3e-2, 5e-2)}
LAYOUTS = {"B-C": (0, 0), "B-constant": (None, 0), "C-constant": (0, None), "constant": (None, None), "groups": (2, 2)}
OPTIONS = ("D", "z", "delta_bias", "delta_softplus", "return_last_state")


golden_weights = load(TESTS / "golden_weights.py")


@pytest.mark.parametrize("scan", [selective_scan_fn, selective_scan_ref])
@pytest.mark.parametrize("case", json.loads(str(GOLDEN["cases"])))
def test_golden_vectors(case, scan):
    softplus = json.loads(str(GOLDEN[f"{case}/config"]))["delta_softplus"]
    names = [name.rpartition("/")[2] for name in GOLDEN.files if name.startswith(f"{case}/in/")]
    inputs = {name: torch.from_numpy(GOLDEN[f"{case}/in/{name}"]).double().requires_grad_() for name in names}
    results = scan(**inputs, delta_softplus=softplus, return_last_state=True)
    loss = 0.0
    for name, result in zip(("out", "last_state"), results, strict=True):
        torch.testing.assert_close(result, torch.from_numpy(GOLDEN[f"{case}/{name}"]), rtol=0, atol=1e-10)
        loss = loss + (result * golden_weights.loss_weight(name, result.shape)).sum()
    loss.backward()
    for name, tensor in inputs.items():
        expected = torch.from_numpy(GOLDEN[f"{case}/grad_{name}"])
        torch.testing.assert_close(tensor.grad, expected, rtol=0, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def draw_inputs(layout, length, dtype=torch.float32, without=(), batch=2, dim=4, state=8):
    torch.manual_seed(0)

    def draw_B(groups):
        if groups is None:
            return torch.randn(dim, state, dtype=torch.promote_types(dtype, torch.float32))
        return torch.randn(batch, *([groups] if groups else []), state, length, dtype=dtype)

    parameters = torch.promote_types(dtype, torch.float32)
    inputs = {
        "u": torch.randn(batch, dim, length, dtype=dtype),
        "delta": 0.5 * torch.rand(batch, dim, length, dtype=dtype),
        "A": -0.5 * torch.rand(dim, state, dtype=parameters),
        "B": draw_B(LAYOUTS[layout][0]),
        "C": draw_B(LAYOUTS[layout][1]),
        "D": torch.randn(dim, dtype=parameters),
        "z": torch.randn(batch, dim, length, dtype=dtype),
        "delta_bias": 0.5 * torch.rand(dim, dtype=parameters),
    }
    return {name: tensor.requires_grad_() for name, tensor in inputs.items() if name not in without}


def plain_scan(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """The equations in float64, with every (batch, dim, length, state) tensor."""
    batch, dim, length = u.shape

    def each_channel(tensor):  # (batch, dim, length, state)
        if tensor.ndim == 2:
            return tensor[None, :, None].expand(batch, -1, length, -1)
        grouped = tensor if tensor.ndim == 4 else tensor[:, None]
        return grouped.repeat_interleave(dim // grouped.shape[1], 1).transpose(2, 3)

    step = delta if delta_bias is None else delta + delta_bias[:, None]
    step = (F.softplus(step) if delta_softplus else step)[..., None]
    transition, inputs, C = torch.exp(step * A[:, None]), step * u[..., None] * each_channel(B), each_channel(C)
    h, y = torch.zeros(batch, dim, A.shape[1], dtype=u.dtype), []
    for a, b, c in zip(transition.unbind(2), inputs.unbind(2), C.unbind(2), strict=True):
        h = a * h + b
        y.append((h * c).sum(-1))
    out = torch.stack(y, -1) if D is None else torch.stack(y, -1) + D[:, None] * u
    return (out if z is None else out * F.silu(z)), h


def check_against_plain(inputs, softplus, with_state, dtype):
    exact = {name: tensor.detach().double().requires_grad_() for name, tensor in inputs.items()}
    result = selective_scan_fn(**inputs, delta_softplus=softplus, return_last_state=with_state)
    results = result if with_state else (result,)
    expected = plain_scan(**exact, delta_softplus=softplus)[: len(results)]
    assert results[0].dtype == dtype
    assert all(last.dtype == torch.promote_types(dtype, torch.float32) for last in results[1:])
    rtol, atol = TOLERANCES[dtype]
    for ours, theirs in zip(results, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=rtol, atol=atol)
    weights = [torch.randn_like(theirs) for theirs in expected]
    sum((ours.double() * weight).sum() for ours, weight in zip(results, weights, strict=True)).backward()
    sum((theirs * weight).sum() for theirs, weight in zip(expected, weights, strict=True)).backward()
    for name, tensor in inputs.items():
        assert tensor.grad.dtype == tensor.dtype
        largest = exact[name].grad.abs().max().item()
        torch.testing.assert_close(
            tensor.grad.double(), exact[name].grad, rtol=rtol, atol=atol * max(1.0, largest),
            msg=lambda m, n=name: f"{n}: {m}",
        )  # fmt: skip


@pytest.mark.parametrize(
    "without", [(), OPTIONS, *[(name,) for name in OPTIONS]], ids=lambda w: f"no-{'-'.join(w)}" if w else "all"
)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: str(dtype).rpartition(".")[2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_options_types_and_layouts(layout, dtype, without):
    inputs = draw_inputs(layout, 37, dtype, without)
    check_against_plain(inputs, "delta_softplus" not in without, "return_last_state" not in without, dtype)


@pytest.mark.parametrize("length", [1, 8, 64, 129, 372, 500])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_lengths(layout, length):
    check_against_plain(draw_inputs(layout, length), True, True, torch.float32)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float64_is_exact(layout):
    inputs = draw_inputs(layout, 75, torch.float64, dim=6, state=5)
    out, last = selective_scan_fn(**inputs, delta_softplus=True, return_last_state=True)
    expected_out, expected_last = plain_scan(**inputs, delta_softplus=True)
    torch.testing.assert_close(out, expected_out, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(last, expected_last, rtol=1e-10, atol=1e-12)


def test_mixed_dtypes_and_strides():
    expected = draw_inputs("B-C", 20)
    given = {name: tensor.detach() for name, tensor in expected.items()}
    given |= {name: given[name].mT.contiguous().mT for name in ("u", "delta", "z", "B")}
    given["C"] = torch.stack([given["C"], given["C"]], -1)[..., 0]
    assert not any(given[name].is_contiguous() for name in ("u", "delta", "z", "B", "C"))
    torch.testing.assert_close(selective_scan_fn(**given), selective_scan_fn(**expected))
    half = {name: given[name].bfloat16() if name in ("u", "z") else given[name] for name in given}
    assert selective_scan_fn(**half).dtype == torch.bfloat16
    torch.testing.assert_close(selective_scan_fn(**half).float(), selective_scan_fn(**given), rtol=3e-2, atol=5e-2)


class LargestTensor(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def test_constant_B_and_C_take_no_more_memory_for_more_states():
    inputs = draw_inputs("constant", 100, dim=16, state=32)
    with LargestTensor() as largest:
        selective_scan_fn(**inputs).sum().backward()
    assert largest.elements <= 2 * inputs["u"].numel()


def test_mamba_has_the_signatures_of_mamba_ssm():
    arguments = inspect.signature(Mamba).parameters
    assert [(name, argument.default) for name, argument in arguments.items()][1:] == [
        ("d_state", 16), ("d_conv", 4), ("expand", 2), ("dt_rank", "auto"), ("dt_min", 0.001), ("dt_max", 0.1),
        ("dt_init", "random"), ("dt_scale", 1.0), ("dt_init_floor", 1e-4), ("conv_bias", True), ("bias", False),
        ("use_fast_path", True), ("layer_idx", None), ("device", None), ("dtype", None),
    ]  # fmt: skip
    assert list(inspect.signature(Mamba.forward).parameters) == ["self", "hidden_states", "inference_params"]
    for scan in (selective_scan_fn, selective_scan_ref):
        assert list(inspect.signature(scan).parameters) == [
            "u", "delta", "A", "B", "C", "D", "z", "delta_bias", "delta_softplus", "return_last_state",
        ]  # fmt: skip


def test_mamba_is_the_layer():
    torch.manual_seed(0)
    ours, layer = Mamba(12, d_state=5, bias=True), mamba.Mamba(12, d_state=5, bias=True)
    layer.load_state_dict(ours.state_dict())
    x = torch.randn(2, 30, 12)
    assert torch.equal(ours(x), layer(x))
    xz = ours.in_proj(x).mT
    inner = mamba_inner_fn(
        xz, ours.conv1d.weight, ours.conv1d.bias, ours.x_proj.weight, ours.dt_proj.weight, ours.out_proj.weight,
        ours.out_proj.bias, -ours.A_log.exp(), D=ours.D, delta_bias=ours.dt_proj.bias,
    )  # fmt: skip
    torch.testing.assert_close(inner, ours(x))


@pytest.mark.parametrize("constant", ["B", "C", "BC"])
def test_mamba_inner_with_constant_B_or_C(constant):
    torch.manual_seed(0)
    dim, state, rank = 6, 4, 2
    xz, B, C = torch.randn(2, 2 * dim, 25), torch.randn(dim, state), torch.randn(dim, state)
    conv_weight, x_proj = torch.randn(dim, 1, 3), torch.randn(rank + 2 * state, dim) / 3
    dt_proj, out_proj, bias = torch.randn(dim, rank) / 3, torch.randn(5, dim), torch.randn(state)
    A = -torch.rand(dim, state)
    u = F.silu(F.conv1d(xz[:, :dim], conv_weight, padding=2, groups=dim)[..., :25])
    dt, variable_B, variable_C = (x_proj @ u).split([rank, state, state], 1)
    rows = [True] * rank + ["B" not in constant] * state + ["C" not in constant] * state
    y = selective_scan_ref(
        u, dt_proj @ dt, A, B if "B" in constant else variable_B + bias[:, None], C if "C" in constant else variable_C,
        z=xz[:, dim:], delta_softplus=True,
    )  # fmt: skip
    out = mamba_inner_fn(
        xz, conv_weight, None, x_proj[torch.tensor(rows)], dt_proj, out_proj, None, A, B if "B" in constant else None,
        C if "C" in constant else None, B_proj_bias=bias,
    )  # fmt: skip
    torch.testing.assert_close(out, y.mT @ out_proj.T, rtol=1e-4, atol=1e-4)


def test_inference_params_continue_a_sequence():
    torch.manual_seed(0)
    module = Mamba(8, layer_idx=3).double()
    x = torch.randn(2, 12, 8, dtype=torch.float64)
    stale = tuple(torch.full_like(state, math.inf) for state in module.allocate_inference_cache(2, 12))
    for memory in ({}, {3: stale}):
        parameters = SimpleNamespace(key_value_memory_dict=memory, seqlen_offset=0)
        outs = [module(x[:, :7], parameters)]
        for t in range(7, 12):
            parameters.seqlen_offset = t
            outs.append(module(x[:, t : t + 1], inference_params=parameters))
        torch.testing.assert_close(torch.cat(outs, 1), module(x), rtol=1e-10, atol=1e-10)
        assert [tuple(state.shape) for state in memory[3]] == [(2, 16, 4), (2, 16, 16)]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"A": torch.zeros(4, 8, dtype=torch.complex64)}, TypeError, "A is torch.complex64: complex states are not"),
        ({"B": torch.zeros(4, 8, dtype=torch.complex64)}, TypeError, "B is torch.complex64"),
        ({"u": torch.zeros(2, 9, 4)}, ValueError, r"u has shape \(2, 9, 4\), A \(4, 8\)"),
        ({"delta": torch.zeros(2, 4, 8)}, ValueError, r"delta has shape \(2, 4, 8\): it must be u's, \(2, 4, 9\)"),
        ({"z": torch.zeros(2, 4, 8)}, ValueError, r"z has shape \(2, 4, 8\)"),
        ({"B": torch.zeros(2, 9, 8)}, ValueError, r"B has shape \(2, 9, 8\): it must be \(4, 8\), \(2, 8, 9\)"),
        ({"C": torch.zeros(2, 3, 8, 9)}, ValueError, "C has 3 groups, which do not divide 4 channels"),
        ({"D": torch.zeros(5)}, ValueError, r"D has shape \(5,\)"),
    ],
)
def test_mistakes_are_named(changes, error, message):
    with pytest.raises(error, match=message):
        selective_scan_fn(**(draw_inputs("B-C", 9) | changes))


def test_states_without_a_place_are_named():
    with pytest.raises(ValueError, match="layer_idx, which is None"):
        Mamba(8)(torch.zeros(1, 2, 8), SimpleNamespace(key_value_memory_dict={}, seqlen_offset=0))
