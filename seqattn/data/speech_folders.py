"""Noisy and clean recordings in folders, in the layouts in which the data sets are published."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from seqattn.data.audio import AUDIO_SUFFIXES
from seqattn.errors import SeqattnError

_SPLITS = ("train", "valid", "test")
# layout -> split -> the names of its noisy and clean folders; "all" is one set of pairs without splits
_LAYOUTS: dict[str, dict[str, tuple[str, str]]] = {
    "VoiceBank+DEMAND": {  # https://datashare.ed.ac.uk/handle/10283/2791
        "train": ("noisy_trainset_28spk_wav", "clean_trainset_28spk_wav"),
        "test": ("noisy_testset_wav", "clean_testset_wav"),
    },
    "VoiceBank+DEMAND, 56 speakers": {
        "train": ("noisy_trainset_56spk_wav", "clean_trainset_56spk_wav"),
        "test": ("noisy_testset_wav", "clean_testset_wav"),
    },
    "VB-DemandEx": {split: (f"noisy_{split}", f"clean_{split}") for split in _SPLITS},
    "EARS-WHAM": {split: (f"{split}/noisy", f"{split}/clean") for split in _SPLITS},
    "DNS test": {name: (f"{name}/noisy", f"{name}/clean") for name in ("no_reverb", "with_reverb")},
    "pairs": {"all": ("noisy", "clean")},
}
# published namings that tell the speaker: VoiceBank and VCTK p226_001, LibriSpeech 19-198-0000, LibriTTS
# 19_198_000000_000000, LJSpeech LJ050-0231, DNS book_00000_chp_0009_reader_06709_0
_SPEAKERS = [
    re.compile(r"([A-Za-z]+\d+)_"),
    re.compile(r"(\d+)-\d+-\d+"),
    re.compile(r"(\d+)_\d+_\d+_\d+"),
    re.compile(r"(LJ)\d{3}-\d{4}"),
    re.compile(r".*_reader_0*(\d+)"),
]
TEST_LIST = "the test list, as most published recipes do (optimistic)"
_SNR = re.compile(r"_[-+]?\d+(\.\d+)?dB$")  # EARS-WHAM: 00000_5.0dB belongs to 00000
_FILE_ID = re.compile(r"fileid_(\d+)$")  # DNS: ..._fileid_7 belongs to clean_fileid_7


@dataclass(frozen=True)
class Pair:
    """A noisy recording and its clean partner; `name` is the noisy file's path in its folder, without suffix."""

    name: str
    noisy: Path
    clean: Path
    speaker: str


@dataclass(frozen=True)
class Layout:
    """A published arrangement of folders: `folders` maps each split that is there to its noisy and clean folder."""

    name: str
    folders: dict[str, tuple[Path, Path]]


@dataclass(frozen=True)
class PairSplits:
    """Pairs for training, validation and test, each sorted by name; `validation` says in words what `valid` is."""

    train: tuple[Pair, ...]
    valid: tuple[Pair, ...]
    test: tuple[Pair, ...]
    validation: str


def find_folder(folder: str | Path) -> Path:
    """The folder itself, or the one of that name in $SEQATTN_DATA/speech (where unset: ../shared/data/speech).

    Raises SeqattnError where neither is a folder.
    """
    path = Path(os.path.expanduser(folder))
    beside = Path(os.path.expanduser(os.environ.get("SEQATTN_DATA") or "../shared/data")) / "speech" / path
    for candidate in (path, beside):
        if candidate.is_dir():
            return candidate
    raise SeqattnError(f"the folder {path} does not exist; check the path")


