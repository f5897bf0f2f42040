"""docs/health-records.md: its tables are read, and its Python and commands run as they stand, in order."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from seqattn.data.clinical.code_map import read_code_map
from seqattn.data.clinical.long_tables import read_long_tables

PAGE = Path(__file__).resolve().parents[2] / "docs" / "health-records.md"
BLOCK = re.compile(r"(?:^`([\w./-]+)`\n\n)?^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
TINY = ["model.embed_dim=8", "model.embed_time=8", "model.num_heads=2", "model.time_heads=2", "model.num_layers=1"]


@pytest.fixture
def blocks(in_tmp: Path) -> list[tuple[str, str, str]]:
    """File, language and content of every block; those with a file's name are written."""
    found = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    for name, _, content in found:
        if name:
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text(content)
    return found


def test_every_block_of_data_has_a_file(blocks) -> None:
    assert {kind for _, kind, _ in blocks} == {"python", "bash", "csv", "json", "yaml"}
    assert all(name for name, kind, _ in blocks if kind in ("csv", "json", "yaml"))


def test_the_tables_of_the_page_are_read(blocks) -> None:
    stays = read_long_tables("example")
    assert stays.ids.tolist() == ["p1", "p2", "p3"]
    assert stays.subjects.tolist() == ["a", "b", "c"]
    assert stays.splits.tolist() == ["train", "valid", "test"]
    assert stays.label_names == ("death", "sepsis")
    assert [variable.name for variable in stays.static_variables] == ["age", "unit=MICU", "unit=SICU"]
    assert stays.notes.times.tolist() == [-2, 9.5, 4]
    rhythm = stays.stay(2)
    assert (rhythm.times.tolist(), rhythm.values[rhythm.mask].tolist()) == ([7], [0])
    assert {variable.name: variable.scale for variable in stays.variables}["Lactate"] == "log"
    dated = read_long_tables("dated", labelled=False)
    assert dated.times.tolist() == [0.5, 6.25, 7]
    assert read_code_map("code_map.yaml").variables[0].name == "Heart rate"


@pytest.mark.timeout(900)
def test_the_python_and_the_commands_of_the_page_run(blocks, command, few_draws) -> None:
    pytest.importorskip("pyarrow")
    ran = []
    for _, kind, content in blocks:
        if kind == "python":
            exec(compile(content, str(PAGE), "exec"), {})
        elif kind == "bash":
            for line in content.splitlines():
                program, *words = shlex.split(line, comments=True)
                assert program == "seqattn", line
                done = command(*words, *short(words))
                assert done.code == 0, (line, done)
                ran.append(words)
    assert {tuple(words[:2]) for words in ran} >= {
        ("train", "ehr"), ("eval", "ehr"), ("predict", "ehr"), ("ehr-codes", "meds"), ("list", "datasets"),
    }  # fmt: skip
    pictures = sorted(path.name for path in Path("risks-explained").iterdir())
    assert pictures == ["0001-s200.png", "0002-s201.png", "0003-s202.png"]
    assert Path("without.csv").read_text() != Path("vectors.csv").read_text()
    options = yaml.safe_load(Path("runs/meds/config.yaml").read_text())["data"]["options"]
    assert options == {"code_map": str(Path("code_map.yaml").absolute())}


def short(words: list[str]) -> list[str]:
    """Options that make a training command take a second."""
    stays = ["data.options={stays: 60}"] if "synthetic" in words else []
    keys = [*TINY, "trainer.max_epochs=1", *stays] if words[0] == "train" else []
    return [word for key in keys for word in ("--set", key)]
