import os
import warnings
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from seqattn.data import speech
from seqattn.data.audio import read_audio
from seqattn.data.speech import SpeechDataModule
from seqattn.data.speech_mixing import Mixtures
from seqattn.errors import SeqattnError

sf = pytest.importorskip("soundfile")
pytest.importorskip("torchaudio")
REAL_DATA = Path(os.environ.get("SEQATTN_DATA") or "../shared/data").resolve()
SEGMENT = 1000


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SEQATTN_DATA", str(tmp_path / "no data"))


def write(path: Path, samples: int, seed: int = 0, rate: int = 16_000, level: float = 0.1, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    signal = level * np.random.default_rng(seed).standard_normal((samples, channels))
    sf.write(path, signal, rate, subtype="PCM_16")
    return path


def write_pair(root: Path, name: str, samples: int = 1500, clean_samples: int | None = None, **options: int) -> None:
    seed = sum(name.encode())
    write(root / "noisy" / name, samples, seed, **options)  # type: ignore[arg-type]
    write(root / "clean" / name, clean_samples or samples, seed + 1, **options)  # type: ignore[arg-type]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Four speakers of six pairs each, 600 to 1500 samples."""
    for speaker in "abcd":
        for clip in range(6):
            write_pair(tmp_path / "pairs", f"{speaker}1_{clip}.wav", 600 + 180 * clip)
    return tmp_path / "pairs"


@pytest.fixture
def mixing(tmp_path: Path) -> dict[str, object]:
    for clip in range(24):
        write(tmp_path / "clean" / f"s{clip // 3}_{clip}.flac", 900 + 70 * clip, clip)
    for clip in range(12):
        write(tmp_path / "noise" / f"{clip}.flac", 700 + 300 * clip, 100 + clip)
    return {"source": "mix", "clean_dirs": [str(tmp_path / "clean")], "noise_dirs": [str(tmp_path / "noise")]}


def prepared(data_dir: Path | None = None, stage: str = "fit", **options: object) -> SpeechDataModule:
    options = {"segment": SEGMENT, "batch_size": 4, **options}
    module = SpeechDataModule(data_dir=str(data_dir) if data_dir else None, **options)  # type: ignore[arg-type]
    module.prepare_data()
    module.setup(stage)
    return module


def epochs(module: SpeechDataModule, count: int) -> list[list[dict[str, Tensor]]]:
    loader = module.train_dataloader()
    found = []
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        found.append(list(loader))
    return found


def assert_same(first: list[dict[str, Tensor]], second: list[dict[str, Tensor]]) -> None:
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_training_batches(pairs: Path) -> None:
    module = prepared(pairs)
    source = module.sources["train"]
    (batches,) = epochs(module, 1)
    assert sum(len(batch["index"]) for batch in batches) == len(source.names)
    for batch in batches:
        size = len(batch["index"])
        assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
            "noisy": ((size, SEGMENT), torch.float32),
            "clean": ((size, SEGMENT), torch.float32),
            "lengths": ((size,), torch.int64),
            "gain": ((size,), torch.float32),
            "index": ((size,), torch.int64),
        }
        for row, number in enumerate(batch["index"].tolist()):
            noisy, clean = source.draw(number, np.random.default_rng())
            gain = 1 / noisy.double().square().mean().sqrt()
            assert batch["gain"][row] == pytest.approx(float(gain), rel=1e-6)
            length = min(SEGMENT, len(noisy))
            assert batch["lengths"][row] == length
            start = find(noisy * batch["gain"][row], batch["noisy"][row, :length])
            for name, whole in (("noisy", noisy), ("clean", clean)):
                torch.testing.assert_close(
                    batch[name][row, :length], batch["gain"][row] * whole[start : start + length], rtol=1e-6, atol=0
                )
                assert (batch[name][row, length:] == 0).all()


def find(whole: Tensor, part: Tensor) -> int:
    windows = whole.unfold(0, len(part), 1)
    return int((windows - part).abs().amax(1).argmin())


