"""WERSA's Triton kernels: interpreted, compiled for a GPU that need not be there, and on one that is."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loading import load

pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("triton_cases.py")


triton_cases = load(SCRIPT)
CASES, Case, errors = triton_cases.CASES, triton_cases.Case, triton_cases.errors


def check(found, dtype):
    for name, error in found.items():
        if dtype == torch.float64:
            allowed = 1e-10
        elif dtype == torch.float32:
            allowed = 1e-5 if name == "out" else 1e-4
        else:  # gradients pass through more rounded operands than the output
            allowed = (2e-3 if dtype == torch.float16 else 1.5e-2) * (1 if name == "out" else 2)
        assert error <= allowed, (name, error)


@pytest.fixture(scope="module")
def interpreted():
    """The errors of all cases, from a process in which Triton interprets."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *CASES], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CASES)
def test_interpreted_it_is_the_reference(interpreted, name):
    check(interpreted[name], CASES[name][1])


@pytest.fixture
def compiled(monkeypatch):
    """A list of (kernel's name, PTX): every launch is compiled for compute capability 9.0 instead of run."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int64: "i64"}
    found = []

    def compile_launch(self, *args, grid, warmup, **constants):
        del grid, warmup
        arguments = dict(zip(self.arg_names, args, strict=False))
        signature = dict.fromkeys(self.arg_names, "constexpr")
        for name, value in arguments.items():
            if isinstance(value, torch.Tensor):
                signature[name] = "*" + names[value.dtype]
            elif isinstance(value, int | float):
                signature[name] = "i32" if isinstance(value, int) else "fp32"
            else:
                constants[name] = value
        source = ASTSource(fn=self, signature=signature, constexprs=constants)
        kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        found.append((self.__name__, kernel.asm["ptx"]))

    monkeypatch.setattr(JITFunction, "run", compile_launch)
    return found


REAL = {"batch": 1, "length": 100, "dim": 64, "value_dim": 64, "features": 128, "levels": 4}
COMPILED = [
    pytest.param(Case(**REAL), torch.bfloat16, id="bfloat16"),
    pytest.param(Case(**REAL, feature_map="exp"), torch.float32, id="float32-exp"),
    pytest.param(Case(**REAL, causal=True), torch.bfloat16, id="bfloat16-causal"),
    pytest.param(Case(**REAL, causal=True, feature_map="exp"), torch.float16, id="float16-causal-exp"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "dtype"), COMPILED)
def test_every_kernel_compiles_for_compute_capability_9(compiled, case, dtype):
    from seqattn.kernels.wersa import triton as attention

    tensors = case.draw(dtype)
    arguments = (
        *(tensors[name] for name in ("q", "k", "v", "gains", "proj_q")), None, tensors["bandwidth"], None, case.levels,
        case.feature_map, case.causal, case.eps,
    )  # fmt: skip
    results = attention.forward(*arguments)
    attention.backward(results[0], *arguments, *results, True)
    names = {"filter_kernel", "gain_kernel", "sum_kernel"}
    names |= {"causal_kernel"} if case.causal else {"read_kernel", "gradient_kernel", "proj_kernel"}
    names |= {"maximum_kernel"} if case.feature_map == "exp" else set()
    assert {name for name, _ in compiled} == names
    for name, ptx in compiled:
        assert not re.search(r"\b(atom|red)\.", ptx), name
        assert ".f64" not in ptx, name


GPU_CASES = [
    pytest.param(Case(batch=2, heads=4, length=2049, dim=64, value_dim=64, features=128, levels=4), id="relu"),
    pytest.param(Case(batch=1, heads=2, length=1000, dim=60, value_dim=65, features=300, tied=False), id="untied"),
    pytest.param(Case(batch=5, length=300, dim=32, features=64, lengths=(0, 1, 15, 100, 300)), id="ragged"),
    pytest.param(Case(batch=2, length=500, dim=64, features=128, feature_map="exp"), id="exp"),
    pytest.param(Case(batch=2, length=2049, dim=64, value_dim=64, features=128, causal=True), id="causal"),
    pytest.param(Case(batch=2, length=500, dim=64, features=128, causal=True, feature_map="exp"), id="causal-exp"),
    pytest.param(Case(batch=2, length=257, dim=17, features=65, levels=7, gates="global"), id="levels-7-global"),
]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", GPU_CASES)
def test_on_a_gpu_it_is_the_reference(case, dtype):
    check(errors(case, dtype, "cuda", twice=True), dtype)
