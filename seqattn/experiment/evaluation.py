"""A trained classifier on data: loading it, testing it, predicting a file, explaining it."""

import csv
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader

from seqattn.data.archive import find_split
from seqattn.data.cache import load_series
from seqattn.data.series import SeriesSet
from seqattn.data.uea import SeriesDataset, UEADataModule, check_channels, check_compatible
from seqattn.errors import SeqattnError
from seqattn.experiment.config import ClassificationConfig
from seqattn.experiment.figures import confusion_matrix, explained_series
from seqattn.experiment.run_directory import RunDirectory, atomic_write, atomic_write_text, disk_sentence
from seqattn.experiment.trainer import check_weights, read_checkpoint
from seqattn.layers.normalize import ChannelNormalizer
from seqattn.models.mptsnet import MPTSNet
from seqattn.models.saliency import check_saliency, period_saliency
from seqattn.tasks.classification import TimeSeriesClassification, classification_metrics

LINE_EVERY = 50  # pictures


def load_module(run: RunDirectory) -> TimeSeriesClassification:
    """The run's chosen network, in evaluation mode, on the GPU where the run was configured for one and one is here.

    Raises:
        SeqattnError: there is no checkpoint, or it is of another model.
    """
    config = run.read_config(ClassificationConfig)
    model = config.model
    checkpoint = read_checkpoint(run.best)
    options = checkpoint.get("hyper_parameters", {})
    stored = options.get("model_options", {})
    different = [key for key, value in model.network_options().items() if stored.get(key, value) != value]
    if options.get("model") != model.name or different:
        wrong = different[0] if different else "model"
        raise SeqattnError(
            f"{run.best} is a checkpoint of another model ({wrong} differs from {run.config}): "
            "put back the checkpoint this run wrote"
        )
    module = TimeSeriesClassification(**options)
    check_weights(checkpoint, module, run.best)
    module.load_state_dict(checkpoint["state_dict"])
    on_gpu = config.trainer.accelerator != "cpu" and torch.cuda.is_available()
    return module.to("cuda" if on_gpu else "cpu").eval()


def training_tensors(
    data: UEADataModule, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Tensor, Tensor]:
    """The training cases as a network sees them: x (cases, seq_len, channels) and lengths (cases,)."""
    dataset = SeriesDataset(data.train_set, data.classes, indices=data.train_indices, seq_len=data.seq_len)
    batch = dataset.__getitems__(list(range(len(dataset))))
    normalizer = ChannelNormalizer(mean or [0.0] * data.in_channels, std or [1.0] * data.in_channels)
    return normalizer(batch["x"], batch["lengths"]), batch["lengths"]


def evaluate_run(path: Path, data_dir: str | None = None) -> dict[str, Any]:
    """Test a finished run again on its TEST set, rewrite predictions.csv and the confusion matrix, return the metrics.

    Raises:
        SeqattnError: `path` is not a finished run of classification, or its data are missing.
    """
    run = RunDirectory.open(path)
    config = run.read_config(ClassificationConfig)
    run.read_results()  # refuses a run that has not finished
    if data_dir is not None:
        config = with_data_folder(config, data_dir)
    metrics = test_run(run, config, load_module(run))
    return {"dataset": config.data.dataset, "protocol": config.protocol, **metrics}


def with_data_folder(config: ClassificationConfig, data_dir: str) -> ClassificationConfig:
    """The configuration with `data_dir`, made absolute so that it means the same folder from anywhere."""
    absolute = os.path.abspath(os.path.expanduser(data_dir))
    return config.model_copy(update={"data": config.data.model_copy(update={"data_dir": absolute})})


def test_run(run: RunDirectory, config: ClassificationConfig, module: TimeSeriesClassification) -> dict[str, Any]:
    """Metrics over the whole TEST set; writes predictions.csv, model.safetensors and the confusion matrix."""
    data = UEADataModule(config.data.dataset, config.data.data_dir, fold=None, seed=config.seed)
    data.setup()
    classes = module.hparams["classes"]
    check_series(data.test_set, module, f"{data.dataset} TEST")
    probabilities = predict_probabilities(module, data.test_set, config.data.eval_batch_size)
    labels = torch.tensor([classes.index(label) for label in data.test_set.labels])
    metrics: dict[str, Any] = classification_metrics(probabilities, labels)
    write_predictions(run.predictions, classes, probabilities)
    weights = {name: value.contiguous() for name, value in module.state_dict().items()}
    atomic_write(run.weights, lambda file: file.write(save(weights)) and None)
    confusion_matrix(
        labels.numpy(), probabilities.argmax(-1).numpy(), classes,
        f"{config.data.dataset} TEST, accuracy {100 * metrics['accuracy']:.1f} %", run.figures / "confusion_matrix.png",
    )  # fmt: skip
    return {**metrics, "cases": len(labels)}


def predict_file(path: Path, file: Path, output: Path, explain: bool = False) -> None:
    """Write `output` (case, predicted label, one probability per class) for every series in `file`.

    file: .ts or .arff; the bare name of a data set at hand stands for its TEST file.
    explain: also write one picture a series into the folder named after `output`, see `explain_series`.

    Raises:
        SeqattnError: not a finished run, or series the network cannot take.
    """
    run = RunDirectory.open(path)
    config = run.read_config(ClassificationConfig)
    run.read_results()  # refuses a run that has not finished
    module = load_module(run)
    folder = output.parent / f"{output.stem}-explained"
    if explain:
        explainable_network(module, folder)
    if not file.suffix and not file.is_file():
        file = find_split(str(file), "TEST", config.data.data_dir if str(file) == config.data.dataset else None)
    series = load_series(file)
    check_series(series, module, str(file))
    probabilities = predict_probabilities(module, series, config.data.eval_batch_size)
    write_predictions(output, module.hparams["classes"], probabilities)
    print(f"wrote {output} ({series.cases} cases)")
    if explain:
        explain_series(module, series, probabilities, folder)
        print(f"wrote {series.cases} pictures to {folder}")