def test_evaluation_batches_are_whole_clips(pairs: Path) -> None:
    module = prepared(pairs, eval_batch_size=5)
    batches = [*module.val_dataloader(), *module.test_dataloader()]
    sources = [module.sources["valid"]] * len(module.val_dataloader())
    sources += [module.sources["test"]] * len(module.test_dataloader())
    for batch, source in zip(batches, sources, strict=True):
        assert batch["noisy"].shape[1] == batch["lengths"].max()
        for row, number in enumerate(batch["index"].tolist()):
            noisy, clean = source.draw(number, np.random.default_rng())
            length = int(batch["lengths"][row])
            assert length == len(noisy)
            gain = batch["gain"][row]
            assert torch.equal(batch["noisy"][row, :length], gain * noisy)
            assert torch.equal(batch["clean"][row, :length], gain * clean)
            assert batch["noisy"][row, :length].square().mean() == pytest.approx(1, rel=1e-5)
            assert (batch["noisy"][row, length:] == 0).all()


def test_test_pairs_are_raw(pairs: Path) -> None:
    module = prepared(pairs, stage="test")
    found = list(module.test_pairs())
    assert [name for name, _, _ in found] == [f"d1_{clip}" for clip in range(6)]
    for name, noisy, clean in found:
        assert torch.equal(noisy, torch.from_numpy(read_audio(pairs / "noisy" / f"{name}.wav")[0][0]))
        assert torch.equal(clean, torch.from_numpy(read_audio(pairs / "clean" / f"{name}.wav")[0][0]))


def test_silence_has_a_finite_gain(tmp_path: Path) -> None:
    for clip in range(3):
        write_pair(tmp_path / "pairs", f"{clip}.wav", 500)
        write(tmp_path / "pairs" / "noisy" / f"{clip}.wav", 500, level=0.0)
    (batch,) = prepared(tmp_path / "pairs").train_dataloader()
    assert all(value.isfinite().all() for value in batch.values())
    assert (batch["noisy"] == 0).all()


def test_clips_shorter_than_a_window(tmp_path: Path) -> None:
    for clip in range(3):
        write_pair(tmp_path / "pairs", f"{clip}.wav", 1 + 50 * clip)
    module = prepared(tmp_path / "pairs")
    (batch,) = module.train_dataloader()
    assert batch["noisy"].shape == (1, SEGMENT)
    assert batch["lengths"].tolist() == [1]
    assert [len(noisy) for _, noisy, _ in module.test_pairs()] == [101]


def test_unequal_pairs_are_cut_and_warned_of_once(pairs: Path) -> None:
    write_pair(pairs, "a1_3.wav", 1200, 1100)
    write_pair(pairs, "d1_5.wav", 900, 1300)
    with pytest.warns(UserWarning, match="2 pairs differ in length.*first a1_3, noisy 1200 and clean 1100") as caught:
        module = prepared(pairs)
    assert len(caught) == 1
    noisy, clean = module.sources["train"].draw(3, np.random.default_rng())
    assert len(noisy) == len(clean) == 1100
    assert [len(noisy) for name, noisy, _ in module.test_pairs() if name == "d1_5"] == [900]


