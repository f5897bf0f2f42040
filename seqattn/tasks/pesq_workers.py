"""PESQ of many clips in processes beside the training.

A training batch is scored while its reconstruction losses are computed; the discriminator's step waits for the scores,
which are its labels.
"""

import math
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import torch
from torch import Tensor

from seqattn.errors import SeqattnError
from seqattn.metrics.perceptual import pesq_score
from seqattn.tasks.pesq_process import serve_parent

Scores = Sequence[Future[float | None]]
BROKEN = "a process that computes PESQ was ended from outside: resume the run, with pesq_workers=0 if it happens again"


class PesqWorkers:
    """Processes that score clips; with 0 of them this process does. They start with the first clip.

    Where one of them is ended from outside, `submit` and `collect` raise SeqattnError.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None

    def submit(self, clean: Tensor, enhanced: Tensor, lengths: Tensor | None = None) -> Scores:
        """Start scoring (batch, samples) pairs at 16 kHz; lengths: (batch,) valid samples, None means all."""
        ends = [clean.shape[1]] * len(clean) if lengths is None else lengths.tolist()
        pairs = [
            (reference[:end].numpy(), estimate[:end].numpy())
            for reference, estimate, end in zip(
                clean.detach().float().cpu(), enhanced.detach().float().cpu(), ends, strict=True
            )
        ]
        if self.count == 0:
            return [_done(pesq_score(*pair)) for pair in pairs]
        if self._pool is None:  # forked processes would inherit locked OpenMP and CUDA state
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.count, spawn, initializer=serve_parent)
        try:
            return [self._pool.submit(pesq_score, *pair) for pair in pairs]
        except BrokenProcessPool:
            raise SeqattnError(BROKEN) from None

    def close(self) -> None:
        """Stop the processes; `submit` starts them again."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def collect(scores: Scores) -> Tensor:
    """Wait for the scores: (batch,) float32, NaN for a clip that has none."""
    try:
        found = [future.result() for future in scores]
    except BrokenProcessPool:
        raise SeqattnError(BROKEN) from None
    return torch.tensor([math.nan if score is None else score for score in found])


def _done(score: float | None) -> Future[float | None]:
    future: Future[float | None] = Future()
    future.set_result(score)
    return future
