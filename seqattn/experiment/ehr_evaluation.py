"""A trained model of health records on data: loading it, testing it, predicting new stays."""

import csv
import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from seqattn.data.clinical.datasets import Batch, ClinicalDataset
from seqattn.data.clinical.module import ClinicalDataModule
from seqattn.data.clinical.records import Indices, describe
from seqattn.errors import SeqattnError
from seqattn.experiment.ehr_config import EhrConfig
from seqattn.experiment.ehr_data import data_module, held_back, new_stays, restore
from seqattn.experiment.ehr_explain import explain_stays, explainable_network
from seqattn.experiment.figures import risk_curves
from seqattn.experiment.run_directory import RunDirectory, atomic_write_text
from seqattn.experiment.trainer import check_weights, read_checkpoint
from seqattn.metrics.clinical import best_threshold, bootstrap_intervals, clinical_metrics
from seqattn.tasks.clinical import ClinicalPrediction

DRAWS_OF_ONE, DRAWS_OF_EACH = 1000, 200  # resamples behind the intervals of one label, of each of several


def load_module(run: RunDirectory) -> ClinicalPrediction:
    """The run's chosen network, in evaluation mode, on the GPU where the run was configured for one and one is here.

    Raises:
        SeqattnError: there is no checkpoint, or it is of another model.
    """
    config = run.read_config(EhrConfig)
    checkpoint = read_checkpoint(run.best)
    options = checkpoint.get("hyper_parameters", {})
    stored = options.get("model_options", {})
    different = [key for key, value in config.model.network_options().items() if stored.get(key, value) != value]
    if options.get("model") != config.model.name or different:
        raise SeqattnError(
            f"{run.best} is a checkpoint of another model ({(different or ['model'])[0]} differs from {run.config}): "
            "put back the checkpoint this run wrote"
        )
    module = ClinicalPrediction(**options)
    check_weights(checkpoint, module, run.best)
    module.load_state_dict(checkpoint["state_dict"])
    on_gpu = config.trainer.accelerator != "cpu" and torch.cuda.is_available()
    return module.to("cuda" if on_gpu else "cpu").eval()


def test_run(
    run: RunDirectory, config: EhrConfig, module: ClinicalPrediction, data: ClinicalDataModule
) -> dict[str, Any]:
    """Measures over the TEST stays, None where one is undefined; writes predictions.csv and the figures.

    Each label's threshold maximises F1 over the validation stays.
    """
    val_risk, val_label = _risks(config, module, data, data.val_indices)
    risk, label = _risks(config, module, data, data.test_indices)
    per_label: dict[str, dict[str, Any]] = {}
    draws = DRAWS_OF_ONE if len(data.label_names) == 1 else DRAWS_OF_EACH
    for index, name in enumerate(data.label_names):
        threshold = best_threshold(val_risk[:, index].double(), val_label[:, index])
        per_label[name] = _measures(risk[:, index], label[:, index], threshold, draws)
    measures = per_label[data.label_names[0]] if len(per_label) == 1 else _means(list(per_label.values()))
    ids = [str(data.stays.ids[index]) for index in data.test_indices]
    write_predictions(run.predictions, ids, data.label_names, risk, label)
    areas = ", ".join(f"{title} {number(measures[name])}" for name, title in (("auroc", "AUROC"), ("auprc", "AUPRC")))
    labels = "" if len(per_label) == 1 else f", {len(per_label)} labels together"
    title = f"{Path(config.data.dataset).name} TEST{labels}, {config.name}: {areas}"
    risk_curves(risk.flatten().numpy(), label.flatten().numpy(), title, run.figures / "risk_curves.png")
    extra = {"per_label": per_label} if len(per_label) > 1 else {}
    return {**measures, "stays": len(risk), **extra}


def number(value: float | None) -> str:
    """Three decimals; a measure that is undefined is a dash."""
    return "-" if value is None else f"{value:.3f}"


def _risks(
    config: EhrConfig, module: ClinicalPrediction, data: ClinicalDataModule, indices: Indices
) -> tuple[Tensor, Tensor]:
    # not the data module's loaders: in a process of several they give a share of the stays
    stays = ClinicalDataset(data.stays, steps=data.num_steps, indices=indices, fill=data.fill)
    return module.risks(_batches(stays, config.data.eval_batch_size))


