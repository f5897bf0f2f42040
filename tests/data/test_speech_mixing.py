import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqattn.data.speech_mixing import Clip, Mixtures, add_noise, clean_clips, noise_clips, part_clips
from seqattn.data.synthetic_speech import NOISES, noise, synthetic_corpus, utterance
from seqattn.data.waveforms import MemoryWaveforms
from seqattn.errors import SeqattnError

pytest.importorskip("soundfile")
pytest.importorskip("torchaudio")
REAL_DATA = Path(os.environ.get("SEQATTN_DATA") or "../shared/data").resolve()


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def measured_snr(clean: torch.Tensor, noisy: torch.Tensor) -> float:
    clean, noisy = clean.double(), noisy.double()
    return float(10 * torch.log10(clean.square().sum() / (noisy - clean).square().sum()))


@pytest.mark.parametrize("snr", [-10.0, -5.0, 0.0, 7.3, 20.0])
@pytest.mark.parametrize("level", [1e-3, 1.0])
def test_snr_is_right(snr: float, level: float) -> None:
    generator = torch.Generator().manual_seed(1)
    clean, added = level * torch.randn(30_000, generator=generator), torch.randn(30_000, generator=generator)
    assert measured_snr(clean, add_noise(clean, added, snr)) == pytest.approx(snr, abs=0.01)


def test_silence_is_not_scaled() -> None:
    signal, silence = torch.randn(100), torch.zeros(100)
    assert torch.equal(add_noise(signal, silence, 5.0), signal)
    assert torch.equal(add_noise(silence, signal, 5.0), signal)
    assert torch.equal(add_noise(silence, silence, 5.0), silence)


def mixtures(noises: list[torch.Tensor], snr_range: tuple[float, float] = (-5.0, 15.0)) -> Mixtures:
    clean, _ = synthetic_corpus(3, 4, 1.0)
    return Mixtures(MemoryWaveforms(clean), MemoryWaveforms(noises), snr_range)


def test_draws_repeat_with_their_seed_and_fill_the_range() -> None:
    source = mixtures([torch.randn(40_000), torch.randn(500)], (-5.0, 15.0))
    first, second = (source.draw(1, np.random.default_rng((7, 1)))[0] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, source.draw(1, np.random.default_rng((7, 2)))[0])
    snrs = []
    for seed in range(200):
        noisy, clean = source.draw(seed % 4, np.random.default_rng(seed))
        snrs.append(measured_snr(clean, noisy))
    assert -5.01 < min(snrs) < -4
    assert 14 < max(snrs) < 15.01
    assert np.mean(snrs) == pytest.approx(5, abs=1.5)


def test_snrs_are_drawn_from_a_list() -> None:
    clean, _ = synthetic_corpus(3, 4, 1.0)
    source = Mixtures(MemoryWaveforms(clean), MemoryWaveforms([torch.randn(40_000)]), (-5.0, 15.0), snrs=(0, 5, 10, 15))
    found = [measured_snr(*source.draw(1, np.random.default_rng(seed))[::-1]) for seed in range(40)]
    assert {round(snr, 2) for snr in found} == {0, 5, 10, 15}
    assert torch.equal(*(source.draw(1, np.random.default_rng(3))[0] for _ in range(2)))


def test_short_noise_repeats_from_a_random_place() -> None:
    source = mixtures([torch.arange(1.0, 101.0)], (0.0, 0.0))
    starts = set()
    for seed in range(20):
        noisy, clean = source.draw(0, np.random.default_rng(seed))
        added = noisy - clean
        torch.testing.assert_close(added[:-100], added[100:], rtol=0, atol=1e-5)
        starts.add(int(added[:100].argmax()))
    assert len(starts) > 10


