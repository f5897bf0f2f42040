import errno
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from seqattn import optional
from seqattn.data.audio import (
    AudioInfo,
    AudioWriter,
    audio_info,
    read_audio,
    read_mono,
    require,
    resample,
    resampled_length,
    write_audio,
)
from seqattn.errors import SeqattnError

sf = pytest.importorskip("soundfile")
pytest.importorskip("torchaudio")


def tone(samples: int, rate: int = 16_000, frequency: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(samples) / rate)).astype(np.float32)


@pytest.mark.parametrize(
    ("suffix", "subtype", "tolerance"),
    [
        ("wav", "PCM_16", 2**-15),
        ("wav", "PCM_24", 2**-23),
        ("wav", "FLOAT", 0),
        ("flac", "PCM_16", 2**-15),
        ("ogg", "VORBIS", 0.05),
        ("mp3", "MPEG_LAYER_III", 0.05),
    ],
)
@pytest.mark.parametrize(("channels", "rate"), [(1, 16_000), (2, 44_100), (8, 48_000)])
def test_what_is_written_is_read(
    tmp_path: Path, suffix: str, subtype: str, tolerance: float, channels: int, rate: int
) -> None:
    if suffix == "mp3" and channels > 2:
        pytest.skip("an MP3 file has at most two channels")
    waveform = np.stack([tone(20_000, rate, 200.0 * (channel + 1)) for channel in range(channels)])
    path = tmp_path / f"a.{suffix}"
    with path.open("wb") as file:
        write_audio(file, waveform, rate, suffix.upper(), subtype)
    samples, found = read_audio(path)
    assert (found, samples.dtype, samples.shape[0]) == (rate, np.float32, channels)
    assert abs(samples.shape[1] - 20_000) < (3000 if suffix == "mp3" else 1)
    np.testing.assert_allclose(samples[:, 4000:16_000], waveform[:, 4000:16_000], atol=max(tolerance, 1e-7))
    info = audio_info(path)
    assert (info.sample_rate, info.channels, info.subtype) == (rate, channels, subtype)


def test_part_of_a_file(tmp_path: Path) -> None:
    sf.write(tmp_path / "a.flac", tone(1000), 16_000)
    whole, _ = read_audio(tmp_path / "a.flac")
    np.testing.assert_array_equal(read_audio(tmp_path / "a.flac", 100, 50)[0], whole[:, 100:150])
    np.testing.assert_array_equal(read_audio(tmp_path / "a.flac", 990, 50)[0], whole[:, 990:])
    assert audio_info(tmp_path / "a.flac") == AudioInfo(16_000, 1, 1000, "FLAC", "PCM_16")


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_part_of_an_mp3(tmp_path: Path, rate: int, capfd: pytest.CaptureFixture[str]) -> None:
    # loud and soft noise at a variable bit rate: frames borrow bits from those before them, which a seek leaves out
    noise = 0.3 * np.random.default_rng(0).standard_normal(160_000).clip(-3, 3)
    noise[50_000:80_000] *= 0.01
    path = tmp_path / "a.mp3"
    sf.write(path, noise, rate, bitrate_mode="VARIABLE", compression_level=0.8)
    whole, _ = read_audio(path)
    for start in range(1, 150_000, 8111):
        np.testing.assert_allclose(read_audio(path, start, 5000)[0], whole[:, start : start + 5000], atol=1e-6)
    np.testing.assert_allclose(read_audio(path, 70_001)[0], whole[:, 70_001:], atol=1e-6)
    assert read_audio(path, whole.shape[1] + 10)[0].shape == (1, 0)
    assert capfd.readouterr().err == ""


def test_blocks_make_the_same_file(tmp_path: Path) -> None:
    waveform = torch.from_numpy(np.stack([tone(1000), -tone(1000)]))
    whole, blocks = io.BytesIO(), io.BytesIO()
    write_audio(whole, waveform, 48_000, "WAV", "PCM_24")
    with AudioWriter(blocks, 48_000, 2, "WAV", "PCM_24") as writer:
        for block in waveform.split(300, dim=1):
            writer.write(block)
    assert blocks.getvalue() == whole.getvalue()


def test_integers_are_clipped(tmp_path: Path) -> None:
    with (tmp_path / "a.wav").open("wb") as file:
        write_audio(file, np.array([[2.0, -2.0, 0.5]], np.float32), 16_000)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav")[0], [[1, -1, 0.5]], atol=2**-14)


