"""Imports run one way: cli -> experiment -> tasks -> models -> layers -> kernels, and tasks -> data, metrics."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "seqattn"
NETWORKS = {"models", "layers", "kernels"}
# what each part may import besides itself and the modules beside the parts, such as seqattn.errors
BELOW: dict[str, set[str]] = {
    "kernels": set(),
    "layers": {"kernels"},
    "models": {"layers", "kernels"},
    "compat": {"layers", "kernels"},
    "metrics": set(),
    "data": set(),
    "tasks": {*NETWORKS, "data", "metrics"},
    "experiment": {*NETWORKS, "data", "metrics", "tasks"},
    "cli": {*NETWORKS, "data", "metrics", "tasks", "experiment"},
}
LIGHTNING = {"lightning", "pytorch_lightning", "lightning_fabric"}
WITH_LIGHTNING = {"tasks", "experiment", "cli"}


def imported(path: Path, package: Path) -> Iterator[str]:
    """Dotted names of everything a file imports, anywhere in it; `from a import b` is a.b."""
    inside = ("seqattn", *path.relative_to(package).with_suffix("").parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = inside[: -node.level] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def violations(package: Path) -> list[str]:
    """One line for every import that goes the wrong way."""
    parts = {path.parent.relative_to(package).parts[0] for path in package.glob("*/**/*.py")}
    found = [f"{part} is not in BELOW: say there what it may import" for part in sorted(parts - BELOW.keys())]
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package)
        part = place.parts[0] if len(place.parts) > 1 else ""
        if part and part not in BELOW:
            continue
        wrong = [(name, _complaint(path, part, name.split("."), parts)) for name in imported(path, package)]
        found += [f"{place} imports {name}: {complaint}" for name, complaint in wrong if complaint]
    return found


def _complaint(path: Path, part: str, name: list[str], parts: set[str]) -> str:
    top, below = name[0], name[1] if len(name) > 1 else ""
    if top == "seqattn" and below in parts and below != part and below not in BELOW.get(part, set()):
        return f"{part or 'a module beside the parts'} may not import {below}"
    if top == "typer" and part != "cli":
        return "only cli imports Typer"
    if top in LIGHTNING and part not in WITH_LIGHTNING and not (part == "data" and _is_data_module(path)):
        return "nothing below tasks imports Lightning, data modules excepted"
    return ""


def _is_data_module(path: Path) -> bool:
    classes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
    return any(ast.unparse(base).endswith("LightningDataModule") for node in classes for base in node.bases)


def test_imports_run_one_way() -> None:
    assert len(list(PACKAGE.rglob("*.py"))) > 20
    assert violations(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("kernels/a.py", "from seqattn.layers import mamba"),
        ("kernels/scan/cpu.py", "from ...layers.mamba import Mamba"),
        ("layers/a.py", "import seqattn.models.mptsnet"),
        ("layers/a.py", "import lightning"),
        ("models/a.py", "def f():\n    from lightning.pytorch import Trainer"),
        ("models/a.py", "from seqattn import tasks"),
        ("data/a.py", "from seqattn.tasks.a import x"),
        ("data/a.py", "from lightning import LightningDataModule"),
        ("tasks/a.py", "from seqattn.experiment.config import Config"),
        ("tasks/a.py", "from ..cli import app"),
        ("experiment/a.py", "import typer"),
        ("errors.py", "from seqattn.kernels import backend"),
        ("other/a.py", "import torch"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, file: str, text: str) -> None:
    for part in BELOW:
        (tmp_path / part).mkdir()
        (tmp_path / part / "__init__.py").touch()
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    assert len(violations(tmp_path)) == 1


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("kernels/scan/cpu.py", "from .reference import scan\nfrom ..backend import resolve\nimport seqattn.errors"),
        ("models/a.py", "from seqattn.layers.mamba import Mamba\nimport torch"),
        ("data/a.py", "from lightning import LightningDataModule\nclass Data(LightningDataModule): ..."),
        ("tasks/a.py", "import lightning\nfrom seqattn.data import uea"),
        ("cli/a.py", "import typer\nfrom seqattn.experiment import config"),
    ],
)
def test_a_right_import_is_not(tmp_path: Path, file: str, text: str) -> None:
    for part in BELOW:
        (tmp_path / part).mkdir()
        (tmp_path / part / "__init__.py").touch()
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    assert violations(tmp_path) == []
