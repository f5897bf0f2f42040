"""Audio files through a network, in files of many kinds and through the whole program."""

import errno
import math
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from seqattn.errors import SeqattnError
from seqattn.experiment import enhancers
from seqattn.experiment.enhancement import enhance_file, enhance_files
from seqattn.experiment.streaming import Segmentation

sf = pytest.importorskip("soundfile")
pytest.importorskip("torchaudio")

SHORT = Segmentation(segment=1.0, context=0.2, fade=0.05)


def identity(waveform: Tensor, gain: Tensor) -> Tensor:
    return waveform


class Watcher:
    """Halves the level and remembers what it was given."""

    def __init__(self) -> None:
        self.samples: list[int] = []
        self.gains: set[float] = set()

    def __call__(self, waveform: Tensor, gain: Tensor) -> Tensor:
        self.samples.append(waveform.numel())
        self.gains.add(float(gain))
        return waveform / 2


def speech(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    """(samples, channels) float32: tones under 3 kHz that fade in and out, different in every channel."""
    time = np.arange(round(seconds * rate)) / rate
    level = 0.3 * np.sin(np.pi * time / max(seconds, 1e-9)) ** 2
    columns = [level * (np.sin(2 * np.pi * 310 * time + i) + np.sin(2 * np.pi * 2900 * time)) for i in range(channels)]
    return np.stack(columns, 1).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int = 16000, subtype: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, samples, rate, subtype=subtype)
    return path


def kind(path: Path) -> tuple[object, ...]:
    info = sf.info(path)
    return info.samplerate, info.channels, info.frames, info.format, info.subtype


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


EXACT = [
    *(("wav", subtype) for subtype in ("PCM_U8", "PCM_16", "PCM_24", "FLOAT")),
    *(("flac", subtype) for subtype in ("PCM_16", "PCM_24")),
    *(("aiff", "PCM_16"), ("caf", "PCM_16"), ("w64", "PCM_16"), ("rf64", "PCM_16")),
]


SAMPLE_TYPES = [("wav", "FLOAT"), ("flac", "PCM_24"), ("ogg", "VORBIS"), ("mp3", "MPEG_LAYER_III")]


@pytest.mark.parametrize("channels", [1, 2, 8])
@pytest.mark.parametrize(("suffix", "subtype"), EXACT)
def test_every_bit_is_kept_at_16_khz(tmp_path: Path, suffix: str, subtype: str, channels: int) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, (35_003, channels)).astype(np.float32)
    source = write(tmp_path / f"a.{suffix}", samples, subtype=subtype)
    enhance_file(source, tmp_path / "out" / source.name, identity, SHORT)
    assert kind(tmp_path / "out" / source.name) == kind(source) == (16000, channels, 35_003, *kind(source)[3:])
    np.testing.assert_array_equal(sf.read(tmp_path / "out" / source.name)[0], sf.read(source)[0])


@pytest.mark.parametrize(
    ("suffix", "subtype"), [("wav", "FLOAT"), ("flac", "PCM_24"), ("ogg", "VORBIS"), ("mp3", None)]
)
@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_rate_length_and_kind_are_kept(tmp_path: Path, rate: int, suffix: str, subtype: str, channels: int) -> None:
    source = write(tmp_path / f"a.{suffix}", speech(2.7001, rate, channels), rate, subtype)
    enhance_file(source, tmp_path / "out.x", identity, SHORT)
    assert kind(tmp_path / "out.x") == kind(source)
    again = write(tmp_path / f"again.{suffix}", sf.read(source)[0], rate, subtype)  # a lossy format's loss
    expected = sf.read(again)[0]
    bound = 0.2 if suffix in ("ogg", "mp3") else 0.0 if rate == 16000 else 5e-3
    assert np.abs(sf.read(tmp_path / "out.x")[0] - expected).max() <= bound * np.abs(expected).max()


@pytest.mark.parametrize("samples", [1, 2, 99, 399, 401])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_recordings_shorter_than_a_window(tmp_path: Path, samples: int, rate: int) -> None:
    source = write(tmp_path / "a.wav", np.full((samples, 1), 0.5, np.float32), rate)
    enhance_file(source, tmp_path / "b.wav", identity, SHORT)
    assert kind(tmp_path / "b.wav") == kind(source)


