"""Compilation without a cache folder, and tasks spread over threads."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from seqattn.kernels import numba_support
from seqattn.kernels.numba_support import jit, run_tasks


@jit
def count(visits, scratch, first, stop):
    for task in range(first, stop):
        scratch[0] = task
        visits[task] += 1 + scratch[0]


def plain(function):
    """A kernel in Python, which counts as compiled."""
    function.signatures = ["compiled"]
    return function


@pytest.fixture
def threads():
    """torch.set_num_threads, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(params=["openmp", "pool"])
def kind(request, monkeypatch):
    """Both ways of starting threads; the first only where torch brings its library."""
    if request.param == "pool":
        monkeypatch.setattr(numba_support, "_openmp", lambda: None)
    elif numba_support._openmp() is None:
        pytest.skip("torch has no libgomp here")
    return request.param


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("tasks", [0, 1, 2, 7, 100])
def test_every_task_is_done_once(tasks, number, threads, kind):
    threads(number)
    visits = np.zeros(tasks)
    run_tasks(count, (visits,), torch.empty(4), tasks)
    np.testing.assert_array_equal(visits, 1 + np.arange(tasks))


def ranges_and_threads(tasks):
    calls = []
    kernel = plain(lambda scratch, first, stop: calls.append((first, stop, scratch.shape, threading.get_ident())))
    run_tasks(kernel, (), torch.empty(4), tasks)
    return calls


def test_one_thread_or_one_task_starts_no_threads(threads, kind):
    for number, tasks in ((1, 9), (4, 1), (4, 0)):
        threads(number)
        assert ranges_and_threads(tasks) == [(0, tasks, (4,), threading.get_ident())]


def test_every_thread_has_a_range_and_scratch_of_its_own(threads, kind):
    threads(3)
    calls = sorted(ranges_and_threads(8))
    assert [call[:3] for call in calls] == [(0, 2, (4,)), (2, 5, (4,)), (5, 8, (4,))]
    if kind == "openmp":
        assert len({call[3] for call in calls}) == 3


def test_an_error_in_a_thread_reaches_the_caller(threads, kind):
    threads(2)

    def broken(scratch, first, stop):
        raise KeyError(first)

    with pytest.raises(KeyError):
        run_tasks(plain(broken), (), torch.empty(4), 9)


def test_a_process_forked_after_threads_were_started_uses_none(threads, monkeypatch):
    threads(2)
    monkeypatch.setattr(numba_support, "_process", os.getpid() + 1)
    assert ranges_and_threads(9) == [(0, 9, (4,), threading.get_ident())]


def test_kernels_give_up_the_interpreter_lock():
    assert count.targetoptions["nogil"]


@jit
def multiply_add(x, y, z):
    return x * y + z


def test_nan_and_division_by_zero_follow_ieee():
    @jit
    def divide(x, y):
        return x / y

    assert np.isnan(multiply_add(np.nan, 0.0, 1.0))
    assert divide(1.0, 0.0) == np.inf
    assert np.isnan(divide(0.0, 0.0))


MODULE = """
from seqattn.kernels.numba_support import jit

@jit
def double(x):
    return 2 * x
"""
PROGRAM = """
from module import double

assert double(21.0) == 42.0
print(double._cache.cache_path)
"""


def run_module(folder, cache):
    (folder / "module.py").write_text(MODULE)
    variables = {"NUMBA_CACHE_DIR": str(cache), "XDG_CACHE_HOME": str(cache), "HOME": str(cache)}
    return subprocess.run(
        [sys.executable, "-B", "-c", PROGRAM], cwd=folder, env=os.environ | variables, capture_output=True, text=True
    )


def test_compiled_code_is_cached_where_a_folder_can_be_written(tmp_path):
    done = run_module(tmp_path, tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "cache").rglob("module.double-*.nbc"))


def test_without_a_cache_folder_it_compiles_all_the_same(tmp_path):
    # files where folders should be: nobody can write there, not even root
    (tmp_path / "__pycache__").write_text("")
    (tmp_path / "cache").write_text("")
    done = run_module(tmp_path, tmp_path / "cache" / "below")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "None\n"


def test_a_cached_kernel_notices_a_change_in_what_it_imports(tmp_path):
    (tmp_path / "numba_support.py").write_text(Path(numba_support.__file__).read_text())
    (tmp_path / "kernel.py").write_text(
        "from numba_support import jit\nfrom part import FACTOR\n\n\n@jit\ndef scaled(x):\n    return FACTOR * x\n"
    )
    answers = []
    for factor in (2.0, 3.0):
        (tmp_path / "part.py").write_text(f"FACTOR = {factor}\n")
        command = [sys.executable, "-B", "-c", "import kernel; print(kernel.scaled(10.0))"]
        answers.append(float(subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, text=True).stdout))
    assert answers == [20, 30]
    assert list((tmp_path / "__pycache__").glob("*.nbi"))


def test_fewer_threads_than_asked_for_do_all_tasks():
    code = (
        "import numpy as np, torch\n"
        "from seqattn.kernels.numba_support import run_tasks\n"
        "def kernel(visits, scratch, first, stop):\n"
        "    visits[first:stop] += 1\n"
        "kernel.signatures = ['compiled']\n"
        "torch.set_num_threads(3)\n"
        "visits = np.zeros(10)\n"
        "run_tasks(kernel, (visits,), torch.empty(1), 10)\n"
        "print(visits.tolist() == [1.0] * 10)\n"
    )
    environment = os.environ | {"OMP_THREAD_LIMIT": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True, text=True)
    assert done.stdout == "True\n"
