"""Mono waveforms of many files at one sample rate: resampled once, kept in memory where they fit."""

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from seqattn.data.audio import (
    SAMPLE_RATE,
    audio_info,
    check_length,
    read_audio,
    read_mono,
    resampled_length,
    write_audio,
)
from seqattn.data.cache import cache_folder
from seqattn.errors import SeqattnError

MEMORY_LIMIT = 2**30  # bytes kept in memory: 4.6 hours of float32 at 16 kHz
_THREADS = 8
_VERSION = 1  # raise it when resampling changes


class Waveforms(Protocol):
    """Clips in a fixed order: `lengths` in samples, and a way to read one, or part of one."""

    @property
    def lengths(self) -> Sequence[int]: ...

    def read(self, number: int, start: int = 0, samples: int = -1) -> Tensor:
        """Samples (samples,) float32 of clip `number` from `start` on; samples=-1 reads to the end."""


class MemoryWaveforms:
    """Waveforms that are tensors already; each (samples,) float32."""

    def __init__(self, clips: Sequence[Tensor]) -> None:
        self.clips = clips
        self.lengths = [len(clip) for clip in clips]

    def read(self, number: int, start: int = 0, samples: int = -1) -> Tensor:
        return _part(self.clips[number], start, samples)


class FileWaveforms:
    """The mean over the channels of audio files, at `sample_rate`.

    Files of another rate are resampled once: `prepare` writes copies under `cache_dir`, default seqattn's cache, named
    by the file's path, size and time of change. Files of the right rate are read as they are. A cache that is damaged,
    full or read-only only costs time.

    Raises SeqattnError for a file whose header cannot be read.
    """

    def __init__(
        self, paths: Sequence[Path], *, sample_rate: int = SAMPLE_RATE, cache_dir: str | Path | None = None
    ) -> None:
        self.paths, self.sample_rate = list(paths), sample_rate
        self.cache_dir = Path(os.path.expanduser(cache_dir)) if cache_dir else cache_folder() / "speech"
        infos = [audio_info(path) for path in self.paths]
        for path, info in zip(self.paths, infos, strict=True):
            check_length(path, info.frames)
        self.lengths = [resampled_length(info.frames, info.sample_rate, sample_rate) for info in infos]
        self.foreign = [info.sample_rate != sample_rate for info in infos]
        self._kept: list[Tensor] | None = None

    @property
    def seconds(self) -> float:
        return sum(self.lengths) / self.sample_rate

    def waiting(self) -> dict[Path, Path]:
        """The copies of files of another rate that are not there yet, each with its file."""
        foreign = [path for path, foreign in zip(self.paths, self.foreign, strict=True) if foreign]
        copies = {self._copy(path): path for path in foreign}
        return {copy: path for copy, path in copies.items() if not copy.is_file()}

    def prepare(self) -> None:
        """Write the copies that are `waiting`."""
        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
            for _ in pool.map(self._resample, self.waiting().values()):
                pass

    def keep(self) -> None:
        """Read all waveforms into memory."""
        if self._kept is None:
            self._kept = [self._read(number, 0, -1) for number in range(len(self.paths))]

    def read(self, number: int, start: int = 0, samples: int = -1) -> Tensor:
        if self._kept is not None:
            return _part(self._kept[number], start, samples)
        return self._read(number, start, samples)

    def _read(self, number: int, start: int, samples: int) -> Tensor:
        path = self.paths[number]
        if not self.foreign[number]:
            return torch.from_numpy(read_audio(path, start, samples)[0].mean(0))
        copy = self._copy(path)
        if copy.is_file():
            with contextlib.suppress(SeqattnError):  # whatever the damage, the file itself is still there
                values, rate = read_audio(copy, start, samples)
                if rate == self.sample_rate:
                    return torch.from_numpy(values[0])
        return _part(self._resample(path), start, samples)

    def _copy(self, path: Path) -> Path:
        state = path.stat()
        parts = (_VERSION, self.sample_rate, path.resolve(), state.st_size, state.st_mtime_ns)
        digest = hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()
        return self.cache_dir / digest[:2] / f"{digest}.wav"

    def _resample(self, path: Path) -> Tensor:
        """The waveform of a file of another rate; also writes its copy, if that can be done."""
        waveform = read_mono(path, self.sample_rate)
        copy = self._copy(path)
        content = io.BytesIO()
        write_audio(content, waveform[None], self.sample_rate, "WAV", "FLOAT")
        with contextlib.suppress(OSError):
            copy.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=copy.parent, suffix=".tmp")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content.getbuffer())
                os.replace(temporary, copy)
            except BaseException:
                os.unlink(temporary)
                raise
        return waveform


def keep_in_memory(parts: Sequence[Waveforms], limit: int = MEMORY_LIMIT) -> bool:
    """Read files into memory if all of `parts` together take no more than `limit` bytes; returns whether they do."""
    if 4 * sum(sum(part.lengths) for part in parts) > limit:
        return False
    for part in parts:
        if isinstance(part, FileWaveforms):
            part.keep()
    return True


def _part(waveform: Tensor, start: int, samples: int) -> Tensor:
    return waveform[start:] if samples < 0 else waveform[start : start + samples]
