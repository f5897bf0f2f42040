"""Clips of noisy and clean speech for batches: random crops, whole utterances, and the order of training."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import Dataset, Sampler

from seqattn.data.waveforms import Waveforms

WAVEFORMS = ("noisy", "clean")  # the entries of a batch with an axis of samples
_SILENCE = 1e-12  # least mean square that a gain is computed from
_TRAINING, _EVALUATION = 0, 1  # streams of random numbers
Batch = dict[str, Tensor]


class Source(Protocol):
    """Pairs of noisy and clean waveforms, by number; `waveforms` is what they are read from."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def waveforms(self) -> tuple[Waveforms, Waveforms]: ...

    def draw(self, number: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]: ...


def rms_gain(noisy: Tensor) -> Tensor:
    """The factor (...,) that brings a waveform (..., samples) to a mean square of 1; finite in silence."""
    return noisy.double().square().mean(-1).clamp(min=_SILENCE).rsqrt().to(noisy.dtype)


class TrainingCrops(Dataset[Batch]):
    """Crops of `segment` samples at random places, scaled by the gain of the whole noisy clip.

    An item is asked for by (epoch, draw), as EpochSampler gives them: it is of clip draw % clips, and all its chance
    comes from (seed, epoch, draw). Clips shorter than the segment are padded with zeros at the end.
    """

    def __init__(self, source: Source, segment: int, seed: int) -> None:
        self.source, self.segment, self.seed = source, segment, seed

    def __len__(self) -> int:
        return len(self.source.names)

    def __getitem__(self, drawn: tuple[int, int]) -> Batch:
        epoch, draw = drawn
        generator = np.random.default_rng((_TRAINING, self.seed, epoch, draw))
        number = draw % len(self)
        noisy, clean = self.source.draw(number, generator)
        gain = rms_gain(noisy)
        start = int(generator.integers(max(0, len(noisy) - self.segment) + 1))
        crop = slice(start, start + self.segment)
        item = _item(gain * noisy[crop], gain * clean[crop], gain, number)
        return item | {name: pad(item[name], (0, self.segment - len(item[name]))) for name in WAVEFORMS}


class EvaluationClips(Dataset[Batch]):
    """Whole clips, scaled by their gain; mixtures are the same every time.

    numbers: the clips of the source to offer, default all.
    """

    def __init__(self, source: Source, seed: int, numbers: Sequence[int] | None = None) -> None:
        self.source, self.seed = source, seed
        self.numbers = range(len(source.names)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: int) -> Batch:
        number = self.numbers[position]
        noisy, clean = self.draw(number)
        gain = rms_gain(noisy)
        return _item(gain * noisy, gain * clean, gain, number)

    def draw(self, number: int) -> tuple[Tensor, Tensor]:
        """Noisy and clean (samples,) of clip `number`, as they are."""
        return self.source.draw(number, np.random.default_rng((_EVALUATION, self.seed, number)))

    def named(self, number: int) -> tuple[str, Tensor, Tensor]:
        """Name, noisy and clean (samples,) of clip `number`, as they are."""
        return self.source.names[number], *self.draw(number)


class EpochSampler(Sampler[tuple[int, int]]):
    """Training order: (epoch, draw) pairs that follow from seed and epoch alone, so a resumed run repeats them.

    The order is all `clips` clips in random order, then all again in another, and so on; an epoch is the next `size`
    of them, so that short epochs, validated often, still train on every clip equally. draw % clips is the clip.
    Workers that outlive an epoch see the new one in the pair. Each rank takes every world-th position of an epoch
    extended from its own start to a multiple of `world`. Lightning calls `set_epoch`.
    """

    def __init__(self, clips: int, size: int | None = None, seed: int = 0, *, rank: int = 0, world: int = 1) -> None:
        self.clips, self.size, self.seed, self.rank, self.world = clips, size or clips, seed, rank, world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        first, start = divmod(self.epoch * self.size, self.clips)
        turns = range(-(-(start + self.size) // self.clips))
        orders = [np.random.default_rng((self.seed, first + turn)).permutation(self.clips) for turn in turns]
        draws = np.concatenate([turn * self.clips + order for turn, order in enumerate(orders)])
        padded = np.resize(draws[start : start + self.size], len(self) * self.world)
        return iter([(self.epoch, draw) for draw in padded[self.rank :: self.world].tolist()])

    def __len__(self) -> int:
        return -(-self.size // self.world)


def collate(items: list[Batch]) -> Batch:
    """A batch of items, their waveforms padded with zeros to the longest."""
    longest = max(len(item["noisy"]) for item in items)
    batch = {name: torch.stack([item[name] for item in items]) for name in items[0] if name not in WAVEFORMS}
    for name in WAVEFORMS:
        batch[name] = torch.stack([pad(item[name], (0, longest - len(item[name]))) for item in items])
    return batch


def _item(noisy: Tensor, clean: Tensor, gain: Tensor, number: int) -> Batch:
    lengths, index = torch.tensor(len(noisy)), torch.tensor(number)
    return {"noisy": noisy, "clean": clean, "lengths": lengths, "gain": gain, "index": index}
