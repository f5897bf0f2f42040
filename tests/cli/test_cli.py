import json
import subprocess
import sys
import types

import pytest
import yaml
from typer.testing import CliRunner

import seqattn
from seqattn.cli.app import app
from seqattn.experiment.config import ClassificationConfig
from seqattn.experiment.run_directory import RunDirectory

PROGRAM = "import sys; from seqattn.cli import main; sys.argv = ['seqattn', *sys.argv[1:]]; main()"


def run(*arguments, cwd=None):
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)


def error_of(*arguments, cwd=None):
    done = run(*arguments, cwd=cwd)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def invoke(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


@pytest.fixture
def calls(monkeypatch):
    """Stand-ins for the functions that do the work, and what they were called with."""
    made = []
    training, evaluation = (types.ModuleType(f"seqattn.experiment.{name}") for name in ("classification", "evaluation"))
    training.train_run = lambda config, out, resume: made.append((config, out, resume))
    evaluation.evaluate_run = lambda run, data_dir: made.append((run, data_dir)) or {"accuracy": 1.0}
    evaluation.predict_file = lambda run, file, output, explain: made.append((run, file, output, explain))
    for module in (training, evaluation):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


@pytest.mark.parametrize(
    "command", [[], ["train", "classification"], ["eval"], ["predict", "classification"], ["list"]]
)
def test_help_imports_nothing_heavy(command):
    heavy = {"torch", "lightning", "sktime", "numpy", "pandas", "matplotlib"}
    code = PROGRAM.replace(
        "main()", f"\ntry: main()\nfinally: print(sorted({heavy} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    assert done.stderr.strip() == "[]"


def test_lists():
    configs = invoke("list", "configs").stdout.splitlines()
    assert {"classification  mptsnet-paper", "speech  mambattention-paper"} < set(configs)
    models = [line.split("  ") for line in invoke("list", "models").stdout.splitlines()]
    names = [name for task, name in models if task == "classification"]
    assert names == ["mptsnet", "mamba", "lbmamba", "attention", "wersa"]
    assert [name for task, name in models if task == "speech"] == ["mambattention"]


def test_list_datasets_separates_local_from_bundled(tmp_path):
    for split in ("TRAIN", "TEST"):
        (tmp_path / f"Mine_{split}.ts").write_text("@data\n")
    lines = invoke("list", "datasets", "--data-dir", tmp_path).stdout.splitlines()
    assert "local    Mine" in lines
    assert any(line.endswith("  BasicMotions") for line in lines)


def test_env_names_versions_and_backends():
    text = invoke("env").stdout
    assert f"seqattn       {seqattn.__version__}" in text
    assert "backend       reference runs: plain PyTorch" in text


def test_flags_override_the_configuration_only_when_given(calls, tmp_path):
    flags = ["--dataset", "JapaneseVowels", "--set", "model.k=3", "--seed", 4, "--data-dir", tmp_path, "--out", "here"]
    hardware = ["--devices", 2, "--strategy", "ddp", "--accelerator", "cpu"]
    assert invoke("train", "classification", *flags, *hardware).exit_code == 0
    config, out, resume = calls[0]
    assert (config.data.dataset, config.model.k, config.seed) == ("JapaneseVowels", 3, 4)
    assert (config.trainer.devices, config.trainer.strategy, config.trainer.accelerator) == (2, "ddp", "cpu")
    assert (config.data.data_dir, str(out), resume) == (str(tmp_path), "here", None)
    assert (config.protocol, config.trainer.precision) == ("holdout", "32-true")
    invoke("train", "classification", "--config", "mptsnet-paper", "--dataset", "1e3")
    assert (calls[1][0].name, calls[1][0].protocol, calls[1][0].data.dataset) == ("mptsnet-paper", "paper", "1e3")
    invoke("train", "classification", "--model", "lbmamba", "--dataset", "JapaneseVowels")
    assert (calls[2][0].name, calls[2][0].model.name, calls[2][0].model.window) == ("lbmamba", "lbmamba", 8)


def test_resume_takes_the_run_s_configuration(calls, tmp_path):
    previous = RunDirectory.create(tmp_path / "a", "classification", "a")
    previous.write_config(ClassificationConfig(name="a", seed=9, data={"dataset": "JapaneseVowels"}))
    assert "environment" in yaml.safe_load(previous.config.read_text())
    assert invoke("train", "classification", "--resume", previous.path, "--precision", "bf16-mixed").exit_code == 0
    config, out, resume = calls[0]
    assert (config.seed, config.data.dataset, config.trainer.precision) == (9, "JapaneseVowels", "bf16-mixed")
    assert (out, resume) == (None, previous.path)
    assert "leave the other options out" in error_of("train", "classification", "--resume", previous.path, "--seed", 1)


def test_eval_and_predict_pass_their_arguments_on(calls, tmp_path):
    assert json.loads(invoke("eval", "classification", "r").stdout) == {"accuracy": 1.0}
    invoke("predict", "classification", "r", "x.ts", "-o", tmp_path / "p.csv", "--explain")
    assert [str(value) for value in calls[0]] == ["r", "None"]
    assert [str(value) for value in calls[1]] == ["r", "x.ts", str(tmp_path / "p.csv"), "True"]


def test_ctrl_c_exits_130_with_its_sentence(calls, monkeypatch):
    def interrupted(config, out, resume):
        raise KeyboardInterrupt("interrupted; resume with: seqattn ...")

    monkeypatch.setattr(sys.modules["seqattn.experiment.classification"], "train_run", interrupted)
    done = invoke("train", "classification")
    assert done.exit_code == 130
    assert done.stderr == "interrupted; resume with: seqattn ...\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--config mptsnt", "no classification configuration is named 'mptsnt'; did you mean mptsnet"),
        ("--set model.d_modle=3", "'model.d_modle' on the command line; did you mean model.d_model?"),
        ("--protocol papre", "protocol = 'papre' on the command line: input should be 'holdout' or 'paper'"),
        ("--model nosuch", "no classification configuration is named 'nosuch'"),
        ("--config mptsnet --model nosuch", "model.name = 'nosuch' on the command line"),
        ("--model lbmmba", "no classification configuration is named 'lbmmba'; did you mean lbmamba"),
        ("--model lbmamba --set model.windw=4", "'model.windw' on the command line; did you mean model.window?"),
        ("--resume absent", "there is no run directory absent"),
        ("--precision 8", "trainer.precision = '8' on the command line"),
    ],
)
def test_a_user_s_mistake_is_one_sentence_and_exit_code_2(options, words, tmp_path):
    assert words in error_of("train", "classification", *options.split(), cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments", [["train", "classification", "--nosuch"], ["nosuch"], ["predict", "classification", "r"]]
)
def test_a_usage_error_exits_2_without_a_traceback(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