def find_layout(folder: str | Path) -> Layout:
    """Tell by the names inside a folder which published layout it has.

    VoiceBank+DEMAND (28 or 56 speakers; where both are there, 28), VB-DemandEx (clean_train, noisy_train, ...),
    EARS-WHAM (train/noisy, train/clean, ...), the DNS test sets (no_reverb, with_reverb, or their parent folder
    `synthetic`) and any two folders named noisy and clean. A split may be absent, half of one may not.

    Raises SeqattnError for a folder that is missing or has another layout.
    """
    root = find_folder(folder)
    best = Layout("", {})
    for name, splits in _LAYOUTS.items():
        for place in (root, root / "synthetic"):
            found = {split: (place / noisy, place / clean) for split, (noisy, clean) in splits.items()}
            found = {split: both for split, both in found.items() if both[0].is_dir() or both[1].is_dir()}
            if len(found) > len(best.folders):
                best = Layout(name, found)
    missing = [part for both in best.folders.values() for part in both if not part.is_dir()]
    if missing:
        raise SeqattnError(f"{root} has the layout of {best.name} but no folder {missing[0]}: put it there")
    if best.folders:
        return best
    raise SeqattnError(
        f"{root} has no pairs of noisy and clean recordings: it needs the folders noisy and clean, or those of "
        "VoiceBank+DEMAND, VB-DemandEx, EARS-WHAM or the DNS test set under their published names"
    )


def pair_files(noisy_folder: Path, clean_folder: Path) -> list[Pair]:
    """Every noisy recording below a folder with its clean partner, sorted by name.

    Partners have the same path in their folder, the suffix aside; or the same file name, where only one clean file has
    it; or names that differ by an SNR (00000_5.0dB and 00000) or agree in a final fileid_N. Several noisy recordings
    may share a clean one.

    Raises SeqattnError for a folder without recordings, and for a recording on either side without a partner.
    """
    noisy_files, clean_files = _by_name(noisy_folder), _by_name(clean_folder)
    index = _CleanIndex(clean_files, clean_folder)
    pairs, used = [], set()
    for name, path in noisy_files.items():
        partner = index.find(name)
        if partner is None:
            raise SeqattnError(f"{path} has no clean partner in {clean_folder}: add it, or remove the noisy file")
        used.add(partner)
        clean = clean_files[partner]
        pairs.append(Pair(name, path, clean, speaker_of(clean, clean_folder)))
    alone = next((path for name, path in clean_files.items() if name not in used), None)
    if alone is not None:
        raise SeqattnError(f"{alone} has no noisy partner in {noisy_folder}: add it, or remove the clean file")
    return pairs


def read_splits(folder: str | Path, *, protocol: str = "holdout") -> PairSplits:
    """The pairs of a folder for training, validation and test; all but the test pairs are empty where it has no others.

    Where the layout has no validation list, the last two training speakers in sorted order are held out (`hold_out`
    says what happens with few of them); noisy and clean folders without any split part into training, validation and
    test in that way. With protocol "paper" all training pairs train, and where the layout has no validation list
    validation is the test list.

    Raises SeqattnError where protocol "paper" finds neither, and as find_layout, pair_files and hold_out do.
    """
    layout = find_layout(folder)
    lists = {split: pair_files(*both) for split, both in layout.folders.items() if split in (*_SPLITS, "all")}
    if "all" in lists:
        lists["train"], lists["test"] = hold_out(lists.pop("all"), str(folder))
    if not lists:
        lists["test"] = evaluation_pairs(folder)
    train, valid, test = (lists.get(split, []) for split in _SPLITS)
    validation = "the published validation list"
    if protocol == "paper" and not valid:
        if not test:
            raise SeqattnError(f"{folder} has no test pairs, which protocol 'paper' validates on: use 'holdout'")
        valid, validation = test, TEST_LIST
    elif train and not valid:
        validation = "held-out speakers" if _tells_speakers(train) else "held-out recordings"
        train, valid = hold_out(train, str(folder))
    return PairSplits(tuple(train), tuple(valid), tuple(test), validation)


def evaluation_pairs(folder: str | Path) -> list[Pair]:
    """The test pairs of a folder; all pairs of noisy and clean folders without splits; all DNS sets that are there.

    Raises SeqattnError for a folder without test pairs, and as find_layout and pair_files do.
    """
    layout = find_layout(folder)
    splits = [split for split in layout.folders if split not in ("train", "valid")]
    if not splits:
        raise SeqattnError(f"{folder} has no test pairs: add the test folders of {layout.name}")
    pairs = []
    for split in splits:
        prefix = f"{split}/" if len(splits) > 1 else ""
        found = pair_files(*layout.folders[split])
        pairs += [Pair(prefix + pair.name, pair.noisy, pair.clean, pair.speaker) for pair in found]
    return pairs