def test_equal_pairs_are_not_warned_of(pairs: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared(pairs)


@pytest.mark.parametrize("fault", ["nan", "corrupt", "empty"])
def test_bad_files_are_named(pairs: Path, fault: str) -> None:
    path = pairs / "clean" / "b1_2.wav"
    if fault == "nan":
        sf.write(path, np.array([0.1, np.nan, 0.2] * 320), 16_000, subtype="FLOAT")
    elif fault == "empty":
        sf.write(path, np.empty(0), 16_000)
    else:
        path.write_bytes(b"RIFF, but no more")
    with pytest.raises(SeqattnError, match=r"clean/b1_2\.wav"):
        list(prepared(pairs).train_dataloader())


def test_bad_file_met_by_a_worker(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "keep_in_memory", lambda waveforms: False)
    sf.write(pairs / "clean" / "b1_2.wav", np.full(960, np.nan), 16_000, subtype="FLOAT")
    with pytest.raises(SeqattnError) as caught:
        list(prepared(pairs, num_workers=1).train_dataloader())
    sentence = "has samples that are NaN or infinite, first at sample 0: mend or remove it"
    assert str(caught.value) == f"{pairs}/clean/b1_2.wav {sentence}"


def test_held_out_speakers_and_noises(mixing: dict[str, object]) -> None:
    module = prepared(**mixing)
    parts = [module.sources[name] for name in ("train", "valid", "test")]
    assert all(isinstance(part, Mixtures) for part in parts)
    clean = [{path.stem.partition("_")[0] for path in part.clean.paths} for part in parts]  # type: ignore[attr-defined]
    noise = [set(part.noise.paths) for part in parts]  # type: ignore[attr-defined]
    for groups, count in ((clean, 8), (noise, 12)):
        assert all(groups)
        assert sum(map(len, groups)) == len(set().union(*groups)) == count
    paper = prepared(protocol="paper", **mixing)
    assert paper.sources["valid"] is paper.sources["test"]


@pytest.mark.parametrize("source", ["mix", "synthetic"])
def test_mixtures_have_the_snrs_of_a_list(mixing: dict[str, object], monkeypatch, source: str) -> None:
    monkeypatch.setattr(speech, "SYNTHETIC_CLIPS", {"train": 2, "valid": 2, "test": 8})
    options = mixing if source == "mix" else {"source": source}
    found = []
    for seed in range(8):
        module = prepared(snrs=[0, 15], seed=seed, **options)
        for _, noisy, clean in module.test_pairs():
            found.append(round(float(10 * (clean.square().sum() / (noisy - clean).square().sum()).log10()), 1))
    assert set(found) == {0, 15}


def test_pairs_are_the_test_split_of_mixtures(mixing: dict[str, object], pairs: Path) -> None:
    module = prepared(pairs, **mixing)
    assert len(list(module.test_pairs())) == 24
    paper = prepared(pairs, protocol="paper", **mixing)
    assert len(paper.sources["train"].names) == 24
    assert paper.sources["valid"].names == module.sources["test"].names


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_differ_and_repeat(mixing: dict[str, object], workers: int) -> None:
    first, second = epochs(prepared(num_workers=workers, **mixing), 2)
    again = epochs(prepared(**mixing), 2)
    assert_same(first, again[0])
    assert_same(second, again[1])
    assert not any(torch.equal(one["noisy"], other["noisy"]) for one, other in zip(first, second, strict=True))
    other_seed = epochs(prepared(seed=1, **mixing), 1)[0]
    assert not torch.equal(other_seed[0]["noisy"], first[0]["noisy"])


def test_selection_says_what_was_done(pairs: Path, mixing: dict[str, object], tmp_path: Path) -> None:
    few, listed, alone = (tmp_path / name for name in ("few", "listed", "alone"))
    for clip in range(6):
        write_pair(few, f"{clip}.wav")
        write(alone / f"{clip}.wav", 300)
    for split in ("train", "valid", "test"):
        for kind in ("clean", "noisy"):
            write(listed / f"{kind}_{split}" / f"{split}1_1.wav", 300)
    optimistic = "the test list, as most published recipes do (optimistic)"
    told = {
        "held-out speakers": [{"data_dir": pairs}],
        "held-out recordings": [{"data_dir": few}],
        "the published validation list": [{"data_dir": listed}, {"data_dir": listed, "protocol": "paper"}],
        "held-out speakers and noises": [mixing, mixing | {"data_dir": pairs}],
        "held-out recordings and noises": [mixing | {"clean_dirs": [str(alone)]}],
        "other synthetic clips": [{"source": "synthetic"}],
        optimistic: [{"data_dir": pairs, "protocol": "paper"}, mixing | {"protocol": "paper"}],
    }
    for words, cases in told.items():
        for options in cases:
            assert SpeechDataModule(**options).selection == words  # type: ignore[arg-type]


def test_paper_uses_the_published_validation_list(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        for kind in ("clean", "noisy"):
            write(tmp_path / f"{kind}_{split}" / f"{split}1_1.wav", 300)
    sources = prepared(tmp_path, protocol="paper").sources
    assert [sources[split].names for split in ("train", "valid", "test")] == [["train1_1"], ["valid1_1"], ["test1_1"]]


def test_files_that_wait_for_resampling(tmp_path: Path) -> None:
    for clip in range(4):
        write_pair(tmp_path / "pairs", f"{clip}.wav", rate=8000 if clip else 16_000)
    for protocol in ("holdout", "paper"):
        module = SpeechDataModule(
            data_dir=str(tmp_path / "pairs"), protocol=protocol, cache_dir=str(tmp_path / protocol)
        )
        assert len(module.waiting()) == 6
        module.prepare_data()
        assert module.waiting() == set()


def test_validation_mixtures_are_fixed(mixing: dict[str, object]) -> None:
    module = prepared(**mixing)
    loader = module.val_dataloader()
    assert_same(list(loader), list(loader))
    assert_same(list(loader), list(prepared(**mixing).val_dataloader()))


class Recorder(LightningModule):
    """A one-weight model that notes what it trains on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[list[float]] = []

    def on_train_epoch_start(self) -> None:
        self.seen.append([])

    def training_step(self, batch: dict[str, Tensor], number: int) -> Tensor:
        self.seen[-1] += [*batch["index"].tolist(), float(batch["noisy"].sum())]
        return self.weight**2

    def validation_step(self, batch: dict[str, Tensor], number: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters())


def quiet_trainer(count: int) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(
        max_epochs=count, accelerator="cpu", enable_checkpointing=False, use_distributed_sampler=False, **quiet
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_resumed_run_repeats_crops_and_mixtures(tmp_path: Path, mixing: dict[str, object], workers: int) -> None:
    whole, first, resumed = Recorder(), Recorder(), Recorder()
    quiet_trainer(3).fit(whole, datamodule=prepared(num_workers=workers, **mixing))
    assert len({tuple(epoch) for epoch in whole.seen}) == 3
    trainer = quiet_trainer(1)
    trainer.fit(first, datamodule=prepared(num_workers=workers, **mixing))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    module = prepared(num_workers=workers, **mixing)
    quiet_trainer(3).fit(resumed, datamodule=module, ckpt_path=tmp_path / "one.ckpt")
    assert first.seen + resumed.seen == whole.seen


def test_repeated_clips_of_an_epoch_differ(pairs: Path) -> None:
    module = prepared(pairs, epoch_size=40, segment=200)
    batches = epochs(module, 1)[0]
    assert sum(len(batch["index"]) for batch in batches) == 40
    crops: dict[int, list[Tensor]] = {}
    for batch in batches:
        for number, noisy in zip(batch["index"].tolist(), batch["noisy"], strict=True):
            crops.setdefault(number, []).append(noisy)
    repeated = [found for found in crops.values() if len(found) > 1]
    assert repeated
    assert not all(torch.equal(found[0], found[1]) for found in repeated)


def test_evaluation_over_processes_repeats_nothing(pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = prepared(pairs)
    seen: list[int] = []
    for rank in range(4):
        monkeypatch.setattr(speech, "rank_and_world", lambda rank=rank: (rank, 4))
        seen += chain(*(batch["index"].tolist() for batch in module.test_dataloader()))
    assert sorted(seen) == list(range(6))
    monkeypatch.setattr(speech, "rank_and_world", lambda: (0, 7))
    with pytest.raises(SeqattnError, match="6 clips cannot be evaluated by 7 processes"):
        module.test_dataloader()


def test_validation_is_capped_evenly(tmp_path: Path) -> None:
    for clip in range(100):
        write_pair(tmp_path / "pairs", f"{clip:03d}.wav", 20)
    module = prepared(tmp_path / "pairs", validation_clips=3)
    assert list(indices(module.val_dataloader())) == [0, 3, 6]
    assert len(module.sources["valid"].names) == 9


def indices(loader: object) -> Iterator[int]:
    for batch in loader:  # type: ignore[attr-defined]
        yield from batch["index"].tolist()


def test_synthetic_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "SYNTHETIC_CLIPS", {"train": 4, "valid": 2, "test": 2})
    module = prepared(source="synthetic", segment=8000, epoch_size=6)
    batches = epochs(module, 1)[0]
    assert [batch["noisy"].shape for batch in batches] == [(4, 8000), (2, 8000)]
    assert not torch.equal(batches[0]["noisy"], batches[0]["clean"])
    waves = [module.sources[name].draw(0, np.random.default_rng(0))[1] for name in ("train", "valid", "test")]
    assert not torch.equal(waves[0], waves[1])
    assert not torch.equal(waves[1], waves[2])
    assert len(list(module.test_pairs())) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "tape"}, "it must be 'pairs', 'mix' or 'synthetic'"),
        ({"protocol": "none"}, "it must be 'holdout' or 'paper'"),
        ({"source": "pairs"}, "needs data_dir"),
        ({"segment": 0}, "segment is 0; it must be at least 1"),
        ({"epoch_size": 0}, "epoch_size is 0"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"snr_range": (5, -5)}, "snr_range is"),
        ({"snr_range": (5, float("nan"))}, "snr_range is"),
        ({"snr_range": (5,)}, "snr_range is"),
        ({"snrs": (5, float("nan"))}, "snrs is"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(SeqattnError, match=message):
        SpeechDataModule(**{"source": "synthetic", **options})  # type: ignore[arg-type]


def test_mixing_without_folders() -> None:
    with pytest.raises(SeqattnError, match="clean_dirs"):
        prepared(source="mix")


def test_only_test_pairs(tmp_path: Path) -> None:
    for name in ("p232_1.wav", "p257_2.wav"):
        write(tmp_path / "noisy_testset_wav" / name, 300)
        write(tmp_path / "clean_testset_wav" / name, 300)
    module = prepared(tmp_path, stage="test")
    assert [name for name, _, _ in module.test_pairs()] == ["p232_1", "p257_2"]
    with pytest.raises(SeqattnError, match="has only test pairs, none to train on"):
        module.setup("fit")


def test_no_test_pairs(tmp_path: Path) -> None:
    for name in ("p1_1.wav", "p1_2.wav"):
        write(tmp_path / "noisy_train" / name, 300)
        write(tmp_path / "clean_train" / name, 300)
    with pytest.raises(SeqattnError, match="has no test pairs"):
        prepared(tmp_path).test_dataloader()


def test_hyper_parameters_are_plain(mixing: dict[str, object]) -> None:
    hyper_parameters = dict(prepared(**mixing).hparams)
    assert hyper_parameters["clean_dirs"] == mixing["clean_dirs"]
    assert hyper_parameters["snr_range"] == [-5.0, 15.0]
    assert {type(value) for value in hyper_parameters.values()} <= {str, int, float, list, type(None)}


@pytest.mark.parametrize("workers", [0, 1])
def test_real_data(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    if not (REAL_DATA / "speech").is_dir():
        pytest.skip("the real recordings are not in SEQATTN_DATA")
    monkeypatch.setenv("SEQATTN_DATA", str(REAL_DATA))
    module = prepared(
        Path("voicebank_demand_test"),
        source="mix",
        clean_dirs=["clean_picovoice_16k"],
        noise_dirs=["noise_16k"],
        segment=16_000,
        epoch_size=8,
        num_workers=workers,
    )
    (batches,) = epochs(module, 1)
    assert all(batch["noisy"].isfinite().all() for batch in batches)
    assert len(module.sources["test"].names) == 44
    name, noisy, clean = next(module.test_pairs())
    assert name.startswith("p232")
    assert 0 < (noisy - clean).square().mean() < 0.1