def test_digital_silence_in_noise_is_drawn_again() -> None:
    loud = torch.zeros(400_000)
    loud[:40_000] = torch.randn(40_000)
    source = mixtures([loud], (3.0, 3.0))
    draws = [source.draw(0, np.random.default_rng(seed)) for seed in range(20)]
    found = [measured_snr(clean, noisy) for noisy, clean in draws]
    assert np.median(found) == pytest.approx(3, abs=0.01)
    silent = mixtures([torch.zeros(100)])
    noisy, clean = silent.draw(0, np.random.default_rng(0))
    assert torch.equal(noisy, clean)


def test_speakers_come_from_names_folders_and_lists(tmp_path: Path) -> None:
    one = touch(tmp_path / "one", "p226_001.wav", "p226_002.flac", "sub/p227_001.wav", "notes.txt", ".hidden.wav")
    two = touch(tmp_path / "two", "19/198/19-198-0000.flac", "19/227/19-227-0001.flac", "ann/x.ogg", "ann/y.mp3")
    three = touch(tmp_path / "three", "LJ001-0001.wav", "LJ050-0231.wav", "87ce794d-cb3b.wav", "fff153da-9151.wav")
    four = touch(tmp_path / "four", "a.wav", "b.wav", "c.wav")
    (four / "index.csv").write_text("file,speaker,seconds\na.wav,eve,1\nb.wav,eve,2\nc.wav,,3\n")
    clips = clean_clips([one, two, three, four])
    groups = {clip.path.name: clip.group for clip in clips}
    assert [groups[f"p226_00{number}.{kind}"] for number, kind in ((1, "wav"), (2, "flac"))] == ["p226", "p226"]
    assert groups["p227_001.wav"] == "p227"
    assert groups["19-198-0000.flac"] == groups["19-227-0001.flac"] == "19"
    assert groups["x.ogg"] == groups["y.mp3"] == "ann"
    assert groups["LJ001-0001.wav"] == groups["LJ050-0231.wav"] == "LJ"
    assert groups["87ce794d-cb3b.wav"] != groups["fff153da-9151.wav"]
    assert groups["a.wav"] == groups["b.wav"] == "eve"
    assert groups["c.wav"] == str(four / "c.wav")
    assert clean_clips([one, one / "sub"]) == clean_clips([one])


def test_published_namings_tell_the_speaker_whatever_the_folder(tmp_path: Path) -> None:
    names = {
        "DNS": "a/book_00000_chp_0009_reader_06709_0.wav b/book_00012_chp_0003_reader_06709_5_seg_1.wav",
        "LibriTTS": "19/198/19_198_000000_000000.wav 19/227/19_227_000003_000000.wav",
        "LibriSpeech": "20/198/20-198-0000.flac 20/227/20-227-0001.flac",
    }
    others = ("a/book_00000_chp_0009_reader_06710_0.wav", "19/198/190_198_000000_000000.wav")
    clips = clean_clips([touch(tmp_path, *others, *" ".join(names.values()).split())])
    groups = {clip.path.relative_to(tmp_path).as_posix(): clip.group for clip in clips}
    assert [{groups[name] for name in found.split()} for found in names.values()] == [{"6709"}, {"19"}, {"20"}]
    assert [groups[name] for name in others] == ["6710", "190"]


def test_channels_of_one_recording_stay_together(tmp_path: Path) -> None:
    names = [f"{room}/ch{channel:02d}.wav" for room in ("DKITCHEN", "PCAFETER") for channel in range(1, 17)]
    clips = noise_clips([touch(tmp_path, *names, "DKITCHEN/other.wav", "DKITCHEN/church1.wav")])
    assert len({clip.group for clip in clips}) == 4
    assert len({clip.group for clip in noise_clips([tmp_path / "PCAFETER"])}) == 1


def test_takes_of_one_noise_stay_together(tmp_path: Path) -> None:
    root = touch(tmp_path, "dog__1-100032-A.flac", "dog__1-100032-B.flac", "dog__1-100033-A.flac", "kitchen-A.flac")
    groups = [clip.group for clip in noise_clips([root])]
    assert len(set(groups)) == 3
    assert groups[0] == groups[1]


