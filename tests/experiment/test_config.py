import inspect
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field

from seqattn.errors import SeqattnError
from seqattn.experiment.config import (
    ClassificationConfig,
    Config,
    MPTSNetConfig,
    SequenceClassifierConfig,
)
from seqattn.experiment.loading import list_configs, load_config, model_names, parse_config
from seqattn.experiment.tasks import TASKS
from seqattn.models.mptsnet import MPTSNet
from seqattn.models.mptsnet_official import OFFICIAL_OPTIONS


def load(source="mptsnet", *overrides):
    return load_config(ClassificationConfig, str(source), list(overrides), "classification")


def message(source="mptsnet", *overrides):
    with pytest.raises(SeqattnError) as caught:
        load(source, *overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(("task", "name"), list_configs())
def test_every_shipped_configuration_is_valid(task, name):
    assert load_config(TASKS[task], name, [], task).name == name


def test_the_paper_configuration_repeats_the_publication():
    config = load("mptsnet-paper")
    assert (config.protocol, config.model.layout, config.model.shared_norm) == ("paper", "interleaved", True)
    assert (config.optimizer.scheduler, config.trainer.max_epochs, config.trainer.patience) == ("plateau", 200, 20)
    assert (config.model.k, config.model.periods, config.model.period_method) == (5, None, "official")


def test_the_paper_configuration_and_the_network_from_official_weights_have_the_same_options():
    parameters = inspect.signature(MPTSNet).parameters.values()
    defaults = {
        parameter.name: parameter.default for parameter in parameters if parameter.kind == parameter.KEYWORD_ONLY
    }
    layout = inspect.signature(MPTSNet.from_official).parameters["layout"].default
    official = defaults | OFFICIAL_OPTIONS | {"layout": layout}
    apart = {"bins": None, "max_parameters": None}  # the data's, and a guard that computes nothing
    assert load("mptsnet-paper").model.network_options() | apart == official | apart


def test_overrides_are_yaml_and_the_last_one_wins():
    config = load("mptsnet", "model.d_model=64", "optimizer.lr=1e-4", "model.periods=[10, 20]", "optimizer.lr=2e-4")
    assert config.model.d_model == 64
    assert config.model.periods == [10, 20]
    assert config.optimizer.lr == 2e-4
    assert load("mptsnet", "trainer.patience=3", "trainer.patience=null").trainer.patience is None


def test_a_file_is_named_after_itself(file):
    assert load(file("data: {dataset: JapaneseVowels}")).name == "mine"


def test_a_written_configuration_reads_back_equal():
    config = load("mptsnet", "model.periods=[10]")
    data = yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))
    assert parse_config(ClassificationConfig, data, "x") == config


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "model.d_modle=64",
            "unknown configuration key 'model.d_modle' on the command line; did you mean model.d_model?",
        ),
        ("d_model=64", "unknown configuration key 'd_model' on the command line; did you mean model.d_model?"),
        ("lr=1", "did you mean optimizer.lr?"),
        ("modle.k=3", "unknown configuration key 'modle' on the command line; did you mean model?"),
        ("zzz=1", "unknown configuration key 'zzz' on the command line"),
        ("data.folds=abc", "data.folds = 'abc' on the command line: input should be a valid integer"),
        ("optimizer.lr=-1", "optimizer.lr = -1 on the command line: input should be greater than 0"),
        ("optimizer.lr=.inf", "optimizer.lr = inf on the command line: input should be a finite number"),
        ("model.periods=[4, 0]", "model.periods.1 = 0 on the command line"),
        ("trainer.max_epochs=0", "trainer.max_epochs = 0 on the command line"),
        (
            "model.name=mptnet",
            "model.name = 'mptnet' on the command line: input should be 'mptsnet', 'mamba', 'lbmamba', 'attention' or "
            "'wersa'; did you mean mptsnet?",
        ),
        ("trainer=3", "trainer = 3 on the command line"),
        ("trainer.max_epochs", "must have the form key.path=value"),
        ("model.k.deeper=1", "k is a single value"),
        ("model.k=[1", "is not valid YAML"),
    ],
)
def test_a_wrong_override_is_one_sentence(override, words):
    overrides = ["model.k=5", override] if "deeper" in override else [override]
    assert words in message("mptsnet", *overrides)


