"""Audio files and waveforms: reading and writing through soundfile, resampling through torchaudio."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqattn.data.audio_headers import missing_bytes
from seqattn.errors import SeqattnError
from seqattn.optional import require

__all__ = [
    "AUDIO_SUFFIXES",
    "SAMPLE_RATE",
    "UNKNOWN_LENGTH",
    "AudioError",
    "AudioInfo",
    "AudioWriter",
    "audio_info",
    "check_length",
    "read_audio",
    "read_mono",
    "require",
    "resample",
    "resampled_length",
    "write_audio",
]

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff", ".caf", ".oga", ".opus", ".rf64", ".w64")
SAMPLE_RATE = 16_000
UNKNOWN_LENGTH = 2**62  # beyond it, libsndfile's mark of a stream whose header gives no length
_WRITTEN_AT_ONCE = 16_384  # samples: libsndfile's Vorbis encoder overflows its stack on long writes
_SKIPPED_AT_ONCE = 65_536  # samples
_MOST_TAPS = 2**22  # of torchaudio's filter bank, which holds a whole filter per output phase
Samples = NDArray[np.float32]


class AudioError(SeqattnError):
    """A SeqattnError about an audio file. A DataLoader's worker puts a traceback before its sentence: it is cut off."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rstrip().rpartition(f"{__name__}.AudioError: ")[2])


@dataclass(frozen=True)
class AudioInfo:
    """What an audio file's header says; frames counts samples per channel, format and subtype are soundfile's names."""

    sample_rate: int
    channels: int
    frames: int
    format: str
    subtype: str


def audio_info(path: str | Path) -> AudioInfo:
    """The properties of an audio file.

    Raises SeqattnError for a file that is missing, no audio, empty, or shorter than its header says.
    """
    with _opened(Path(path)) as file:
        return AudioInfo(file.samplerate, file.channels, file.frames, file.format, file.subtype)


def check_length(path: Path, frames: int) -> None:
    """Raise SeqattnError where `frames` is the mark of a header without length, as some encoders write to a pipe."""
    if frames > UNKNOWN_LENGTH:
        raise AudioError(f"{path} has no length in its header: write it anew, for example as WAV")


def read_audio(path: str | Path, start: int = 0, frames: int = -1) -> tuple[Samples, int]:
    """Samples (channels, frames), full scale at ±1, and the sample rate of a file.

    start, frames: the part to read, in samples of the file; by default all. A part ends where the file ends.

    Raises SeqattnError for a file that is missing, no audio, damaged or empty, and for samples that are not finite.
    """
    path = Path(path)
    with _opened(path) as file:
        if frames < 0:
            check_length(path, file.frames)
        if start:
            _skip(file, start)
        count = frames if frames >= 0 else max(0, file.frames - start)
        samples = np.ascontiguousarray(file.read(count, dtype="float32", always_2d=True).T)
        expected = file.frames - start if frames < 0 else min(frames, file.frames - start)
        if samples.shape[1] < expected and file.format != "MP3":  # an MP3's length is an estimate
            raise AudioError(f"{path} is damaged after {start + samples.shape[1]} samples: replace or remove it")
        rate = file.samplerate
    if not np.isfinite(samples).all():
        first = start + int(np.argmin(np.isfinite(samples).all(0)))
        raise AudioError(f"{path} has samples that are NaN or infinite, first at sample {first}: mend or remove it")
    return samples, rate


