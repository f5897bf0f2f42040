"""The Triton scan: interpreted, compiled for a GPU that need not be there, and on one that is."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from loading import load

pytest.importorskip("triton")

SCRIPT = Path(__file__).with_name("triton_cases.py")


triton_cases = load(SCRIPT)
CASES, Case, errors = triton_cases.CASES, triton_cases.Case, triton_cases.errors


def check(found, dtype):
    summed = ("A", "B", "C")
    for name, error in found.items():
        if dtype == torch.float64:
            allowed = 1e-10
        elif dtype == torch.float32:
            allowed = 1e-5 if name in ("out", "last") else 5e-4 if name in summed else 1e-4
        else:
            allowed = 2e-3 if dtype == torch.float16 else 1.5e-2
        assert error <= allowed, (name, error)


@pytest.fixture(scope="module")
def interpreted():
    """The errors of all cases, from a process in which Triton interprets."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(SCRIPT), *CASES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CASES)
def test_interpreted_it_is_the_reference(interpreted, name):
    check(interpreted[name], CASES[name].dtype)


@pytest.fixture
def compiled(monkeypatch):
    """A list of (kernel's name, PTX): every launch is compiled for compute capability 9.0 instead of run."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction

    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float64: "fp64", torch.int64: "i64"}
    found = []

    def compile_launch(self, *args, grid, warmup, num_warps, **constants):
        del grid, warmup
        arguments = dict(zip(self.arg_names, args, strict=False))
        signature = dict.fromkeys(self.arg_names, "constexpr")
        for name, value in arguments.items():
            if isinstance(value, torch.Tensor):
                signature[name] = "*" + names[value.dtype]
            elif isinstance(value, int):
                signature[name] = "i32"
            else:
                constants[name] = value
        source = ASTSource(fn=self, signature=signature, constexprs=constants)
        kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps})
        found.append((self.__name__, kernel.asm["ptx"]))

    monkeypatch.setattr(JITFunction, "run", compile_launch)
    return found


COMPILED = [
    pytest.param(Case(1, 20, 64, 16, dtype=torch.bfloat16), id="bfloat16"),
    pytest.param(Case(1, 20, 64, 16, window=8, dtype=torch.bfloat16), id="bfloat16-window-8", marks=pytest.mark.slow),
    pytest.param(
        Case(1, 20, 64, 16, window=8, reverse=True, lengths=(7,), dtype=torch.float32),
        id="float32-window-8-reverse-ragged", marks=pytest.mark.slow,
    ),
    pytest.param(
        Case(1, 20, 65, 17, reverse=True, lengths=(7,), dtype=torch.float32, options=False),
        id="float32-17-states-reverse-ragged-no-options", marks=pytest.mark.slow,
    ),
    pytest.param(Case(1, 20, 3, 1, window=18, dtype=torch.float32), id="float32-long-window", marks=pytest.mark.slow),
    pytest.param(Case(1, 20, 60, 4, window=3, dtype=torch.float64), id="float64-window-3", marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize("case", COMPILED)
def test_every_kernel_compiles_for_compute_capability_9(compiled, case):
    tensors, lengths, _ = triton_cases.draw(case, "cpu")
    run_forward_and_backward(tensors, lengths, case)
    names = {name for name, _ in compiled}
    assert names == {"forward_kernel", "backward_kernel", "segment_kernel", "carry_kernel"}
    for name, ptx in compiled:
        assert not re.search(r"\b(atom|red)\.", ptx), name
        if case.dtype != torch.float64:
            assert "ex2.approx" in ptx, name
            assert ".f64" not in ptx, name


def run_forward_and_backward(tensors, lengths, case):
    """Launch what a scan and its gradient launch, on CPU tensors: for the `compiled` fixture."""
    from seqattn.kernels.selective_scan import triton as scan

    options = [tensors.get(name) for name in ("D", "z", "delta_bias", "initial_state")]
    arguments = (
        *(tensors[name] for name in ("u", "delta", "A", "B", "C")), *options, lengths, case.options, case.window,
        case.reverse,
    )  # fmt: skip
    out, last, chunks = scan.forward(*arguments)
    scan.backward(out, last, *arguments, chunks)


GPU_CASES = [
    pytest.param(Case(16, 257, 64, 16), id="cut"),
    pytest.param(Case(2, 2049, 65, 17, reverse=True), id="few-long-sequences-reverse"),
    pytest.param(Case(5, 300, 60, 16, groups=3, lengths=(0, 1, 15, 100, 300)), id="ragged-groups"),
    pytest.param(Case(5, 300, 60, 4, window=8, reverse=True, lengths=(0, 1, 15, 100, 300)), id="window-8-ragged"),
    pytest.param(Case(3, 500, 64, 16, window=16), id="window-16"),
    pytest.param(Case(600, 63, 64, 16, window=3), id="many-sequences-window-3"),
    pytest.param(Case(2, 1000, 3, 1, window=100, reverse=True), id="window-100-reverse"),
    pytest.param(Case(2, 500, 64, 16, window=500, lengths=(500, 7)), id="full-window-ragged"),
    pytest.param(Case(1, 7, 1, 64, options=False), id="64-states-no-options"),
]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("case", GPU_CASES)
def test_on_a_gpu_it_is_the_reference(case, dtype):
    check(errors(replace(case, dtype=dtype), "cuda", twice=True), dtype)