def test_one_gain_for_all_segments_and_none_longer_than_asked(tmp_path: Path) -> None:
    samples = np.concatenate([speech(20, 8000), speech(20, 8000) / 50])
    source, watcher = write(tmp_path / "a.wav", samples, 8000, "FLOAT"), Watcher()
    enhance_file(source, tmp_path / "b.wav", watcher, SHORT)
    assert len(watcher.samples) == math.ceil((40 - 1) / 0.6) + 1
    assert max(watcher.samples) == 16000
    assert list(watcher.gains) == pytest.approx([1 / math.sqrt(np.square(samples).mean())], rel=1e-2)
    np.testing.assert_allclose(sf.read(tmp_path / "b.wav")[0], samples[:, 0] / 2, atol=2e-3)


def test_the_default_segment_takes_six_seconds_at_once(tmp_path: Path) -> None:
    for seconds, calls in ((6, [96_000]), (10, [96_000, 96_000])):
        source, watcher = write(tmp_path / "a.wav", speech(seconds, 16000)), Watcher()
        enhance_file(source, tmp_path / "b.wav", watcher)
        assert watcher.samples == calls


def test_silence_stays_silent(tmp_path: Path) -> None:
    source, watcher = write(tmp_path / "a.wav", np.zeros((20_000, 2), np.float32)), Watcher()
    enhance_file(source, tmp_path / "b.wav", watcher, SHORT)
    assert not sf.read(tmp_path / "b.wav")[0].any()
    assert all(math.isfinite(gain) for gain in watcher.gains)


def test_a_result_beyond_full_scale_is_limited(tmp_path: Path) -> None:
    source = write(tmp_path / "a.wav", speech(1, 16000))
    enhance_file(source, tmp_path / "b.wav", lambda waveform, gain: 20 * waveform, SHORT)
    result = sf.read(tmp_path / "b.wav", dtype="int16")[0]
    assert (result.min(), result.max()) == (-32768, 32767)


