"""Time attention's Triton kernels: interpreted, compiled for a GPU that need not be there, and on one that is."""

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
    bounds = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
    for name, error in found.items():
        allowed = 1e-5 if dtype == torch.float32 and name == "out" else bounds[dtype]
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

    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.uint8: "u8"}
    found = []

    def compile_launch(self, *args, grid, warmup, **constants):
        del grid, warmup
        arguments = dict(zip(self.arg_names, args, strict=False))
        signature = dict.fromkeys(self.arg_names, "constexpr")
        for name, value in arguments.items():
            signature[name] = "*" + names[value.dtype] if isinstance(value, torch.Tensor) else "i32"
        source = ASTSource(fn=self, signature=signature, constexprs=constants)
        kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        found.append((self.__name__, kernel.asm["ptx"]))

    monkeypatch.setattr(JITFunction, "run", compile_launch)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_kernel_compiles_for_compute_capability_9(compiled, dtype):
    from seqattn.kernels.time_attention import triton as attention

    tensors = Case(batch=1, queries=48, heads=8, length=100, dim=8, channels=17).draw(dtype)
    arguments = tuple(tensors.values())
    results = attention.forward(*arguments)
    attention.backward(results[0], *arguments, *results, True)
    assert [name for name, _ in compiled] == ["forward_kernel", "query_kernel", "key_kernel", "value_kernel"]
    for name, ptx in compiled:
        assert not re.search(r"\b(atom|red)\.", ptx), name
        assert ".f64" not in ptx, name


GPU_CASES = [
    pytest.param(Case(batch=8, queries=48, heads=8, length=200, dim=8, channels=17), id="section-10"),
    pytest.param(Case(queries=65, length=2049, dim=60, channels=65, heads=1), id="long"),
    pytest.param(Case(batch=5, length=300, dim=16, lengths=(0, 1, 15, 100, 300)), id="ragged"),
    pytest.param(Case(length=257, channels=17, observed=0.0), id="single-observations"),
    pytest.param(Case(length=500, channels=17, spread=10), id="spread-10"),
    pytest.param(Case(length=500, channels=17, spread=1000), id="spread-1000"),
]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", GPU_CASES)
def test_on_a_gpu_it_is_the_reference(case, dtype):
    check(errors(case, dtype, "cuda", twice=True), dtype)