def test_folders_without_recordings(tmp_path: Path) -> None:
    with pytest.raises(SeqattnError, match="give at least one folder as noise_dirs"):
        noise_clips([])
    with pytest.raises(SeqattnError, match="has no audio files"):
        clean_clips([tmp_path])
    with pytest.raises(SeqattnError, match="nowhere does not exist"):
        clean_clips([tmp_path / "nowhere"])
    (tmp_path / "index.csv").write_bytes(b"\xff\xfe\x00")
    touch(tmp_path, "a.wav")
    with pytest.raises(SeqattnError, match=r"index\.csv is no readable CSV file"):
        clean_clips([tmp_path])


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=30), parts=st.integers(1, 3), seed=st.integers(0, 9))
def test_held_out_groups(sizes: list[int], parts: int, seed: int) -> None:
    clips = [Clip(Path(f"{group}/{clip}"), str(group)) for group, size in enumerate(sizes) for clip in range(size)]
    if len(sizes) < parts:
        with pytest.raises(SeqattnError, match="the clean folders have too few speakers"):
            part_clips(clips, parts, seed, "clean")
        return
    found = part_clips(clips, parts, seed, "clean")
    assert sorted(clip.path for part in found for clip in part) == sorted(clip.path for clip in clips)
    groups = [{clip.group for clip in part} for part in found]
    assert all(groups)
    assert sum(map(len, groups)) == len(sizes)
    wanted = max(1, len(clips) // 10)
    for part in found[1:]:
        # a group larger than a tenth is held out only where it must be, and then alone
        assert len(part) < 2 * wanted or len({clip.group for clip in part}) == 1
    assert part_clips(clips, parts, seed, "clean") == found


def test_one_noise_cannot_be_held_out(tmp_path: Path) -> None:
    clips = noise_clips([touch(tmp_path, "a.wav")])
    with pytest.raises(
        SeqattnError, match=r"the noise folders have too few recordings \(1\).* for validation: add more"
    ):
        part_clips(clips, 2, 0, "noise")


def test_synthetic_signals() -> None:
    clean, noises = synthetic_corpus(5, 8, 2.0)
    again, _ = synthetic_corpus(5, 8, 2.0)
    other, _ = synthetic_corpus(6, 8, 2.0)
    assert len(clean) == len(noises) == 8
    for signal, repeated, different in zip(clean, again, other, strict=True):
        assert (signal.shape, signal.dtype) == ((32_000,), torch.float32)
        assert torch.equal(signal, repeated)
        assert not torch.equal(signal, different)
        assert signal.square().mean().sqrt() == pytest.approx(0.07, rel=1e-3)
        frames = signal.unfold(0, 320, 320).square().mean(1)
        assert frames.max() > 100 * frames.quantile(0.1)  # syllables and pauses, as in speech
    for signal in noises:
        assert signal.square().mean().sqrt() == pytest.approx(0.07, rel=1e-3)
        assert signal.isfinite().all()


@pytest.mark.parametrize("samples", [1, 7, 399])
def test_tiny_synthetic_signals(samples: int) -> None:
    generator = np.random.default_rng(0)
    for signal in (utterance(generator, samples), *(noise(kind, generator, samples) for kind in NOISES)):
        assert signal.shape == (samples,)
        assert np.isfinite(signal).all()


def test_real_recordings() -> None:
    folder = REAL_DATA / "speech"
    if not folder.is_dir():
        pytest.skip("the real recordings are not in SEQATTN_DATA")
    clean = clean_clips([folder / "clean_picovoice_16k", folder / "clean_ljspeech_16k"])
    noises = noise_clips([folder / "noise_16k"])
    assert (len(clean), len({clip.group for clip in clean})) == (398, 301)
    assert len(noises) == 105
    for clips, kind in ((clean, "clean"), (noises, "noise")):
        train, valid, test = part_clips(clips, 3, 0, kind)
        assert 9 <= len(valid) <= 40
        assert 9 <= len(test) <= 40
        assert len(train) > 0.75 * len(clips)
