"""How the Numba kernels are compiled, cached and spread over threads."""

import ctypes
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
import torch

_process: int | None = None  # the one that has started threads; they do not survive a fork


def jit(function: Callable[..., Any]) -> Any:
    """Compile without the GIL, for this CPU, and cache on disk where a folder can be written.

    A product and a sum may contract to a fused multiply-add; nothing is reordered, and NaN stays NaN.
    """
    options = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}
    try:
        compiled = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no cache folder can be written: compile once per process
        return numba.njit(**options)(function)
    # Numba compares the function's own file only, and would keep code whose imported parts have changed
    index = compiled._cache._cache_file
    index._source_stamp = (index._source_stamp, _sources())
    return compiled


@lru_cache(maxsize=1)
def _sources() -> str:
    """Changes with any file of the kernels."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def run_tasks(kernel: Any, arguments: tuple[Any, ...], scratch: torch.Tensor, tasks: int) -> None:
    """Do the tasks [0, tasks) of a kernel on as many threads as torch uses.

    A kernel must compute every task by itself: then its results do not depend on the number of threads.

    Args:
        kernel: called on (*arguments, scratch of a thread, first task, stop).
        scratch: what a thread needs as working memory, (elements,); every thread gets its own, uninitialised.
    """
    global _process
    threads = torch.get_num_threads()
    if min(threads, tasks) <= 1 or _process not in (None, os.getpid()):
        kernel(*arguments, torch.empty_like(scratch).numpy(), 0, tasks)
        return
    _process = os.getpid()
    workspace = scratch.new_empty(threads, scratch.numel()).numpy()
    if not kernel.signatures:  # compile, or read the cache, in one thread
        kernel(*arguments, workspace[0], 0, 0)

    def work(thread: int) -> None:
        kernel(*arguments, workspace[thread], tasks * thread // threads, tasks * (thread + 1) // threads)

    _on_threads(work, threads)


def _on_threads(work: Callable[[int], None], threads: int) -> None:
    """work(0), …, work(threads - 1), at the same time."""
    openmp = _openmp()
    if openmp is None:
        list(_pool(threads).map(work, range(threads)))
        return
    errors: list[BaseException] = []

    def body(_data: Any) -> None:
        try:
            for part in range(openmp.omp_get_thread_num(), threads, openmp.omp_get_num_threads()):  # it may give fewer
                work(part)
        except BaseException as error:  # which cannot pass through a foreign stack
            errors.append(error)

    openmp.GOMP_parallel(_BODY(body), None, threads, 0)
    if errors:
        raise errors[0]


@lru_cache(maxsize=1)
def _openmp() -> ctypes.CDLL | None:
    """The OpenMP library that torch has loaded, or None.

    Its threads wait for work by spinning: threads of another kind would have to fight them for the processors.
    """
    try:
        library = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD)
        library.GOMP_parallel.argtypes = [_BODY, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        library.GOMP_parallel.restype = None
    except (OSError, AttributeError):
        return None
    return library


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="seqattn")


_BODY = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
