"""Does the period-attention saliency point at what the network uses? A deletion curve over a run's TEST set.

python benchmarks/mptsnet_deletion.py RUN [--json FILE] [--figure FILE] [--draws 20]

Steps are deleted (all channels, as missing values) from the most salient on, from the least salient on, and at random;
after each share of steps the accuracy and the probability of the class predicted on the whole series are measured. A
saliency that points at what matters makes the first curve fall below the random one.
"""

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from seqattn.data.series import SeriesSet
from seqattn.data.uea import UEADataModule
from seqattn.experiment.config import ClassificationConfig
from seqattn.experiment.evaluation import load_module, predict_probabilities
from seqattn.experiment.figures import save
from seqattn.experiment.run_directory import RunDirectory
from seqattn.models.saliency import period_saliency
from seqattn.tasks.classification import TimeSeriesClassification

SHARES = [0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]


def delete(series: SeriesSet, order: list[np.ndarray], share: float) -> SeriesSet:
    """The series with the first `share` of each case's steps, in `order`, made missing."""
    values = series.values.copy()
    for case, steps in enumerate(order):
        values[case, steps[: round(share * len(steps))]] = np.nan
    return SeriesSet(values, series.lengths, series.labels, series.classes)


def curve(module: TimeSeriesClassification, series: SeriesSet, order: list[np.ndarray]) -> dict[str, list[float]]:
    classes = module.hparams["classes"]
    labels = torch.tensor([classes.index(label) for label in series.labels])
    whole = predict_probabilities(module, series, 64).argmax(-1)
    probability, accuracy = [], []
    for share in SHARES:
        probabilities = predict_probabilities(module, delete(series, order, share), 64)
        probability.append(probabilities.gather(1, whole[:, None]).mean().item())
        accuracy.append((probabilities.argmax(-1) == labels).float().mean().item())
    return {"probability": probability, "accuracy": accuracy}


def saliencies(module: TimeSeriesClassification, series: SeriesSet) -> list[np.ndarray]:
    """One array (length of the case,) a case."""
    lengths = torch.from_numpy(series.lengths)
    x = module.normalizer(torch.from_numpy(series.values), lengths)
    saliency, _ = period_saliency(module.network, x, lengths)
    return [row[:length] for row, length in zip(saliency.numpy(), series.lengths, strict=True)]


def area(values: list[float]) -> float:
    return float(np.trapezoid(values, SHARES) / SHARES[-1])


def draw_figure(curves: dict[str, dict[str, list[float]]], title: str, path: Path) -> None:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title)
    for axes, measure in zip(figure.subplots(1, 2), ("probability", "accuracy"), strict=True):
        for name, values in curves.items():
            axes.plot([100 * share for share in SHARES], values[measure], marker=".", label=name)
        label = "probability of the first prediction" if measure == "probability" else "test accuracy"
        axes.set(xlabel="steps deleted (%)", ylabel=label, ylim=(0, 1.05))
        axes.legend()
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    run = RunDirectory.open(options.run)
    config = run.read_config(ClassificationConfig)
    module = load_module(run)
    data = UEADataModule(config.data.dataset, config.data.data_dir, fold=None)
    data.setup()
    series, random = data.test_set, np.random.default_rng(0)
    ranked = [np.argsort(-saliency, kind="stable") for saliency in saliencies(module, series)]
    curves = {
        "most salient first": curve(module, series, ranked),
        "least salient first": curve(module, series, [steps[::-1] for steps in ranked]),
    }
    draws = [curve(module, series, [random.permutation(steps) for steps in ranked]) for _ in range(options.draws)]
    curves["random"] = {
        measure: [statistics.fmean(values) for values in zip(*(draw[measure] for draw in draws), strict=True)]
        for measure in ("probability", "accuracy")
    }
    random_areas = [area(draw["probability"]) for draw in draws]
    report = {
        "dataset": config.data.dataset,
        "config": config.name,
        "seed": config.seed,
        "cases": series.cases,
        "draws": options.draws,
        "shares": SHARES,
        "curves": curves,
        "area": {name: area(values["probability"]) for name, values in curves.items()},
        "random_area_range": [min(random_areas), max(random_areas)],
    }
    for name, value in report["area"].items():
        print(f"{name:20s} area under the probability curve {value:.3f}")
    print(f"random draws between {min(random_areas):.3f} and {max(random_areas):.3f}; lower means more is lost")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if options.figure:
        draw_figure(curves, f"{config.data.dataset}: deleting steps by period-attention saliency", options.figure)


if __name__ == "__main__":
    main()
