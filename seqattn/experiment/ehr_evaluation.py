"""A trained model of health records on data: loading it, testing it, predicting new stays."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from seqattn.data.clinical import schema
from seqattn.data.clinical.datasets import ClinicalDataset
from seqattn.data.clinical.module import ClinicalDataModule, prediction_dataset
from seqattn.errors import SeqattnError
from seqattn.experiment.ehr_config import EhrConfig
from seqattn.experiment.figures import risk_curves
from seqattn.experiment.run_directory import RunDirectory, atomic_write_text
from seqattn.experiment.trainer import check_weights, read_checkpoint
from seqattn.metrics.clinical import best_threshold, bootstrap_intervals, clinical_metrics
from seqattn.tasks.clinical import ClinicalPrediction


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


def save_schema(run: RunDirectory, data: ClinicalDataModule) -> None:
    """Write what prediction needs of the training data: schema.json, and the note encoder where one was fitted."""
    atomic_write_text(run.path / "schema.json", data.schema.to_json())


def read_schema(run: RunDirectory) -> schema.Schema:
    """The run's schema.

    Raises:
        SeqattnError: the run has none, or it is damaged.
    """
    path = run.path / "schema.json"
    if not path.is_file():
        raise SeqattnError(f"{run.path} has no schema.json: train it again")
    return schema.read_schema(path)


def test_run(
    run: RunDirectory, config: EhrConfig, module: ClinicalPrediction, data: ClinicalDataModule
) -> dict[str, Any]:
    """Measures over the TEST stays; writes predictions.csv and the figures.

    Each label's threshold maximises F1 over the validation stays.
    """
    val_risk, val_label = module.risks(data.val_dataloader())
    risk, label = module.risks(data.test_dataloader())
    per_label, draws = {}, 1000 if len(data.label_names) == 1 else 200
    for index, name in enumerate(data.label_names):
        known, val_known = ~label[:, index].isnan(), ~val_label[:, index].isnan()
        threshold = best_threshold(val_risk[val_known, index].double(), val_label[val_known, index])
        per_label[name] = _measures(risk[known, index], label[known, index], threshold, draws)
    means = per_label[data.label_names[0]] if len(per_label) == 1 else _means(list(per_label.values()))
    ids = [str(data.stays.ids[index]) for index in data.test_indices]
    write_predictions(run.predictions, ids, data.label_names, risk, label)
    known = ~label.isnan()
    areas = f"AUROC {means['auroc']:.3f}, AUPRC {means['auprc']:.3f}"
    title = f"{Path(config.data.dataset).name} TEST, {config.name}: {areas}"
    risk_curves(risk[known].numpy(), label[known].numpy(), title, run.figures / "risk_curves.png")
    extra = {"per_label": per_label} if len(per_label) > 1 else {}
    return {**means, "stays": len(risk), **extra}


def _measures(risk: Tensor, label: Tensor, threshold: float, draws: int) -> dict[str, Any]:
    p, y = risk.double().numpy(), label.numpy()
    found: dict[str, Any] = clinical_metrics(p, y)
    found["threshold"] = threshold
    found["f1_at_threshold"] = clinical_metrics(p, y, threshold)["f1"]
    found["positive"] = int(y.sum())
    found["interval"] = {name: list(pair) for name, pair in bootstrap_intervals(p, y, draws=draws).items()}
    return _finite(found)


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """NaN, which JSON lacks, as None."""
    return json.loads(json.dumps(values).replace("NaN", "null"))


def _means(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over labels of every measure that is a number."""
    names = [name for name, value in entries[0].items() if isinstance(value, float) and name != "threshold"]
    values = {name: [entry[name] for entry in entries if entry[name] is not None] for name in names}
    return {name: float(np.mean(found)) for name, found in values.items() if found}


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
    """Measure a finished run on its TEST stays again; data_dir: where the data are now, if they have moved.

    Raises:
        SeqattnError: not a run of health records, or its data are not found.
    """
    from seqattn.experiment.ehr import data_module

    run = RunDirectory.open(path)
    config = run.read_config(EhrConfig)
    if data_dir is not None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"data_dir": data_dir})})
    module = load_module(run)
    data = data_module(config)
    data.setup()
    metrics = test_run(run, config, module, data)
    if run.results.is_file():
        run.write_results(run.read_results() | {"test": metrics})
    return {"dataset": config.data.dataset, **metrics}


def predict_folder(path: Path, dataset: str, output: Path, unknown: Literal["error", "ignore"] = "error") -> None:
    """Write `output`: id and the risk of each label, for every stay of a data set or a folder of tables.

    unknown: what is done with variables that the run does not know.

    Raises:
        SeqattnError: not a finished run, or stays it cannot take.
    """
    run = RunDirectory.open(path)
    config = run.read_config(EhrConfig)
    run.read_results()  # refuses a run that has not finished
    module = load_module(run)
    stays = stays_to_predict(run, config, dataset, unknown)
    risk, _ = module.risks(_batches(stays, config.data.eval_batch_size))
    write_predictions(output, [str(identity) for identity in stays.stays.ids], module.labels, risk)
    print(f"wrote {output} ({len(risk)} stays)")


def stays_to_predict(
    run: RunDirectory, config: EhrConfig, dataset: str, unknown: Literal["error", "ignore"] = "error"
) -> ClinicalDataset:
    """All stays of a source as the run's network takes them."""
    data, encoder = config.data, None
    if config.model.reads_notes and data.notes == "tfidf":
        from seqattn.experiment.ehr import data_module

        trained = data_module(config)
        trained.setup()  # the encoder is fitted to the training notes
        encoder = trained.note_encoder
    return prediction_dataset(
        dataset, read_schema(run), data.data_dir, options=data.options if dataset == data.dataset else {},
        static=data.static, fill=data.fill, max_rows=data.max_rows, max_notes=data.max_notes,
        notes=data.notes if config.model.reads_notes else None, encoder=encoder, unknown=unknown,
    )  # fmt: skip


def _batches(stays: ClinicalDataset, batch_size: int) -> DataLoader[dict[str, Tensor]]:
    return DataLoader(stays, batch_size=batch_size, collate_fn=lambda batch: batch)
