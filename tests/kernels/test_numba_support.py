"""Compilation without a cache folder, and tasks spread over threads."""

import os
import subprocess
import sys

import numba
import numpy as np
import pytest
import torch

from seqattn.kernels import numba_support
from seqattn.kernels.numba_support import jit, jit_parallel, run_tasks

TWO_CORES = pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="needs two cores")


@jit
def count(visits, scratch, first, stop):
    for task in range(first, stop):
        scratch[0] = task
        visits[task] += 1 + scratch[0]


@jit_parallel
def count_parallel(visits, scratch, tasks):
    threads = scratch.shape[0]
    for thread in numba.prange(threads):
        count(visits, scratch[thread], tasks * thread // threads, tasks * (thread + 1) // threads)


def never(*arguments):
    raise AssertionError("this kernel must not run")


@pytest.fixture
def threads():
    """torch.set_num_threads, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("number", [1, 2, 5])
@pytest.mark.parametrize("tasks", [0, 1, 2, 7, 100])
def test_every_task_is_done_once(tasks, number, threads):
    threads(number)
    visits = np.zeros(tasks)
    run_tasks(count, count_parallel, (visits,), torch.empty(4), tasks)
    np.testing.assert_array_equal(visits, 1 + np.arange(tasks))


def test_one_thread_or_one_task_starts_no_threads(threads):
    for number, tasks in ((1, 9), (4, 1), (4, 0)):
        threads(number)
        visits = np.zeros(tasks)
        run_tasks(count, never, (visits,), torch.empty(4), tasks)
        np.testing.assert_array_equal(visits, 1 + np.arange(tasks))


@TWO_CORES
def test_scratch_has_a_row_for_each_thread(threads):
    threads(2)
    shapes = []
    run_tasks(never, lambda scratch, tasks: shapes.append((scratch.shape, scratch.dtype, tasks)), (), torch.empty(4), 9)
    assert shapes == [((2, 4), np.float32, 9)]


@TWO_CORES
def test_the_setting_of_numba_is_restored(threads):
    threads(2)
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    seen = []
    try:
        run_tasks(never, lambda scratch, tasks: seen.append(numba.get_num_threads()), (), torch.empty(4), 9)
        with pytest.raises(AssertionError):
            run_tasks(never, never, (), torch.empty(4), 9)
        assert seen == [2]
        assert numba.get_num_threads() == 1
    finally:
        numba.set_num_threads(before)


@TWO_CORES
def test_a_process_forked_after_threads_were_started_uses_none(threads, monkeypatch):
    threads(2)
    monkeypatch.setattr(numba_support, "_process", os.getpid() + 1)
    visits = np.zeros(9)
    run_tasks(count, never, (visits,), torch.empty(4), 9)
    np.testing.assert_array_equal(visits, 1 + np.arange(9))


def test_kernels_give_up_the_interpreter_lock():
    assert count.targetoptions["nogil"]
    assert count_parallel.targetoptions["nogil"]


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
