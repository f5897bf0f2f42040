"""How the Numba kernels are compiled, cached and spread over threads."""

import os
import threading
from collections.abc import Callable
from typing import Any

import numba
import torch

_lock = threading.Lock()  # one parallel kernel at a time: not every threading layer of Numba allows more
_process: int | None = None  # the one that has started threads; they do not survive a fork


def jit(function: Callable[..., Any]) -> Any:
    """Compile without the GIL, for this CPU, and cache on disk where a folder can be written.

    A product and a sum may contract to a fused multiply-add; nothing is reordered, and NaN stays NaN.
    """
    return _compile(function)


def jit_parallel(function: Callable[..., Any]) -> Any:
    """`jit` with `numba.prange` over threads; `run_tasks` calls it."""
    return _compile(function, parallel=True)


def _compile(function: Callable[..., Any], **options: Any) -> Any:
    options |= {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no cache folder can be written: compile once per process
        return numba.njit(**options)(function)


def run_tasks(kernel: Any, kernel_parallel: Any, arguments: tuple[Any, ...], scratch: torch.Tensor, tasks: int) -> None:
    """Do the tasks [0, tasks) of a kernel on as many threads as torch uses.

    A kernel must compute every task by itself: then its results do not depend on the number of threads.

    Args:
        kernel: called on (*arguments, scratch of a thread, first task, stop).
        kernel_parallel: the same in parallel, called on (*arguments, scratch of all threads, tasks).
        scratch: what a thread needs as working memory, (elements,); every thread gets its own, uninitialised.
    """
    global _process
    threads = min(torch.get_num_threads(), tasks, numba.config.NUMBA_NUM_THREADS)
    if threads <= 1 or _process not in (None, os.getpid()):
        kernel(*arguments, torch.empty_like(scratch).numpy(), 0, tasks)
        return
    with _lock:
        _process = os.getpid()
        others = numba.get_num_threads()
        numba.set_num_threads(threads)
        try:
            kernel_parallel(*arguments, scratch.new_empty(threads, scratch.numel()).numpy(), tasks)
        finally:
            numba.set_num_threads(others)
