"""The scan as a PyTorch operator: registration, compilation, export, choice of the backend, memory."""

import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loading import load

from seqattn.kernels import selective_scan, use_backend
from seqattn.kernels.selective_scan import cpu, public, reference

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


cases = load(Path(__file__).with_name("cases.py"))
Case = cases.Case
OPTIONAL = ("D", "z", "delta_bias", "initial_state")
SMALL = {"length": 9, "channels": 4, "state": 3}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.delenv("SEQATTN_BACKEND", raising=False)
    torch.compiler.reset()


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(**SMALL, groups=2), id="every-option"),
        pytest.param(Case(**SMALL, groups=1, window=3, reverse=True, lengths=(0, 7)), id="window-reverse-ragged"),
        pytest.param(Case(**SMALL | {"length": 40}, groups=1, window=34), id="long-window"),
        pytest.param(Case(**SMALL, groups=1, without=OPTIONAL, softplus=False), id="bare"),
        pytest.param(Case(**SMALL | {"length": 0}, groups=1), id="length-0"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype, case):
    tensors = {name: tensor.requires_grad_() for name, tensor in case.draw(dtype).items()}
    options = case.options()
    arguments = (
        *(tensors.get(name) for name in cases.FLOATING), options["lengths"], case.softplus, case.window, case.reverse,
    )  # fmt: skip
    passed = torch.library.opcheck(cpu.selective_scan_cpu, arguments)
    assert set(passed.values()) == {"SUCCESS"}


def layer(case):
    """A network around the scan, as a layer would call it."""

    def forward(**tensors):
        gated = {name: torch.tanh(tensor) if name == "u" else tensor for name, tensor in tensors.items()}
        out, last = selective_scan(**gated, **case.options(), return_last_state=True)
        return out * 2, last

    return forward


def results_and_gradients(function, tensors):
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in tensors.items()}
    results = function(**leaves)
    weights = [cases.eighths(result, seed) for seed, result in enumerate(results)]
    gradients = torch.autograd.grad(results, list(leaves.values()), weights)
    return {"out": results[0], "last_state": results[1]} | dict(zip(leaves, gradients, strict=True))


COMPILED = pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(**SMALL, groups=2, window=3), id="every-option"),
        pytest.param(Case(**SMALL, without=OPTIONAL, reverse=True), id="bare-reverse"),
    ],
)


@COMPILED
def test_a_compiled_graph_equals_eager(case):
    tensors = case.draw()
    compiled = torch.compile(layer(case), fullgraph=True, backend="aot_eager")
    cases.assert_same(results_and_gradients(compiled, tensors), results_and_gradients(layer(case), tensors))


@pytest.mark.slow
@COMPILED
def test_inductor_equals_eager(case):
    tensors = case.draw(torch.float32)
    compiled = torch.compile(layer(case), fullgraph=True)
    got, expected = (results_and_gradients(function, tensors) for function in (compiled, layer(case)))
    cases.assert_close(got, expected, 1e-5)


def test_a_compiled_scan_takes_lengths_and_other_shapes_without_a_new_graph():
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    def scan(lengths, **tensors):
        return selective_scan(**tensors, delta_softplus=True, window=3, lengths=lengths)

    compiled = torch.compile(scan, fullgraph=True, dynamic=True, backend=backend)
    for length, lengths in ((9, [4, 9]), (17, [0, 12]), (70, [70, 33])):
        tensors = Case(**SMALL | {"length": length}).draw()
        assert torch.equal(compiled(torch.tensor(lengths), **tensors), scan(torch.tensor(lengths), **tensors))
    assert len(graphs) == 1


class Scan(torch.nn.Module):
    def __init__(self, case):
        super().__init__()
        self.case = case

    def forward(self, tensors, lengths):
        options = self.case.options() | {"lengths": lengths}
        return selective_scan(**tensors, **options, return_last_state=True)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(length=12, window=3, groups=2), id="groups-window-3"),
        pytest.param(Case(length=12), id="plain"),
    ],
)
def test_an_exported_program_runs_at_any_batch_and_length(case):
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    rows, steps = {0: batch}, {0: batch, 1: length}
    shapes = dict.fromkeys(cases.PER_STEP, steps) | {"A": {}, "D": {}, "delta_bias": {}, "initial_state": rows}
    tensors = case.draw(torch.float32)
    dynamic = ({name: shapes[name] for name in tensors}, rows)
    program = torch.export.export(Scan(case), (tensors, torch.tensor([12, 5])), dynamic_shapes=dynamic)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for batch, length in ((3, 2), (2, 31), (5, 33), (2, 100), (4, 12)):
        other = Case(**vars(case) | {"batch": batch, "length": length})
        tensors, lengths = other.draw(torch.float32), torch.arange(batch) % (length + 1)
        for got, expected in zip(loaded(tensors, lengths), Scan(other)(tensors, lengths), strict=True):
            assert torch.equal(got, expected), (batch, length)


