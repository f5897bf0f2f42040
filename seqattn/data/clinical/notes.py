"""Notes as vectors: from a file, from a pretrained language model, or by TF-IDF where there is neither."""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from seqattn.data.cache import cache_folder
from seqattn.data.clinical.archives import load_arrays, save_arrays
from seqattn.data.clinical.records import Floats, Stays
from seqattn.errors import SeqattnError
from seqattn.optional import require

MAX_TOKENS = 1024  # of a note, as arXiv 2210.12156 does
FEATURES = 2**14  # of the hashed words and pairs of words
_BATCH = 8


class NoteEncoder(Protocol):
    """Turns texts into vectors. identity: names it in the cache, None where encoding is too fast to be kept."""

    width: int

    @property
    def identity(self) -> str | None: ...

    def encode(self, texts: Sequence[str]) -> Floats:
        """(texts, width) float32."""


def note_encoder(spec: str, texts: Sequence[str], width: int, seed: int) -> NoteEncoder:
    """The encoder that `spec` names.

    spec: "tfidf", fitted on `texts` to vectors of up to `width`; else a language model by folder or name.
    """
    if spec == "tfidf":
        return TfidfEncoder.fit(texts, width, seed)
    return LanguageModel(spec)


def encode_notes(stays: Stays, encoder: NoteEncoder) -> Stays:
    """The stays with a vector for each note; those of a pretrained model are kept in the cache as float16."""
    if stays.notes is None:
        return stays
    texts = sorted(set(stays.notes.texts))
    vectors = _encoded(texts, encoder)
    place = {text: number for number, text in enumerate(texts)}
    chosen = np.array([place[text] for text in stays.notes.texts], dtype=np.int64)
    return replace(stays, notes=replace(stays.notes, vectors=vectors[chosen]))


def _encoded(texts: list[str], encoder: NoteEncoder) -> Floats:
    if not texts or encoder.identity is None:
        return encoder.encode(texts) if texts else np.empty((0, encoder.width), np.float32)
    digest = hashlib.sha256("\0".join([encoder.identity, *texts]).encode("utf-8", "surrogatepass")).hexdigest()
    copy = cache_folder() / "clinical" / "notes" / f"{digest}.npz"
    kept = (load_arrays(copy) or {}).get("vectors")
    if kept is not None and kept.shape == (len(texts), encoder.width):
        return kept.astype(np.float32)
    vectors = encoder.encode(texts).astype(np.float16)
    save_arrays(copy, {"vectors": vectors})
    return vectors.astype(np.float32)


class TfidfEncoder:
    """Hashed words and pairs of words, weighted by TF-IDF, in the leading singular directions of the training notes.

    frequencies: (FEATURES,) weights. directions: (FEATURES, width), scaled so that training vectors have variance 1.
    """

    identity = None

    def __init__(self, frequencies: Floats, directions: Floats) -> None:
        self.frequencies, self.directions = frequencies, directions
        self.width = directions.shape[1]

    @classmethod
    def fit(cls, texts: Sequence[str], width: int, seed: int) -> "TfidfEncoder":
        """Fit on the training notes; the width is at most their number less 1."""
        from sklearn.decomposition import TruncatedSVD

        if len(set(texts)) < 3:
            raise SeqattnError(f"{len(set(texts))} different training notes are too few for TF-IDF; leave notes out")
        counts = _counts(texts)
        present = np.bincount(counts.indices, minlength=FEATURES)
        frequencies = (np.log((1 + len(texts)) / (1 + present)) + 1).astype(np.float32)
        weighted = _weighted(counts, frequencies)
        solver = TruncatedSVD(min(width, len(set(texts)) - 1), random_state=seed).fit(weighted)
        directions = solver.components_.T.astype(np.float32)
        spread = np.asarray(weighted @ directions).std(axis=0)
        return cls(frequencies, directions / np.maximum(spread, 1e-6).astype(np.float32))

    def encode(self, texts: Sequence[str]) -> Floats:
        return np.asarray(_weighted(_counts(texts), self.frequencies) @ self.directions, dtype=np.float32)

    def to_bytes(self) -> bytes:
        """The content of a file that `from_bytes` reads."""
        file = io.BytesIO()
        np.savez_compressed(file, frequencies=self.frequencies, directions=self.directions)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, source: str = "the file") -> "TfidfEncoder":
        """Raises SeqattnError naming `source` where the content is none of `to_bytes`."""
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                frequencies, directions = arrays["frequencies"], arrays["directions"]
        except Exception as error:  # whatever the damage
            raise SeqattnError(f"{source} is no note encoder; train the run anew") from error
        return cls(frequencies, directions)