def test_both_choices_of_a_union_are_named():
    assert "or input should be 'auto'" in message("mptsnet", "data.folds=abc")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "data: {dataset: A}\noptimzer: {lr: 1}",
            "unknown configuration key 'optimzer' in {path}; did you mean optimizer",
        ),
        ("protocol: holdout", "data.dataset is missing in {path}: set it there or with --set data.dataset=VALUE"),
        ("data:", "data.dataset is missing in {path}: set it there or with --set data.dataset=VALUE"),
        ("data: {batch_size: 3}", "data.dataset is missing in {path}"),
        ("data:\n  dataset: [", "{path}, line 2, is not valid YAML"),
        ("- a\n- b", "{path} must hold 'key: value' lines"),
        ("", "{path} must hold 'key: value' lines"),
    ],
)
def test_a_wrong_file_is_one_sentence(file, text, words):
    path = file(text)
    assert words.format(path=path) in message(path)


def test_a_missing_source_is_one_sentence(tmp_path):
    assert "; did you mean mptsnet" in message("mptsnt")
    assert "choose one of attention, lbmamba, mamba, mptsnet" in message("zzzzzz")
    assert "cannot read" in message(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in message(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    ("model", "override", "words"),
    [
        (
            "lbmamba",
            "model.windw=4",
            "key 'model.windw' on the command line; did you mean model.window?",
        ),
        ("lbmamba", "window=4", "unknown configuration key 'window' on the command line; did you mean model.window?"),
        (
            "lbmamba",
            "model.window=0",
            "model.window = 0 on the command line: input should be greater than",
        ),
        ("lbmamba", "model.window=half", "or input should be 'full' or 'official'"),
        ("mamba", "model.window=8", "unknown configuration key 'model.window' on the command line"),
        ("attention", "model.haeds=2", "did you mean model.heads?"),
        ("attention", "model.name=lbmamba", "the model 'lbmamba' asked for on the command line does not go with"),
    ],
)
def test_each_model_of_the_union_knows_its_own_keys(model, override, words):
    assert words in message(model, override)


def test_a_model_beside_the_file_of_another_is_a_conflict_and_not_an_unknown_key(file):
    words = "which configures another one (model.k is no key of mamba): leave out --model, or choose another --config"
    for text in ("data: {dataset: A}\nmodel: {k: 2}", "data: {dataset: A}\nmodel: {name: mptsnet, k: 2}"):
        path = file(text)
        assert message(path, "model.name=mamba") == (
            f"the model 'mamba' asked for on the command line does not go with {path}, {words}"
        )
    unknown = file("data: {dataset: A}\nmodel: {name: mptsnet, hiden: 2}")
    assert f"unknown configuration key 'model.hiden' in {unknown}" in message(unknown, "model.name=mptsnet")
    assert "unknown configuration key 'model.k' on the command line" in message(
        "mamba", "model.name=mamba", "model.k=2"
    )
    assert load(file("data: {dataset: A}\nmodel: {name: mptsnet}"), "model.name=mamba").model.name == "mamba"


def test_a_key_far_from_every_known_one_gets_no_suggestion():
    assert message("mamba", "model.window=8").endswith("on the command line")


def test_mptsnet_is_the_model_of_a_file_that_names_none(file):
    assert load(file("data: {dataset: A}\nmodel: {k: 2}")).model == MPTSNetConfig(k=2)


def test_the_full_window_is_longer_than_any_series():
    assert load("lbmamba", "model.window=full").model.network_options()["window"] == 2**31 - 1
    assert load("lbmamba", "model.window=3").model.network_options()["window"] == 3


def test_the_shipped_mixers_differ_in_the_mixer_alone():
    shared = set(SequenceClassifierConfig.model_fields) - {"positions"}
    mamba, lbmamba, attention, wersa = (
        config.model_dump(exclude={"name", "model"}) | {"model": config.model.model_dump(include=shared)}
        for config in map(load, ("mamba", "lbmamba", "attention", "wersa"))
    )
    assert mamba == lbmamba == attention == wersa


class Other(Config):
    name: Literal["other"]
    width: int = 1
    lr: float


class Two(Config):
    model: Annotated[MPTSNetConfig | Other, Field(discriminator="name")]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"name": "other", "lr": 1, "widht": 2}, "'model.widht' in f; did you mean model.width?"),
        ({"name": "other", "lr": 1, "d_model": 2}, "unknown configuration key 'model.d_model' in f"),
        ({"name": "other"}, "model.lr is missing in f"),
        ({"name": "other", "lr": "x"}, "model.lr = 'x' in f"),
        ({"name": "third"}, "model.name = 'third' in f: input should be 'mptsnet' or 'other'"),
    ],
)
def test_tags_of_a_discriminated_union_stay_out_of_the_key(model, words):
    with pytest.raises(SeqattnError) as caught:
        parse_config(Two, {"model": model}, "f")
    assert words in str(caught.value)
    assert "model.other" not in str(caught.value)


def test_model_names_follow_the_schema():
    assert model_names(ClassificationConfig) == ["mptsnet", "mamba", "lbmamba", "attention", "wersa"]
    assert model_names(Two) == ["mptsnet", "other"]
