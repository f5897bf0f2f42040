"""PESQ of many clips in processes beside the training."""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor

import torch
from torch import Tensor

from seqattn.metrics.perceptual import pesq_score

Scores = Sequence[Future[float | None]]


class PesqWorkers:
    """Processes that score clips; with 0 of them this process does. They start with the first clip."""

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
            self._pool = ProcessPoolExecutor(self.count, multiprocessing.get_context("spawn"))
        return [self._pool.submit(pesq_score, *pair) for pair in pairs]

    def close(self) -> None:
        """Stop the processes; `submit` starts them again."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def collect(scores: Scores) -> Tensor:
    """Wait for the scores: (batch,) float32, NaN for a clip that has none."""
    return torch.tensor([float("nan") if (score := future.result()) is None else score for future in scores])


def _done(score: float | None) -> Future[float | None]:
    future: Future[float | None] = Future()
    future.set_result(score)
    return future
