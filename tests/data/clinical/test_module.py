import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from seqattn.data.clinical.datasets import ClinicalDataset
from seqattn.data.clinical.in_memory import from_pypots, from_samples
from seqattn.data.clinical.module import ClinicalDataModule, prediction_dataset
from seqattn.data.clinical.preparation import apply_schema, fit_schema, prepare
from seqattn.data.clinical.records import Stays
from seqattn.data.clinical.schema import Schema
from seqattn.data.clinical.sources import read_source
from seqattn.errors import SeqattnError
from seqattn.models.interleaved_ehr import InterleavedEHR

REAL = Path(os.environ.get("SEQATTN_DATA") or "../shared/data").resolve() / "ehr" / "physionet2012"
INPUTS = ("values", "mask", "times", "regular", "note_vectors", "note_times", "note_mask", "lengths")


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def synthetic() -> ClinicalDataModule:
    data = ClinicalDataModule("synthetic", options={"stays": 80}, notes="tfidf", note_dim=8, batch_size=16)
    data.setup()
    return data


def write_tables(folder: Path, stays: int = 40, *, splits: bool = True, extra: str = "") -> Path:
    """Stays s0, s1, ... of two rows each; every third dies; three in four train."""
    folder.mkdir(exist_ok=True)
    events = ["id,time,variable,value"]
    labels = ["id,death" + ",split" * splits]
    for number in range(stays):
        events += [f"s{number},1,HR,{60 + number}", f"s{number},{2 + number % 40},BP,{100 - number}"]
        split = ("train", "train", "train", ("valid", "test")[number // 4 % 2])[number % 4]
        labels.append(f"s{number},{int(number % 3 == 0)}" + f",{split}" * splits)
    (folder / "events.csv").write_text("\n".join(events) + "\n" + extra)
    (folder / "labels.csv").write_text("\n".join(labels) + "\n")
    return folder


def module(folder: Path, **options) -> ClinicalDataModule:
    return fitted(str(folder), **options)


def fitted(dataset: str | Stays, **options) -> ClinicalDataModule:
    data = ClinicalDataModule(dataset, **options)
    data.setup()
    return data


def test_batches_are_what_the_model_takes(synthetic: ClinicalDataModule) -> None:
    batch = next(iter(synthetic.train_dataloader()))
    size, length, channels = batch["values"].shape
    assert (size, channels, length) == (16, 17, int(batch["lengths"].max()))
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        "values": (16, length, 17), "mask": (16, length, 17), "times": (16, length), "regular": (16, 48, 34),
        "lengths": (16,), "label": (16,), "index": (16,), "note_vectors": (16, 5, 8), "note_times": (16, 5),
        "note_mask": (16, 5),
    }  # fmt: skip
    kinds = {name: tensor.dtype for name, tensor in batch.items()}
    assert {kinds[name] for name in ("values", "times", "regular", "note_vectors", "note_times")} == {torch.float32}
    assert {kinds[name] for name in ("mask", "note_mask")} == {torch.bool}
    assert {kinds[name] for name in ("label", "lengths", "index")} == {torch.int64}
    model = InterleavedEHR(
        synthetic.num_channels, synthetic.num_steps, synthetic.num_labels, embed_dim=16, embed_time=8, num_heads=2,
        num_layers=1, time_heads=2, note_width=synthetic.note_width or 0,
    )  # fmt: skip
    logits = model(**{name: batch[name] for name in INPUTS})
    assert logits.shape == (16, 2)
    assert logits.isfinite().all()


def test_padding_is_empty_and_times_ascend(synthetic: ClinicalDataModule) -> None:
    for batch in synthetic.train_dataloader():
        past = torch.arange(batch["values"].shape[1]) >= batch["lengths"][:, None]
        assert not batch["mask"][past].any()
        assert not batch["times"][past].any()
        assert not batch["values"][~batch["mask"]].any()
        assert ((batch["times"].diff(dim=1) > 0) | past[:, 1:]).all()
        assert (batch["times"] >= 0).all()
        assert (batch["times"] <= 1).all()
        assert not batch["note_vectors"][~batch["note_mask"]].any()


def test_training_values_are_standardised_with_training_statistics_alone(synthetic: ClinicalDataModule) -> None:
    batch = ClinicalDataset(synthetic.stays, steps=48, indices=synthetic.train_indices).__getitems__(
        list(range(len(synthetic.train_indices)))
    )
    for channel in range(17):
        values = batch["values"][..., channel][batch["mask"][..., channel]]
        assert abs(float(values.mean())) < 1e-4 or len(values.unique()) == 1
        assert abs(float(values.std()) - 1) < 1e-3 or len(values.unique()) == 1


def test_statistics_do_not_see_the_test_split(tmp_path: Path) -> None:
    before = module(write_tables(tmp_path / "a")).schema
    folder = write_tables(tmp_path / "b")
    events = re.sub(r"(?m)^(s7|s15|s23|s31|s39),(.*),.*$", r"\1,\2,1e6", (folder / "events.csv").read_text())
    (folder / "events.csv").write_text(events)
    assert (folder / "events.csv").read_text() != (tmp_path / "a" / "events.csv").read_text()
    assert module(folder).schema == before


def test_splits_of_the_source_are_kept(tmp_path: Path) -> None:
    data = module(write_tables(tmp_path))
    parts = (data.train_indices, data.val_indices, data.test_indices)
    assert [len(part) for part in parts] == [30, 5, 5]
    assert data.stays.splits[data.test_indices].tolist() == ["test"] * 5


def test_a_source_without_splits_is_split_by_seed(tmp_path: Path) -> None:
    folder = write_tables(tmp_path, splits=False)
    first, again, other = module(folder), module(folder), module(folder, seed=1)
    assert [len(part) for part in (first.train_indices, first.val_indices, first.test_indices)] == [32, 4, 4]
    np.testing.assert_array_equal(first.test_indices, again.test_indices)
    assert first.test_indices.tolist() != other.test_indices.tolist()


def test_folds_part_training_and_validation_by_subject(tmp_path: Path) -> None:
    folder = write_tables(tmp_path)
    held = [module(folder, folds=5, fold=fold).val_indices for fold in range(5)]
    known = np.sort(np.concatenate(held))
    np.testing.assert_array_equal(known, np.flatnonzero(module(folder).stays.splits != "test"))
    assert [len(part) for part in held] == [7] * 5


def test_validation_is_held_out_where_the_source_has_none(tmp_path: Path) -> None:
    folder = write_tables(tmp_path)
    text = (folder / "labels.csv").read_text().replace("valid", "train")
    (folder / "labels.csv").write_text(text)
    data = module(folder, validation_fraction=0.2)
    assert (len(data.train_indices), len(data.val_indices)) == (28, 7)


def test_a_subject_in_two_splits_is_an_error(tmp_path: Path) -> None:
    folder = write_tables(tmp_path)
    (folder / "static.csv").write_text("id,subject\n" + "".join(f"s{n},p{n // 8}\n" for n in range(40)))
    with pytest.raises(SeqattnError, match="subject p0 has stays in train and in"):
        module(folder)


def test_order_depends_on_seed_and_epoch_alone(tmp_path: Path) -> None:
    folder = write_tables(tmp_path)
    order = [
        torch.cat([batch["index"] for batch in module(folder, seed=seed).train_dataloader()]) for seed in (0, 0, 1)
    ]
    assert torch.equal(order[0], order[1])
    assert not torch.equal(order[0], order[2])
    assert torch.equal(order[0].sort().values, order[2].sort().values)


def test_every_stay_is_evaluated_once_and_padding_changes_nothing(tmp_path: Path) -> None:
    data = module(write_tables(tmp_path), eval_batch_size=3)
    batches = list(data.test_dataloader())
    assert torch.cat([batch["index"] for batch in batches]).tolist() == data.test_indices.tolist()
    alone = ClinicalDataset(data.stays, steps=48, indices=data.test_indices)[0]
    length = int(alone["lengths"])
    torch.testing.assert_close(batches[0]["values"][0, :length], alone["values"][:length])
    torch.testing.assert_close(batches[0]["regular"][0], alone["regular"])


def test_a_stay_without_events_stays_with_one_empty_row() -> None:
    samples = [{"id": str(n), "times": [n], "values": [[float(n)]], "label": {"death": n % 2}} for n in range(1, 5)] + [
        {"id": "none", "times": [], "values": np.empty((0, 1)), "label": {"death": 1}}
    ]
    stays = prepare(from_samples(samples, ["HR"], window=8.0))
    assert stays.counts == {"stays without events kept": 1}
    dataset = ClinicalDataset(apply_schema(stays, fit_schema(stays, np.arange(5), 8)), steps=8)
    batch = dataset.__getitems__([4, 0])
    assert batch["lengths"].tolist() == [1, 1]
    assert not batch["mask"][0].any()
    assert not batch["regular"][0].any()


def test_labels_of_several_tasks_and_of_none() -> None:
    def labels(*entries: dict) -> torch.Tensor:
        samples = [{"id": str(n), "times": [1], "values": [[1.0]], "label": e} for n, e in enumerate(entries)]
        stays = from_samples(samples, ["HR"], window=8.0)
        return ClinicalDataset(stays, steps=8).__getitems__(list(range(len(entries))))["label"]

    assert labels({"a": 1}, {"a": 0}, {}).tolist() == [1, 0, -1]
    assert labels({}, {}).tolist() == [-1, -1]
    several = labels({"a": 1, "b": 0}, {"a": 0})
    assert several.dtype == torch.float32
    assert several[0].tolist() == [1, 0]
    assert several[1].isnan().tolist() == [False, True]


def test_what_was_cut_is_counted_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema = Schema.from_json(
        '{"version": 1, "window": 48, "steps": 48, "labels": [], "variables": [{"name": "HR", "low": 0, "high": 80}]}'
    )
    folder = write_tables(tmp_path, extra="".join(f"s0,{hour / 100},HR,70\n" for hour in range(500, 1500)))
    (folder / "schema.json").write_text(schema.to_json())
    module(folder, max_rows=100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == [
        "train: 30 stays, 33.3 % positive", "valid: 5 stays, 40.0 % positive", "test: 5 stays, 40.0 % positive",
    ]  # fmt: skip
    assert "1 stays cut to their latest 100 times" in lines
    assert "902 events before the latest 100 times left out" in lines
    assert "19 values clipped to their variable's range (most in HR)" in lines


def test_prediction_applies_the_runs_schema(synthetic: ClinicalDataModule) -> None:
    options = {"stays": 80}
    dataset = prediction_dataset(
        "synthetic", synthetic.schema, options=options, notes="tfidf", encoder=synthetic.note_encoder
    )
    trained = {name: number for number, name in enumerate(synthetic.stays.ids.tolist())}
    assert 0 < len(dataset) < 80
    for position, name in enumerate(dataset.stays.ids.tolist()):
        ours = dataset[position]
        theirs = ClinicalDataset(synthetic.stays, steps=48)[trained[name]]
        for key in INPUTS:
            torch.testing.assert_close(ours[key], theirs[key])
        assert ours["label"] == -1


def test_a_stays_static_texts_do_not_depend_on_the_others(tmp_path: Path) -> None:
    folder = write_tables(tmp_path / "train")
    (folder / "static.csv").write_text("id,sex\n" + "".join(f"s{n},{'FM'[n % 2]}\n" for n in range(40)))
    data = module(folder)
    assert data.schema.names == ("BP", "HR", "sex=F", "sex=M")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "events.csv").write_text("id,time,variable,value\ns0,1,HR,60\ns0,2,BP,100\n")
    (tmp_path / "new" / "static.csv").write_text("id,sex\ns0,F\n")
    alone = prediction_dataset(str(tmp_path / "new"), data.schema)[0]
    together = ClinicalDataset(data.stays, steps=48)[data.stays.ids.tolist().index("s0")]
    for key in ("values", "mask", "times", "regular"):
        torch.testing.assert_close(alone[key], together[key])


def test_variables_that_training_lacks_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module(write_tables(tmp_path, extra="s7,3,Lactate,5\n"))
    assert "1 variables that no training stay has (Lactate)" in capsys.readouterr().err


def in_memory(*, notes: bool = False, vectors: bool = False) -> Stays:
    """40 stays of two variables; every third dies, with a fast heart."""
    samples = [
        {"id": str(n), "times": [1, 2 + n % 40], "values": [[60 + 40 * (n % 3 == 0), np.nan], [np.nan, 100 - n]],
         "label": {"death": int(n % 3 == 0)}}
        | ({"note_times": [3], "notes": [[1.0, n] if vectors else f"note number {n}"]} if notes or vectors else {})
        for n in range(40)
    ]  # fmt: skip
    return from_samples(samples, ["HR", "BP"], window=48.0)


def test_given_stays_are_split_scaled_and_batched() -> None:
    data = fitted(in_memory(), batch_size=16)
    assert data.schema.names == ("HR", "BP")
    assert [len(part) for part in (data.train_indices, data.val_indices, data.test_indices)] == [32, 4, 4]
    assert next(iter(data.train_dataloader()))["values"].shape == (16, 2, 2)
    assert "dataset" not in data.hparams
    values = np.random.default_rng(0).normal(size=(30, 5, 3))
    pypots = fitted(from_pypots({"X": values, "y": np.arange(30) % 2}))
    assert next(iter(pypots.train_dataloader()))["values"].shape == (24, 5, 3)


def test_given_stays_fit_a_model() -> None:
    """A tiny fit on batches: the loss falls on a label that the values tell."""
    torch.manual_seed(0)
    data = fitted(in_memory())
    model = InterleavedEHR(2, data.num_steps, data.num_labels, embed_dim=16, embed_time=8, num_heads=2, num_layers=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        for batch in data.train_dataloader():
            inputs = {name: batch[name] for name in INPUTS if name in batch}
            loss = torch.nn.functional.cross_entropy(model(**inputs), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_notes_of_given_stays() -> None:
    assert fitted(in_memory(notes=True)).note_width is None
    assert fitted(in_memory(notes=True), notes="tfidf", note_dim=4).note_width == 4
    assert fitted(in_memory(vectors=True)).note_width == 2
    for stays, options, message in (
        (in_memory(vectors=True), {"notes": "tfidf"}, "notes have vectors, so notes='tfidf' has nothing to do"),
        (in_memory(), {"notes": "tfidf"}, "the given data has no notes"),
        (in_memory(), {"options": {"window": 5}}, "the stays are there already; leave them out"),
        (in_memory(), {"data_dir": "here"}, "the stays are there already; leave them out"),
    ):
        with pytest.raises(SeqattnError, match=message):
            fitted(stays, **options)


def test_given_stays_are_predicted() -> None:
    data = fitted(in_memory())
    dataset = prediction_dataset(in_memory().subset([5]), data.schema)
    torch.testing.assert_close(dataset[0]["values"], ClinicalDataset(data.stays, steps=48)[5]["values"])


def test_unknown_variables_at_prediction(tmp_path: Path) -> None:
    schema = module(write_tables(tmp_path / "train")).schema
    folder = write_tables(tmp_path / "new", extra="s0,3,HRR,5\ns1,4,HRR,5\n")
    (folder / "labels.csv").unlink()
    with pytest.raises(SeqattnError, match=r"'HRR' is not in the schema of 2 variables; did you mean HR\?"):
        prediction_dataset(str(folder), schema)
    dataset = prediction_dataset(str(folder), schema, unknown="ignore")
    assert len(dataset) == 40
    assert dataset.stays.counts["events of variables that the schema lacks left out"] == 2
    other = Schema(schema.variables, 24.0, 24)
    assert prediction_dataset(str(folder), other, unknown="ignore").stays.window == 24


def test_variables_in_another_order_come_into_the_schemas(tmp_path: Path) -> None:
    schema = module(write_tables(tmp_path / "train")).schema
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "events.csv").write_text("id,time,variable,value\na,1,HR,80\n")
    batch = prediction_dataset(str(tmp_path / "new"), schema)[0]
    assert schema.names == ("BP", "HR")
    assert batch["mask"].tolist() == [[False, True]]


def test_static_values_are_channels_or_left_out(tmp_path: Path) -> None:
    folder = write_tables(tmp_path)
    (folder / "static.csv").write_text("id,age\n" + "".join(f"s{n},{40 + n}\n" for n in range(40)))
    assert module(folder).schema.names == ("BP", "HR", "age")
    assert module(folder, static=False).schema.names == ("BP", "HR")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"steps": 1}, "steps is 1"),
        ({"fill": "clean"}, "fill is 'clean'"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0"),
        ({"fold": 1}, "fold is 1"),
        ({"max_rows": 0}, "max_rows is 0"),
    ],
)
def test_options_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(SeqattnError, match=message):
        ClinicalDataModule("synthetic", **options)


