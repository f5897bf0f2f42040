"""A classification run from configuration to results: the protocols, and what they select on.

holdout: a stratified part of TRAIN selects the epoch; TEST is used once, at the end. Where TRAIN is tiny, stratified
k-fold cross-validation selects the number of epochs and the network is then trained on all of TRAIN for that long.
paper: all of TRAIN trains and the best TEST epoch is reported, as the publication does; it is optimistic.
"""

import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import lightning
import torch

from seqattn.data.uea import UEADataModule, suggested_folds
from seqattn.errors import SeqattnError
from seqattn.experiment.callbacks import read_table
from seqattn.experiment.config import ClassificationConfig, MPTSNetConfig
from seqattn.experiment.evaluation import load_module, test_run, training_tensors, with_data_folder
from seqattn.experiment.figures import learning_curves
from seqattn.experiment.run_directory import RunDirectory, atomic_write, atomic_write_text, is_first_process
from seqattn.experiment.trainer import build_trainer, check_devices, fit
from seqattn.layers.periods import find_periods
from seqattn.models.mptsnet import MPTSNet
from seqattn.tasks.classification import TimeSeriesClassification

Rows = list[dict[str, float]]

SELECTION = {
    "split": "best epoch on a stratified validation split of TRAIN; TEST used once",
    "folds": "number of epochs by stratified k-fold on TRAIN, retrained on all of TRAIN; TEST used once",
    "paper": "best epoch on TEST, as published (optimistic)",
}


def train_run(config: ClassificationConfig, out: Path | None = None, resume: Path | None = None) -> RunDirectory:
    """Train, evaluate on TEST and write a run directory; with `resume`, finish an interrupted one.

    config: of the run to resume, when resuming. out: the folder, default runs/classification/NAME-DATASET.

    Raises:
        SeqattnError: the data, the configuration or the machine do not allow it.
    """
    if config.data.data_dir is not None:
        config = with_data_folder(config, config.data.data_dir)
    folds = _check(config)
    if resume is not None:
        run = RunDirectory.open(resume)
    else:
        run = RunDirectory.create(out, "classification", f"{config.name}-{config.data.dataset}")
        run.write_config(config)
    if run.results.is_file():
        run.read_results()  # says what to do where it is damaged
        raise SeqattnError(f"{run.path} has finished already: read its results.json, or train a new run")
    if folds > 1:
        rows, epochs = _cross_validate(config, run, folds)
        summary = _fit(config, run, run.checkpoints, folds=1, fold=None, epochs=epochs)
        selection, rows_of_choice = "folds", rows
    else:
        summary = rows_of_choice = _fit(config, run, run.checkpoints, folds=1, fold=0)
        selection = "paper" if config.protocol == "paper" else "split"
    if is_first_process():
        _finish(config, run, summary, rows_of_choice, selection, folds)
    return run


def _check(config: ClassificationConfig) -> int:
    """Return the number of folds, having met every mistake that can be met before anything is written."""
    check_devices(config.trainer)
    data = _data_module(config, folds=1, fold=None)
    data.setup()
    folds = _number_of_folds(config, data)
    for fold in range(folds):
        part = _data_module(config, folds, fold)
        part.setup()
        part.statistics()
    _note_short_series(build_module(config, data), data)
    return folds


def _note_short_series(module: TimeSeriesClassification, data: UEADataModule) -> None:
    """Say in the log that some training series cannot show a whole longest period, which is allowed."""
    if not isinstance(module.network, MPTSNet) or not is_first_process():
        return
    longest, lengths = max(module.network.periods), data.train_set.lengths
    short = int((lengths < longest).sum())
    if short:
        print(
            f"note: {short} of {len(lengths)} training series are shorter (down to {lengths.min()} steps) than the "
            f"longest period, {longest} steps: each is one segment of it, filled up with padding",
            file=sys.stderr,
            flush=True,
        )


def build_module(config: ClassificationConfig, data: UEADataModule) -> TimeSeriesClassification:
    """The task of a configuration, with normalisation and periods from the training part of `data`."""
    mean, std = data.statistics() if config.data.normalize == "zscore" else (None, None)
    options = config.model.network_options()
    if isinstance(config.model, MPTSNetConfig):
        options |= _periods(config.model, data, mean, std)
    optimizer = config.optimizer.model_dump() | {"epochs": config.trainer.max_epochs}
    return TimeSeriesClassification(
        model=config.model.name, model_options=options, classes=list(data.classes), in_channels=data.in_channels,
        seq_len=data.seq_len, min_length=data.min_length, mean=mean, std=std,
        label_smoothing=config.label_smoothing, optimizer=optimizer,
    )  # fmt: skip


def _periods(
    model: MPTSNetConfig, data: UEADataModule, mean: list[float] | None, std: list[float] | None
) -> dict[str, list[int] | None]:
    """MPTSNet's periods and bins: the configured ones, or those of the training cases."""
    if model.periods is not None:
        return {"periods": model.periods, "bins": None}
    x, lengths = training_tensors(data, mean, std)
    as_published = model.period_method == "official"
    periods, bins = find_periods(x, model.k, model.period_method, lengths=None if as_published else lengths)
    return {"periods": periods, "bins": None if as_published else bins}


def _data_module(config: ClassificationConfig, folds: int, fold: int | None) -> UEADataModule:
    return UEADataModule(
        config.data.dataset, config.data.data_dir, batch_size=config.data.batch_size,
        eval_batch_size=config.data.eval_batch_size, protocol=config.protocol,
        validation_fraction=config.data.validation_fraction, folds=folds, fold=fold, seed=config.seed,
        num_workers=config.data.num_workers,
    )  # fmt: skip


