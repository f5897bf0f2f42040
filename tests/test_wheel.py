"""A wheel, installed somewhere else, is complete."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*command: object, cwd: Path, **variables: str) -> str:
    """Run a command outside the checkout, blind to it; returns stdout."""
    foreign = ("PYTHON", "SEQATTN_", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | variables
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pip wheel .` of a copy, so that nothing is left in the checkout; with hatchling installed it needs no index."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("seqattn", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", ".gitignore"):  # hatchling heeds the last
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    run(sys.executable, "-m", "pip", "wheel", ".", "--no-deps", *isolation, "-w", folder / "dist", cwd=source)
    (built,) = (folder / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel and, for the dependencies alone, sees this one's packages."""
    folder = tmp_path_factory.mktemp("elsewhere") / "env"
    venv.create(folder, with_pip=False, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    own = next(folder.glob("lib/python*/site-packages"))
    paths = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (own / "dependencies.pth").write_text("\n".join(paths) + "\n")
    return folder


def test_the_wheel_holds_what_it_should(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert f"seqattn/configs/{path.relative_to(ROOT / 'configs')}" in names
    weights = [path.name for path in (ROOT / "seqattn" / "weights").iterdir()]
    assert any(name.endswith(".safetensors") for name in weights)
    assert {f"seqattn/weights/{name}" for name in weights} <= set(names)
    assert "seqattn/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0].split("-")[0] for name in names} == {"seqattn"}
    assert not any(name.endswith(".pyc") for name in names)


def test_the_installed_wheel_lists_and_trains(installed: Path, tmp_path: Path) -> None:
    python = installed / "bin" / "python"
    place = Path(run(python, "-c", "import seqattn; print(seqattn.__file__)", cwd=tmp_path).strip())
    assert place.is_relative_to(installed)
    assert not place.is_relative_to(ROOT)
    listed = run(installed / "bin" / "seqattn", "list", "configs", cwd=tmp_path).splitlines()
    assert "classification  mptsnet" in listed
    assert "classification  mptsnet-paper" in listed
    code = "from seqattn.models.pretrained import load_pretrained; print(load_pretrained().spectrum.hop)"
    assert run(python, "-c", code, cwd=tmp_path).strip() == "200"
    tiny = ["model.hidden=8", "model.d_model=16", "model.d_token=16", "model.ff=16", "model.k=1", "data.folds=1"]
    sets = [word for key in [*tiny, "trainer.max_epochs=1"] for word in ("--set", key)]
    train = [installed / "bin" / "seqattn", "train", "classification", "--dataset", "BasicMotions"]
    out = run(*train, *sets, cwd=tmp_path, OMP_NUM_THREADS="1")
    assert out.startswith("BasicMotions: test accuracy")
    assert (tmp_path / "runs" / "classification" / "mptsnet-BasicMotions" / "results.json").is_file()