def _measures(risk: Tensor, label: Tensor, threshold: float, draws: int) -> dict[str, Any]:
    p, y = risk.double().numpy(), label.numpy()
    found: dict[str, Any] = clinical_metrics(p, y)
    found["threshold"] = threshold
    found["f1_at_threshold"] = clinical_metrics(p, y, threshold)["f1"]
    found["positive"] = int(y.sum())
    intervals = bootstrap_intervals(p, y, draws=draws, chosen=threshold)
    found["interval"] = {name: [_finite(low), _finite(high)] for name, (low, high) in intervals.items()}
    return {name: _finite(value) if isinstance(value, float) else value for name, value in found.items()}


def _finite(value: float) -> float | None:
    """NaN, which JSON lacks, as None."""
    return value if math.isfinite(value) else None


def _means(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over labels of every measure, None where it is undefined for all."""
    names = [name for name in entries[0] if name not in ("threshold", "positive", "interval")]
    values = {name: [entry[name] for entry in entries if entry[name] is not None] for name in names}
    return {name: float(np.mean(found)) if found else None for name, found in values.items()}


def write_predictions(
    path: Path, ids: Sequence[str], labels: Sequence[str], risk: Tensor, label: Tensor | None = None
) -> None:
    """CSV with the columns id and risk_LABEL, and LABEL where it is known, for every label."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", *(f"risk_{name}" for name in labels), *(labels if label is not None else ())])
    for row, identity in enumerate(ids):
        known = [] if label is None else ["" if value != value else f"{value:g}" for value in label[row].tolist()]
        writer.writerow([identity, *(f"{value:.6f}" for value in risk[row].tolist()), *known])
    atomic_write_text(path, text.getvalue())


def evaluate_run(path: Path, data_dir: str | None = None) -> dict[str, Any]:
    """Measure a finished run on its TEST stays again, rewrite predictions.csv and the curves, return the measures.

    data_dir: where a named data set is now, if it has moved.

    Raises:
        SeqattnError: not a finished run of health records, or its data are missing or not those it was trained on.
    """
    run = RunDirectory.open(path)
    config = run.read_config(EhrConfig)
    run.read_results()  # refuses a run that has not finished
    if data_dir is not None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"data_dir": data_dir})})
    module = load_module(run)
    data = data_module(config)
    with held_back():
        data.setup()
        restore(run, data)
    return {"dataset": config.data.dataset, **test_run(run, config, module, data)}


def predict_folder(
    path: Path,
    dataset: str,
    output: Path,
    unknown: Literal["error", "ignore"] = "error",
    explain: bool = False,
    notes: str | None = None,
) -> None:
    """Write `output`: id and the risk of each label, for every stay of a data set or a folder of tables or MEDS.

    unknown: what is done with variables that the run does not know.
    explain: also write pictures of the first stays into the folder named after `output`, see `explain_stays`.
    notes: a file of vectors of these stays' notes, for a run that was trained on such a file.

    What was left out, cut or clipped is printed to stderr.

    Raises:
        SeqattnError: not a finished run, or stays it cannot take.
    """
    run = RunDirectory.open(path)
    config = run.read_config(EhrConfig)
    run.read_results()  # refuses a run that has not finished
    module = load_module(run)
    folder = output.parent / f"{output.stem}-explained"
    if explain:
        explainable_network(module, folder)
    stays = new_stays(run, config, dataset, unknown, notes)
    risk, _ = module.risks(_batches(stays, config.data.eval_batch_size))
    for line in describe(stays.stays.counts):
        print(line, file=sys.stderr, flush=True)
    write_predictions(output, [str(identity) for identity in stays.stays.ids], module.labels, risk)
    print(f"wrote {output} ({len(risk)} stays)")
    if explain:
        drawn = explain_stays(module, stays, risk, folder)
        print(f"wrote {drawn} pictures to {folder}" + (f", of the first of {len(risk)} stays" * (drawn < len(risk))))


def _batches(stays: ClinicalDataset, batch_size: int) -> DataLoader[Batch]:
    return DataLoader(stays, batch_size=batch_size, collate_fn=lambda batch: batch)
