"""How the Numba kernels are compiled, cached and spread over threads."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from typing import Any

import numba
import torch


def jit(function: Callable[..., Any]) -> Any:
    """Compile without the GIL, for this CPU, and cache on disk where a folder can be written.

    A product and a sum may contract to a fused multiply-add; nothing is reordered, and NaN stays NaN.
    """
    options = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no cache folder can be written: compile once per process
        return numba.njit(**options)(function)


@lru_cache(maxsize=4)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="seqattn")


def run_tasks(kernel: Callable[..., None], arguments: tuple[Any, ...], tasks: int) -> None:
    """Call `kernel(*arguments, first, stop)` on ranges that cover [0, tasks), on as many threads as torch uses.

    A kernel must compute every task by itself: then its results do not depend on the number of threads.
    """
    threads = min(torch.get_num_threads(), tasks)
    if threads <= 1:
        kernel(*arguments, 0, tasks)
        return
    bounds = [tasks * index // threads for index in range(threads + 1)]
    pool = _pool(os.getpid(), threads - 1)  # threads do not survive a fork
    others = [pool.submit(kernel, *arguments, bounds[i], bounds[i + 1]) for i in range(1, threads)]
    kernel(*arguments, bounds[0], bounds[1])
    wait(others)
    for other in others:
        other.result()
