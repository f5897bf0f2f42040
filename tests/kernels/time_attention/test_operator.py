"""Time attention as a PyTorch operator, and the arguments it refuses."""

from pathlib import Path

import pytest
import torch
from loading import load
from torch.export import Dim

from seqattn.kernels import time_attention, use_backend
from seqattn.kernels.time_attention import cpu, reference

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

cases = load(Path(__file__).with_name("cases.py"))
Case = cases.Case
SMALL = {"length": 9, "dim": 3, "queries": 4, "channels": 3}
CASES = {
    "near": Case(**SMALL),
    "ragged": Case(**SMALL, lengths=(0, 7)),
    "far": Case(**SMALL, spread=100, observed=0.7),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(case, dtype):
    tensors = case.draw(dtype)
    arguments = (*(tensors[name].requires_grad_() for name in cases.FLOATING), tensors["mask"])
    passed = torch.library.opcheck(cpu.time_attention_cpu, arguments)
    assert set(passed.values()) == {"SUCCESS"}


@pytest.mark.parametrize("case", [CASES["near"], CASES["ragged"], Case(**SMALL, spread=3)])
@pytest.mark.parametrize("far", [False, True], ids=["near", "far"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_gradients_in_float64(case, backend, far, monkeypatch):
    if far:
        monkeypatch.setattr(cpu, "NEAR", {torch.float64: -1.0})
    tensors = case.draw(seed=1)
    leaves = tuple(tensors[name].requires_grad_() for name in cases.FLOATING)

    def function(*values):
        return time_attention(*values, tensors["mask"], **case.options(), backend=backend)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True, atol=1e-6)


@every_case
def test_compiles_whole(case):
    torch.compiler.reset()
    tensors, options = case.draw(), case.options()
    weights = cases.eighths(time_attention(**tensors, **options))

    def loss(tensors):
        return (time_attention(**tensors, **options) * 2 * weights).sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = {name: tensors[name].clone().requires_grad_() for name in cases.FLOATING}
        value = function(leaves | {"mask": tensors["mask"]})
        results.append([value, *torch.autograd.grad(value, list(leaves.values()))])
    for got, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@every_case
def test_exports_with_any_batch_and_length(case):
    torch.compiler.reset()

    class Network(torch.nn.Module):
        def forward(self, tensors, lengths):
            return time_attention(**tensors, lengths=lengths) + 1

    batch, length = Dim("batch"), Dim("length", min=2)
    shapes = {"query": {}} | {name: {0: batch, 1: length} for name in ("key", "values", "mask")}
    program = torch.export.export(
        Network(), (case.draw(), torch.tensor([9, 4])), dynamic_shapes=(shapes, {0: batch})
    ).module()
    for steps in (2, 31, 100):
        other = Case(**{**case.__dict__, "batch": 3, "length": steps}).draw()
        ends = torch.tensor([steps, 1, 0])
        torch.testing.assert_close(program(other, ends), Network()(other, ends), rtol=1e-12, atol=1e-13)


def test_backends_are_reached(monkeypatch):
    calls = []
    for module, name in ((reference, "time_attention_reference"), (cpu, "time_attention_cpu")):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, function=function, name=name: calls.append(name) or function(*a))
    tensors = Case(**SMALL).draw()
    time_attention(**tensors)
    with use_backend("reference"):
        time_attention(**tensors)
    monkeypatch.setenv("SEQATTN_BACKEND", "reference")
    time_attention(**tensors)
    time_attention(**tensors, backend="cpu")
    assert [name.rsplit("_", 1)[1] for name in calls] == ["cpu", "reference", "reference", "cpu"]


def test_autocast_changes_nothing_inside():
    tensors = Case(length=100).draw(torch.float32)
    expected = cases.run(tensors, {})
    with torch.autocast("cpu", torch.bfloat16):
        got = cases.run(tensors, {})
        plain = time_attention(**tensors, backend="reference")
    cases.assert_close(got, expected, tensors, 1e-6)
    torch.testing.assert_close(plain, expected["out"], rtol=1e-5, atol=1e-5)


def wrong(**changes):
    tensors = Case(**SMALL).draw(torch.float32)
    return {name: value(tensors[name]) if callable(value) else value for name, value in (tensors | changes).items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": lambda q: q[0]}, r"query has shape \(2, 3\): it must be \(queries, heads, dim\)"),
        ({"query": lambda q: q[..., :0]}, "query has shape"),
        ({"query": lambda q: q.int()}, "query is torch.int32"),
        ({"key": lambda k: k[:, :, 1:]}, r"key has shape \(2, 9, 1, 3\)"),
        ({"key": lambda k: k.flatten(2)}, "key has shape"),
        ({"values": lambda v: v[:, 1:]}, r"values has shape \(2, 8, 3\): it must be \(2, 9, 'channels'\)"),
        ({"values": lambda v: v[..., 0]}, "values has shape"),
        ({"mask": lambda m: m[..., 1:]}, r"mask has shape \(2, 9, 2\): it must be \(2, 9, 3\) to go with values"),
        ({"mask": lambda m: m[..., 0]}, "mask has shape"),
        ({"mask": lambda m: m.to(torch.complex64)}, "mask is torch.complex64"),
        ({"key": lambda k: k.double()}, "key is torch.float64"),
        ({"values": lambda v: v.half()}, "values is torch.float16"),
        ({"values": lambda v: v.to("meta")}, "values is on meta"),
        ({"mask": lambda m: m.to("meta")}, "mask is on meta"),
        ({"lengths": torch.tensor([9, 10])}, "lengths go from 9 to 10"),
        ({"lengths": torch.tensor([-1, 3])}, "lengths go from -1 to 3"),
        ({"lengths": torch.tensor([9.0, 9.0])}, "lengths is torch.float32"),
        ({"lengths": torch.tensor([9])}, "lengths is torch.int64"),
        ({"lengths": [9, 9]}, "lengths is of type list: it must be a tensor"),
        ({"mask": lambda m: m.numpy()}, "mask is of type ndarray: it must be a tensor"),
        ({"backend": "cuda"}, "backend 'cuda' is unknown"),
        ({"backend": "mamba_ssm"}, "does not exist for this operator"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        time_attention(**wrong(**changes))


def test_forward_mode_is_refused_by_the_kernel_and_done_by_the_reference():
    tensors = CASES["near"].draw()
    values, tangent = tensors.pop("values"), torch.ones_like(CASES["near"].draw()["values"])

    def attend(values, backend):
        return time_attention(values=values, **tensors, backend=backend).sum()

    with pytest.raises(NotImplementedError, match="backend 'cpu' has no derivatives in forward mode"):
        torch.func.jvp(lambda values: attend(values, "cpu"), (values,), (tangent,))
    _, slope = torch.func.jvp(lambda values: attend(values, "reference"), (values,), (tangent,))
    expected = torch.autograd.grad(attend(values.requires_grad_(), "cpu"), values)[0].sum()
    torch.testing.assert_close(slope, expected)
