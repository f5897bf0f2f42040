"""Recorded pairs of noisy and clean speech as waveforms."""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from seqattn.data.audio import audio_info, check_length
from seqattn.data.speech_folders import Pair
from seqattn.data.waveforms import FileWaveforms
from seqattn.errors import SeqattnError


class RecordedPairs:
    """Pairs of files, mono at 16 kHz; where the two differ in length, both are cut to the shorter.

    cache_dir: where files of another rate are kept resampled, default seqattn's cache. `unequal` names the pairs whose
    lengths differ.

    Raises SeqattnError for a file that is no audio or is empty.
    """

    def __init__(self, pairs: Sequence[Pair], cache_dir: str | Path | None = None) -> None:
        self.pairs = pairs
        self.names = [pair.name for pair in pairs]
        self.noisy = FileWaveforms([pair.noisy for pair in pairs], cache_dir=cache_dir)
        self.clean = FileWaveforms([pair.clean for pair in pairs], cache_dir=cache_dir)
        self.waveforms = (self.noisy, self.clean)
        lengths = zip(self.names, self.noisy.lengths, self.clean.lengths, strict=True)
        self.unequal = [(name, noisy, clean) for name, noisy, clean in lengths if noisy != clean]

    def draw(self, number: int, generator: np.random.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Noisy and clean (samples,) of one pair; the generator is for sources that need one."""
        noisy, clean = self.noisy.read(number), self.clean.read(number)
        samples = min(len(noisy), len(clean))
        return noisy[:samples], clean[:samples]

    def named(self, number: int) -> tuple[str, Tensor, Tensor]:
        """Name, noisy and clean of one pair."""
        return self.names[number], *self.draw(number)

    def __iter__(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, noisy and clean of every pair, one after the other; after one that cannot be read it goes on."""
        return map(self.named, range(len(self.names)))


def readable_pairs(pairs: Sequence[Pair]) -> tuple[list[Pair], list[SeqattnError]]:
    """The pairs whose files both have a sound header, and for each of the others what is wrong with it."""
    sound, errors = [], []
    for pair in pairs:
        try:
            for path in (pair.noisy, pair.clean):
                check_length(path, audio_info(path).frames)
        except SeqattnError as error:
            errors.append(error)
        else:
            sound.append(pair)
    return sound, errors


def warn_of_unequal(recordings: Sequence[RecordedPairs]) -> None:
    """Warn once if any pairs differ in length, naming the first and how many there are."""
    unequal = [found for recorded in recordings for found in recorded.unequal]
    if unequal:
        name, noisy, clean = unequal[0]
        count = f"{len(unequal)} pairs differ" if len(unequal) > 1 else "1 pair differs"
        warnings.warn(
            f"{count} in length and will be cut to the shorter: first {name}, noisy {noisy} and clean {clean} samples "
            "at 16 kHz",
            stacklevel=2,
        )