def _number_of_folds(config: ClassificationConfig, data: UEADataModule) -> int:
    """1 for a single split and for protocol paper; SeqattnError where another option would go unused."""
    folds = config.data.folds
    if config.protocol == "paper":
        if folds not in ("auto", 1):
            raise SeqattnError(
                f"data.folds is {folds}, but protocol paper trains on all of TRAIN and selects on TEST: "
                "set data.folds=auto, or protocol=holdout"
            )
        return 1
    if folds == "auto":
        folds = suggested_folds(data.train_set)
    if folds > 1 and config.trainer.patience is not None:
        raise SeqattnError(
            f"trainer.patience is {config.trainer.patience}, but {folds} folds each train to the end to compare "
            "epochs: set trainer.patience=null, or data.folds=1 for a single split"
        )
    return folds


def _fit(
    config: ClassificationConfig, run: RunDirectory, folder: Path, *, folds: int, fold: int | None,
    epochs: int | None = None,
) -> Rows:  # fmt: skip
    """One fit, resumed from folder/last.ckpt where it exists; returns its table, one row an epoch."""
    if epochs is not None:  # the schedule, too, ends there
        trainer_config = config.trainer.model_copy(update={"max_epochs": epochs})
        config = config.model_copy(update={"trainer": trainer_config})
    data = _data_module(config, folds, fold)
    data.setup()
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    module = build_module(config, data)
    validates = config.protocol == "paper" or fold is not None
    table = folder / "metrics.csv" if folds > 1 else run.metrics
    monitor = ("val_accuracy" if config.protocol == "paper" else "val_score") if validates else None
    trainer = build_trainer(
        config.trainer, run, seed=config.seed, checkpoint_dir=folder, table=table, monitor=monitor, mode="max"
    )
    last = folder / "last.ckpt"
    fit(trainer, module, data, run, last if last.is_file() else None)
    return read_table(table)


def _cross_validate(config: ClassificationConfig, run: RunDirectory, folds: int) -> tuple[Rows, int]:
    """The mean table over the folds, and the number of epochs with the best mean val_score."""
    tables: list[Rows] = []
    for fold in range(folds):
        folder = run.checkpoints / f"fold-{fold + 1}"
        done = folder / "rows.json"
        if not done.is_file():
            rows = _fit(config, run, folder, folds=folds, fold=fold)
            if is_first_process():
                atomic_write_text(done, json.dumps(rows))
            tables.append(rows)
        else:
            tables.append(_read_rows(done))
    names = tables[0][0].keys()
    mean = [
        {name: statistics.fmean(row[name] for row in epoch) for name in names} for epoch in zip(*tables, strict=True)
    ]
    best = max(range(len(mean)), key=lambda index: mean[index]["val_score"])
    return mean, best + 1


def _read_rows(path: Path) -> Rows:
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise SeqattnError(f"{path} is damaged: delete it and resume, the fold is trained again") from None


def _finish(
    config: ClassificationConfig, run: RunDirectory, rows: Rows, selection_rows: Rows, selection: str, folds: int
) -> None:
    """Choose the weights, use TEST once, and write results, weights, predictions and figures."""
    if selection == "folds":  # the retrained network's last epoch is the chosen one
        atomic_write(run.best, lambda file: file.write(run.last.read_bytes()) and None)
    module = load_module(run)
    monitor = "val_accuracy" if selection == "paper" else "val_score"
    if not all(math.isfinite(row["val_loss"]) for row in selection_rows):
        raise SeqattnError(f"the validation loss of {run.path} is not finite: lower optimizer.lr and train again")
    best = max(selection_rows, key=lambda row: row[monitor])
    chosen = {key: best[key] for key in ("val_accuracy", "val_loss")}
    results: dict[str, Any] = {
        "task": "classification",
        "dataset": config.data.dataset,
        "config": config.name,
        "model": config.model.name,
        "protocol": config.protocol,
        "selection": SELECTION[selection],
        "seed": config.seed,
        "folds": folds,
        "best_epoch": int(best["epoch"]),
        "epochs": int(rows[-1]["epoch"]),
        "validation": {"is_test": selection == "paper", **chosen},
        "parameters": module.num_parameters,
        **({"periods": module.network.periods} if isinstance(module.network, MPTSNet) else {}),
        "seconds_per_epoch": round(statistics.median(row["seconds"] for row in rows), 3),
        "seconds": round(sum(row["seconds"] for row in rows) + _fold_seconds(selection_rows, selection, folds), 1),
        "threads": torch.get_num_threads(),
    }
    if selection == "paper":
        results["last_epoch_accuracy"] = rows[-1]["val_accuracy"]
    title = f"{config.data.dataset}, {config.name}, {config.protocol} protocol, seed {config.seed}"
    evaluated = "test" if selection == "paper" else "validation"
    learning_curves(selection_rows, evaluated, title, run.figures / "learning_curves.png")
    results["test"] = test_run(run, config, module)
    run.write_results(results)
    print(summary_sentence(results, run), flush=True)


def _fold_seconds(rows: Rows, selection: str, folds: int) -> float:
    return folds * sum(row["seconds"] for row in rows) if selection == "folds" else 0.0


def summary_sentence(results: dict[str, Any], run: RunDirectory) -> str:
    """The line a run ends with."""
    test = results["test"]
    return (
        f"{results['dataset']}: test accuracy {100 * test['accuracy']:.1f} % on {test['cases']} cases "
        f"({results['protocol']} protocol, seed {results['seed']}: {results['selection']}); run directory {run.path}"
    )
