"""`seqattn train speech` and `seqattn eval speech`: from options to what does the work."""

import subprocess
import sys
import types
from pathlib import Path

import pytest
from typer.testing import CliRunner

from seqattn.cli.app import app
from seqattn.errors import SeqattnError
from seqattn.experiment.loading import list_configs, load_config
from seqattn.experiment.run_directory import RunDirectory
from seqattn.experiment.speech_config import SpeechConfig


def invoke(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


@pytest.fixture
def calls(monkeypatch):
    """Stand-ins for the functions that do the work, and what they were called with."""
    made = []
    training, results = (types.ModuleType(f"seqattn.experiment.{name}") for name in ("speech", "speech_results"))
    training.train_run = lambda config, out, resume: made.append((config, out, resume))
    results.evaluate_run = lambda *arguments, device: made.append((*arguments, device)) or ("the table", 0)
    for module in (training, results):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


@pytest.mark.parametrize("command", ["train", "eval"])
def test_help_imports_nothing_heavy(command):
    heavy = {"torch", "lightning", "numpy", "torchaudio", "soundfile", "pesq", "matplotlib"}
    code = (
        f"import sys; from seqattn.cli import main; sys.argv = ['seqattn', '{command}', 'speech', '--help']\n"
        f"try: main()\nfinally: print(sorted({heavy} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    assert done.stderr.strip() == "[]"


def test_each_source_of_speech(calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("pairs", "a", "b", "c"):
        (tmp_path / name).mkdir()
    assert invoke("train", "speech", "--data-dir", "pairs").exit_code == 0
    assert invoke("train", "speech", "--clean", "a", "--clean", "b", "--noise", "c").exit_code == 0
    assert invoke("train", "speech", "--synthetic").exit_code == 0
    pairs, mix, synthetic = (config.data for config, _, _ in calls)
    assert (pairs.source, pairs.data_dir) == ("pairs", str(tmp_path / "pairs"))
    assert (mix.source, mix.data_dir) == ("mix", None)
    assert list(mix.clean_dirs) == [str(tmp_path / name) for name in "ab"]
    assert list(mix.noise_dirs) == [str(tmp_path / "c")]
    assert synthetic.source == "synthetic"


def test_a_folder_that_is_not_here_keeps_its_name(calls, tmp_path, monkeypatch):
    """Then it may be one in $SEQATTN_DATA/speech."""
    monkeypatch.chdir(tmp_path)
    assert invoke("train", "speech", "--data-dir", "pairs").exit_code == 0
    assert invoke("train", "speech", "--clean", "a/b", "--noise", "c").exit_code == 0
    pairs, mix = (config.data for config, _, _ in calls)
    assert pairs.data_dir == "pairs"
    assert (*mix.clean_dirs, *mix.noise_dirs) == ("a/b", "c")


def test_no_source_is_met_before_torch_is_imported(tmp_path):
    code = (
        "import sys; from seqattn.cli import main; sys.argv = ['seqattn', 'train', 'speech', *sys.argv[1:]]\n"
        "try: main()\nfinally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    sentence = "there is nothing to train on: give --data-dir DIR, --clean DIR with --noise DIR, or --synthetic"
    assert (done.returncode, done.stdout, done.stderr) == (2, "False\n", f"error: {sentence}\n")
    assert list(tmp_path.iterdir()) == []


def test_a_source_may_come_from_the_configuration(calls, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("data: {source: synthetic}\n")
    assert invoke("train", "speech", "--config", file).exit_code == 0
    assert invoke("train", "speech", "--set", "data.data_dir=there").exit_code == 0
    assert [(config.data.source, config.data.data_dir) for config, _, _ in calls] == [
        ("synthetic", None),
        ("pairs", "there"),
    ]


def test_flags_override_the_configuration_only_when_given(calls, tmp_path):
    flags = ["--synthetic", "--set", "model.blocks=2", "--seed", 4, "--protocol", "paper", "--out", "here"]
    hardware = ["--devices", 2, "--strategy", "ddp", "--accelerator", "cpu", "--precision", "bf16-mixed"]
    assert invoke("train", "speech", *flags, *hardware).exit_code == 0
    config, out, resume = calls[0]
    assert (config.name, config.model.blocks, config.seed, config.protocol) == ("mambattention", 2, 4, "paper")
    trainer = config.trainer
    assert (trainer.devices, trainer.strategy, trainer.accelerator, trainer.precision) == (
        2,
        "ddp",
        "cpu",
        "bf16-mixed",
    )
    assert (str(out), resume) == ("here", None)
    invoke("train", "speech", "--synthetic", "--config", "mambattention-paper")
    config = calls[1][0]
    assert (config.name, config.protocol, config.seed) == ("mambattention-paper", "paper", 3441)
    assert (config.trainer.gradient_clip, config.optimizer.exempt, config.data.batch_size) == (None, False, 2)


def test_the_shipped_configurations_are_valid_and_the_paper_s_is_the_publication_s():
    configs = {name: load_config(SpeechConfig, name, [], "speech") for _, name in list_configs("speech")}
    assert configs.keys() >= {"mambattention", "mambattention-paper", "mambattention-small"}
    paper = configs["mambattention-paper"]
    assert (paper.trainer.max_epochs, paper.data.segment) == (400, 32000)
    optimizer = {"lr": 5e-4, "betas": (0.8, 0.99), "weight_decay": 0.01, "decay": 0.99, "exempt": False}
    assert paper.optimizer.model_dump() == optimizer
    weights = {"magnitude": 0.9, "phase": 0.3, "complex": 0.1, "time": 0.2, "metric": 0.05, "consistency": 0.1}
    assert paper.loss.model_dump() == weights
    sizes = {"channels": 64, "blocks": 4, "mixer": "mamba", "heads": 8, "n_fft": 400, "hop": 100}
    options = paper.model.network_options()
    assert {name: options[name] for name in sizes} == sizes
    assert configs["mambattention"].model.model_copy(update={"checkpoint": False}) == paper.model
    assert configs["mambattention"].data.num_workers == paper.data.num_workers == 2
    assert (configs["mambattention"].protocol, configs["mambattention"].trainer.gradient_clip) == ("holdout", 5.0)


def test_resume_takes_the_run_s_configuration(calls, tmp_path):
    previous = RunDirectory.create(tmp_path / "a", "speech", "a")
    previous.write_config(
        SpeechConfig(name="a", seed=9, data={"source": "mix", "clean_dirs": ["x"], "noise_dirs": ["y"]})
    )
    assert invoke("train", "speech", "--resume", previous.path, "--devices", 2).exit_code == 0
    config, out, resume = calls[0]
    assert (config.name, config.seed, list(config.data.clean_dirs), config.trainer.devices) == ("a", 9, ["x"], 2)
    assert (out, resume) == (None, previous.path)


def test_eval_passes_its_arguments_on_and_prints_the_table(calls):
    assert invoke("eval", "speech").stdout == "the table\n"
    options = ["--data-dir", "pairs", "--scale", "float", "-o", "a.csv", "--workers", 3, "--device", "cpu"]
    assert invoke("eval", "speech", "run", *options).stdout == "the table\n"
    assert calls == [
        (None, None, "int16", None, 1, None),
        (Path("run"), Path("pairs"), "float", Path("a.csv"), 3, "cpu"),
    ]
    assert invoke("eval", "speech", "--scale", "int8").exit_code == 2
    refused = invoke("eval", "speech", "run", "--workers", -1)
    assert refused.exit_code == 2
    assert "--workers" in refused.stderr
    assert len(calls) == 2


def test_eval_ends_with_an_error_where_files_failed(calls, monkeypatch):
    results = sys.modules["seqattn.experiment.speech_results"]
    monkeypatch.setattr(results, "evaluate_run", lambda *arguments, device: ("the table", 2))
    with pytest.raises(SeqattnError, match="2 files were left out of the means, for the reasons above: mend or remove"):
        invoke("eval", "speech", "run")


def test_ctrl_c_exits_130_with_its_sentence(calls, monkeypatch):
    def interrupted(config, out, resume):
        raise KeyboardInterrupt("interrupted; resume with: seqattn ...")

    monkeypatch.setattr(sys.modules["seqattn.experiment.speech"], "train_run", interrupted)
    done = invoke("train", "speech", "--synthetic")
    assert done.exit_code == 130
    assert done.stderr == "interrupted; resume with: seqattn ...\n"
