"""Results that the backward pass computes again: the same gradients, and nothing kept."""

import gc
import weakref

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from seqattn.layers.recompute import recomputing


class Counted:
    """A function that counts its calls and remembers its results, as long as others keep them."""

    def __init__(self):
        self.calls, self.results = 0, []

    def __call__(self, x, weight):
        self.calls += 1
        result = x * weight + 1
        self.results.append(weakref.ref(result.untyped_storage()))
        return result


def inputs():
    torch.manual_seed(0)
    return [torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]


def network(x, weight, function):
    with recomputing() as again:
        middle = again(function, x, weight)
        return middle.square() * middle.sin() + x * middle  # kept five times


def plain(x, weight):
    middle = x * weight + 1
    return middle.square() * middle.sin() + x * middle


def test_gradients_are_those_of_keeping_and_one_call_gives_them():
    given, function = inputs(), Counted()
    got = torch.autograd.grad(network(*given, function).sum(), given)
    expected = torch.autograd.grad(plain(*given).sum(), given)
    assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))
    assert function.calls == 2


def test_backward_twice():
    given, function = inputs(), Counted()
    out = network(*given, function).sum()
    first = torch.autograd.grad(out, given, retain_graph=True)
    second = torch.autograd.grad(out, given)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    assert function.calls == 3


def test_the_result_is_not_kept():
    given, function = inputs(), Counted()
    gc.disable()  # reference counting alone must free it
    try:
        out = network(*given, function)
        assert function.results[0]() is None
        torch.autograd.grad(out.sum(), given)
        assert function.results[1]() is None
    finally:
        gc.enable()


def test_without_gradients_nothing_is_recorded():
    function = Counted()
    with torch.no_grad():
        network(*inputs(), function)
    assert function.calls == 1


@pytest.mark.parametrize("way", ["checkpoint", "hooks"])
def test_hooks_that_are_there_already_go_first(way):
    given, function = inputs(), Counted()
    if way == "checkpoint":
        out = checkpoint(network, *given, function, use_reentrant=False)
    else:
        with save_on_cpu():
            out = network(*given, function)
    got = torch.autograd.grad(out.sum(), given)
    expected = torch.autograd.grad(plain(*given).sum(), given)
    assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))
    assert function.calls == (2 if way == "checkpoint" else 1)


def test_autocast_is_as_it_was():
    torch.manual_seed(0)
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(8, 8, requires_grad=True)

    def run(again):
        return again(torch.nn.functional.linear, x, weight).square().sum()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        with recomputing() as again:
            got = run(again)
        expected = run(lambda function, *given: function(*given))
    for ours, theirs in zip(*(torch.autograd.grad(out, [x, weight]) for out in (got, expected)), strict=True):
        assert torch.equal(ours, theirs)


def test_torch_func_and_compile():
    given = [tensor.detach() for tensor in inputs()]
    got = torch.func.grad(lambda x: network(x, given[1], lambda x, weight: x * weight + 1).sum())(given[0])
    x = given[0].clone().requires_grad_()
    expected = torch.autograd.grad(plain(x, given[1]).sum(), x)[0]
    torch.testing.assert_close(got, expected)

    def compilable(x, weight):
        with recomputing() as again:
            return again(torch.mul, x, weight).sin().sum()

    compiled = torch.compile(compilable, backend="aot_eager", fullgraph=True)
    wanted = torch.autograd.grad(compilable(x, given[1]), x)[0]
    torch.testing.assert_close(torch.autograd.grad(compiled(x, given[1]), x)[0], wanted)


@pytest.mark.parametrize("way", ["fake", "meta"])
def test_tensors_without_data(way):
    with FakeTensorMode() if way == "fake" else torch.device("meta"):
        given = [torch.randn(5, 3, requires_grad=True) for _ in range(2)]
        gradients = torch.autograd.grad(network(*given, torch.mul).sum(), given)
    assert all(gradient.shape == (5, 3) for gradient in gradients)
