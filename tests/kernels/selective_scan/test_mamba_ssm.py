"""The backend over the package mamba-ssm: with a stand-in for its CUDA function, and with the package itself."""

import sys
from types import ModuleType

import pytest
import torch

from seqattn.kernels.selective_scan.mamba_ssm import selective_scan_mamba_ssm
from seqattn.kernels.selective_scan.reference import selective_scan_reference

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
LENGTHS = torch.tensor([13, 0, 1, 9])


class StandIn(torch.autograd.Function):
    """What the package's CUDA function takes and gives, by our reference; the last state's gradient is left out."""

    @staticmethod
    def forward(ctx, u, delta, A, B, C, D, z, delta_bias, delta_softplus):
        assert u.dtype in (torch.float32, torch.bfloat16, torch.float16)
        assert all(tensor.dtype == u.dtype for tensor in (delta, B, C, u if z is None else z))
        assert all(tensor.dtype == torch.float32 for tensor in (A, D, delta_bias) if tensor is not None)
        assert delta.shape == u.shape
        assert B.shape == C.shape == (len(u), B.shape[1], A.shape[1], u.shape[2])
        tensors = [None if t is None else t.detach().requires_grad_() for t in (u, delta, A, B, C, D, z, delta_bias)]
        with torch.enable_grad():
            out, last = package_layout(*tensors, delta_softplus)
        ctx.tensors, ctx.out = tensors, out
        return out.detach().clone(), last.detach()

    @staticmethod
    def backward(ctx, grad, _grad_last):
        given = [tensor for tensor in ctx.tensors if tensor is not None]
        gradients = iter(torch.autograd.grad(ctx.out, given, grad))
        return *(None if tensor is None else next(gradients) for tensor in ctx.tensors), None


def package_layout(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    B, C = B.movedim(-1, 1), C.movedim(-1, 1)
    z = None if z is None else z.mT
    out, last = selective_scan_reference(
        u.mT, delta.mT, A, B, C, D, z, delta_bias, None, None, delta_softplus, 1, False
    )  # fmt: skip
    return out.mT, last


@pytest.fixture
def _package(monkeypatch):
    def selective_scan_fn(
        u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False
    ):
        out, last = StandIn.apply(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
        return (out, last) if return_last_state else out

    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["mamba_ssm.ops.selective_scan_interface"].selective_scan_fn = selective_scan_fn


def draw(groups=1, without=(), dtype=torch.float32, device="cpu", batch=4, length=13, channels=6, state=5):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape, dtype=dtype):
        return torch.randn(shape, generator=generator).to(device, dtype)

    steps, vector = (batch, length, channels), {"dtype": torch.float32}
    tensors = {
        "u": normal(*steps), "delta": normal(*steps), "A": -normal(channels, state, **vector).exp(),
        "B": normal(batch, length, groups, state), "C": normal(batch, length, groups, state),
        "D": normal(channels, **vector), "z": normal(*steps), "delta_bias": normal(channels, **vector),
    }  # fmt: skip
    return {name: None if name in without else tensor.requires_grad_() for name, tensor in tensors.items()}


def run(scan, tensors, softplus, lengths, reverse):
    out, last = scan(*(tensors[name] for name in NAMES), None, lengths, softplus, 1, reverse)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    gradients = torch.autograd.grad(out, list(given.values()), weight)
    return {"out": out, "last": last.detach()} | dict(zip(given, gradients, strict=True))


def assert_equal(got, expected, tolerance=1e-5):
    for name, theirs in expected.items():
        assert got[name].dtype == theirs.dtype, name
        error = (got[name].double() - theirs.double()).abs().max().item()
        assert error <= tolerance * theirs.double().abs().max().item(), (name, error)


@pytest.mark.usefixtures("_package")
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "ragged"])
@pytest.mark.parametrize("softplus", [True, False], ids=["softplus", "plain-step"])
@pytest.mark.parametrize(
    ("groups", "without"),
    [(1, ()), (3, ("D",)), (2, ("z", "delta_bias")), (1, ("D", "z", "delta_bias"))],
    ids=["all", "3-groups-no-D", "2-groups-no-gate-no-bias", "bare"],
)
def test_equals_the_reference(groups, without, softplus, lengths, reverse):
    tensors = draw(groups, without)
    if not softplus:  # negative steps would let the state grow
        for name in {"delta", "delta_bias"} - set(without):
            tensors[name] = tensors[name].detach().abs().requires_grad_()
    expected = run(selective_scan_reference, tensors, softplus, lengths, reverse)
    assert_equal(run(selective_scan_mamba_ssm, tensors, softplus, lengths, reverse), expected)


