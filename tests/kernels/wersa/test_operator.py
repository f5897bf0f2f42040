"""WERSA attention as a PyTorch operator, and the arguments it refuses."""

from pathlib import Path

import pytest
import torch
from loading import load
from torch.export import Dim

from seqattn.kernels import use_backend, wersa_attention, wersa_attention_step
from seqattn.kernels.wersa import cpu, reference
from seqattn.kernels.wersa.cpu_filter import Filter

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


cases = load(Path(__file__).with_name("cases.py"))
Case = cases.Case
SMALL = {"length": 9, "dim": 3, "value_dim": 2, "features": 4, "levels": 2}
CASES = {
    "relu": Case(**SMALL),
    "untied-ragged-global": Case(**SMALL, tied=False, lengths=(0, 7), gates="global"),
    "exp": Case(**SMALL, feature_map="exp", lengths=(9, 4)),
    "causal": Case(**SMALL, causal=True),
    "causal-exp-untied": Case(**SMALL, causal=True, feature_map="exp", tied=False, lengths=(5, 9)),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(case, dtype):
    tensors = {name: tensor.requires_grad_() for name, tensor in case.draw(dtype).items()}
    arguments = (
        *(tensors[name] for name in ("q", "k", "v", "gains", "proj_q")), tensors.get("proj_k"), tensors["bandwidth"],
        case.options()["lengths"], case.levels, case.feature_map, case.causal, case.eps,
    )  # fmt: skip
    passed = torch.library.opcheck(cpu.wersa_attention_cpu, arguments)
    assert set(passed.values()) == {"SUCCESS"}


@every_case
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_gradients_in_float64(case, backend):
    tensors = {name: tensor.requires_grad_() for name, tensor in case.draw(seed=1).items()}

    def function(*values):
        return wersa_attention(**dict(zip(tensors, values, strict=True)), **case.options(), backend=backend)

    assert torch.autograd.gradcheck(function, tuple(tensors.values()), fast_mode=True, atol=1e-6)


@every_case
def test_compiles_whole(case):
    torch.compiler.reset()
    tensors = case.draw()
    options = case.options()
    weights = cases.eighths(wersa_attention(**tensors, **options))

    def loss(tensors):
        return (wersa_attention(**tensors, **options) * 2 * weights).sum()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
        value = function(leaves)
        results.append([value, *torch.autograd.grad(value, list(leaves.values()))])
    for got, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@every_case
def test_exports_with_any_batch_and_length(case):
    torch.compiler.reset()

    class Network(torch.nn.Module):
        def forward(self, tensors, lengths):
            return wersa_attention(**tensors, **case.options() | {"lengths": lengths}) + 1

    tensors = case.draw()
    batch, length = Dim("batch"), Dim("length", min=2)
    shapes = {name: {} for name in tensors}
    shapes |= {name: {0: batch, 2: length} for name in ("q", "k", "v")}
    shapes["gains"] = {0: batch, 1: length} if case.gates == "token" else {0: batch}
    program = torch.export.export(
        Network(), (tensors, torch.tensor([9, 4])), dynamic_shapes=(shapes, {0: batch})
    ).module()
    for steps in (2, 31, 100):
        other = Case(**{**case.__dict__, "batch": 3, "length": steps, "lengths": (steps, 1, 0)}).draw()
        ends = torch.tensor([steps, 1, 0])
        torch.testing.assert_close(program(other, ends), Network()(other, ends), rtol=1e-12, atol=1e-13)


def test_backends_are_reached(monkeypatch):
    calls = []
    for module, name in ((reference, "wersa_attention_reference"), (cpu, "wersa_attention_cpu")):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, function=function, name=name: calls.append(name) or function(*a))
    tensors, options = Case(**SMALL).draw(), Case(**SMALL).options()
    wersa_attention(**tensors, **options)
    with use_backend("reference"):
        wersa_attention(**tensors, **options)
    monkeypatch.setenv("SEQATTN_BACKEND", "reference")
    wersa_attention(**tensors, **options)
    wersa_attention(**tensors, **options, backend="cpu")
    assert [name.rsplit("_", 1)[1] for name in calls] == ["cpu", "reference", "reference", "cpu"]


def test_autocast_changes_nothing_inside():
    tensors, options = Case(length=100).draw(torch.float32), Case(length=100).options()
    expected = cases.run(tensors, options)
    with torch.autocast("cpu", torch.bfloat16):
        got = cases.run(tensors, options)
        plain = wersa_attention(**tensors, **options, backend="reference")
    cases.assert_close(got, expected, 1e-6)
    torch.testing.assert_close(plain, expected["out"], rtol=1e-5, atol=1e-5)


