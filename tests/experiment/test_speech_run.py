"""Runs of speech enhancement through the command line: run directory, protocols, exact resume, two processes."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from resuming import assert_same, freezing, tensors_of
from safetensors.torch import load_file

from seqattn.data.speech import SpeechDataModule
from seqattn.data.synthetic_speech import synthetic_corpus
from seqattn.errors import SeqattnError
from seqattn.experiment import speech
from seqattn.experiment.run_directory import RunDirectory
from seqattn.experiment.speech import build_module, data_module, load_module
from seqattn.experiment.speech_config import SpeechConfig
from seqattn.models.mambattention import MambAttention

sf = pytest.importorskip("soundfile")
pytest.importorskip("torchaudio")
pytest.importorskip("pesq")
FILES = {
    *("config.yaml", "metrics.csv", "results.json", "model.safetensors", "figures/learning_curves.png"),
    *("checkpoints/best.ckpt", "checkpoints/last.ckpt"),
}
TINY = (
    *("model.channels=8", "model.blocks=1", "model.heads=2", "model.n_fft=60", "model.hop=30", "model.d_state=4"),
    *("model.expand=1", "data.segment=4000", "data.batch_size=2", "data.eval_batch_size=2", "pesq_workers=0"),
    *("data.epoch_size=8", "data.num_workers=0", "optimizer.lr=0.01", "optimizer.decay=0.9", "trainer.max_epochs=1"),
)
SAMPLES = 6400


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pairs named as VoiceBank+DEMAND's: two training speakers of two clips, one held out of three, two test clips."""
    root = tmp_path_factory.mktemp("speech")
    clean, noise = synthetic_corpus(1, 9, SAMPLES / 16000)
    names = [*(f"train p22{speaker}_00{clip}" for speaker, clips in ((1, 2), (2, 2), (3, 3)) for clip in range(clips))]
    for number, entry in enumerate([*names, "test p232_000", "test p232_001"]):
        split, name = entry.split()
        part = "trainset_28spk_wav" if split == "train" else "testset_wav"
        noisy = clean[number] + 0.5 * noise[number]
        for kind, waveform in (("clean", clean[number]), ("noisy", noisy[: SAMPLES - 100 * number])):
            path = root / f"{kind}_{part}" / f"{name}.wav"
            path.parent.mkdir(exist_ok=True)
            sf.write(path, waveform[: SAMPLES - 100 * number].numpy(), 16000)
    return root


def sets(*options: str) -> list[str]:
    return [word for option in (*TINY, *options) for word in ("--set", option)]