@pytest.mark.usefixtures("_package")
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_padding_with_nan_changes_nothing(reverse):
    tensors, poisoned = draw(2), draw(2)
    for row, end in enumerate(LENGTHS):
        for name in ("u", "delta", "B", "C", "z"):
            poisoned[name].data[row, end:] = torch.nan
    expected = run(selective_scan_mamba_ssm, tensors, True, LENGTHS, reverse)
    assert_equal(run(selective_scan_mamba_ssm, poisoned, True, LENGTHS, reverse), expected, 0)


@pytest.mark.usefixtures("_package")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    tensors = draw(dtype=dtype)
    expected = run(selective_scan_reference, tensors, True, LENGTHS, False)
    assert_equal(run(selective_scan_mamba_ssm, tensors, True, LENGTHS, False), expected, 1e-2)
    mixed = tensors | {name: tensors[name].detach().float().requires_grad_() for name in ("B", "C")}
    gradients = run(selective_scan_mamba_ssm, mixed, True, None, False)
    assert gradients["B"].dtype == torch.float32


@pytest.mark.usefixtures("_package")
@pytest.mark.parametrize("shape", [{"batch": 0}, {"length": 0}], ids=["batch-0", "length-0"])
def test_empty(shape):
    tensors = draw(**shape)
    out, last = selective_scan_mamba_ssm(*tensors.values(), None, None, True, 1, False)
    assert out.shape == tensors["u"].shape
    assert not last.any()


@pytest.mark.usefixtures("_package")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 8}, "window is 8, the package has window 1 only"),
        ({"initial_state": torch.zeros(4, 6, 5)}, "initial state, the package starts from 0 only"),
        ({"dtype": torch.float64}, "u is float64"),
        ({"state": 257}, "A has 257 states, the package takes 256 at most"),
    ],
    ids=["window", "initial-state", "float64", "257-states"],
)
def test_what_the_package_lacks_is_named(changes, message):
    tensors = draw(**{name: value for name, value in changes.items() if name in ("dtype", "state")})
    with pytest.raises(ValueError, match=message):
        selective_scan_mamba_ssm(
            *tensors.values(), changes.get("initial_state"), None, True, changes.get("window", 1), False
        )


@pytest.mark.usefixtures("_package")
def test_a_gradient_of_the_last_state_is_refused():
    out, last = selective_scan_mamba_ssm(*draw().values(), None, None, True, 1, False)
    out.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="no gradient of the last state"):
        (out.sum() + last.sum()).backward()


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "ragged"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_package_itself_equals_the_reference(dtype, lengths, reverse):
    pytest.importorskip("mamba_ssm.ops.selective_scan_interface")
    if not torch.cuda.is_available():
        pytest.skip("mamba-ssm takes CUDA tensors")
    tensors, lengths = draw(2, dtype=dtype, device="cuda"), None if lengths is None else lengths.cuda()
    expected = run(selective_scan_reference, tensors, True, lengths, reverse)
    tolerance = 1e-3 if dtype == torch.float32 else 3e-2
    assert_equal(run(selective_scan_mamba_ssm, tensors, True, lengths, reverse), expected, tolerance)
