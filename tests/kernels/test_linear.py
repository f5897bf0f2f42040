"""The product through oneDNN against torch's own: values and gradients, any strides, and when it is not used."""

import pytest
import torch
from torch.nn import functional as F

from seqattn.kernels import linear as module
from seqattn.kernels.linear import linear


@pytest.fixture
def calls(monkeypatch):
    """The shapes that oneDNN was given; every size goes to it."""
    seen = []
    apply = module._OneDnnLinear.apply
    monkeypatch.setattr(module, "SMALLEST", 1)
    monkeypatch.setattr(
        module._OneDnnLinear, "apply", lambda x, *others: (seen.append(tuple(x.shape)), apply(x, *others))[1]
    )
    return seen


def results(function, x, weight, bias):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (x, weight, bias) if tensor is not None]
    out = function(*leaves)
    seed = torch.linspace(-1, 1, out.numel()).view_as(out)
    return out, *torch.autograd.grad(out, leaves, seed)


SHAPES = [((5, 7), 3), ((2, 3, 4), 9), ((2, 3, 2, 16), 1), ((1, 1), 1), ((300, 4), 256), ((40, 256), 36)]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("shape", "out"), SHAPES)
def test_equals_torch(calls, shape, out, biased):
    torch.manual_seed(0)
    x, weight = torch.randn(shape), torch.randn(out, shape[-1])
    bias = torch.randn(out) if biased else None
    expected = results(F.linear, x, weight, bias)
    assert not calls
    for got, want in zip(results(linear, x, weight, bias), expected, strict=True):
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert calls


@pytest.mark.parametrize("name", ["sliced", "transposed", "expanded", "transposed weight", "sliced weight"])
def test_any_strides(calls, name):
    torch.manual_seed(1)
    x, weight = torch.randn(6, 10, 8), torch.randn(5, 8)
    x, weight = {
        "sliced": (torch.randn(6, 10, 20)[..., 3:11], weight),
        "transposed": (torch.randn(6, 8, 10).transpose(1, 2), weight),
        "expanded": (torch.randn(1, 10, 8).expand(6, 10, 8), weight),
        "transposed weight": (x, torch.randn(8, 5).t()),
        "sliced weight": (x, torch.randn(5, 20)[:, 2:10]),
    }[name]
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-5)
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    got = torch.autograd.grad(linear(x, weight).sum(), (x, weight))  # the gradient of a sum has strides of 0
    for one, other in zip(got, torch.autograd.grad(F.linear(x, weight).sum(), (x, weight)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert calls


def test_second_derivatives(calls):
    torch.manual_seed(2)
    x, weight = torch.randn(4, 6, requires_grad=True), torch.randn(3, 6, requires_grad=True)

    def second(function):
        (first,) = torch.autograd.grad(function(x, weight).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), (x, weight))

    for got, want in zip(second(linear), second(F.linear), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_functional_transforms_are_left_to_torch(calls):
    torch.manual_seed(3)
    x, weight = torch.randn(4, 5, 6), torch.randn(3, 6)
    got = torch.func.vmap(lambda one: torch.func.grad(lambda w: linear(one, w).sin().sum())(weight))(x)
    want = torch.func.vmap(lambda one: torch.func.grad(lambda w: F.linear(one, w).sin().sum())(weight))(x)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    slope = torch.func.jvp(lambda w: linear(x, w), (weight,), (weight,))[1]
    torch.testing.assert_close(slope, F.linear(x, weight), rtol=1e-5, atol=1e-5)
    assert not calls


def test_only_the_gradients_asked_for(calls):
    x, weight = torch.randn(4, 6), torch.randn(3, 6, requires_grad=True)
    linear(x, weight).sum().backward()
    assert x.grad is None
    assert weight.grad is not None


@pytest.mark.parametrize("name", ["strided", "expanded", "one number"])
def test_any_bias(calls, name):
    torch.manual_seed(4)
    x, weight = torch.randn(30, 16), torch.randn(64, 16)
    bias = {"strided": torch.randn(128)[::2], "expanded": torch.randn(1).expand(64), "one number": torch.randn(1)}[name]
    torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:TF32 acceleration")
def test_left_to_torch(calls):
    x, weight = torch.randn(4, 6), torch.randn(3, 6)
    linear(x.double(), weight.double())
    linear(x[0], weight)
    linear(x[:0], weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    torch.jit.trace(lambda x: linear(x, weight), (x,), check_trace=False)
    with torch.backends.mkldnn.flags(enabled=False):
        linear(x, weight)
    compiled = torch.compile(lambda x: linear(x, weight), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), F.linear(x, weight))
    assert not calls


def test_small_products_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(module._OneDnnLinear, "apply", lambda *_: pytest.fail("oneDNN was called"))
    linear(torch.randn(8, 8), torch.randn(8, 8))