@pytest.fixture(scope="module")
def whole(folder, command, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    done = command("train", "speech", "--data-dir", folder, "--out", run, *sets("trainer.max_epochs=4"))
    assert done.code == 0, done
    assert done.out.count("\n") == 1
    assert f"run directory {run}" in done.out
    assert [line.split("  ")[0] for line in done.err.splitlines()] == [f"epoch {n}/4" for n in (1, 2, 3, 4)]
    return run


def table(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def files_of(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and "tensorboard" not in path.parts}


def results_of(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


def validation_of(run: Path, checkpoint: str) -> dict[str, float]:
    """What one process measures of a checkpoint on the run's validation clips, one after the other."""
    config = RunDirectory(run).read_config(SpeechConfig, ["data.eval_batch_size=1", "trainer.devices=1"])
    module, data = load_module(RunDirectory(run)), data_module(config)
    module.load_state_dict(torch.load(run / "checkpoints" / checkpoint, weights_only=True)["state_dict"])
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "use_distributed_sampler": False}
    (logged,) = lightning.Trainer(**options).validate(module, data, verbose=False)
    return logged


def test_the_run_directory_is_complete(whole) -> None:
    assert files_of(whole) == FILES
    with Image.open(whole / "figures" / "learning_curves.png") as picture:
        assert np.unique(np.asarray(picture.convert("L"))).size > 10
    config = yaml.safe_load((whole / "config.yaml").read_text())
    assert (config["task"], config["model"]["channels"], config["loss"]["metric"]) == ("speech", 8, 0.05)
    assert config["environment"]["packages"]["torch"]


def test_the_best_epoch_is_that_of_the_highest_pesq(whole) -> None:
    results, rows = results_of(whole), table(whole)
    assert (results["task"], results["protocol"], results["epochs"]) == ("speech", "holdout", 4)
    assert results["selection"] == "best epoch on held-out speakers, by val_pesq"
    best = max(rows, key=lambda row: row["val_pesq"])
    assert results["best_epoch"] == best["epoch"]
    assert results["validation"] == {name: value for name, value in best.items() if name.startswith("val_")}
    assert results["validation"]["val_pesq_failed"] == 0
    stored = torch.load(whole / "checkpoints" / "best.ckpt", weights_only=True)
    assert stored["epoch"] + 1 == results["best_epoch"]
    assert validation_of(whole, "best.ckpt") == pytest.approx(results["validation"], rel=1e-3, abs=1e-3)


def test_the_weights_are_those_of_the_best_epoch(whole) -> None:
    options = RunDirectory(whole).read_config(SpeechConfig).model.network_options()
    network = MambAttention(**options)
    network.load_state_dict(load_file(whole / "model.safetensors"))
    assert results_of(whole)["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    noisy = torch.randn(1, 3000)
    assert torch.equal(network.eval().enhance(noisy), load_module(RunDirectory(whole))(noisy))


def test_the_rate_falls_every_epoch_and_speech_gets_better(whole) -> None:
    rows = table(whole)
    assert [row["lr"] for row in rows] == pytest.approx([0.01, 0.009, 0.0081, 0.00729])
    assert rows[-1]["val_si_sdr"] > rows[0]["val_si_sdr"] + 3
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    terms = {"magnitude": 0.9, "phase": 0.3, "complex": 0.1, "time": 0.2, "metric": 0.05, "consistency": 0.1}
    for row in rows:
        assert row["train_loss"] == pytest.approx(sum(w * row[f"train_{name}"] for name, w in terms.items()), rel=1e-4)


def test_killed_in_the_third_epoch_and_resumed_equals_uninterrupted(whole, folder, command, start, tmp_path) -> None:
    run, marker = tmp_path / "run", tmp_path / "frozen"
    arguments = ["--data-dir", folder, "--out", run, *sets("trainer.max_epochs=4")]
    process = start(
        "train", "speech", *arguments, prelude=freezing("seqattn.tasks.speech", "SpeechEnhancement", marker)
    )
    try:
        while not marker.exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(table(run)) == 2
    assert not (run / "results.json").exists()
    done = command("train", "speech", "--resume", run)
    assert done.code == 0, done
    assert [line.split("  ")[0] for line in done.err.splitlines()] == ["epoch 3/4", "epoch 4/4"]
    for name in ("best", "last"):
        assert_same(tensors_of(run, name), tensors_of(whole, name), name)
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    tables = [[{key: row[key] for key in row if key != "seconds"} for row in table(path)] for path in (run, whole)]
    assert tables[0] == tables[1]
    results = [
        {key: value for key, value in results_of(path).items() if not key.startswith("seconds")}
        for path in (run, whole)
    ]
    assert results[0] == results[1]


def test_the_same_command_gives_the_same_bits(command, tmp_path) -> None:
    options = sets("data.epoch_size=4", "data.validation_clips=2", "data.snrs=[0, 5, 10, 15]")
    for name in ("a", "b"):
        done = command("train", "speech", "--synthetic", "--out", tmp_path / name, *options)
        assert done.code == 0, done
    first, second = ({**table(tmp_path / name)[0], "seconds": 0} for name in ("a", "b"))
    assert first == second
    assert_same(*(tensors_of(tmp_path / name, "last") for name in ("a", "b")))
    contents = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert contents[0] == contents[1]


def test_a_finished_run_is_neither_overwritten_nor_resumed(whole, folder, command) -> None:
    before = {name: (whole / name).read_bytes() for name in files_of(whole)}
    assert "has finished already" in command("train", "speech", "--resume", whole).error
    done = command("train", "speech", "--data-dir", folder, "--out", whole, *sets("loss.metric=0"))
    assert done.out.startswith(f"{whole} is in use: this run goes into {whole}-2\n")
    assert f"run directory {whole}-2" in done.out
    assert before == {name: (whole / name).read_bytes() for name in files_of(whole)}


def test_paper_protocol_in_half_precision(folder, command, tmp_path) -> None:
    run = tmp_path / "run"
    options = ["--protocol", "paper", "--precision", "bf16-mixed", "--out", run]
    done = command("train", "speech", "--data-dir", folder, *options, *sets())
    assert done.code == 0, done
    results, config = results_of(run), RunDirectory(run).read_config(SpeechConfig)
    assert (results["protocol"], config.trainer.precision) == ("paper", "bf16-mixed")
    assert results["selection"] == "best epoch on the test list, as most published recipes do (optimistic), by val_pesq"
    assert "(paper protocol: best epoch on the test list" in done.out
    (row,) = table(run)
    assert all(math.isfinite(value) for value in row.values())
    data = data_module(config)
    data.setup()
    assert data.sources["valid"].names == ["p232_000", "p232_001"]
    assert len(data.sources["train"].names) == 7
    assert all(weight.dtype == torch.float32 for weight in load_file(run / "model.safetensors").values())


def test_without_pesq_si_sdr_selects_and_the_run_says_so_once(folder, command, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pesq", None)
    run = tmp_path / "run"
    arguments = ["--data-dir", folder, "--out", run, *sets()]
    done = command("train", "speech", *arguments)
    assert "the metric loss needs the package pesq" in done.error
    assert "loss.metric=0" in done.error
    assert not run.exists()
    done = command("train", "speech", *arguments, "--set", "loss.metric=0", "--set", "trainer.max_epochs=2")
    assert done.code == 0, done
    assert (done.out + done.err).count("pesq is not installed: the best epoch is that of the highest SI-SDR") == 1
    results, rows = results_of(run), table(run)
    assert results["selection"].endswith("by val_si_sdr")
    assert results["best_epoch"] == max(rows, key=lambda row: row["val_si_sdr"])["epoch"]
    assert not [name for name in rows[0] if "pesq" in name or "metric" in name]


def test_a_run_with_the_metric_loss_is_used_without_pesq(whole, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pesq", None)
    assert load_module(RunDirectory(whole))(torch.randn(1, 1000)).shape == (1, 1000)


def test_synthetic_speech_and_mixing_on_the_fly(folder, command, tmp_path) -> None:
    few = ("data.epoch_size=8", "data.validation_clips=2", "data.eval_batch_size=1")
    run = tmp_path / "synthetic"
    options = ("trainer.max_epochs=2", "data.batch_size=2", "optimizer.exempt=true", "pesq_workers=1")
    done = command("train", "speech", "--synthetic", "--out", run, *sets(*few, *options))
    assert done.code == 0, done
    assert files_of(run) == FILES
    first, second = table(run)
    assert second["val_si_sdr"] > first["val_si_sdr"]
    noise = tmp_path / "noise"
    noise.mkdir()
    for number in range(3):
        sf.write(noise / f"{number}.wav", np.random.default_rng(number).normal(0, 0.1, 20_000), 16000)
    sources = ["--clean", folder / "clean_trainset_28spk_wav", "--noise", noise]
    done = command("train", "speech", *sources, "--out", tmp_path / "mix", *sets("data.epoch_size=2", *few[1:]))
    assert done.code == 0, done
    assert math.isfinite(table(tmp_path / "mix")[0]["val_pesq"])
    assert "resampling" not in done.out + done.err
    assert results_of(run)["selection"] == "best epoch on other synthetic clips, by val_pesq"
    assert results_of(tmp_path / "mix")["selection"] == "best epoch on held-out speakers and noises, by val_pesq"


def test_pairs_of_unequal_length_are_one_sentence(folder, command, tmp_path) -> None:
    data = Path(shutil.copytree(folder, tmp_path / "data"))
    sf.write(data / "noisy_trainset_28spk_wav" / "p221_000.wav", np.random.default_rng(0).normal(0, 0.1, 5000), 16000)
    done = command("train", "speech", "--data-dir", data, "--out", tmp_path / "run", *sets("loss.metric=0"))
    assert done.code == 0, done
    warning = "warning: 1 pair differs in length and will be cut to the shorter: first p221_000, noisy 5000 and clean"
    assert done.err.splitlines()[0].startswith(warning)
    assert [line.split("  ")[0] for line in done.err.splitlines()[1:]] == ["epoch 1/1"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_demo_shortened_rises_above_the_noisy_input(seed, command, tmp_path) -> None:
    few = ("data.epoch_size=48", "data.segment=8000", "data.batch_size=2", "data.validation_clips=4")
    options = [word for option in (*few, "data.snrs=[-5, 0]", "trainer.max_epochs=7") for word in ("--set", option)]
    arguments = ["--synthetic", "--config", "mambattention-demo", "--seed", seed, "--out", tmp_path / "run", *options]
    done = command("train", "speech", *arguments)
    assert done.code == 0, done
    last = table(tmp_path / "run")[-1]
    assert last["val_si_sdr"] > last["val_si_sdr_noisy"] + 1, done.err


def test_many_files_of_another_rate_are_resampled_first_with_a_line(command, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(speech, "MANY_FILES", 5)
    monkeypatch.setattr(SpeechDataModule, "setup", stopped)
    for name in ("1", "2", "3"):
        for kind in ("clean", "noisy"):
            (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
            sf.write(tmp_path / "data" / kind / f"{name}.wav", np.random.default_rng(0).normal(0, 0.1, 900), 8000)
    arguments = ("train", "speech", "--data-dir", tmp_path / "data", "--out", tmp_path / "run", *sets())
    done = command(*arguments)
    assert "set up" in done.error
    line, _, cache = done.out.strip().partition(" into ")
    assert line == "resampling 6 files to 16 kHz"
    assert len(list(Path(cache).rglob("*.wav"))) >= 6
    assert command(*arguments).out == ""


def stopped(self, stage=None) -> None:
    raise SeqattnError("set up")


@pytest.mark.parametrize(("batch_size", "cores", "devices", "workers"), [(8, 4, 1, 3), (2, 9, 1, 2), (8, 2, 2, 1)])
def test_pesq_has_a_process_a_clip_but_leaves_a_core(batch_size, cores, devices, workers, monkeypatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    options = {"data": {"batch_size": batch_size}, "trainer": {"devices": devices}, "model": {"channels": 8}}
    assert build_module(SpeechConfig(name="a", **options)).workers.count == workers
    assert build_module(SpeechConfig(name="a", **options, pesq_workers=0)).workers.count == 0


# keeps what every process has in the end
PROCESSES = """
import sys, torch
from seqattn.cli import main
from seqattn.tasks.speech import SpeechEnhancement
def keep(self):
    torch.save(self.state_dict(), f"{sys.argv[0]}.{self.global_rank}")
SpeechEnhancement.on_train_end = keep
main()
"""


@pytest.mark.slow
def test_two_processes_train_one_network_and_validate_on_every_clip(folder, environment, tmp_path) -> None:
    program, run = tmp_path / "program.py", tmp_path / "run"
    program.write_text(PROCESSES)
    hardware = ["--devices", "2", "--strategy", "ddp", "--accelerator", "cpu"]
    arguments = ["--data-dir", folder, "--out", run, *hardware, *sets("data.batch_size=1", "trainer.max_epochs=2")]
    command = [str(part) for part in (sys.executable, program, "train", "speech", *arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert files_of(run) == FILES
    assert done.stdout.count("run directory") == 1
    assert "Warning" not in done.stderr
    weights = [torch.load(f"{program}.{rank}", weights_only=True) for rank in (0, 1)]
    assert_same(*[{name: value for name, value in part.items() if "_terms" not in name} for part in weights])
    last = {name: value for name, value in table(run)[-1].items() if name.startswith("val_")}
    assert validation_of(run, "last.ckpt") == pytest.approx(last, rel=1e-3, abs=1e-3)


def broken(name: str, folder: Path) -> None:
    noisy = folder / "noisy_trainset_28spk_wav"
    if name == "no audio":
        (noisy / "p221_000.wav").write_bytes(b"this is no sound")
    elif name == "no partner":
        (folder / "clean_trainset_28spk_wav" / "p221_001.wav").unlink()
    elif name == "not a number":
        path = noisy / "p222_000.wav"
        sf.write(path, np.full(sf.info(path).frames, np.nan, np.float32), 16000, subtype="FLOAT")
    elif name == "no training":
        shutil.rmtree(noisy)
        shutil.rmtree(folder / "clean_trainset_28spk_wav")
    elif name == "empty":
        for path in noisy.iterdir():
            path.unlink()


BAD_DATA = {
    "no audio": ["p221_000.wav cannot be read as audio", "give a sound WAV, FLAC, OGG or MP3 file"],
    "no partner": ["noisy_trainset_28spk_wav/p221_001.wav has no clean partner", "add it, or remove the noisy file"],
    "not a number": ["p222_000.wav has samples that are NaN", "mend or remove it"],
    "no training": ["has only test pairs, none to train on: add training folders"],
    "empty": ["noisy_trainset_28spk_wav has no audio files"],
}


@pytest.mark.parametrize(("name", "words"), BAD_DATA.items(), ids=BAD_DATA.keys())
def test_data_that_cannot_be_trained_on(name, words, folder, command, tmp_path, in_tmp) -> None:
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    broken(name, data)
    done = command("train", "speech", "--data-dir", data, *sets())
    assert all(part in done.error for part in words), done.error
    assert os.listdir(in_tmp) == []


BAD_OPTIONS = {
    "missing folder": ("--data-dir nowhere", ["nowhere does not exist"]),
    "empty folder": ("--data-dir .", ["has no pairs of noisy and clean recordings"]),
    "no data": ("", ["give --data-dir DIR, --clean DIR with --noise DIR, or --synthetic"]),
    "two sources": ("--data-dir . --synthetic", ["--data-dir", "--synthetic", "exclude each other"]),
    "three sources": ("--data-dir . --clean . --noise .", ["exclude each other"]),
    "noise without clean": ("--noise .", ["--clean and --noise belong together"]),
    "clean without noise": ("--clean .", ["--clean and --noise belong together"]),
    "empty noise": ("--clean . --noise .", ["has no audio files (WAV, FLAC, OGG, MP3, ", "): check the path"]),
    "key": ("--synthetic --set model.chanels=3", ["unknown configuration key 'model.chanels'", "model.channels?"]),
    "configuration": ("--synthetic --config mambatention", ["'mambatention'; did you mean mambattention"]),
    "model": ("--synthetic --model mptsnet", ["model.name = 'mptsnet' on the command line"]),
    "SNRs": ("--synthetic --set data.snrs=[a]", ["data.snrs"]),
    "far SNR": ("--synthetic --set data.snrs=[5,500]", ["snrs is [5.0, 500.0]; give SNRs in dB between -100 and 100"]),
    "SNR": ("--synthetic --set data.snr_range=[5,1]", ["data.snr_range = [5, 1] on the command line: give the lower"]),
    "heads": ("--synthetic --set model.heads=3", ["model.heads = 3", "must divide channels = 8"]),
    "channels": ("--synthetic --set model.channels=9 ", ["model.heads = 2", "must divide channels = 9"]),
    "hop": ("--synthetic --set model.hop=40", ["model.hop = 40", "at most half of n_fft = 60"]),
    "mixer option": ("--synthetic --set model.window=4", ["model.window = 4", "no option of the mixer mamba"]),
    "other mixer": ("--synthetic --set model.mixer=lstm", ["no option of the mixer lstm, which has hidden"]),
    "few bins": ("--synthetic --set model.n_fft=20 --set model.hop=10", ["16 frames and bins", "and 11:"]),
    "few frames": (
        "--synthetic --set model.n_fft=400 --set model.hop=200 --set data.segment=1600",
        ["these have 9 and"],
    ),
    "short segment": ("--synthetic --set data.segment=100", ["data.segment = 100", "greater than or equal to 1600"]),
    "no loss": (
        f"--synthetic {' '.join(f'--set loss.{n}=0' for n in ('magnitude', 'phase', 'complex', 'time', 'metric'))} "
        "--set loss.consistency=0",
        ["every loss weight is 0"],
    ),
    "GPU": ("--synthetic --accelerator gpu", ["this machine has no CUDA device", "--accelerator cpu"]),
    "half precision": ("--synthetic --precision 16-mixed --accelerator cpu", ["needs a GPU"]),
}


@pytest.mark.parametrize(("options", "words"), BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_options_that_cannot_be_used(options, words, command, in_tmp, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = command("train", "speech", *sets(), *options.split())
    assert all(part in done.error for part in words), done.error
    assert os.listdir(in_tmp) == []


def test_resume_takes_a_run_of_speech_and_no_other_option(whole, command, in_tmp) -> None:
    assert "leave the other options out" in command("train", "speech", "--resume", whole, "--synthetic").error
    assert "is not a run directory" in command("train", "speech", "--resume", ".").error
    Path("config.yaml").write_text("task: classification\n")
    assert "is a run of classification, not of speech" in command("train", "speech", "--resume", ".").error
    assert os.listdir(in_tmp) == ["config.yaml"]
