"""Fixtures of the tests of health records: small long tables, and tiny networks trained on them through the program."""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl

TINY_EHR = (
    *("model.embed_dim=8", "model.embed_time=8", "model.num_heads=2", "model.time_heads=2", "model.num_layers=1"),
    *("optimizer.lr=0.02", "optimizer.warmup_epochs=0", "data.batch_size=16", "trainer.max_epochs=2"),
)
LAB = "Lactate, blood"
Rows = dict[str, list[dict[str, object]]]


@dataclass(frozen=True)
class Tables:
    """Writes long tables of stays of 24 to 48 hours: high rates and bad notes make `death` likely."""

    folder: Path

    def rows(self, stays: int, seed: int = 0, *, window: float = 48.0, first: int = 0) -> Rows:
        """The rows of events, notes, labels (two of them) and static; stay 0 has no events, stay 1 no notes."""
        generator = np.random.default_rng(seed)
        rows: Rows = {"events": [], "notes": [], "labels": [], "static": []}
        for number in range(first, first + stays):
            identity, severity = f"s{number:03d}", generator.normal(size=2)
            label = {name: int(severity[part] > 0.3) for part, name in enumerate(("death", "sepsis"))}
            rows["labels"].append({"id": identity, **label})
            rows["static"].append({"id": identity, "Age": int(generator.integers(20, 90)), "unit": "MICU"})
            for variable, mean, part in (("HR", 85, 0), ("Temp", 37, 1), (LAB, 2, 0)):
                for hour in np.sort(generator.uniform(0, window, int(generator.integers(2, 6)))):
                    value = mean * (1 + 0.1 * severity[part] + 0.03 * generator.normal())
                    rows["events"].append(
                        {"id": identity, "time": round(float(hour), 3), "variable": variable, "value": round(value, 3)}
                    )
            word = "worse" if severity[1] > 0 else "better"
            for hour in (3.5, 9.25):
                text = f"Patient is {word} today, {generator.choice(['pale', 'awake', 'asleep'])}"
                rows["notes"].append({"id": identity, "time": hour, "text": text})
        rows["events"] = [row for row in rows["events"] if row["id"] != "s000"]
        rows["events"].sort(key=lambda row: (str(row["id"]), float(str(row["time"]))))
        rows["notes"] = [row for row in rows["notes"] if row["id"] != "s001"]
        return rows

    def write(self, name: str, rows: Mapping[str, Sequence[Mapping[str, object]]]) -> Path:
        """Write the tables into a folder of their own; returns it."""
        folder = self.folder / name
        folder.mkdir(parents=True)
        for table, entries in rows.items():
            with (folder / f"{table}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, list(entries[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(entries)
        return folder


@pytest.fixture
def new_tables(tmp_path: Path) -> Tables:
    """A place for a test's own tables."""
    return Tables(tmp_path / "tables")


@pytest.fixture(scope="session")
def few_draws() -> Iterator[None]:
    """Short bootstraps, for the tests that do not look at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seqattn.experiment.ehr_evaluation.DRAWS_OF_ONE", 20)
        patch.setattr("seqattn.experiment.ehr_evaluation.DRAWS_OF_EACH", 5)
        yield


@pytest.fixture(scope="session")
def train_ehr(command, few_draws) -> Callable[..., object]:
    """Run `seqattn train ehr` of a tiny network: train_ehr(data set, out, options ...)."""

    def run(dataset: object, out: Path, *options: object) -> object:
        with threadpoolctl.threadpool_limits(1):  # the fit of TF-IDF rounds by the number of threads
            return command("train", "ehr", "--dataset", dataset, "--out", out, *sets_ehr(), *options)

    return run


def sets_ehr(*options: str) -> list[str]:
    """TINY_EHR and further `key=value` as options of the program."""
    return [word for option in (*TINY_EHR, *options) for word in ("--set", option)]


@pytest.fixture(scope="session")
def ehr_sets() -> Callable[..., list[str]]:
    return sets_ehr


@pytest.fixture(scope="session")
def stay_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long tables of 60 stays. Copy them before changing them."""
    tables = Tables(tmp_path_factory.mktemp("stays"))
    return tables.write("data", tables.rows(60))


@pytest.fixture(scope="session")
def series_run(train_ehr, stay_tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the series of `stay_tables`, label death and sepsis. Copy it before changing it."""
    run = tmp_path_factory.mktemp("runs") / "series"
    done = train_ehr(stay_tables, run)
    assert done.code == 0, done
    return run


@pytest.fixture(scope="session")
def fused_run(train_ehr, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on generated patients with notes. Copy it before changing it."""
    run = tmp_path_factory.mktemp("runs") / "fused"
    done = train_ehr("synthetic", run, "--config", "interleaved", *fused_options())
    assert done.code == 0, done
    return run


def fused_options() -> list[str]:
    options = ("data.options={stays: 80}", "data.note_dim=8", "trainer.max_epochs=4")
    return [word for option in options for word in ("--set", option)]


@pytest.fixture(scope="session")
def ehr_fused_options() -> list[str]:
    """What `fused_run` was trained with besides."""
    return ["--dataset", "synthetic", "--config", "interleaved", *sets_ehr(), *fused_options()]
