"""A run on health records from configuration to results: an epoch chosen on validation stays, TEST used once."""

import math
import statistics
from pathlib import Path
from typing import Any

import lightning
import torch
from safetensors.torch import save

from seqattn.data.clinical.module import ClinicalDataModule
from seqattn.errors import SeqattnError
from seqattn.experiment.callbacks import read_table
from seqattn.experiment.ehr_config import EhrConfig
from seqattn.experiment.ehr_data import check_validation, data_module, held_back, restore, save_schema
from seqattn.experiment.ehr_evaluation import load_module, test_run
from seqattn.experiment.ehr_measures import number
from seqattn.experiment.figures import metric_curves
from seqattn.experiment.run_directory import RunDirectory, atomic_write, is_first_process
from seqattn.experiment.trainer import build_trainer, check_devices, fit
from seqattn.tasks.clinical import ClinicalPrediction

CURVES = (
    ("train_loss", "training loss"),
    ("val_loss", "validation loss"),
    ("val_auroc", "validation AUROC"),
    ("val_auprc", "validation AUPRC"),
)


def train_run(config: EhrConfig, out: Path | None = None, resume: Path | None = None) -> RunDirectory:
    """Train, evaluate on TEST and write a run directory; with `resume`, finish an interrupted one.

    config: of the run to resume, when resuming. out: the folder, default runs/ehr/NAME-DATASET.

    Raises:
        SeqattnError: the data, the configuration or the machine do not allow it.
    """
    check_devices(config.trainer)
    if resume is not None and RunDirectory.open(resume).results.is_file():
        raise SeqattnError(f"{resume} has finished already: read its results.json, or train a new run")
    data = data_module(config)
    with held_back():
        data.setup()  # every mistake that can be met before anything is written
        check_validation(data, config.trainer.devices)
        build_module(config, data)
        if resume is not None:
            restore(RunDirectory.open(resume), data)
    if resume is not None:
        run = RunDirectory.open(resume)
    else:
        run = RunDirectory.create(out, "ehr", f"{config.name}-{Path(config.data.dataset).name}")
        run.write_config(config)
        save_schema(run, data)
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    module = build_module(config, data)
    monitor = f"val_{config.selection}"
    trainer = build_trainer(config.trainer, run, seed=config.seed, monitor=monitor, mode="max")
    fit(trainer, module, data, run, run.last if run.last.is_file() else None)
    if is_first_process():
        _finish(config, run, data, monitor)
    return run


def build_module(config: EhrConfig, data: ClinicalDataModule) -> ClinicalPrediction:
    """The task of a configuration, untrained."""
    options = config.model.network_options()
    if config.model.reads_notes:
        options["note_width"] = data.note_width
    weight = None
    if config.class_weights == "balanced":
        weight = [(1 - rate) / rate for rate in data.positive_rates]
    return ClinicalPrediction(
        model=config.model.name, model_options=options, labels=list(data.label_names), num_channels=data.num_channels,
        num_steps=data.num_steps, positive_weight=weight,
        optimizer=config.optimizer.model_dump() | {"epochs": config.trainer.max_epochs},
    )  # fmt: skip


def _finish(config: EhrConfig, run: RunDirectory, data: ClinicalDataModule, monitor: str) -> None:
    """Use TEST once; write results, weights, predictions and figures."""
    rows = read_table(run.metrics)
    scored = [row for row in rows if math.isfinite(row.get(monitor, math.nan))]
    if not scored:
        raise SeqattnError(f"no epoch of {run.path} has a finite {monitor}: lower optimizer.lr and train again")
    best = max(scored, key=lambda row: row[monitor])
    module = load_module(run)
    weights = {name: value.contiguous() for name, value in module.network.state_dict().items()}
    atomic_write(run.weights, lambda file: file.write(save(weights)) and None)
    title = f"{Path(config.data.dataset).name}, {config.name}, seed {config.seed}"
    metric_curves(rows, CURVES, title, run.figures / "learning_curves.png")
    results: dict[str, Any] = {
        "task": "ehr",
        "dataset": config.data.dataset,
        "config": config.name,
        "model": config.model.name,
        "protocol": "holdout",
        "selection": f"best epoch by {monitor} on validation stays; TEST used once",
        "seed": config.seed,
        "labels": list(data.label_names),
        "best_epoch": int(best["epoch"]),
        "epochs": int(rows[-1]["epoch"]),
        "validation": {name: value for name, value in best.items() if name.startswith("val_") and math.isfinite(value)},
        "parameters": module.num_parameters,
        "stays": {
            "train": len(data.train_indices),
            "validation": len(data.val_indices),
            "test": len(data.test_indices),
        },
        "left_out": {phrase: int(count) for phrase, count in data.stays.counts.items()},
        "seconds_per_epoch": round(statistics.median(row["seconds"] for row in rows), 3),
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "threads": torch.get_num_threads(),
    }
    results["test"] = test_run(run, config, module, data)
    run.write_results(results)
    print(summary_sentence(results, run), flush=True)


def summary_sentence(results: dict[str, Any], run: RunDirectory) -> str:
    """The line a run ends with."""
    test = results["test"]
    return (
        f"{Path(results['dataset']).name}: test AUROC {number(test['auroc'])}, AUPRC {number(test['auprc'])} on "
        f"{test['stays']} stays (seed {results['seed']}: {results['selection']}); run directory {run.path}"
    )