def explainable_network(module: TimeSeriesClassification, folder: Path) -> MPTSNet:
    """The network, if it has period attention and pictures can go into `folder`; SeqattnError otherwise."""
    if not isinstance(module.network, MPTSNet):
        raise SeqattnError(f"--explain needs an MPTSNet run, this one is {module.hparams['model']}")
    check_saliency(module.network)
    if folder.exists() and not folder.is_dir():
        raise SeqattnError(f"{folder} is a file, the pictures go into a folder of that name: choose another -o")
    return module.network


def check_series(series: SeriesSet, module: TimeSeriesClassification, source: str) -> None:
    """Refuse channels, labels or lengths that the network was not trained for.

    MPTSNet takes series as short as the longest period or as the shortest series of TRAIN and TEST, whichever is less.
    """
    options, network = module.hparams, module.network
    check_compatible(series, in_channels=options["in_channels"], classes=options["classes"], source=source)
    check_channels(series, source)
    if isinstance(network, MPTSNet):
        _check_shortest(series, max(network.periods), options["min_length"], source)
        longest, advice = network.seq_len, "model.head=masked_mean and model.layout=contiguous"
        limited = network.whole_length
    else:
        longest, advice = options["seq_len"], "model.positions=sinusoidal"
        limited = options["model_options"]["positions"] == "learned"
    if limited and series.lengths.max() > longest:
        case = int(series.lengths.argmax())
        raise SeqattnError(
            f"{source}, case {case + 1}: {series.lengths[case]} steps, but this network takes at most {longest}; "
            f"shorten the series or train with {advice}"
        )


def _check_shortest(series: SeriesSet, longest_period: int, min_length: int, source: str) -> None:
    shortest, case = min(longest_period, min_length), int(series.lengths.argmin())
    if series.lengths[case] < shortest:
        raise SeqattnError(
            f"{source}, case {case + 1}: {series.lengths[case]} steps, but the longest period is {longest_period} and "
            f"the shortest series of TRAIN and TEST had {min_length}; give at least {shortest} steps"
        )


def predict_probabilities(module: TimeSeriesClassification, series: SeriesSet, batch_size: int) -> Tensor:
    """Class probabilities (cases, classes), in the order of the cases."""
    unlabelled = SeriesSet(series.values, series.lengths, np.full(series.cases, ""), ())
    dataset = SeriesDataset(unlabelled, module.hparams["classes"])
    return module.probabilities(DataLoader(dataset, batch_size=batch_size, collate_fn=lambda batch: batch))


def write_predictions(path: Path, classes: Sequence[str], probabilities: Tensor) -> None:
    """CSV with the columns case (from 1), predicted, and p_CLASS for every class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "predicted", *(f"p_{name}" for name in classes)])
    for case, row in enumerate(probabilities.tolist(), start=1):
        writer.writerow([case, classes[int(np.argmax(row))], *(f"{value:.6f}" for value in row)])
    atomic_write_text(path, text.getvalue())


def explain_series(module: TimeSeriesClassification, series: SeriesSet, probabilities: Tensor, folder: Path) -> None:
    """One PNG a series: its channels over the period-attention saliency, and the periods with their weights.

    Earlier pictures of series in `folder` are deleted first. A terminal shows a bar, a log a line every 50 pictures.
    """
    _delete_pictures(folder)
    terminal = sys.stderr.isatty()
    with Progress(console=Console(stderr=True), transient=True, disable=not terminal) as bar:
        for case in bar.track(range(series.cases), description="drawing"):
            _explain_case(module, series, case, probabilities[case], folder)
            if not terminal and (case + 1) % LINE_EVERY == 0:
                print(f"drew {case + 1} of {series.cases} pictures", file=sys.stderr, flush=True)


def _delete_pictures(folder: Path) -> None:
    for picture in folder.glob("case-*.png"):
        try:
            picture.unlink()
        except OSError as error:
            raise SeqattnError(disk_sentence(picture, error)) from error


def _explain_case(
    module: TimeSeriesClassification, series: SeriesSet, case: int, probabilities: Tensor, folder: Path
) -> None:
    network, classes = explainable_network(module, folder), module.hparams["classes"]
    length = int(series.lengths[case])
    values = torch.from_numpy(series.values[case : case + 1, :length]).to(module.device)
    lengths = torch.tensor([length], device=module.device)
    saliency, weights = period_saliency(network, module.normalizer(values, lengths), lengths)
    chosen = int(probabilities.argmax())
    title = f"case {case + 1}: {classes[chosen]} ({100 * probabilities[chosen]:.0f} %)"
    if series.labels[case]:
        title += f", labelled {series.labels[case]}"
    explained_series(
        values[0].cpu().numpy(), saliency[0].cpu().numpy(), network.periods, weights[0].tolist(), title,
        folder / f"case-{case + 1:04d}.png",
    )  # fmt: skip
