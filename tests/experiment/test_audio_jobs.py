"""Files, folders and globs, and where their results go."""

from pathlib import Path

import pytest

from seqattn.errors import SeqattnError
from seqattn.experiment.audio_jobs import check_absent, collect_jobs, left_out


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """in/{a.wav, b.FLAC, notes.txt, sub/a.wav, sub/deep/c.mp3, .hidden.wav, .cache/d.wav} in the current folder."""
    monkeypatch.chdir(tmp_path)
    names = ["a.wav", "b.FLAC", "notes.txt", "sub/a.wav", "sub/deep/c.mp3", ".hidden.wav", ".cache/d.wav"]
    for name in names:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def found(*inputs: str, output: str = "out") -> dict[str, str]:
    return {str(job.target): str(job.source) for job in collect_jobs(inputs, Path(output))}


ALL = {f"out/{name}": f"in/{name}" for name in ("a.wav", "b.FLAC", "sub/a.wav", "sub/deep/c.mp3")}


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (["in/a.wav"], {"out/a.wav": "in/a.wav"}),
        (["in/sub/a.wav", "in/b.FLAC"], {"out/a.wav": "in/sub/a.wav", "out/b.FLAC": "in/b.FLAC"}),
        (["in/notes.txt"], {"out/notes.txt": "in/notes.txt"}),  # named by the user: reading it will tell
        (["in"], ALL),
        (["in/"], ALL),
        (["in", "in"], ALL),
        (["in", "in/a.wav"], ALL),
        (["in/*.wav"], {"out/a.wav": "in/a.wav"}),
        (["in/*/a.wav"], {"out/sub/a.wav": "in/sub/a.wav"}),
        (["in/*"], ALL),
        (["in/**/*.wav"], {"out/a.wav": "in/a.wav", "out/sub/a.wav": "in/sub/a.wav"}),
        (["in/s*b"], {"out/sub/a.wav": "in/sub/a.wav", "out/sub/deep/c.mp3": "in/sub/deep/c.mp3"}),
    ],
)
def test_inputs_become_jobs(tree: Path, inputs: list[str], expected: dict[str, str]) -> None:
    assert found(*inputs) == expected
    assert list(found(*inputs)) == sorted(expected)


def test_a_name_with_wildcard_characters_is_a_name_first(tree: Path) -> None:
    (tree / "take[1].wav").touch()
    assert found("take[1].wav") == {"out/take[1].wav": "take[1].wav"}


def test_earlier_results_inside_the_input_folder_are_left_out(tree: Path) -> None:
    assert found("in/sub", output="in/sub/deep/out") == {
        "in/sub/deep/out/a.wav": "in/sub/a.wav",
        "in/sub/deep/out/deep/c.mp3": "in/sub/deep/c.mp3",
    }
    (tree / "in/sub/deep/out").mkdir()
    (tree / "in/sub/deep/out/a.wav").touch()
    assert len(found("in/sub", output="in/sub/deep/out")) == 2


@pytest.mark.parametrize(
    ("inputs", "output", "words"),
    [
        (["absent.wav"], "out", r"there is no file or folder absent\.wav"),
        (["in/*.ogg"], "out", r"no audio file \(\.wav, .*\) matches in/\*\.ogg"),
        (["empty"], "out", r"empty holds no audio files \(\.wav"),
        (["in/a.wav", "in/sub/a.wav"], "out", r"in/a\.wav and in/sub/a\.wav would both become out/a\.wav"),
        (["in/a.wav"], "in", r"in/a\.wav would be written over the input"),
        (["in"], "in", "would be written over the input"),
        (["in"], "in/../in", "would be written over the input"),
        (["in/a.wav"], "clean.wav", r"-o names the folder for the results, clean\.wav is named as an audio file"),
        (["in/a.wav"], "in/notes.txt", r"in/notes\.txt is not a folder: pass a folder"),
        (["in/a.wav"], "/dev/null", r"/dev/null is not a folder: pass a folder"),
    ],
)
def test_inputs_that_are_refused(tree: Path, inputs: list[str], output: str, words: str) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(SeqattnError, match=words):
        collect_jobs(inputs, Path(output))


def test_files_of_other_kinds_in_folders_are_counted(tree: Path) -> None:
    assert left_out(["in", "in/a.wav"]) == ""
    for name in ("a.m4a", "sub/b.M4A", "sub/c.wma"):
        (tree / "in" / name).touch()
    assert left_out(["in/sub"]).startswith("2 files are left out of in/sub (.m4a, .wma): convert to WAV or FLAC")
    assert left_out(["in", "in/a.wav"]).startswith("3 files are left out of in (.m4a, .wma)")
    assert found("in") == ALL


def test_every_kind_that_can_be_read_and_written_is_found_in_folders(tree: Path) -> None:
    for suffix in ("aiff", "AIF", "opus", "oga", "caf", "w64", "rf64"):
        (tree / "kinds" / f"a.{suffix}").parent.mkdir(exist_ok=True)
        (tree / "kinds" / f"a.{suffix}").touch()
    assert len(found("kinds")) == 7


def test_results_that_exist_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    check_absent(paths)
    paths[1].touch()
    with pytest.raises(SeqattnError, match=r"b exists already: pass --overwrite"):
        check_absent(paths)
    paths[2].symlink_to(tmp_path / "nowhere")
    with pytest.raises(SeqattnError, match=r"b and 1 more exist already"):
        check_absent(paths)
