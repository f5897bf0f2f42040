import warnings

import pytest
import torch

from seqattn.kernels import backend
from seqattn.kernels.backend import BackendStatus, backend_status, resolve_backend, use_backend

ALL = ("reference", "cpu", "triton")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.delenv("SEQATTN_BACKEND", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(backend, "_default", None)
    monkeypatch.setattr(backend, "_warned", set())


def _without_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_auto_on_cpu_tensors_is_the_cpu_kernel():
    assert resolve_backend("auto", "cpu", ALL) == "cpu"


def test_auto_on_cuda_tensors_is_triton(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(backend, "find_spec", lambda name: object())
    assert resolve_backend("auto", "cuda", ALL) == "triton"


def test_a_cuda_fallback_warns_once_with_the_reason(monkeypatch):
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    with pytest.warns(RuntimeWarning, match="triton is not installed"):
        assert resolve_backend("auto", "cuda", ALL) == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_backend("auto", "cuda", ALL) == "reference"


@pytest.mark.parametrize(("device", "reason"), [("mps", "no kernel for mps"), ("cuda", "no triton kernel")])
def test_auto_without_a_kernel_falls_back(device, reason):
    with pytest.warns(RuntimeWarning, match=reason):
        assert resolve_backend("auto", device, ("reference",)) == "reference"


def test_a_named_backend_that_cannot_run_says_why(monkeypatch):
    _without_cuda(monkeypatch)
    monkeypatch.setattr(backend, "find_spec", lambda name: object())
    with pytest.raises(RuntimeError, match="no CUDA device"):
        resolve_backend("triton", "cpu", ALL)
    with pytest.raises(RuntimeError, match="it takes CPU tensors"):
        resolve_backend("cpu", "cuda", ALL)


def test_a_missing_implementation_or_name_is_refused():
    with pytest.raises(ValueError, match="it has reference, cpu, triton"):
        resolve_backend("mamba_ssm", "cuda", ALL)
    with pytest.raises(ValueError, match="choose one of auto, reference"):
        resolve_backend("fast", "cpu", ALL)
    with pytest.raises(ValueError, match="'fast' is unknown"):
        use_backend("fast")


def test_triton_takes_cpu_tensors_in_its_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(backend, "find_spec", lambda name: object())
    assert resolve_backend("triton", "cpu", ALL) == "triton"
    assert BackendStatus("triton", True, "Triton's interpreter (TRITON_INTERPRET=1)") in backend_status()


def test_the_default_goes_argument_then_use_backend_then_variable(monkeypatch):
    monkeypatch.setenv("SEQATTN_BACKEND", "reference")
    assert resolve_backend("auto", "cpu", ALL) == "reference"
    with use_backend("cpu"):
        assert resolve_backend("auto", "cpu", ALL) == "cpu"
        with use_backend("auto"):
            assert resolve_backend("auto", "cpu", ALL) == "cpu"
        assert resolve_backend("reference", "cpu", ALL) == "reference"
    assert resolve_backend("auto", "cpu", ALL) == "reference"
    use_backend("cpu")
    assert resolve_backend("auto", "cpu", ALL) == "cpu"


def test_an_exception_restores_the_previous_backend():
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert resolve_backend("auto", "cpu", ALL) == "cpu"


def test_status_lists_every_backend_with_a_reason(monkeypatch):
    _without_cuda(monkeypatch)
    status = {name: (available, reason) for name, available, reason in backend_status()}
    assert list(status) == list(backend.BACKENDS)
    assert status["reference"] == (True, "plain PyTorch")
    assert status["cpu"][0]
    assert not status["triton"][0]
    assert all(reason for _, reason in status.values())


def test_resolving_does_not_break_the_graph():
    def double(x):
        return x * 2 if resolve_backend("auto", x.device.type, ALL) == "cpu" else x

    compiled = torch.compile(double, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.ones(3)), torch.full((3,), 2.0))
