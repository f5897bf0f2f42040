"""Models of health records on public data, each from the command's own code: one JSON a run in docs/results/ehr.

python benchmarks/ehr.py [--datasets physionet2012-challenge ...] [--models ours ...] [--seeds 0 1 2] [--out FOLDER]

Datasets: PhysioNet Challenge 2012 mortality in the splits challenge (a, b, c) and random (80/10/10 by seed), Challenge
2019 sepsis, and generated MIMIC-like stays whose label needs both modalities. Models: our configuration; the same
without time attention; with the published faulty fill; GRU-D; and a logistic regression over hourly features. What is
there already is left alone; docs/results/ehr.py makes the page.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import machine
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from seqattn.data.clinical.datasets import ClinicalDataset
from seqattn.data.clinical.module import ClinicalDataModule
from seqattn.experiment.ehr import data_module, train_run
from seqattn.experiment.ehr_config import EhrConfig
from seqattn.experiment.loading import load_config
from seqattn.metrics.clinical import best_threshold, bootstrap_intervals, clinical_metrics

OUT = Path(__file__).parents[1] / "docs" / "results" / "ehr"
DATASETS: dict[str, list[str]] = {
    "physionet2012-challenge": ["data.dataset=physionet2012", "data.options={split: challenge}"],
    "physionet2012-random": ["data.dataset=physionet2012", "data.options={split: random}"],
    "physionet2019": ["data.dataset=physionet2019", "trainer.max_epochs=6"],
    "synthetic": ["data.dataset=synthetic", "data.options={stays: 2000}", "data.notes=tfidf"],
}
MODELS: dict[str, tuple[str, list[str]]] = {  # name: configuration, overrides
    "ours": ("series", []),
    "no-time-attention": ("series", ["model.branches=imputation"]),
    "published-fill": ("series", ["data.fill=published"]),
    "gru-d": ("gru-d", []),
    "notes": ("interleaved", ["model.fusion=null", "model.modality=notes"]),
    "fusion": ("interleaved", []),
}
LOGISTIC = "logistic-regression"
WITH_NOTES = ("notes", "fusion")
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # inverse regularisation, chosen by validation AUPRC


def configuration(dataset: str, model: str, seed: int) -> EhrConfig:
    source, overrides = MODELS[model]
    split = [f"seed={seed}", *DATASETS[dataset]]
    if dataset == "physionet2012-random":
        split.append(f"data.options={{split: random, seed: {seed}}}")
    return load_config(EhrConfig, source, [*split, *overrides], "ehr")


def trained(dataset: str, model: str, seed: int) -> dict[str, Any]:
    """The results of a run, without its predictions."""
    with tempfile.TemporaryDirectory() as folder:
        run = train_run(configuration(dataset, model, seed), Path(folder) / "run")
        results = run.read_results()
    kept = ("test", "validation", "parameters", "best_epoch", "epochs", "seconds", "threads", "stays", "left_out")
    return {name: results[name] for name in kept}


def hourly_features(data: ClinicalDataModule, indices: np.ndarray) -> np.ndarray:
    """(stays, steps * 2 * channels): forward-filled values and observation flags of every hour."""
    dataset = ClinicalDataset(data.stays, steps=data.num_steps, indices=indices, fill="forward")
    parts = [
        dataset.__getitems__(list(range(start, min(start + 512, len(dataset)))))["regular"].flatten(1).numpy()
        for start in range(0, len(dataset), 512)
    ]
    return np.concatenate(parts)


def logistic(dataset: str, seed: int) -> dict[str, Any]:
    """A logistic regression, its strength chosen on validation stays."""
    data = data_module(configuration(dataset, "ours", seed))
    data.setup()
    parts = {"train": data.train_indices, "valid": data.val_indices, "test": data.test_indices}
    x = {name: hourly_features(data, indices) for name, indices in parts.items()}
    y = {name: data.stays.labels[indices, 0] for name, indices in parts.items()}
    start = time.perf_counter()
    fitted = [
        make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=300)).fit(x["train"], y["train"])
        for strength in STRENGTHS
    ]
    best = max(fitted, key=lambda model: clinical_metrics(model.predict_proba(x["valid"])[:, 1], y["valid"])["auprc"])
    seconds = time.perf_counter() - start
    risk = {name: best.predict_proba(x[name])[:, 1] for name in ("valid", "test")}
    threshold = best_threshold(risk["valid"], y["valid"])
    test = clinical_metrics(risk["test"], y["test"])
    test["f1_at_threshold"] = clinical_metrics(risk["test"], y["test"], threshold)["f1"]
    intervals = {name: list(pair) for name, pair in bootstrap_intervals(risk["test"], y["test"]).items()}
    return {
        "test": {**test, "interval": intervals, "stays": len(y["test"]), "positive": int(y["test"].sum())},
        "parameters": x["train"].shape[1] + 1,
        "seconds": round(seconds, 1),
        "stays": {"train": len(y["train"]), "validation": len(y["valid"]), "test": len(y["test"])},
        "left_out": dict(data.stays.counts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--models", nargs="+", choices=[*MODELS, LOGISTIC])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for dataset in options.datasets:
            with_notes = dataset == "synthetic"
            usual = ["ours", *WITH_NOTES] if with_notes else [name for name in MODELS if name not in WITH_NOTES]
            for model in options.models or [*usual, *([] if with_notes else [LOGISTIC])]:
                file = options.out / f"{dataset}-{model}-{seed}.json"
                if file.is_file():
                    continue
                found = logistic(dataset, seed) if model == LOGISTIC else trained(dataset, model, seed)
                report = {"dataset": dataset, "model": model, "seed": seed, "machine": machine("cpu"), **found}
                file.write_text(json.dumps(report, indent=1) + "\n")
                test = found["test"]
                print(f"{file.stem}: AUROC {test['auroc']:.4f}  AUPRC {test['auprc']:.4f}", flush=True)


if __name__ == "__main__":
    main()