def test_mono_is_the_mean_at_the_rate_asked_for(tmp_path: Path) -> None:
    rate = 44_100
    sf.write(tmp_path / "a.wav", np.stack([tone(rate, rate), 3 * tone(rate, rate) / 5], 1), rate, subtype="FLOAT")
    mono = read_mono(tmp_path / "a.wav")
    assert mono.shape == (16_000,)
    np.testing.assert_allclose(mono[500:-500], 0.8 * tone(16_000)[500:-500], atol=2e-3)


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 32_000, 44_099, 44_100, 48_000, 96_000])
def test_resampling_keeps_the_signal(rate: int) -> None:
    samples = rate // 2 + 7
    resampled = resample(torch.from_numpy(tone(samples, rate)).expand(2, -1), rate, 16_000)
    assert resampled.shape == (2, resampled_length(samples, rate, 16_000))
    assert resampled.dtype == torch.float32
    expected = torch.from_numpy(tone(resampled.shape[1]))
    torch.testing.assert_close(resampled[0, 500:-500], expected[500:-500], rtol=0, atol=3e-3)
    waveform = torch.randn(5)
    assert resample(waveform, rate, rate) is waveform


@pytest.mark.parametrize("kind", ["missing", "folder", "no bytes", "no samples", "text", "cut header", "cut flac"])
def test_unreadable_files_are_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("bad.flac" if kind == "cut flac" else "bad.wav")
    if kind == "folder":
        path.mkdir()
    elif kind == "no samples":
        sf.write(path, np.empty(0), 16_000)
    elif kind != "missing":
        sf.write(path, np.random.default_rng(0).standard_normal(50_000) / 9, 16_000)
        whole = path.read_bytes()
        shortened = {"no bytes": b"", "cut header": whole[:20], "cut flac": whole[: len(whole) // 2]}
        path.write_bytes(shortened.get(kind, b"this is no sound"))
    with pytest.raises(SeqattnError, match="bad") as caught:
        read_audio(path)
    assert "\n" not in str(caught.value)


def test_header_without_length(tmp_path: Path) -> None:
    path = tmp_path / "piped.flac"
    sf.write(path, tone(1000), 16_000)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)  # the number of samples, as encoders leave it that cannot seek
    path.write_bytes(content)
    with pytest.raises(SeqattnError, match=r"piped\.flac has no length in its header"):
        read_audio(path)
    np.testing.assert_allclose(read_audio(path, 0, 100)[0][0], tone(100), atol=2**-14)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    samples = np.zeros((100, 2), np.float32)
    samples[70, 1] = value
    sf.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    with pytest.raises(SeqattnError, match=r"a\.wav has samples that are NaN or infinite, first at sample 70"):
        read_audio(tmp_path / "a.wav", 50)


@pytest.mark.parametrize(("format", "subtype", "channels"), [("WAV", "VORBIS", 1), ("FLAC", "PCM_16", 9), ("X", "", 1)])
def test_impossible_formats(format: str, subtype: str, channels: int) -> None:
    with pytest.raises(SeqattnError, match="cannot be written"):
        write_audio(io.BytesIO(), np.zeros((channels, 100), np.float32), 16_000, format, subtype)


class FullDisk(io.BytesIO):
    def write(self, data: object) -> int:
        if self.tell() > 5000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)  # type: ignore[arg-type]


@pytest.mark.parametrize(("format", "subtype"), [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS")])
def test_full_disk_is_an_oserror(format: str, subtype: str, capfd: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, (1, 200_000))
    with pytest.raises(OSError, match="No space left"):
        write_audio(FullDisk(), noise, 16_000, format, subtype)
    assert capfd.readouterr().err == ""


def test_missing_packages_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("soundfile", "torchaudio", "pesq", "pystoi"):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(SeqattnError, match=rf"needs the package {package}: pip install 'seqattn\[speech\]'"):
            require(package)


def test_package_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise OSError("libsndfile.so.1: cannot open\nshared object")

    monkeypatch.setattr(optional.importlib, "import_module", fail)
    with pytest.raises(SeqattnError, match=r"does not load here \(libsndfile\.so\.1: cannot open shared object\)"):
        require("soundfile")