def hold_out(pairs: Sequence[Pair], source: str) -> tuple[list[Pair], list[Pair]]:
    """Part pairs into those that stay and those held out: the last two speakers in sorted order.

    Of three to five speakers, one is held out; with fewer, or unknown ones, the last tenth of the clean files is.

    Raises SeqattnError, which names `source`, where there are fewer than two clean files.
    """
    if not _tells_speakers(pairs):
        files = sorted({pair.clean for pair in pairs})
        if len(files) < 2:
            raise SeqattnError(f"{source} has too few clean recordings to hold some out of training: add recordings")
        held_files = set(files[-max(1, len(files) // 10) :])
        chosen = [pair.clean in held_files for pair in pairs]
    else:
        speakers = sorted({pair.speaker for pair in pairs})
        held_speakers = set(speakers[-2:] if len(speakers) > 5 else speakers[-1:])
        chosen = [pair.speaker in held_speakers for pair in pairs]
    kept = [pair for pair, held in zip(pairs, chosen, strict=True) if not held]
    return kept, [pair for pair, held in zip(pairs, chosen, strict=True) if held]


def _tells_speakers(pairs: Sequence[Pair]) -> bool:
    """Whether every speaker is known and there are enough of them to hold one out."""
    speakers = {pair.speaker for pair in pairs}
    return "" not in speakers and len(speakers) >= 3


def audio_files(folder: Path) -> list[Path]:
    """Every audio file below a folder, sorted; hidden ones are left out. Raises SeqattnError where there is none."""
    found = sorted(_walk(folder))
    if not found:
        kinds = ", ".join(suffix[1:].upper() for suffix in AUDIO_SUFFIXES)
        raise SeqattnError(f"{folder} has no audio files ({kinds}): check the path")
    return found


def speaker_of(path: Path, root: Path) -> str:
    """Who speaks: told by a published naming (p226_001, 19-198-0000, ...), else the file's folder below root, or ""."""
    for pattern in _SPEAKERS:
        if match := pattern.match(path.stem):
            return match[1]
    return "" if path.parent == root else path.parent.name


class _CleanIndex:
    """Finds the name of the clean partner of a noisy name."""

    def __init__(self, files: dict[str, Path], folder: Path) -> None:
        self.names = files.keys()
        self.folder = folder
        self.by_stem: dict[str, list[str]] = {}
        self.by_id: dict[str, list[str]] = {}
        for name in files:
            self.by_stem.setdefault(_stem(name), []).append(name)
            if match := _FILE_ID.search(name):
                self.by_id.setdefault(match[1], []).append(name)

    def find(self, name: str) -> str | None:
        for candidate in (name, _SNR.sub("", name)):
            if candidate in self.names:
                return candidate
        file_id = _FILE_ID.search(name)
        found = self.by_stem.get(_stem(name)) or self.by_stem.get(_SNR.sub("", _stem(name)))
        found = found or (self.by_id.get(file_id[1]) if file_id else None) or []
        if len(found) > 1:
            problem = f"{name} in the noisy folder may belong to {found[0]} or {found[1]} in {self.folder}"
            raise SeqattnError(f"{problem}: give both sides the same subfolders")
        return found[0] if found else None


def _by_name(folder: Path) -> dict[str, Path]:
    """Audio files below a folder by their path without suffix, sorted by it."""
    files: dict[str, Path] = {}
    for path in audio_files(folder):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in files:
            raise SeqattnError(f"{files[name]} and {path} have the same name: remove one")
        files[name] = path
    return dict(sorted(files.items()))


def _stem(name: str) -> str:
    return name.rpartition("/")[2]


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.lower().endswith(AUDIO_SUFFIXES) and not name.startswith("."):
                yield Path(root, name)