def read_mono(path: str | Path, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """The mean over a file's channels, resampled: (samples,). Raises SeqattnError as read_audio does."""
    samples, rate = read_audio(path)
    return resample(torch.from_numpy(samples.mean(0)), rate, sample_rate)


def resample(waveform: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Resample (..., samples) from one rate in Hz to another, with a windowed-sinc filter; samples become
    `resampled_length` of them. The waveform itself is returned where the rates are equal.
    """
    if from_rate == to_rate:
        return waveform
    common = math.gcd(from_rate, to_rate)
    up, down = to_rate // common, from_rate // common
    if up * down <= _MOST_TAPS:
        return require("torchaudio").functional.resample(waveform, from_rate, to_rate)
    from scipy.signal import resample_poly  # rates without a common divisor, such as 44,099 and 16,000 Hz

    return torch.from_numpy(resample_poly(waveform.numpy(), up, down, axis=-1)).to(waveform.dtype)


def resampled_length(samples: int, from_rate: int, to_rate: int) -> int:
    """How many samples `resample` makes of `samples`."""
    return -(-samples * to_rate // from_rate)


class AudioWriter:
    """Writes an audio file block by block into an open binary file, which it leaves open.

    format, subtype: soundfile's names, such as "WAV" and "PCM_16". Samples beyond ±1 are clipped where the subtype
    holds integers. Use it as a context manager: the file is complete after the `with` block.

    Raises OSError where the file cannot be written, and SeqattnError for properties that the format cannot hold.
    """

    def __init__(self, file: BinaryIO, sample_rate: int, channels: int, format: str, subtype: str) -> None:
        sf = require("soundfile")
        self._file = _Disk(file)
        try:
            self._sound = sf.SoundFile(self._file, "w", sample_rate, channels, subtype, format=format)
        except (sf.SoundFileError, TypeError, ValueError) as error:
            self._file.check()
            kind = f"{format} of {subtype} samples, {channels} channels and {sample_rate} Hz"
            raise SeqattnError(f"{kind} cannot be written ({error}): choose another format") from error

    def write(self, block: Tensor | Samples) -> None:
        """Append (channels, samples) float32."""
        samples = np.asarray(block, np.float32).T
        for start in range(0, len(samples), _WRITTEN_AT_ONCE):
            with self._file.watched():
                self._sound.write(samples[start : start + _WRITTEN_AT_ONCE])

    def close(self) -> None:
        with self._file.watched():
            self._sound.close()

    def __enter__(self) -> "AudioWriter":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def write_audio(
    file: BinaryIO, waveform: Tensor | Samples, sample_rate: int, format: str = "WAV", subtype: str = "PCM_16"
) -> None:
    """Write waveform (channels, samples) into an open binary file; format, subtype and errors are AudioWriter's."""
    with AudioWriter(file, sample_rate, len(waveform), format, subtype) as writer:
        writer.write(waveform)


class _Disk:
    """A file for libsndfile that keeps the OSError which libsndfile would only print."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: OSError | None = None

    def write(self, data: bytes) -> int:
        return self._unless_broken(lambda: self._file.write(data))

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._unless_broken(lambda: self._file.seek(offset, whence))

    def tell(self) -> int:
        return self._unless_broken(self._file.tell)

    def read(self, size: int = -1) -> bytes:
        return b""

    def flush(self) -> None:
        self._unless_broken(self._file.flush)

    def _unless_broken(self, action: Callable[[], int | None]) -> int:
        """What an action gives; 0 from the first OSError on, as what the disk refused fails again at every call."""
        if self._error is None:
            try:
                return action() or 0
            except OSError as error:
                self._error = error
        return 0

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    @contextmanager
    def watched(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self.check()
            raise
        self.check()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """soundfile's SoundFile of a path; what goes wrong inside the block becomes an AudioError that names the file."""
    sf = require("soundfile")
    if not path.is_file():
        raise AudioError(f"{path} is not a file; check the path")
    try:
        with path.open("rb") as content:
            missing = missing_bytes(content)
        if missing:
            problem = f"{path} is cut short (its header promises {missing} bytes more than it holds)"
            raise AudioError(f"{problem}: copy it again or leave it out")
        with sf.SoundFile(path) as file:
            if not file.frames:
                raise AudioError(f"{path} has no samples: replace or remove it")
            yield file
    except (sf.SoundFileError, OSError, TypeError) as error:
        reason = " ".join(str(getattr(error, "error_string", None) or error).split())
        problem = f"{path} cannot be read as audio ({reason[:200]})"
        raise AudioError(f"{problem}: give a sound WAV, FLAC, OGG or MP3 file") from error


def _skip(file: Any, samples: int) -> None:
    """Go to a sample of a file just opened; an MP3, in which libsndfile seeks wrongly, is decoded up to there."""
    if file.format != "MP3":
        file.seek(samples)
        return
    file.seekable = lambda: False  # else soundfile seeks after every read
    while samples and len(skipped := file.read(min(samples, _SKIPPED_AT_ONCE), dtype="float32")):
        samples -= len(skipped)