def test_data_that_cannot_be_used_are_one_sentence(tmp_path: Path) -> None:
    folder = write_tables(tmp_path)
    for dataset, options, message in (
        ("physionet2102", {}, r"no data set and no folder 'physionet2102'; did you mean physionet2012"),
        (str(folder), {"options": {"windows": 5}}, r"no option 'windows'; did you mean window\?"),
        (str(folder), {"notes": "tfidf"}, "has no notes"),
        ("synthetic", {"options": {"stays": 3}}, "stays is 3"),
    ):
        with pytest.raises(SeqattnError, match=message):
            ClinicalDataModule(dataset, **options).setup()
    labels = (folder / "labels.csv").read_text()
    (folder / "labels.csv").write_text(re.sub(r",[01],train", ",0,train", labels))
    with pytest.raises(SeqattnError, match="all training stays have the same label 'death'"):
        module(folder)
    (folder / "labels.csv").write_text(labels.replace("test", "train"))
    with pytest.raises(SeqattnError, match="has no stays to test on"):
        module(folder)
    (folder / "labels.csv").write_text(labels)
    with pytest.raises(SeqattnError, match="no training stay has an event inside the window"):
        module(folder, options={"window": 0.5})


def test_sources_know_their_readers_options() -> None:
    with pytest.raises(SeqattnError, match=r"no option 'clok'; did you mean clock\?"):
        read_source("mimic3-ihm", None, clok="official")
    with pytest.raises(SeqattnError, match="no option 'task'"):
        read_source("mimic3-ihm", None, task="pheno")


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="PhysioNet 2012 is not here")
def test_physionet_2012_is_ready_for_training() -> None:
    data = ClinicalDataModule("physionet2012", str(REAL))
    data.setup()
    assert (len(data.train_indices), len(data.val_indices), len(data.test_indices)) == (3997, 3993, 3998)
    assert (data.num_channels, data.num_steps, data.num_labels, data.note_width) == (44, 48, 2, None)
    assert data.positive_rates == [pytest.approx(554 / 3997)]
    batch = next(iter(data.train_dataloader()))
    assert batch["values"].isfinite().all()
    assert "note_vectors" not in batch
