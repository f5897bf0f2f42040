"""Fixtures of the tests that train through the command line: tiny data sets, a tiny model, the program in-process."""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

CLASSES = ("rest", "walk", "run-fast")
TINY = (
    *("model.hidden=8", "model.d_model=16", "model.d_token=16", "model.ff=16", "model.k=2"),
    *("optimizer.lr=0.01", "optimizer.warmup_epochs=0", "data.batch_size=8", "trainer.max_epochs=2"),
)


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code and its output."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one sentence of a user's mistake; anything else fails the test."""
        assert self.code == 2, self
        assert self.err.startswith("error: "), self
        assert self.err.count("\n") == 1, self
        return self.err


Command = Callable[..., Done]


@dataclass(frozen=True)
class Toy:
    """Writes data sets of three easily told classes, two channels, and up to 16 steps."""

    folder: Path
    classes: tuple[str, ...] = CLASSES

    def lines(self, cases: int, seed: int, *, unequal: bool = False, channels: int = 2, steps: int = 16) -> list[str]:
        """One line a case; with `unequal`, 9 to 16 steps and one missing value in every third case."""
        generator = np.random.default_rng(seed)
        lines = []
        for case in range(cases):
            kind = case % len(self.classes)
            length = int(generator.integers(9, steps + 1)) if unequal else steps
            time = np.arange(length)[None] + generator.integers(0, 8)
            wave = np.sin(2 * np.pi * time / (8, 4, 2.7)[kind]) + 0.9 * generator.standard_normal((channels, length))
            values = [[f"{value:.4f}" for value in channel] for channel in wave + np.arange(channels)[:, None]]
            if unequal and case % 3 == 0:
                values[0][4] = "?"
            lines.append(":".join([*(",".join(channel) for channel in values), self.classes[kind]]))
        return lines

    def write(self, name: str, train: Sequence[str] | None, test: Sequence[str] | None, equal: bool = True) -> Path:
        """Write NAME_TRAIN.ts and NAME_TEST.ts, where None leaves a file out; returns the folder."""
        for split, lines in (("TRAIN", train), ("TEST", test)):
            if lines is not None:
                self.write_file(self.folder / f"{name}_{split}.ts", lines, equal)
        return self.folder

    def write_file(self, path: Path, lines: Sequence[str], equal: bool = True) -> Path:
        """Write one file; the label names are on line 3, the first case is on line 5."""
        header = ["@problemName Toy", f"@equalLength {equal}", f"@classLabel true {' '.join(self.classes)}", "@data"]
        path.write_text("\n".join([*header, *lines]) + "\n")
        return path


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """The data sets Equal and Unequal (36 cases of TRAIN, 25 of TEST) and Small (15 and 25), fewest of rest in TEST."""
    toy = Toy(tmp_path_factory.mktemp("toy"))

    def test_lines(seed: int, unequal: bool = False) -> list[str]:
        return [line for case, line in enumerate(toy.lines(33, seed, unequal=unequal)) if case % 3 or case < 9]

    toy.write("Equal", toy.lines(36, 1), test_lines(2))
    toy.write("Unequal", toy.lines(36, 3, unequal=True), test_lines(4, unequal=True), equal=False)
    toy.write("Small", toy.lines(15, 5), test_lines(6))
    return toy


@pytest.fixture
def new_toy(tmp_path: Path) -> Toy:
    """An empty folder for a test's own data sets."""
    (tmp_path / "toy").mkdir()
    return Toy(tmp_path / "toy")


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables for commands: one thread, a cache of their own, no data but the test's."""
    import matplotlib

    foreign = ("SEQATTN_", "RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_", "PYTHONPATH", "OMP_", "PL_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    fonts = matplotlib.get_cachedir()
    nowhere = tmp_path_factory.mktemp("nothing")
    return kept | {
        "OMP_NUM_THREADS": "1",
        "SEQATTN_DATA": str(nowhere),
        "XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache")),
        "MPLCONFIGDIR": fonts,
    }


@pytest.fixture(scope="session")
def command(environment: dict[str, str]) -> Command:
    """Run `seqattn ARGUMENTS` in this process, as the console script would."""
    import torch

    from seqattn.cli import main

    def run(*arguments: object) -> Done:
        out, err, code, threads = io.StringIO(), io.StringIO(), 0, torch.get_num_threads()
        with pytest.MonkeyPatch.context() as patch:
            for name in set(os.environ) - set(environment):
                patch.delenv(name)
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["seqattn", *map(str, arguments)])
            torch.set_num_threads(1)
            try:
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                    main()
            except SystemExit as stop:
                code = int(stop.code or 0)
            finally:
                torch.set_num_threads(threads)
                os.environ.pop("SEQATTN_RUN_DIRECTORY", None)
        return Done(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def train(command: Command, toy: Toy) -> Command:
    """Run `seqattn train classification` of a tiny network on a data set of `toy`: train(name, out, options ...)."""

    def run(dataset: str, out: Path, *options: object, data_dir: Path = toy.folder) -> Done:
        return command("train", "classification", *arguments_for(dataset, out, data_dir), *options)

    return run


def arguments_for(dataset: str, out: Path, data_dir: Path) -> list[str]:
    sets = [word for key in TINY for word in ("--set", key)]
    return ["--dataset", dataset, "--data-dir", str(data_dir), "--out", str(out), *sets]


@pytest.fixture(scope="session")
def tiny_arguments(toy: Toy) -> Callable[..., list[str]]:
    """The options behind `train`, for commands in processes of their own: tiny_arguments(name, out)."""
    return lambda dataset, out, data_dir=toy.folder: arguments_for(dataset, out, data_dir)


@pytest.fixture(scope="session")
def start(environment: dict[str, str]) -> Callable[..., subprocess.Popen[str]]:
    """Start the program in a process of its own; `prelude` is Python that runs first."""

    def run(*arguments: object, prelude: str = "", cwd: Path | None = None) -> subprocess.Popen[str]:
        code = f"import sys\n{prelude}\nfrom seqattn.cli import main\nsys.argv[0] = 'seqattn'\nmain()"
        program = [sys.executable, "-c", code, *map(str, arguments)]
        pipe = subprocess.PIPE
        return subprocess.Popen(program, env=environment, cwd=cwd, stdout=pipe, stderr=pipe, text=True)

    return run


@pytest.fixture(scope="session")
def unequal_run(train: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on Unequal, split for validation. Copy it before changing it."""
    run = tmp_path_factory.mktemp("runs") / "unequal"
    done = train("Unequal", run, "--set", "data.folds=1", "--set", "trainer.max_epochs=6")
    assert done.code == 0, done
    return run


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, where a relative path of a command leads."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
