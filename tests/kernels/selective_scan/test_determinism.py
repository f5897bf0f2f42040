"""The same bits every time: repeated, on any number of threads, side by side, in forked processes, on dirty memory."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from loading import load

from seqattn.kernels.selective_scan.cpu import selective_scan_cpu

CASES = Path(__file__).with_name("cases.py")
cases = load(CASES)
Case = cases.Case
SCANS = pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(batch=3, length=100, channels=65, groups=5), id="groups"),
        pytest.param(Case(batch=2, length=70, channels=300, window=8, reverse=True), id="window-8"),
        pytest.param(Case(batch=3, length=90, channels=40, window=40, lengths=(90, 0, 47)), id="window-40-ragged"),
        pytest.param(Case(batch=1, length=33, channels=600, state=1, without=("z", "D")), id="many-channels"),
    ],
)


@pytest.fixture
def threads():
    """torch.set_num_threads, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@SCANS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_twice_and_on_1_2_3_threads(dtype, case, threads):
    tensors = case.draw(dtype)
    threads(1)
    first = cases.run(tensors, case.options())
    for number in (1, 2, 2, 3):
        threads(number)
        cases.assert_same(cases.run(tensors, case.options()), first)


@SCANS
def test_calls_from_several_python_threads(case, threads):
    tensors = case.draw(torch.float32)
    expected = cases.run(tensors, case.options())
    threads(2)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: cases.run(tensors, case.options()), range(12)):
            cases.assert_same(got, expected)


@pytest.fixture
def nan_memory(monkeypatch):
    """A function that from its call on fills what is allocated without values: NaN, and -1 in integers."""

    def poison(allocate):
        def allocate_nan(*arguments, **options):
            tensor = allocate(*arguments, **options)
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor.fill_(-1)

        return allocate_nan

    def start():
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
            monkeypatch.setattr(owner, name, poison(getattr(owner, name)))
        assert torch.empty(3).isnan().all()
        assert torch.ones(2).new_empty(3).isnan().all()

    return start


@SCANS
@pytest.mark.parametrize("number", [1, 2])
def test_memory_that_holds_nan(number, case, nan_memory, threads):
    tensors = case.draw(torch.float32)
    threads(number)
    expected = cases.run(tensors, case.options())
    nan_memory()
    cases.assert_same(cases.run(tensors, case.options()), expected)


@SCANS
def test_the_operator_hands_out_no_memory_that_nobody_wrote(case, nan_memory):
    tensors, options = case.draw(torch.float32), case.options()
    groups = tensors | {name: tensors[name].reshape(*tensors[name].shape[:2], -1, case.state) for name in ("B", "C")}
    named = [groups.get(name) for name in cases.FLOATING]
    nan_memory()
    results = selective_scan_cpu(*named, options["lengths"], case.softplus, case.window, case.reverse)
    assert [tensor.isnan().any().item() for tensor in results] == [False, False, False]


PROGRAM = """
import importlib.util, os, sys
import torch

spec = importlib.util.spec_from_file_location("cases", sys.argv[1])
sys.modules["cases"] = cases = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cases)
case = cases.Case(batch=3, length=50, channels=40, window=3)
tensors = case.draw(torch.float32)

def scan(threads):
    torch.set_num_threads(threads)
    return cases.run(tensors, case.options())
"""
THREADS_AND_A_FORK = """
import numba

assert numba.config.NUMBA_NUM_THREADS == 3  # also on a machine of fewer cores
expected = scan(1)
for threads in (2, 3):
    cases.assert_same(scan(threads), expected)
child = os.fork()
if child == 0:
    code = 1
    try:
        for threads in (1, 2):
            cases.assert_same(scan(threads), expected)
        code = 0
    finally:
        os._exit(code)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
cases.assert_same(scan(2), expected)
"""
WORKERS = """
import multiprocessing

def work(queue):
    queue.put({name: tensor.numpy() for name, tensor in scan(2).items()})

expected = scan(2)
context = multiprocessing.get_context("fork")
queue = context.Queue()
workers = [context.Process(target=work, args=(queue,)) for _ in range(2)]
for worker in workers:
    worker.start()
results = [queue.get(timeout=100) for _ in workers]
for worker in workers:
    worker.join()
    assert worker.exitcode == 0, worker.exitcode
for result in results:
    cases.assert_same({name: torch.from_numpy(array) for name, array in result.items()}, expected)
"""
WITHOUT_CACHE = """
from pathlib import Path
import seqattn
from seqattn.kernels.selective_scan.cpu_forward import forward_tasks

expected = cases.run(tensors, case.options(), "reference")
cases.assert_close(scan(1), expected, 1e-4, summed=5e-4, forward=1e-5)
assert Path(seqattn.__file__).is_relative_to(Path.cwd())
assert forward_tasks._cache.cache_path is None
"""


def run_program(body, folder, **variables):
    program = [sys.executable, "-c", PROGRAM + body, str(CASES)]
    return subprocess.run(program, cwd=folder, env=os.environ | variables, capture_output=True, text=True, timeout=500)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize(
    "body",
    [pytest.param(THREADS_AND_A_FORK, id="fork"), pytest.param(WORKERS, id="workers", marks=pytest.mark.slow)],
)
def test_a_forked_process_after_threads(body, tmp_path):
    done = run_program(body, tmp_path, NUMBA_NUM_THREADS="3")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_scan_without_a_cache_folder(tmp_path):
    # a copy of the package whose cache folders, and every other place for them, are taken by files
    root = Path(__file__).parents[3] / "seqattn"
    for source in [root / "__init__.py", *(root / "kernels").rglob("*.py")]:
        copy = tmp_path / "seqattn" / source.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(source.read_text())
        (copy.parent / "__pycache__").touch()
    file = tmp_path / "taken"
    file.touch()
    nowhere = str(file / "below")
    variables = dict.fromkeys(("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME"), nowhere)
    done = run_program(WITHOUT_CACHE, tmp_path, PYTHONPATH=str(tmp_path), **variables)
    assert done.returncode == 0, done.stderr
