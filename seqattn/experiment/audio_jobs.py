"""Which audio files a command reads, and where their results go."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from seqattn.data.audio import AUDIO_SUFFIXES
from seqattn.errors import SeqattnError

# kinds of audio that libsndfile cannot read or cannot write again
OTHER_SUFFIXES = (".aac", ".ac3", ".amr", ".au", ".m4a", ".mka", ".mp2", ".mp4", ".ra", ".webm", ".wma", ".wv")


class Job(NamedTuple):
    """An audio file, and the file to write for it."""

    source: Path
    target: Path


def collect_jobs(inputs: Sequence[str], output: Path) -> list[Job]:
    """Resolve files, folders and globs into jobs, sorted by target.

    A folder stands for all audio files below it, in the same sub-folders below `output`; a glob for the audio files
    and folders that match, placed from its first wildcard on; a file goes straight into `output`. Hidden files in
    folders, and files in `output` where that lies in an input folder, are left out.

    Raises:
        SeqattnError: an input that does not exist or holds no audio, two inputs with one target, a target that is an
            input, or an output that is no folder.
    """
    if not output.is_dir() and (os.path.lexists(output) or output.suffix.lower() in AUDIO_SUFFIXES):
        problem = "is not a folder" if os.path.lexists(output) else "is named as an audio file"
        raise SeqattnError(f"-o names the folder for the results, {output} {problem}: pass a folder")
    jobs: dict[Path, Job] = {}
    for given in inputs:
        for source, place in _expand(given, output):
            target = output / place
            other = jobs.setdefault(target, Job(source, target)).source
            if not _same(other, source):
                raise SeqattnError(f"{other} and {source} would both become {target}: pass their common folder instead")
    sources = {job.source.resolve() for job in jobs.values()}
    for job in jobs.values():
        if job.target.resolve() in sources:
            raise SeqattnError(f"{job.target} would be written over the input: choose another folder with -o")
    return [jobs[target] for target in sorted(jobs)]


def left_out(inputs: Sequence[str]) -> str:
    """Say in a sentence how many audio files of other kinds lie below the folders among the inputs; "" for none."""
    folders = [Path(given) for given in inputs if Path(given).is_dir()]
    found = [path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in OTHER_SUFFIXES]
    if not found:
        return ""
    kinds = ", ".join(sorted({path.suffix.lower() for path in found}))
    files = "1 file is" if len(found) == 1 else f"{len(found)} files are"
    return f"{files} left out of {', '.join(map(str, folders))} ({kinds}): convert to WAV or FLAC what is audio"


def check_absent(targets: Sequence[Path]) -> None:
    """Refuse to overwrite.

    Raises:
        SeqattnError: naming the first target that exists.
    """
    present = [target for target in targets if os.path.lexists(target)]
    if present:
        more = f" and {len(present) - 1} more exist" if len(present) > 1 else " exists"
        raise SeqattnError(f"{present[0]}{more} already: pass --overwrite, or another folder with -o")


def _expand(given: str, output: Path) -> Iterator[tuple[Path, Path]]:
    """Every audio file that one input stands for, with its place below the output folder."""
    path = Path(given)
    if path.is_dir():
        found = list(_below(path, output))
        if not found:
            raise SeqattnError(f"{path} holds no audio files ({', '.join(AUDIO_SUFFIXES)}): pass another folder")
        yield from ((file, file.relative_to(path)) for file in found)
    elif path.exists():
        yield path, Path(path.name)
    elif glob.has_magic(given):
        yield from _matches(path, output)
    else:
        raise SeqattnError(f"there is no file or folder {path}: check the name")


def _matches(pattern: Path, output: Path) -> Iterator[tuple[Path, Path]]:
    wild = next(number for number, part in enumerate(pattern.parts) if glob.has_magic(part))
    base = Path(*pattern.parts[:wild])
    found = False
    for name in sorted(glob.glob(str(pattern), recursive=True)):
        path = Path(name)
        for file in _below(path, output) if path.is_dir() else [path] if _is_audio(path) else []:
            found = True
            yield file, file.relative_to(base)
    if not found:
        raise SeqattnError(f"no audio file ({', '.join(AUDIO_SUFFIXES)}) matches {pattern}: check the pattern")


def _below(folder: Path, output: Path) -> Iterator[Path]:
    """The audio files below a folder, without hidden ones and those of an output folder inside it."""
    outside = output.resolve()
    inside_folder = folder.resolve() in outside.parents
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        earlier = inside_folder and outside in path.resolve().parents
        if _is_audio(path) and not hidden and not earlier:
            yield path


def _is_audio(path: Path) -> bool:
    return path.suffix.lower() in AUDIO_SUFFIXES and path.is_file()


def _same(first: Path, second: Path) -> bool:
    return first.resolve() == second.resolve()
