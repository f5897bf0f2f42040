import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from seqattn.data.cache import cache_folder
from seqattn.data.clinical.in_memory import from_samples
from seqattn.data.clinical.note_files import attach_vectors, is_vector_file
from seqattn.data.clinical.notes import TfidfEncoder, encode_notes, note_encoder
from seqattn.data.clinical.preparation import prepare
from seqattn.data.clinical.records import Stays
from seqattn.errors import SeqattnError

GOOD = ["patient improving and stable", "resting comfortably, stable", "weaning support, improving"]
BAD = ["patient worsening and guarded", "poor response, worsening", "escalating support, guarded"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Counting:
    """An encoder that counts what it is asked to encode: a text's vector is its length, twice."""

    def __init__(self, identity: str | None) -> None:
        self.identity, self.width, self.encoded = identity, 2, 0

    def encode(self, texts) -> np.ndarray:
        self.encoded += len(texts)
        return np.array([[len(text)] * 2 for text in texts], np.float32)


def stays(with_notes: bool = True) -> Stays:
    notes = {"a": [(1, "hello"), (2, "worse")], "b": [], "c": [(5, "hello"), (0, "early note")]}
    samples = [
        {"id": name, "times": [1], "values": [[1.0]]}
        | ({"notes": [text for _, text in given], "note_times": [hour for hour, _ in given]} if with_notes else {})
        for name, given in notes.items()
    ]
    return from_samples(samples, ["HR"], window=48.0)


def test_each_text_is_encoded_once_and_its_vector_goes_to_its_notes() -> None:
    encoder = Counting(None)
    encoded = encode_notes(stays(), encoder)
    assert encoder.encoded == 3
    assert encoded.notes is not None
    assert encoded.notes.vectors is not None
    assert encoded.notes.vectors[:, 0].tolist() == [5, 5, 10, 5]
    assert not list(cache_folder().rglob("*"))


def test_vectors_of_a_pretrained_model_are_cached() -> None:
    first, second, other = Counting("model"), Counting("model"), Counting("another")
    vectors = [encode_notes(stays(), encoder).notes.vectors for encoder in (first, second, other)]  # type: ignore[union-attr]
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert (first.encoded, second.encoded, other.encoded) == (3, 0, 3)
    copies = list(cache_folder().rglob("*.npz"))
    assert len(copies) == 2
    for copy in copies:
        copy.write_bytes(b"damaged")
    np.testing.assert_array_equal(encode_notes(stays(), Counting("model")).notes.vectors, vectors[0])  # type: ignore[union-attr]


def test_tfidf_parts_texts_by_their_words() -> None:
    encoder = TfidfEncoder.fit(GOOD + BAD, 3, seed=0)
    vectors = encoder.encode([*GOOD, *BAD])
    assert vectors.shape == (6, 3)
    np.testing.assert_allclose(vectors.std(axis=0), 1, rtol=1e-3)
    unseen = encoder.encode(["improving, stable", "worsening, guarded"])
    good, bad = vectors[:3].mean(0), vectors[3:].mean(0)
    assert (unseen[0] - unseen[1]) @ (good - bad) > 0


def test_tfidf_comes_back_from_its_file() -> None:
    encoder = TfidfEncoder.fit(GOOD + BAD, 4, seed=0)
    again = TfidfEncoder.from_bytes(encoder.to_bytes())
    np.testing.assert_array_equal(encoder.encode(GOOD), again.encode(GOOD))
    with pytest.raises(SeqattnError, match=r"x.npz is no note encoder"):
        TfidfEncoder.from_bytes(b"nothing", "x.npz")


def test_tfidf_needs_notes_and_knows_its_width() -> None:
    assert TfidfEncoder.fit(GOOD, 64, seed=0).width == 2
    with pytest.raises(SeqattnError, match="1 different training notes are too few"):
        note_encoder("tfidf", ["same", "same"], 8, 0)


def test_vectors_by_the_notes_number(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.arange(8, dtype=np.float16).reshape(4, 2))
    (tmp_path / "v.csv").write_text("id,note\nc,1\nc,0\na,0\na,1\n")
    joined = attach_vectors(stays(), tmp_path / "v.npy")
    assert joined.notes is not None
    assert joined.notes.texts == ("hello", "worse", "early note", "hello")
    np.testing.assert_array_equal(joined.notes.vectors, [[4, 5], [6, 7], [2, 3], [0, 1]])
    cut = prepare(joined, max_notes=1).notes
    assert cut is not None
    np.testing.assert_array_equal(cut.vectors, [[6, 7], [0, 1]])


def test_vectors_with_times_are_notes_of_their_own(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.arange(5.0)[:, None])
    (tmp_path / "v.csv").write_text("id,time\nc,3\nc,1\nx,1\na,49\na,-30\n")
    joined = attach_vectors(stays(with_notes=False), tmp_path / "v.npy")
    assert joined.notes is not None
    assert joined.notes.starts.tolist() == [0, 0, 0, 2]
    assert joined.notes.times.tolist() == [1, 3]
    np.testing.assert_array_equal(joined.notes.vectors, [[1], [0]])
    assert joined.counts == {
        "note vectors of stays that are not there left out": 1,
        "notes outside the window left out": 2,
    }


def test_vectors_in_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    table = pd.DataFrame({"id": ["c", "b"], "time": [1.0, 2.0], "vector": [[1.0, 2.0], [3.0, 4.0]]})
    table.to_parquet(tmp_path / "v.parquet")
    joined = attach_vectors(stays(with_notes=False), tmp_path / "v.parquet")
    np.testing.assert_array_equal(joined.notes.vectors, [[3, 4], [1, 2]])  # type: ignore[union-attr]
    table["vector"] = [[1.0, 2.0], [3.0]]
    table.to_parquet(tmp_path / "v.parquet")
    with pytest.raises(SeqattnError, match="does not hold vectors of one width"):
        attach_vectors(stays(with_notes=False), tmp_path / "v.parquet")


@pytest.mark.parametrize(
    ("rows", "vectors", "message"),
    [
        ("id,note\nc,1\nc,0\na,0\n", np.zeros((3, 2)), "no vector for 1 notes, the first is note 1 of stay a"),
        ("id,note\nc,1\n", np.zeros((3, 2)), r"shape \(3, 2\) for 1 rows"),
        ("id,note\nc,1\n", np.full((1, 2), np.nan), "a NaN or an infinite value in row 1"),
        ("id\nc\n", np.zeros((1, 2)), "one of the columns 'note' and 'time'"),
        ("id,time\nc,1\n", np.zeros((1, 2)), "the data have notes of their own"),
        ("id,note\nc,one\n", np.zeros((1, 2)), "line 2: note is 'one', not a whole number"),
        ("id,note\nc,1\nc,0.5\n", np.zeros((2, 2)), "line 3: note is '0.5', not a whole number"),
        ("id,note\nc,1\nc,\n", np.zeros((2, 2)), "line 3: the note is missing"),
        ("id,note\nx,9\nc,2\n", np.zeros((2, 2)), "line 3: stay c has 2 notes, none of number 2; count them from 0"),
        ("id,note\nb,-1\n", np.zeros((1, 2)), "stay b has 0 notes, none of number -1"),
        ("id,note\nx,0\nc,1\nc,1\n", np.zeros((3, 2)), "line 4: note 1 of stay c is there twice"),
        ("id,note\nx,0\n", np.zeros((1, 2)), "names no stay of the data, its first id is x"),
        ("id,note\nc,1\n", np.array([["x"]]), "does not hold vectors of one width"),
    ],
)
def test_wrong_vectors_are_one_sentence(tmp_path: Path, rows: str, vectors: np.ndarray, message: str) -> None:
    np.save(tmp_path / "v.npy", vectors)
    (tmp_path / "v.csv").write_text(rows)
    with pytest.raises(SeqattnError, match=message):
        attach_vectors(stays(), tmp_path / "v.npy")


def test_times_of_vectors_are_hours(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.zeros((1, 2)))
    for time, message in (("2024-01-01", "time is a timestamp; give hours"), ("", "the time is missing")):
        (tmp_path / "v.csv").write_text(f"id,time\nc,{time}\n")
        with pytest.raises(SeqattnError, match=message):
            attach_vectors(stays(with_notes=False), tmp_path / "v.npy")


def test_vectors_of_stays_that_are_not_there_are_counted(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.zeros((6, 2)))
    (tmp_path / "v.csv").write_text("id,note\nx,0\nc,0\nc,1\na,0\na,1\ny,3\n")
    joined = attach_vectors(stays(), tmp_path / "v.npy")
    assert joined.counts == {"note vectors of stays that are not there left out": 2}


def test_missing_files_of_vectors(tmp_path: Path) -> None:
    assert is_vector_file("v.npy")
    assert not is_vector_file("yikuan8/Clinical-Longformer")
    with pytest.raises(SeqattnError, match=r"v.npy does not exist"):
        attach_vectors(stays(), tmp_path / "v.npy")
    np.save(tmp_path / "v.npy", np.zeros((1, 2)))
    with pytest.raises(SeqattnError, match=r"v.csv does not exist"):
        attach_vectors(stays(), tmp_path / "v.npy")
    (tmp_path / "v.csv").write_text("id,note\na,0\n")
    with pytest.raises(SeqattnError, match="counts notes, but the data have none"):
        attach_vectors(stays(with_notes=False), tmp_path / "v.npy")


def tiny_model(folder: Path, kind: str) -> Path:
    """An untrained language model of width 8 with a vocabulary of a few words, in `folder`."""
    transformers = pytest.importorskip("transformers")
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *sorted({w.strip(",") for t in GOOD + BAD for w in t.split()}),
    ]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words))
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    common = {"vocab_size": len(words), "max_position_embeddings": 34, **sizes}
    if kind == "longformer":
        config = transformers.LongformerConfig(attention_window=[4], pad_token_id=0, **common)
    else:
        config = transformers.BertConfig(**common)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    transformers.BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["bert", "longformer"])
def test_language_model_in_a_folder(tmp_path: Path, kind: str) -> None:
    encoder = note_encoder(str(tiny_model(tmp_path / "model", kind)), (), 0, 0)
    vectors = encoder.encode([*GOOD, "stable " * 100])
    assert (vectors.shape, encoder.width) == ((4, 8), 8)
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(vectors[1], encoder.encode([GOOD[1]])[0], atol=1e-5)  # padding changes nothing
    assert encoder.identity is not None
    assert str(tmp_path / "model") in encoder.identity


def test_sentence_transformer_takes_the_mean(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model", "bert")
    first_token = note_encoder(str(folder), (), 0, 0).encode(GOOD)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    mean = note_encoder(str(folder), (), 0, 0).encode(GOOD)
    assert np.abs(mean - first_token).max() > 1e-3
    np.testing.assert_allclose(np.linalg.norm(mean, axis=1), 1, rtol=1e-5)


def test_language_model_that_is_not_there(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(SeqattnError, match="does not load"):
        note_encoder(str(tmp_path), (), 0, 0)


def test_language_model_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(SeqattnError, match=r"needs the package transformers.*seqattn\[text\]"):
        note_encoder("bert-base-uncased", (), 0, 0)
