"""Shipped weights: packing, loading, and that the enhancer that is shipped enhances."""

from pathlib import Path

import pytest
import torch

from seqattn.data.synthetic_speech import synthetic_corpus
from seqattn.errors import SeqattnError
from seqattn.models import pretrained
from seqattn.models.mambattention import MambAttention

OPTIONS = {"channels": 8, "blocks": 1, "heads": 2, "n_fft": 60, "hop": 15, "expand": 2}


def test_a_packed_network_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path)
    network = MambAttention(**OPTIONS).half().float()
    (tmp_path / "mine.safetensors").write_bytes(pretrained.pack_weights(network, OPTIONS))
    loaded = pretrained.load_pretrained("mine")
    noisy = torch.randn(1, 300)
    assert torch.equal(loaded.enhance(noisy), network.eval().enhance(noisy))
    assert pretrained.pretrained_names() == ["mine"]


def test_unknown_name() -> None:
    with pytest.raises(
        SeqattnError, match=r"no weights are named 'mambattention-smal'; did you mean mambattention-small"
    ):
        pretrained.load_pretrained("mambattention-smal")


def test_damaged_weights_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path)
    with pytest.raises(SeqattnError, match="this installation has none"):
        pretrained.load_pretrained()
    packed = pretrained.pack_weights(MambAttention(**OPTIONS), OPTIONS | {"blocks": 2})
    for damaged in (b"no weights", packed[:200], packed):
        (tmp_path / f"{pretrained.DEFAULT}.safetensors").write_bytes(damaged)
        with pytest.raises(SeqattnError, match=r"is damaged .*: install the package again"):
            pretrained.load_pretrained()


def test_every_shipped_network_is_small_and_has_a_card() -> None:
    for name in pretrained.pretrained_names():
        path = pretrained.WEIGHTS / f"{name}.safetensors"
        assert path.stat().st_size <= 6_000_000
        card = path.with_suffix(".md").read_text(encoding="utf-8")
        for said in ("Data", "Licence", "Limits", "PESQ", "SI-SDR"):
            assert said in card, said


def test_the_shipped_network_lowers_noise() -> None:
    clean, noises = synthetic_corpus(0, 1, 2.0)
    noise = noises[0][: len(clean[0])]
    noise = noise * clean[0].norm() / noise.norm() / 2  # an SNR of 6 dB
    network = pretrained.load_pretrained()
    pause = network.enhance(noise[None])[0]
    assert pause.norm() < 0.7 * noise.norm()  # noise alone
