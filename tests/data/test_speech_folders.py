import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqattn.data.speech_folders import (
    Pair,
    evaluation_pairs,
    find_folder,
    find_layout,
    hold_out,
    pair_files,
    read_splits,
)
from seqattn.errors import SeqattnError

REAL_DATA = Path(os.environ.get("SEQATTN_DATA") or "../shared/data").resolve()


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def both(root: Path, noisy: str, clean: str, names: Iterable[str]) -> Path:
    return touch(root, *(f"{folder}/{name}" for folder in (noisy, clean) for name in names))


def names(pairs: Iterable[Pair]) -> list[str]:
    return [pair.name for pair in pairs]


def voicebank(root: Path, speakers: int = 28) -> Path:
    trained = [f"p{226 + speaker}_{clip:03d}.wav" for speaker in range(speakers) for clip in (1, 2)]
    both(root, f"noisy_trainset_{speakers}spk_wav", f"clean_trainset_{speakers}spk_wav", trained)
    return both(root, "noisy_testset_wav", "clean_testset_wav", ["p232_001.wav", "p257_009.wav"])


@pytest.mark.parametrize("speakers", [28, 56])
def test_voicebank_holds_out_its_last_two_speakers(tmp_path: Path, speakers: int) -> None:
    splits = read_splits(voicebank(tmp_path, speakers))
    held = [f"p{226 + speakers - 2}", f"p{226 + speakers - 1}"]
    assert sorted({pair.speaker for pair in splits.valid}) == held
    assert len({pair.speaker for pair in splits.train}) == speakers - 2
    assert len(splits.train) + len(splits.valid) == 2 * speakers
    assert names(splits.test) == ["p232_001", "p257_009"]
    assert names(splits.train) == sorted(names(splits.train))
    for pair in (*splits.train, *splits.valid, *splits.test):
        assert pair.noisy.stem == pair.clean.stem == pair.name
        assert ("noisy" in pair.noisy.parent.name, "clean" in pair.clean.parent.name) == (True, True)


def test_paper_protocol_validates_on_test(tmp_path: Path) -> None:
    splits = read_splits(voicebank(tmp_path), protocol="paper")
    assert splits.valid == splits.test
    assert len(splits.train) == 56


def test_28_speakers_come_before_56(tmp_path: Path) -> None:
    voicebank(tmp_path, 56)
    assert find_layout(voicebank(tmp_path, 28)).name == "VoiceBank+DEMAND"


def test_published_validation_list_is_used(tmp_path: Path) -> None:
    for split, speaker in (("train", "p226"), ("valid", "p227"), ("test", "p232")):
        both(tmp_path, f"noisy_{split}", f"clean_{split}", [f"{speaker}_1.wav", f"{speaker}_2.wav"])
    splits = read_splits(tmp_path)
    assert find_layout(tmp_path).name == "VB-DemandEx"
    assert [{pair.speaker for pair in part} for part in (splits.train, splits.valid, splits.test)] == [
        {"p226"},
        {"p227"},
        {"p232"},
    ]
    assert read_splits(tmp_path, protocol="paper") == splits
    assert splits.validation == "the published validation list"
    for folder in ("noisy_test", "clean_test"):
        shutil.rmtree(tmp_path / folder)
    assert read_splits(tmp_path, protocol="paper").valid == splits.valid


def test_ears_wham(tmp_path: Path) -> None:
    for split, speaker in (("train", "p001"), ("valid", "p100"), ("test", "p102")):
        touch(tmp_path, f"{split}/clean/{speaker}/00000.wav", f"{split}/noisy/{speaker}/00000_-2.5dB.wav")
    splits = read_splits(tmp_path)
    assert splits.test == (
        Pair(
            "p102/00000_-2.5dB",
            tmp_path / "test/noisy/p102/00000_-2.5dB.wav",
            tmp_path / "test/clean/p102/00000.wav",
            "p102",
        ),
    )
    assert [part[0].speaker for part in (splits.train, splits.valid)] == ["p001", "p100"]
    (pair,) = evaluation_pairs(tmp_path / "test")
    assert (pair.name, pair.speaker) == ("p102/00000_-2.5dB", "p102")


@pytest.mark.parametrize("above", ["", "synthetic/"])
def test_dns_test_sets(tmp_path: Path, above: str) -> None:
    for reverb in ("no_reverb", "with_reverb"):
        for number in (1, 10, 11):
            touch(tmp_path, f"{above}{reverb}/noisy/clnsp{number}_train_69005_1_snr15_tl-21_fileid_{number}.wav")
            touch(tmp_path, f"{above}{reverb}/clean/clean_fileid_{number}.wav")
    pairs = evaluation_pairs(tmp_path)
    assert len(pairs) == 6
    assert names(pairs)[0] == "no_reverb/clnsp10_train_69005_1_snr15_tl-21_fileid_10"
    for pair in pairs:
        assert pair.clean.stem == f"clean_fileid_{pair.noisy.stem.rpartition('_')[2]}"
        assert pair.clean.parent.parent == pair.noisy.parent.parent
    one = evaluation_pairs(tmp_path / above / "no_reverb")
    assert [pair.clean for pair in one] == [pair.clean for pair in pairs[:3]]
    assert read_splits(tmp_path).train == ()


def test_two_folders_part_in_three(tmp_path: Path) -> None:
    speakers = [f"s{number}" for number in range(8)]
    both(tmp_path, "noisy", "clean", [f"{speaker}_{clip}.flac" for speaker in speakers for clip in range(3)])
    splits = read_splits(tmp_path)
    parts = [{pair.speaker for pair in part} for part in (splits.train, splits.valid, splits.test)]
    assert parts == [set(speakers[:4]), {"s4", "s5"}, {"s6", "s7"}]
    assert len(evaluation_pairs(tmp_path)) == 24


