"""Clean speech and noise mixed on the fly, with speakers and noises held out."""

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seqattn.data.speech_folders import audio_files, find_folder, speaker_of
from seqattn.data.waveforms import Waveforms
from seqattn.errors import SeqattnError
from seqattn.optional import require

HELD_OUT = 0.1  # of the clips, and of the noises, for validation and again for test
_ATTEMPTS = 20  # draws of a noise that is not digital silence
_CHANNEL = re.compile(r"ch\d+")  # DEMAND: DKITCHEN/ch01.wav to ch16.wav are one recording
_TAKE = re.compile(r"(\d-\d+)-[A-Z](-\d+)?$")  # ESC-50: 1-100032-A-0 and 1-100032-B-0 are of one recording

Grouping = Callable[[Path, Sequence[Path]], list[str]]  # a folder and the files below it -> a group for each


@dataclass(frozen=True)
class Clip:
    """A recording and the group that is held out together: a speaker, or one source of noise."""

    path: Path
    group: str


def clean_clips(folders: Sequence[str | Path]) -> list[Clip]:
    """Every recording below the folders, sorted by folder and path, grouped by speaker.

    The speaker comes from an index.csv with columns file and speaker, or else as `speaker_of` says: from a published
    naming or the subfolder; a file directly in its folder that no rule knows is a group of its own.

    Raises SeqattnError for a folder that is missing or has no recordings.
    """
    return _clips(folders, "clean", _speakers)


def noise_clips(folders: Sequence[str | Path]) -> list[Clip]:
    """Every recording below the folders, each a group of its own, save that the takes of one recording of ESC-50 are
    together, and the channels of one of DEMAND (DKITCHEN/ch01.wav to ch16.wav).

    Raises SeqattnError for a folder that is missing or has no recordings.
    """
    return _clips(folders, "noise", _recordings)


def part_clips(clips: Sequence[Clip], parts: int, seed: int, kind: str) -> list[list[Clip]]:
    """Part clips into training and `parts` - 1 held-out lists, whole groups each, drawn by `seed`.

    A held-out list takes groups until it has a tenth of the clips, at least one group; groups that hold more than a
    tenth by themselves stay in training while others suffice.

    Raises SeqattnError, which says `kind`, where there are fewer groups than parts.
    """
    sizes: dict[str, int] = {}
    for clip in clips:
        sizes[clip.group] = sizes.get(clip.group, 0) + 1
    if len(sizes) < parts:
        held = "validation" if parts == 2 else "validation and test"
        unit = "speakers" if kind == "clean" else "recordings"
        problem = f"the {kind} folders have too few {unit} ({len(sizes)}) to hold some out for {held}"
        raise SeqattnError(f"{problem}: add more")
    wanted = max(1, int(HELD_OUT * len(clips)))
    names = np.random.default_rng((seed, parts)).permutation(np.array(sorted(sizes), dtype=object)).tolist()
    names.sort(key=lambda name: sizes[name] > wanted)  # stable: the draw, large groups last
    held_out: dict[str, int] = {}
    for part in range(1, parts):
        count = 0
        while count < wanted and len(names) > parts - part:
            if count and sizes[names[0]] > wanted:
                break
            name = names.pop(0)
            held_out[name] = part
            count += sizes[name]
    return [[clip for clip in clips if held_out.get(clip.group, 0) == part] for part in range(parts)]


class Mixtures:
    """Clean clips with noise added anew at every draw.

    clean, noise: waveforms at one rate. snr_range: lowest and highest SNR in dB of the whole clip, drawn uniformly.
    names: of the clean clips, default their numbers. snrs: where given, one of them is drawn instead.
    """

    def __init__(
        self, clean: Waveforms, noise: Waveforms, snr_range: Sequence[float], names: Sequence[str] | None = None,
        snrs: Sequence[float] = (),
    ) -> None:  # fmt: skip
        self.waveforms = (clean, noise)
        self.clean, self.noise = clean, noise
        self.low, self.high = snr_range
        self.snrs = snrs
        self.names = names or [f"{number:05d}" for number in range(len(clean.lengths))]

    def draw(self, number: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Noisy and clean (samples,) of clip `number`; noise, its place and the SNR come from `generator`."""
        clean = self.clean.read(number)
        snr = float(generator.choice(self.snrs) if self.snrs else generator.uniform(self.low, self.high))
        return add_noise(clean, self._draw_noise(len(clean), generator), snr), clean

    def _draw_noise(self, samples: int, generator: np.random.Generator) -> Tensor:
        noise = torch.zeros(samples)
        for _ in range(_ATTEMPTS):  # clips of noise may hold stretches of digital silence
            noise = self._cut(int(generator.integers(len(self.noise.lengths))), samples, generator)
            if noise.any():
                break
        return noise

    def _cut(self, number: int, samples: int, generator: np.random.Generator) -> Tensor:
        length = self.noise.lengths[number]
        if length > samples:
            return self.noise.read(number, int(generator.integers(length - samples + 1)), samples)
        whole = self.noise.read(number).roll(-int(generator.integers(length)))
        return whole.repeat(-(-samples // len(whole)))[:samples]


def add_noise(clean: Tensor, noise: Tensor, snr: float) -> Tensor:
    """Clean plus noise scaled to an SNR in dB over the whole clip; both (samples,). Silence leaves both unscaled."""
    if not (clean.any() and noise.any()):
        return clean + noise
    return require("torchaudio").functional.add_noise(clean, noise, torch.tensor(snr))


def _clips(folders: Sequence[str | Path], kind: str, grouping: Grouping) -> list[Clip]:
    if not folders:
        raise SeqattnError(f"mixing needs {kind} recordings: give at least one folder as {kind}_dirs")
    clips: dict[Path, Clip] = {}
    for folder in folders:
        root = find_folder(folder)
        files = audio_files(root)
        for path, group in zip(files, grouping(root, files), strict=True):
            clips.setdefault(path.resolve(), Clip(path, group))
    return list(clips.values())


def _speakers(root: Path, files: Sequence[Path]) -> list[str]:
    listed = _index(root)
    return [listed.get(path.relative_to(root).as_posix()) or speaker_of(path, root) or str(path) for path in files]


def _recordings(root: Path, files: Sequence[Path]) -> list[str]:
    return [
        str(path.parent if _CHANNEL.fullmatch(path.stem.lower()) else path.with_name(_TAKE.sub(r"\1", path.stem)))
        for path in files
    ]


def _index(root: Path) -> dict[str, str]:
    """File name -> speaker from index.csv; empty where there is none or it has no speakers."""
    path = root / "index.csv"
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise SeqattnError(f"{path} is no readable CSV file ({error}): mend or remove it") from error
    return {row["file"]: row["speaker"] for row in rows if row.get("file") and row.get("speaker")}
