"""Enhancing audio files of any length: their rate, channels, length and sample type are kept."""

import contextlib
import errno
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from seqattn.errors import SeqattnError
from seqattn.experiment.audio_jobs import check_absent, collect_jobs, left_out
from seqattn.experiment.recordings import Recording, write_recording
from seqattn.experiment.spectrograms import Spectrogram, before_and_after
from seqattn.experiment.streaming import Enhancer, Segmentation, enhance_stream, measure


def enhance_files(
    inputs: Sequence[str],
    output: Path,
    load: Callable[[], Enhancer],
    segmentation: Segmentation | None = None,
    *,
    overwrite: bool = False,
    spectrogram: bool = False,
) -> None:
    """Enhance files, folders and globs into the folder `output`, see `collect_jobs` for the places.

    load: returns the network; called once every mistake in `inputs` and `output` has been met.
    spectrogram: also write TARGET.png with the noisy and the enhanced recording.
    Lines about every file go to stderr. A file that fails does not stop the others, a full disk does.

    Raises:
        SeqattnError: nothing can be read or written as asked, or files failed: the one there was, or how many.
    """
    jobs = collect_jobs(inputs, output)
    pictures = {job.target: picture_beside(job.target) for job in jobs} if spectrogram else {}
    if not overwrite:
        check_absent([*(job.target for job in jobs), *pictures.values()])
    enhancer = load()
    failed = 0
    with FileProgress(len(jobs)) as progress:
        if sentence := left_out(inputs):
            progress.warn(sentence)
        for job in jobs:
            progress.start(str(job.target.relative_to(output)))
            try:
                with _memory_for(job.source):
                    picture = pictures.get(job.target)
                    enhance_file(*job, enhancer, segmentation, picture, progress.advance, progress.warn)
            except SeqattnError as error:
                if len(jobs) == 1 or _disk_is_full(error):
                    raise
                failed += 1
                progress.say(f"error: {error}")
            else:
                progress.finish()
    if failed:
        raise SeqattnError(f"{failed} of {len(jobs)} files failed, for the reasons above: mend them or leave them out")


def enhance_file(
    source: Path,
    target: Path,
    enhancer: Enhancer,
    segmentation: Segmentation | None = None,
    picture: Path | None = None,
    advance: Callable[[float, float], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> None:
    """Write the enhanced `source` as `target`: the same rate, channels, format, sample type and number of samples.

    The file is read twice, in blocks: for the gain of every channel, then in the segments of `segmentation`.
    picture: PNG of both spectrograms. advance: called with the seconds of audio done and in all. warn: with a sentence.

    Raises:
        SeqattnError: `source` cannot be read, is damaged, empty or holds NaN, or `target` cannot be written.
    """
    segmentation = segmentation or Segmentation()
    with Recording(source) as recording:
        info = recording.info
        blocks = recording.blocks(segmentation.samples(info.sample_rate))
        found = measure(blocks, info.channels, info.sample_rate, recording.full_scale, str(source))
    if found.clipped and warn:
        share = 100 * found.clipped / (found.length * info.channels)
        warn(f"{source} is clipped ({found.clipped} samples, {share:.2g} %): record at a lower level where you can")
    drawn = (Spectrogram(found.length, info.sample_rate), Spectrogram(found.length, info.sample_rate))
    with Recording(source) as recording:
        segments = segmentation.segments(found.length, info.sample_rate)
        pieces = enhance_stream(recording.read, segments, info.sample_rate, enhancer, found.gain)
        observed = _observed(pieces, drawn if picture else (), found.length, info.sample_rate, advance)
        write_recording(target, info, observed)
    if picture:
        before_and_after(drawn, target.name, picture)


def picture_beside(target: Path) -> Path:
    """Where the spectrograms of a result go: a.wav.png, since a.flac may lie beside a.wav."""
    return target.with_name(f"{target.name}.png")


def _observed(
    pieces: Iterable[tuple[Tensor, Tensor]],
    drawn: Sequence[Spectrogram],
    length: int,
    rate: int,
    advance: Callable[[float, float], None] | None,
) -> Iterator[Tensor]:
    """The enhanced pieces, drawn and counted on their way."""
    done = 0
    for noisy, enhanced in pieces:
        for spectrogram, samples in zip(drawn, (noisy, enhanced), strict=False):  # none without a picture
            spectrogram.add(samples)
        yield enhanced
        done += enhanced.shape[1]
        if advance:
            advance(done / rate, length / rate)


@contextlib.contextmanager
def _memory_for(source: Path) -> Iterator[None]:
    """Turn the errors of a memory that is too small, of the GPU or of the machine, into a sentence."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # on the CPU, PyTorch raises no error of its own for it
        small = isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(error)
        if not (small or "can't allocate memory" in str(error)):
            raise
        raise SeqattnError(f"not enough memory for {source}: give a shorter --segment") from None


def _disk_is_full(error: SeqattnError) -> bool:
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)


class FileProgress:
    """On stderr: a bar for the file at work, where that is a terminal, and a line with the real-time factor."""

    def __init__(self, files: int) -> None:
        self._files, self._number, self._name = files, 0, ""
        self._done, self._begin = 0.0, 0.0
        self._console = Console(stderr=True)
        columns = [TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[speed]}")]
        self._bar = Progress(
            *columns, TimeRemainingColumn(), console=self._console, transient=True, disable=not sys.stderr.isatty()
        )
        self._task = self._bar.add_task("", total=None, speed="")

    def __enter__(self) -> "FileProgress":
        self._bar.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._bar.stop()

    def start(self, name: str) -> None:
        """Begin the next file."""
        self._number += 1
        self._name, self._done, self._begin = name, 0.0, time.perf_counter()
        description = f"{self._number}/{self._files} {name}" if self._files > 1 else name
        self._bar.reset(self._task, total=None, description=description, speed="")

    def advance(self, done: float, total: float) -> None:
        """Show how many seconds of audio are done, of how many."""
        self._done = done
        self._bar.update(self._task, completed=done, total=total, speed=self._speed())

    def finish(self) -> None:
        """Print the line of a file that is done."""
        seconds = time.perf_counter() - self._begin
        self.say(f"{self._name}: {self._done:.1f} s in {seconds:.1f} s ({self._speed()})")

    def warn(self, sentence: str) -> None:
        """Print a warning."""
        self.say(f"warning: {sentence}")

    def say(self, line: str) -> None:
        """Print a line, above the bar where there is one."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True, emoji=False)

    def _speed(self) -> str:
        return f"real-time factor {(time.perf_counter() - self._begin) / self._done:.2f}"
