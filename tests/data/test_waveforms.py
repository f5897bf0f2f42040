from pathlib import Path

import numpy as np
import pytest
import torch

from seqattn.data import waveforms
from seqattn.data.audio import read_mono
from seqattn.data.cache import cache_folder
from seqattn.data.waveforms import FileWaveforms, MemoryWaveforms, keep_in_memory
from seqattn.errors import SeqattnError

sf = pytest.importorskip("soundfile")
pytest.importorskip("torchaudio")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(path: Path, samples: int, seed: int = 0, rate: int = 16_000, channels: int = 1) -> Path:
    signal = 0.1 * np.random.default_rng(seed).standard_normal((samples, channels))
    sf.write(path, signal, rate, subtype="PCM_16")
    return path


def copies(folder: Path | None = None) -> list[Path]:
    return sorted((folder or cache_folder() / "speech").rglob("*.*"))


def test_other_rates_are_resampled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write(tmp_path / f"{clip}.wav", 4800, clip, 48_000, channels=1 + clip) for clip in range(3)]
    paths.append(write(tmp_path / "right.wav", 1600))
    files = FileWaveforms(paths)
    assert files.lengths == [1600] * 4
    assert files.seconds == 0.4
    files.prepare()
    written = copies()
    assert [copy.suffix for copy in written] == [".wav"] * 3
    expected = [read_mono(path) for path in paths]
    with monkeypatch.context() as patch:
        patch.setattr(waveforms, "read_mono", None)  # the copies are used from here on
        files = FileWaveforms(paths)
        files.prepare()
        assert all(torch.equal(files.read(number), signal) for number, signal in enumerate(expected))
        assert torch.equal(files.read(1, 100, 50), expected[1][100:150])
    assert copies() == written
    write(paths[0], 6000, 77, 48_000)
    changed = FileWaveforms(paths)
    assert changed.lengths[0] == len(changed.read(0)) == 2000
    assert len(copies()) == 4


def test_cache_may_be_elsewhere(tmp_path: Path) -> None:
    FileWaveforms([write(tmp_path / "a.wav", 480, rate=48_000)], cache_dir=tmp_path / "mine").prepare()
    assert len(copies(tmp_path / "mine")) == 1
    assert not cache_folder().exists()


@pytest.mark.parametrize("damage", ["garbage", "other rate", "unusable folder"])
def test_damaged_cache_costs_only_time(tmp_path: Path, damage: str) -> None:
    path = write(tmp_path / "a.wav", 4410, rate=44_100)
    folder = tmp_path / "copies"
    files = FileWaveforms([path], cache_dir=folder)
    files.prepare()
    expected = files.read(0)
    (copy,) = folder.rglob("*.wav")
    if damage == "unusable folder":
        (tmp_path / "file").touch()
        files = FileWaveforms([path], cache_dir=tmp_path / "file")
    elif damage == "garbage":
        copy.write_bytes(b"RIFF")
    else:
        write(copy, 100, rate=8000)
    files.prepare()
    assert torch.equal(files.read(0), expected)
    assert torch.equal(files.read(0, 100, 50), expected[100:150])


def test_memory_is_limited(tmp_path: Path) -> None:
    files = FileWaveforms([write(tmp_path / f"{clip}.wav", 500, clip) for clip in range(3)])
    read = [files.read(clip) for clip in range(3)]
    assert not keep_in_memory([files], limit=5999)
    assert files._kept is None
    assert keep_in_memory([files], limit=6000)
    for path in files.paths:
        path.unlink()
    for clip in range(3):
        assert torch.equal(files.read(clip), read[clip])
        assert torch.equal(files.read(clip, 100, 7), read[clip][100:107])


def test_waveforms_in_memory() -> None:
    held = MemoryWaveforms([torch.arange(5.0), torch.arange(3.0)])
    assert held.lengths == [5, 3]
    assert held.read(0, 2).tolist() == [2, 3, 4]
    assert held.read(0, 1, 2).tolist() == [1, 2]
    assert not keep_in_memory([held], limit=31)
    assert keep_in_memory([held], limit=32)


@pytest.mark.parametrize("content", [b"", b"RIFF, but no more"])
def test_bad_headers_are_found_at_once(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.wav").write_bytes(content)
    with pytest.raises(SeqattnError, match=r"bad\.wav"):
        FileWaveforms([write(tmp_path / "good.wav", 10), tmp_path / "bad.wav"])
