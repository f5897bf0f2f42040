"""Samplers whose order depends on nothing but seed, epoch and rank."""

from collections.abc import Iterator

import numpy as np
from torch import distributed
from torch.utils.data import Sampler


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) when torch.distributed is not initialised."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


class ShuffleSampler(Sampler[int]):
    """Training order: a permutation of range(size) drawn from (seed, epoch) alone, so a resumed run repeats it.

    Each rank takes every world-th position; the order is first extended from its own start to a multiple of `world`, so
    all ranks have equally many. Lightning calls `set_epoch` before each epoch.
    """

    def __init__(self, size: int, seed: int = 0, *, rank: int = 0, world: int = 1) -> None:
        self.size, self.seed, self.rank, self.world = size, seed, rank, world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.size)
        padded = np.resize(order, len(self) * self.world)
        return iter(padded[self.rank :: self.world].tolist())

    def __len__(self) -> int:
        return -(-self.size // self.world)


class EvaluationSampler(Sampler[int]):
    """Evaluation order: each rank takes rank, rank + world, ...; no case is repeated or left out."""

    def __init__(self, size: int, *, rank: int = 0, world: int = 1) -> None:
        self._indices = range(rank, size, world)

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)