MEMORY = """
import resource, sys, torch
from pathlib import Path
from seqattn.experiment.enhancement import enhance_file
enhance_file(Path(sys.argv[1]), Path(sys.argv[2]), lambda waveform, gain: waveform, picture=Path(sys.argv[3]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_three_hours_take_the_memory_of_a_minute(tmp_path: Path) -> None:
    peaks = []
    for minutes in (1, 180):
        source = tmp_path / f"{minutes}.wav"
        minute = speech(60, 16000)
        with sf.SoundFile(source, "w", 16000, 1, "PCM_U8") as file:
            for _ in range(minutes):
                file.write(minute)
        command = [sys.executable, "-c", MEMORY, source, tmp_path / "out.wav", tmp_path / "out.png"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
        assert kind(tmp_path / "out.wav") == kind(source)
    assert peaks[1] < peaks[0] + 50, peaks  # MB; the recording alone is 691 MB of float32


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = os.urandom(4000)
    path.write_bytes(data)


def not_a_number(path: Path) -> None:
    samples = speech(2, 16000)
    samples[24_000] = np.nan
    sf.write(path, samples, 16000, format="WAV", subtype="FLOAT")


BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "text": ("bad.wav", lambda path: path.write_text("this is no audio"), "bad.wav cannot be read as audio"),
    "nothing": ("bad.wav", lambda path: path.write_bytes(b""), "bad.wav"),
    "no samples": ("bad.wav", lambda path: sf.write(path, np.zeros((0, 1)), 16000), "bad.wav has no samples"),
    "half a flac": ("bad.flac", cut_short, "bad.flac is damaged or cut short between 0.0 s and 2.0 s"),
    "spoilt flac": ("bad.flac", spoil, "bad.flac is damaged or cut short between 0.0 s and 2.0 s"),
    "half a wav": ("bad.wav", cut_short, "bad.wav is cut short (its header promises 32022 bytes more than it holds)"),
    "half an mp3": ("bad.mp3", cut_short, "bad.mp3 is cut short (its header promises"),
    "nan": ("bad.wav", not_a_number, "bad.wav holds NaN or infinite samples, the first at 1.500 s"),
}


@pytest.fixture
def program(command, monkeypatch: pytest.MonkeyPatch, in_tmp: Path):
    """`seqattn enhance ARGUMENTS` in an empty folder, with a network that changes nothing."""
    asked = []

    def load(run: Path | None, device: str | None):
        asked.append((run, device))
        return identity

    monkeypatch.setattr(enhancers, "load_enhancer", load)

    def run(*arguments: object):
        return command("enhance", *arguments)

    run.asked = asked  # type: ignore[attr-defined]
    return run


@pytest.mark.parametrize(("name", "edit", "words"), BAD.values(), ids=BAD.keys())
def test_a_bad_file_is_one_sentence_and_leaves_nothing(program, in_tmp: Path, name: str, edit, words: str) -> None:
    edit(write(in_tmp / name, np.random.default_rng(0).uniform(-0.5, 0.5, (32_000, 1))))
    assert words in program(name, "-o", "out").error
    assert not list(in_tmp.rglob("out/*"))


def test_one_bad_file_does_not_stop_the_others(program, in_tmp: Path) -> None:
    for name in ("a.wav", "c.wav"):
        write(in_tmp / "in" / name, speech(1, 16000))
    (in_tmp / "in" / "b.wav").write_text("no audio")
    done = program("in", "-o", "out")
    assert done.code == 2
    lines = done.err.splitlines()
    assert re.fullmatch(r"a\.wav: 1\.0 s in \d+\.\d s \(real-time factor \d+\.\d\d\)", lines[0])
    assert lines[1].startswith("error: in/b.wav cannot be read as audio")
    assert lines[2].startswith("c.wav: 1.0 s in ")
    assert lines[3:] == ["error: 1 of 3 files failed, for the reasons above: mend them or leave them out"]
    assert list(contents(in_tmp / "out")) == ["a.wav", "c.wav"]


def test_files_of_other_kinds_are_said_to_be_left_out(program, in_tmp: Path) -> None:
    write(in_tmp / "in" / "a.wav", speech(1, 16000))
    sf.write(in_tmp / "in" / "b.opus", speech(1, 16000), 16000, format="OGG", subtype="OPUS")
    (in_tmp / "in" / "c.m4a").write_bytes(b"another kind")
    done = program("in", "-o", "out")
    assert done.code == 0, done
    assert done.err.startswith("warning: 1 file is left out of in (.m4a): convert to WAV or FLAC what is audio\n")
    assert list(contents(in_tmp / "out")) == ["a.wav", "b.opus"]
    assert kind(in_tmp / "out" / "b.opus") == kind(in_tmp / "in" / "b.opus")


def test_a_folder_keeps_its_shape(program, in_tmp: Path) -> None:
    write(in_tmp / "in" / "sub" / "[x] a.wav", speech(1, 16000))
    done = program("in", "-o", "out", "--spectrogram")
    assert (done.code, done.out) == (0, "")
    assert done.err.startswith("sub/[x] a.wav: 1.0 s in ")
    assert list(contents(in_tmp / "out")) == ["sub/[x] a.wav", "sub/[x] a.wav.png"]


def test_clipping_is_said_once(program, in_tmp: Path) -> None:
    write(in_tmp / "a.wav", np.clip(5 * speech(3, 16000), -1, 1))
    done = program("a.wav", "-o", "out", "--segment", "1", "--context", "0.2")
    assert done.code == 0
    assert done.err.count("\n") == 2
    assert re.match(r"warning: a\.wav is clipped \(\d+ samples, \d+ %\): record at a lower level", done.err)


@pytest.mark.parametrize("extra", [[], ["--spectrogram"]])
def test_nothing_is_overwritten_without_asking(program, in_tmp: Path, extra: list[str]) -> None:
    write(in_tmp / "a.wav", speech(1, 16000))
    write(in_tmp / "b.wav", speech(1, 16000))
    taken = in_tmp / "out" / ("b.wav.png" if extra else "b.wav")
    taken.parent.mkdir()
    taken.write_text("mine")
    assert f"out/{taken.name} exists already: pass --overwrite" in program("a.wav", "b.wav", "-o", "out", *extra).error
    assert contents(in_tmp / "out") == {taken.name: b"mine"}
    assert program.asked == []
    assert program("a.wav", "b.wav", "-o", "out", "--overwrite", *extra).code == 0
    assert taken.read_bytes() != b"mine"


def test_the_run_comes_first_or_as_an_option(program, in_tmp: Path) -> None:
    write(in_tmp / "a.wav", speech(1, 16000))
    write(in_tmp / "run" / "b.wav", speech(1, 16000))
    (in_tmp / "run" / "config.yaml").write_text("task: speech\n")
    assert program("run", "a.wav", "-o", "1").code == 0
    assert program("a.wav", "-o", "2", "--run", "run", "--device", "cpu").code == 0
    assert program("a.wav", "-o", "3").code == 0
    assert program("run", "-o", "4", "--run", "other").code == 0
    assert program.asked == [(Path("run"), None), (Path("run"), "cpu"), (None, None), (Path("other"), None)]
    assert list(contents(in_tmp / "4")) == ["b.wav"]
    assert (
        "there is nothing to enhance: name audio files, folders or globs after the run run"
        in program("run", "-o", "5").error
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent.wav", "-o", "out"], "there is no file or folder absent.wav"),
        (["*.wav", "-o", "out"], "no audio file"),
        ([".", "-o", "out"], "holds no audio files"),
        (["a.flac", "-o", "out", "--segment", "1"], "segments of 1 s are too short"),
    ],
)
def test_mistakes_are_met_before_the_network_is_read(program, in_tmp: Path, arguments: list[str], words: str) -> None:
    assert words in program(*arguments).error
    assert program.asked == []
    assert list(in_tmp.iterdir()) == []


ALLOCATION = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory: you ..."
)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), ALLOCATION])
def test_too_little_memory_is_one_sentence_and_leaves_nothing(program, in_tmp: Path, monkeypatch, error) -> None:
    def enhancer(waveform: Tensor, gain: Tensor) -> Tensor:
        if waveform.numel() > 16_000:
            raise error
        return waveform

    monkeypatch.setattr(enhancers, "load_enhancer", lambda run, device: enhancer)
    write(in_tmp / "a.wav", speech(3, 16000))
    write(in_tmp / "b.wav", speech(1, 16000))
    assert program("a.wav", "-o", "out").error == "error: not enough memory for a.wav: give a shorter --segment\n"
    done = program("a.wav", "b.wav", "-o", "out")
    assert done.err.startswith("error: not enough memory for a.wav: give a shorter --segment\nb.wav: 1.0 s in ")
    assert list(contents(in_tmp / "out")) == ["b.wav"]


def test_another_error_of_the_network_is_no_lack_of_memory(tmp_path: Path) -> None:
    def enhancer(waveform: Tensor, gain: Tensor) -> Tensor:
        raise RuntimeError("sizes differ")

    source = write(tmp_path / "a.wav", speech(1, 16000))
    with pytest.raises(RuntimeError, match="sizes differ"):
        enhance_files([str(source)], tmp_path / "out", lambda: enhancer)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")  # what else is a traceback on stderr
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_a_file_size_limit_leaves_no_partial_file(tmp_path: Path, suffix: str, capfd) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, (160_000, 1))
    source = write(tmp_path / f"a.{suffix}", noise)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        with pytest.raises(SeqattnError, match="the file size limit is reached"):
            enhance_file(source, tmp_path / "out" / source.name, identity, SHORT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "out").iterdir()) == []
    assert capfd.readouterr().err == ""


def test_a_full_disk_stops_at_once_and_leaves_no_partial_file(program, in_tmp: Path, monkeypatch) -> None:
    for name in ("a.wav", "b.wav", "c.wav"):
        write(in_tmp / name, speech(1, 16000))

    def full(file: int) -> None:
        if "b.wav" in os.readlink(f"/proc/self/fd/{file}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    done = program("a.wav", "b.wav", "c.wav", "-o", "out")
    assert done.code == 2
    assert done.err.splitlines()[1].startswith("error: cannot write out/b.wav: no space left on the disk")
    assert len(done.err.splitlines()) == 2
    assert list(contents(in_tmp / "out")) == ["a.wav"]


def test_an_interruption_leaves_what_was_there(tmp_path: Path) -> None:
    source, target = write(tmp_path / "a.wav", speech(3, 16000)), tmp_path / "out" / "a.wav"
    write(target, speech(1, 8000))
    before = contents(tmp_path)
    left = iter([None, None])

    def interrupted(waveform: Tensor, gain: Tensor) -> Tensor:
        if next(left, "out") == "out":
            raise KeyboardInterrupt
        return waveform

    with pytest.raises(KeyboardInterrupt):
        enhance_files([str(source)], tmp_path / "out", lambda: interrupted, SHORT, overwrite=True)
    assert contents(tmp_path) == before


def test_the_network_is_given_one_channel_at_a_time_and_no_gradients(tmp_path: Path) -> None:
    seen = []

    def look(waveform: Tensor, gain: Tensor) -> Tensor:
        seen.append((waveform.dtype, gain.dtype, waveform.shape, gain.shape, torch.is_grad_enabled()))
        return waveform

    enhance_file(write(tmp_path / "a.wav", speech(0.5, 16000, 3)), tmp_path / "b.wav", look)
    assert seen == [(torch.float32, torch.float32, (1, 8000), (1,), False)] * 3
