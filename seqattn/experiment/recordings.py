"""Audio files in blocks: reading one of any length, and writing one that is whole or absent."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from seqattn.data.audio import UNKNOWN_LENGTH, AudioInfo, AudioWriter, audio_info, require
from seqattn.errors import SeqattnError
from seqattn.experiment.run_directory import atomic_write

PCM_BITS = {"PCM_U8": 8, "PCM_S8": 8, "PCM_16": 16, "PCM_24": 24}


class Recording:
    """An audio file open for reading, to be used in a `with` statement. info: what its header says.

    Raises:
        SeqattnError: the file is missing, empty, no audio, or of a kind that libsndfile cannot write.
    """

    def __init__(self, path: Path) -> None:
        soundfile = require("soundfile")
        self.path = path
        self.info = info = audio_info(path)
        if not soundfile.check_format(info.format, info.subtype):
            raise SeqattnError(f"{path}: {info.format} {info.subtype} can be read but not written: convert it to WAV")
        self._file, self._place = soundfile.SoundFile(path), 0
        # soundfile seeks after every read where it can, and libsndfile's MP3 decoder does not find its place again
        self._file.seekable = lambda: False

    def __enter__(self) -> "Recording":
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()

    @property
    def full_scale(self) -> float:
        """The largest positive sample, of 16 bits where there are more: a clipped recording may have been converted."""
        return 1 - 2.0 ** (1 - min(16, PCM_BITS.get(self.info.subtype, 16)))

    def read(self, samples: int) -> Tensor:
        """Return the next samples, (channels, samples) float32, fewer at the end.

        Raises:
            SeqattnError: the file is damaged, with the place.
        """
        try:
            frames = self._file.read(samples, dtype="float32", always_2d=True)
        except RuntimeError:  # somewhere in these samples: libsndfile does not say where
            end = min(self._place + samples, self.info.frames) / self.info.sample_rate
            raise self._damaged(f"between {self._place / self.info.sample_rate:.1f} s and {end:.1f} s") from None
        self._place += len(frames)
        return torch.from_numpy(np.ascontiguousarray(frames.T))

    def blocks(self, samples: int) -> Iterator[Tensor]:
        """Yield the whole file in blocks of `samples`.

        Raises:
            SeqattnError: the file is damaged or ends before its header says, with the place.
        """
        while (block := self.read(samples)).shape[1]:
            yield block
        if self._place < self.info.frames < UNKNOWN_LENGTH and self.info.format != "MP3":  # whose length is an estimate
            raise self._damaged(f"after {self._place / self.info.sample_rate:.1f} s")

    def _damaged(self, place: str) -> SeqattnError:
        return SeqattnError(f"{self.path} is damaged or cut short {place}: copy it again or leave it out")


def write_recording(path: Path, info: AudioInfo, pieces: Iterable[Tensor]) -> None:
    """Write pieces (channels, samples) with the rate, channels, format and sample type of `info`.

    Samples beyond full scale are limited to it where the file holds integers.

    Raises:
        SeqattnError: the disk is full or the place may not be written; no file is left.
    """

    def write(file: BinaryIO) -> None:
        with AudioWriter(file, info.sample_rate, info.channels, info.format, info.subtype) as writer:
            for piece in pieces:
                writer.write(rounded(piece, info.subtype))

    atomic_write(path, write)


def rounded(samples: Tensor, subtype: str) -> Tensor:
    """The nearest samples that integers of a PCM type stand for: libsndfile would round all of them downwards."""
    if subtype not in PCM_BITS:
        return samples
    top = 2.0 ** (PCM_BITS[subtype] - 1)
    return (samples * top).round().clamp(-top, top - 1) / top