class LanguageModel:
    """A Hugging Face model, by folder or name: one state of its last layer is a note's vector.

    It is the first token's, as in arXiv 2210.12156; of a model of sentence-transformers (by its name, or where its
    folder says so in 1_Pooling) it is the mean over the tokens, of length 1.
    Up to MAX_TOKENS tokens of a note are read, or as many as the model takes. A Longformer's first token attends
    globally.
    """

    def __init__(self, spec: str) -> None:
        package = require("transformers")
        self.tokenizer = _loaded(spec, lambda: package.AutoTokenizer.from_pretrained(spec))
        self.model = _loaded(spec, lambda: package.AutoModel.from_pretrained(spec)).eval()
        config = self.model.config
        self.mean = _takes_mean(spec)
        self.global_first = config.model_type == "longformer"
        reserved = 2 if config.model_type in ("longformer", "roberta") else 0  # positions that are no token's
        self.longest = min(MAX_TOKENS, getattr(config, "max_position_embeddings", MAX_TOKENS) - reserved)
        self.identity: str | None = f"{_identity(spec)}:{self.longest}"
        self.width = int(config.hidden_size)

    def encode(self, texts: Sequence[str]) -> Floats:
        vectors = np.empty((len(texts), self.width), np.float32)
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))  # like lengths share a batch
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            vectors[chosen] = self._batch([texts[number] for number in chosen])
        return vectors

    @torch.inference_mode()
    def _batch(self, texts: list[str]) -> Floats:
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=self.longest, return_tensors="pt")
        extra: dict[str, Any] = {}
        if self.global_first:
            extra["global_attention_mask"] = torch.zeros_like(tokens["input_ids"])
            extra["global_attention_mask"][:, 0] = 1
        states = self.model(**tokens, **extra).last_hidden_state.float()  # (texts, tokens, width)
        if not self.mean:
            return states[:, 0].numpy()
        weights = tokens["attention_mask"][..., None].float()
        return torch.nn.functional.normalize((states * weights).sum(1) / weights.sum(1), dim=-1).numpy()


def _counts(texts: Sequence[str]) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer = HashingVectorizer(n_features=FEATURES, ngram_range=(1, 2), alternate_sign=False, norm=None)
    return vectorizer.transform(texts).astype(np.float32)


def _weighted(counts: Any, frequencies: Floats) -> Any:
    from sklearn.preprocessing import normalize

    weighted = counts.copy()
    weighted.data = (1 + np.log(weighted.data)) * frequencies[weighted.indices]
    return normalize(weighted)


def _takes_mean(spec: str) -> bool:
    if spec.startswith("sentence-transformers/"):
        return True
    pooling = Path(spec) / "1_Pooling" / "config.json"
    return pooling.is_file() and bool(json.loads(pooling.read_text()).get("pooling_mode_mean_tokens"))


def _identity(spec: str) -> str:
    """A name, or of a folder its path and the sizes and times of its files, which change with the weights."""
    folder = Path(spec)
    if not folder.is_dir():
        return spec
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return "|".join([str(folder.resolve()), *(f"{f.name}:{f.stat().st_size}:{f.stat().st_mtime_ns}" for f in files)])


def _loaded(spec: str, load: Any) -> Any:
    try:
        return load()
    except Exception as error:  # the libraries wrap missing files, names and networks in many types
        reason = " ".join(str(error).split())[:150]
        problem = f"the language model {spec!r} does not load ({reason})"
        raise SeqattnError(f"{problem}; give a folder that holds it, or notes: tfidf") from error