def test_without_speakers_files_are_held_out(tmp_path: Path) -> None:
    both(tmp_path, "noisy", "clean", [f"{number:03d}.wav" for number in range(100)])
    splits = read_splits(tmp_path)
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (81, 9, 10)
    assert len({*names(splits.train), *names(splits.valid), *names(splits.test)}) == 100


def test_noisy_versions_of_a_clip_stay_together() -> None:
    pairs = [
        Pair(f"{clip}_{snr}dB", Path(f"n/{clip}_{snr}dB"), Path(f"c/{clip}"), "") for clip in "abcd" for snr in (0, 5)
    ]
    kept, held = hold_out(pairs, "here")
    assert names(held) == ["d_0dB", "d_5dB"]
    assert len(kept) == 6
    with pytest.raises(SeqattnError, match="here has too few clean recordings"):
        hold_out(pairs[:2], "here")


STEMS = st.text("abcdefghi0123456789_-. ", min_size=1, max_size=12).filter(lambda name: name.strip(" .") == name)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), stems=st.sets(STEMS, min_size=1, max_size=8), kind=st.sampled_from(["same", "snr", "id"]))
def test_files_are_paired_by_name(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, stems: set[str], kind: str
) -> None:
    root = tmp_path_factory.mktemp("pairs")
    expected = {}
    for number, stem in enumerate(sorted(stems)):
        suffixes = [data.draw(st.sampled_from([".wav", ".flac", ".WAV", ".ogg", ".mp3"])) for _ in "nc"]
        snr = data.draw(st.integers(-200, 200)) / 10
        noisy = {"same": stem, "snr": f"{stem}_{snr}dB", "id": f"{stem}_fileid_{number}"}[kind]
        clean = {"same": stem, "snr": stem, "id": f"clean_fileid_{number}"}[kind]
        touch(root, f"noisy/{noisy}{suffixes[0]}", f"clean/{clean}{suffixes[1]}", "noisy/._hidden.wav", "clean/a.txt")
        expected[noisy] = clean
    pairs = pair_files(root / "noisy", root / "clean")
    assert {pair.name: pair.clean.stem for pair in pairs} == expected
    assert names(pairs) == sorted(expected)


def test_subfolders_may_differ_where_the_name_is_unique(tmp_path: Path) -> None:
    touch(tmp_path, "noisy/cafe/a.wav", "noisy/bus/a_5dB.wav", "clean/p1/a.wav")
    pairs = pair_files(tmp_path / "noisy", tmp_path / "clean")
    assert [(pair.name, pair.clean.name, pair.speaker) for pair in pairs] == [
        ("bus/a_5dB", "a.wav", "p1"),
        ("cafe/a", "a.wav", "p1"),
    ]
    touch(tmp_path, "clean/p2/a.wav")
    with pytest.raises(SeqattnError, match=r"bus/a_5dB in the noisy folder may belong to p1/a or p2/a"):
        pair_files(tmp_path / "noisy", tmp_path / "clean")


def test_missing_partners_are_named(tmp_path: Path) -> None:
    both(tmp_path, "noisy", "clean", ["a.wav", "b.wav"])
    (tmp_path / "clean/b.wav").unlink()
    with pytest.raises(SeqattnError, match=r"noisy/b\.wav has no clean partner in .*clean"):
        evaluation_pairs(tmp_path)
    (tmp_path / "noisy/b.wav").unlink()
    touch(tmp_path, "clean/c.wav")
    with pytest.raises(SeqattnError, match=r"clean/c\.wav has no noisy partner in .*noisy"):
        evaluation_pairs(tmp_path)
    touch(tmp_path, "clean/a.flac")
    with pytest.raises(SeqattnError, match=r"a\.flac and .*a\.wav have the same name"):
        evaluation_pairs(tmp_path)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(SeqattnError, match="nowhere does not exist"):
        find_layout(tmp_path / "nowhere")
    with pytest.raises(SeqattnError, match="has no pairs of noisy and clean recordings"):
        find_layout(tmp_path)
    (tmp_path / "noisy").mkdir()
    with pytest.raises(SeqattnError, match=r"has the layout of pairs but no folder .*clean"):
        find_layout(tmp_path)
    (tmp_path / "clean").mkdir()
    with pytest.raises(SeqattnError, match="noisy has no audio files"):
        evaluation_pairs(tmp_path)


def test_only_training_folders(tmp_path: Path) -> None:
    both(tmp_path, "noisy_train", "clean_train", ["p1_1.wav", "p1_2.wav"])
    assert read_splits(tmp_path).test == ()
    with pytest.raises(SeqattnError, match="has no test pairs: add the test folders of VB-DemandEx"):
        evaluation_pairs(tmp_path)
    with pytest.raises(SeqattnError, match="has no test pairs, which protocol 'paper' validates on"):
        read_splits(tmp_path, protocol="paper")


def test_folders_beside_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "speech" / "mine").mkdir(parents=True)
    monkeypatch.setenv("SEQATTN_DATA", str(tmp_path / "data"))
    assert find_folder("mine") == tmp_path / "data" / "speech" / "mine"
    (tmp_path / "mine").mkdir()
    assert find_folder("mine").resolve() == tmp_path / "mine"


def test_real_pairs() -> None:
    folder = REAL_DATA / "speech" / "voicebank_demand_test"
    if not folder.is_dir():
        pytest.skip("the real pairs are not in SEQATTN_DATA")
    pairs = evaluation_pairs(folder)
    assert len(pairs) == 44
    assert {pair.speaker for pair in pairs} == {"p232", "p257"}
