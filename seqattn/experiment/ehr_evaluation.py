"""A trained model of health records on data: loading it, testing it, predicting new stays."""

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from seqattn.data.clinical.datasets import Batch, ClinicalDataset
from seqattn.data.clinical.module import ClinicalDataModule
from seqattn.data.clinical.records import Indices, describe
from seqattn.errors import SeqattnError
from seqattn.experiment.ehr_config import NAMED, EhrConfig
from seqattn.experiment.ehr_data import data_module, held_back, restore
from seqattn.experiment.ehr_explain import chosen_stays, explain_stays, explainable_network
from seqattn.experiment.ehr_measures import measures_of, number
from seqattn.experiment.ehr_new_stays import moved_data, new_stays
from seqattn.experiment.figures import risk_curves
from seqattn.experiment.run_directory import RunDirectory, atomic_write_text
from seqattn.experiment.trainer import check_weights, read_checkpoint
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
    """Measures over the TEST stays, see `measures_of`; writes predictions.csv and the figures."""
    val_risk, val_label = _risks(config, module, data, data.val_indices)
    risk, label = _risks(config, module, data, data.test_indices)
    several = len(data.label_names) > 1
    draws = DRAWS_OF_EACH if several else DRAWS_OF_ONE
    measures = measures_of(data.label_names, risk, label, val_risk, val_label, draws)
    ids = [str(data.stays.ids[index]) for index in data.test_indices]
    write_predictions(run.predictions, ids, data.label_names, risk, label)
    areas = ", ".join(f"{title} {number(measures[name])}" for name, title in (("auroc", "AUROC"), ("auprc", "AUPRC")))
    labels = f", {len(data.label_names)} labels together" if several else ""
    title = f"{Path(config.data.dataset).name} TEST{labels}, {config.name}: {areas}"
    risk_curves(risk.flatten().numpy(), label.flatten().numpy(), title, run.figures / "risk_curves.png")
    return measures | {"stays": len(risk)}


def _risks(
    config: EhrConfig, module: ClinicalPrediction, data: ClinicalDataModule, indices: Indices
) -> tuple[Tensor, Tensor]:
    # not the data module's loaders: in a process of several they give a share of the stays
    stays = ClinicalDataset(data.stays, steps=data.num_steps, indices=indices, fill=data.fill)
    return module.risks(_batches(stays, config.data.eval_batch_size))


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

    data_dir: where the data are now, if they have moved.

    Raises:
        SeqattnError: not a finished run of health records, or its data are missing or not those it was trained on.
    """
    run = RunDirectory.open(path)
    config = run.read_config(EhrConfig)
    run.read_results()  # refuses a run that has not finished
    if data_dir is not None:
        config = config.model_copy(update={"data": moved_data(config.data, data_dir)})
    dataset = config.data.dataset
    if dataset not in NAMED and not Path(dataset).expanduser().is_dir():
        raise SeqattnError(f"{dataset}, the folder of this run's data, is not there: say where it is with --data-dir")
    module = load_module(run)
    data = data_module(config)
    with held_back():
        data.setup()
        restore(run, data)
    return {"dataset": dataset, **test_run(run, config, module, data)}


def predict_folder(
    path: Path,
    dataset: str,
    output: Path,
    unknown: Literal["error", "ignore"] = "error",
    explain: bool = False,
    notes: str | None = None,
    explain_ids: Sequence[str] | None = None,
    explain_limit: int | None = None,
) -> None:
    """Write `output`: id and the risk of each label, for every stay of `dataset`; `new_stays` says what that may be.

    unknown: what is done with variables that the run does not know.
    explain: also write pictures of stays into the folder named after `output`, see `explain_stays`: of explain_ids, or
    of the first explain_limit.
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
    drawn = chosen_stays(stays, explain_ids, explain_limit) if explain else []
    risk, _ = module.risks(_batches(stays, config.data.eval_batch_size))
    for line in describe(stays.stays.counts):
        print(line, file=sys.stderr, flush=True)
    write_predictions(output, [str(identity) for identity in stays.stays.ids], module.labels, risk)
    print(f"wrote {output} ({len(risk)} stays)")
    if explain:
        explain_stays(module, stays, drawn, risk, folder)
        first = f", of the first of {len(risk)} stays" if explain_ids is None and len(drawn) < len(risk) else ""
        print(f"wrote {len(drawn)} pictures to {folder}{first}")


def _batches(stays: ClinicalDataset, batch_size: int) -> DataLoader[Batch]:
    return DataLoader(stays, batch_size=batch_size, collate_fn=lambda batch: batch)