def wrong(**changes):
    tensors = Case(**SMALL).draw(torch.float32) | {"levels": 2}
    return {name: value(tensors[name]) if callable(value) else value for name, value in (tensors | changes).items()}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": lambda q: q[0]}, "q has shape"),
        ({"q": lambda q: q.int()}, "q is torch.int32"),
        ({"k": lambda k: k[:, :, 1:]}, "k has shape"),
        ({"v": lambda v: v[:, :, 1:]}, "v has shape"),
        ({"gains": lambda g: g[:, :, 1:]}, "gains has shape"),
        ({"gains": lambda g: g[:, 1:]}, "gains has shape"),
        ({"gains": lambda g: g[:, 0, 1:]}, "gains has shape"),
        ({"gains": lambda g: g[:, 0], "causal": True}, "depend on its future"),
        ({"proj_q": lambda p: p[1:]}, "proj_q has shape"),
        ({"proj_q": lambda p: p[:, :0]}, "at least 1 feature"),
        ({"proj_k": torch.zeros(3, 5)}, "proj_k has shape"),
        ({"bandwidth": torch.ones(2)}, "bandwidth has shape"),
        ({"levels": 0}, "levels is 0"),
        ({"levels": True}, "levels is True"),
        ({"levels": 2.0}, "levels is 2.0"),
        ({"levels": 41}, "levels is 41: it must be an integer from 1 to 40"),
        ({"lengths": [9, 9]}, "lengths is of type list: it must be a tensor"),
        ({"bandwidth": 1.5}, "bandwidth is of type float: it must be a tensor"),
        ({"feature_map": "elu"}, "feature_map is 'elu'"),
        ({"k": lambda k: k.double()}, "k is torch.float64"),
        ({"gains": lambda g: g.half()}, "gains is torch.float16"),
        ({"v": lambda v: v.to("meta")}, "v is on meta"),
        ({"lengths": torch.tensor([9, 10])}, "lengths go from 9 to 10"),
        ({"lengths": torch.tensor([-1, 3])}, "lengths go from -1 to 3"),
        ({"lengths": torch.tensor([9.0, 9.0])}, "lengths is torch.float32"),
        ({"lengths": torch.tensor([9])}, "lengths is torch.int64"),
        ({"backend": "cuda"}, "backend 'cuda' is unknown"),
        ({"backend": "mamba_ssm"}, "does not exist for this operator"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        wersa_attention(**wrong(**changes))


def test_wrong_arguments_of_a_step_are_named():
    with pytest.raises(ValueError, match="depend on its future"):
        wersa_attention_step(None, **wrong(gains=lambda g: g[:, 0]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 1}, "sums of the state is torch.float32 of shape"),
        ({"heads": 1}, "sums of the state"),
        ({"features": 5}, "sums of the state"),
        ({"value_dim": 3}, "sums of the state"),
        ({"dim": 4}, "queries of the state"),
        ({"feature_map": "exp"}, "log_max of the state"),
        ({"levels": 3}, "the state was made with 2 levels, not 3"),
    ],
)
def test_a_state_of_other_arguments_is_refused(changes, message):
    def step(state, case, dtype=torch.float32):
        return wersa_attention_step(state, **case.draw(dtype), levels=case.levels, feature_map=case.feature_map)[1]

    case = Case(**SMALL)
    state = step(None, case)
    with pytest.raises(ValueError, match=message):
        step(state, Case(**SMALL | changes))
    with pytest.raises(ValueError, match=r"sums of the state is torch.float32"):
        step(state, case, torch.float64)
    with pytest.raises(ValueError, match="the state has no levels"):
        step({name: state[name] for name in state if name != "levels"}, case)


@pytest.mark.parametrize("feature_map", ["relu", "exp"])
def test_a_step_without_tokens_changes_nothing(feature_map):
    tensors, options = Case(**SMALL).draw(torch.float16), {"levels": 2, "feature_map": feature_map}
    nothing = tensors | {name: tensors[name][:, :, :0] for name in "qkv"} | {"gains": tensors["gains"][:, :0]}
    out, fresh = wersa_attention_step(None, **nothing, **options)
    assert (out.shape, out.dtype) == ((2, 2, 0, 2), torch.float16)
    expected, state = wersa_attention_step(None, **tensors, **options)
    got, _ = wersa_attention_step(fresh, **tensors, **options)
    assert torch.equal(got, expected)
    out, after = wersa_attention_step(state, **nothing, **options)
    assert out.shape == (2, 2, 0, 2)
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], state[name]) for name in state)


def test_levels_of_numpy_are_levels():
    import numpy as np

    tensors = Case(**SMALL).draw()
    expected = wersa_attention(**tensors, levels=2)
    assert torch.equal(wersa_attention(**tensors, levels=np.int64(2)), expected)


def test_a_kernel_refuses_forward_mode():
    tensors = Case(**SMALL).draw()
    for name in tensors:

        def function(value, backend, name=name):
            return wersa_attention(**tensors | {name: value}, levels=2, backend=backend)

        directions = (tensors[name],), (torch.ones_like(tensors[name]),)
        with pytest.raises(NotImplementedError, match=r'forward mode .* use backend="reference"'):
            torch.func.jvp(lambda value: function(value, "cpu"), *directions)
        assert (torch.func.jvp(lambda value: function(value, "reference"), *directions)[1] != 0).any()


def test_a_sequence_of_length_0_gives_zeros_and_finite_gradients():
    for case in CASES.values():
        for eps in (1e-6, 0.0):
            options = case.options() | {"lengths": torch.tensor([0, 9]), "eps": eps}
            for backend in ("reference", "cpu"):
                results = cases.run(case.draw(), options, backend)
                assert (results["out"][0] == 0).all()
                assert all((results[f"grad_{name}"][0] == 0).all() for name in ("q", "k", "v", "gains"))


def test_same_bits_for_one_and_two_threads_of_the_filter():
    x, gains = torch.randn(2, 3, 300, 17), torch.randn(2, 300, 5)
    for causal in (False, True):
        results = []
        for threads in (1, 2, 3):
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            wavelet = Filter(gains, torch.tensor([300, 111]), 300, causal, torch.float32)
            out, grad = torch.empty_like(x), torch.empty_like(x)
            wavelet.apply(x, out)
            wavelet.backward(out, x, grad)
            results.append((out, grad, wavelet.gradient()))
            torch.set_num_threads(before)
        for other in results[1:]:
            assert all(torch.equal(got, expected) for got, expected in zip(other, results[0], strict=True))