def test_a_second_derivative_is_refused():
    tensors = {name: tensor.requires_grad_() for name, tensor in Case(**SMALL).draw().items()}
    out = selective_scan(**tensors)
    (first,) = torch.autograd.grad(out.square().sum(), tensors["u"], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        first.sum().backward()


def test_gradients_of_some_inputs_only():
    case = Case(**SMALL, window=3)
    whole = cases.run(case.draw(), case.options())
    for name in ("u", "A", "initial_state"):
        tensors = case.draw()
        tensors[name].requires_grad_()
        results = selective_scan(**tensors, **case.options(), return_last_state=True)
        weights = [cases.eighths(result, seed) for seed, result in enumerate(results)]
        (gradient,) = torch.autograd.grad(results, tensors[name], weights)
        assert torch.equal(gradient, whole[f"grad_{name}"])


@pytest.mark.parametrize("read", ["out", "last_state"])
def test_gradients_of_one_result_only(read):
    case = Case(**SMALL, window=3)
    gradients = []
    for backend in ("cpu", "reference"):
        tensors = {name: tensor.requires_grad_() for name, tensor in case.draw().items()}
        results = selective_scan(**tensors, **case.options(), return_last_state=True, backend=backend)
        result = results[read == "last_state"]
        leaves = list(tensors.values())
        found = torch.autograd.grad(result, leaves, cases.eighths(result, 0), materialize_grads=True)
        gradients.append(dict(zip(tensors, found, strict=True)))
    cases.assert_close(*gradients, 1e-11)


def test_inference_keeps_nothing_for_a_backward_pass():
    tensors = Case(**SMALL).draw()
    with torch.no_grad():
        assert not selective_scan(**{name: tensor.requires_grad_() for name, tensor in tensors.items()}).requires_grad
    with torch.inference_mode():
        assert torch.isfinite(selective_scan(**tensors)).all()


@pytest.fixture
def ran(monkeypatch):
    """The names of the backends that ran."""
    names = []

    def watch(module, function, name):
        original = getattr(module, function)

        def watched(*arguments):
            names.append(name)
            return original(*arguments)

        monkeypatch.setattr(module, function, watched)

    watch(reference, "selective_scan_reference", "reference")
    watch(cpu, "selective_scan_cpu", "cpu")
    return names


def test_the_backend_that_is_asked_for_runs(ran, monkeypatch):
    tensors = Case(**SMALL).draw()
    selective_scan(**tensors)
    selective_scan(**tensors, backend="reference")
    with use_backend("reference"):
        selective_scan(**tensors)
        selective_scan(**tensors, backend="cpu")
    monkeypatch.setenv("SEQATTN_BACKEND", "reference")
    selective_scan(**tensors)
    with use_backend("cpu"):
        selective_scan(**tensors)
    assert ran == ["cpu", "reference", "reference", "cpu", "reference", "cpu"]


def test_every_implementation_is_where_the_table_says():
    assert list(public.IMPLEMENTATIONS) == ["reference", "cpu", "triton", "mamba_ssm"]
    for module, function in public.IMPLEMENTATIONS.values():
        assert importlib.util.find_spec(module) is not None
        source = Path(importlib.util.find_spec(module).origin).read_text()
        assert f"\n{function} = " in source or f"\ndef {function}(" in source


MEMORY = """
import sys, torch
from seqattn.kernels import selective_scan

torch.set_num_threads(1)
batch, channels, state, window = 1, 1024, 16, int(sys.argv[1])

def inputs(length):
    return [
        torch.randn(shape).requires_grad_()
        for shape in ((batch, length, channels), (batch, length, channels), *[(batch, length, state)] * 2)
    ], (-torch.rand(channels, state)).requires_grad_()

def work(tensors, A):
    u, delta, B, C = tensors
    selective_scan(u, delta, A, B, C, delta_softplus=True, window=window).backward(torch.ones(()).expand(u.shape))

def peak():  # getrusage's would start from what the process had that started this one
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

work(*inputs(100))
tensors, A = inputs(16_384)
before = peak()
work(tensors, A)
added = peak() - before
size = sum(tensor.nbytes for tensor in tensors)
assert size > 130e6
print(added / size)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read in Linux's units")
@pytest.mark.parametrize("window", [1, 8])
def test_forward_and_backward_take_linear_memory(window):
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(window)], env=os.environ.copy(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert 0.5 < float(done.stdout) < 6
