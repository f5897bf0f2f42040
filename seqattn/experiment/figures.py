"""Pictures of a run: confusion matrix, learning curves, explained series."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from seqattn.experiment.run_directory import atomic_write
from seqattn.metrics.clinical import reliability


def save(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    atomic_write(path, lambda file: figure.savefig(file, format="png", dpi=130))


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: Sequence[str], title: str, path: Path) -> None:
    """labels, predicted: (cases,) class numbers. Rows are true classes; colours are fractions of the row."""
    count = len(classes)
    matrix = np.zeros((count, count), dtype=int)
    np.add.at(matrix, (labels, predicted), 1)
    fraction = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = min(14.0, max(4.5, 2.0 + 0.45 * count))
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.add_subplot(xlabel="predicted", ylabel="true", title=plain(title))
    image = axes.imshow(fraction, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, ax=axes, label="fraction of the true class", shrink=0.8)
    axes.set_xticks(range(count), [short(name) for name in classes], rotation=45, ha="right")
    axes.set_yticks(range(count), [short(name) for name in classes])
    for row, column in zip(*np.nonzero(matrix), strict=True):
        colour = "white" if fraction[row, column] > 0.5 else "black"
        axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour, fontsize=8)
    save(figure, path)


def learning_curves(rows: Sequence[Mapping[str, float]], evaluated: str, title: str, path: Path) -> None:
    """rows: the run's table, one mapping an epoch. evaluated: what the val_ columns were measured on."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    figure.suptitle(plain(title))
    for axes, names, label in (
        (losses, ("train_loss", "val_loss"), "loss"),
        (accuracies, ("val_accuracy",), "accuracy"),
    ):
        for name in names:
            points = [(row["epoch"], row[name]) for row in rows if name in row]
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    marker=".",
                    label=name.replace("val_", f"{evaluated} ").replace("_", " "),
                )
        axes.set(xlabel="epoch", ylabel=label)
        if axes.lines:
            axes.legend()
        else:
            axes.text(0.5, 0.5, "no validation in this fit", ha="center", transform=axes.transAxes)
    save(figure, path)


def explained_series(
    series: np.ndarray, saliency: np.ndarray, periods: Sequence[int], weights: Sequence[float], title: str, path: Path
) -> None:
    """One series (length, channels), its saliency (length,) as the background, and the periods with their weights."""
    channels = series.shape[1]
    figure = Figure(figsize=(9, 2.0 + 0.9 * min(channels, 12)), layout="constrained")
    rows = min(channels, 12)
    axes_list = figure.subplots(rows + 1, 1, height_ratios=[1] * rows + [1.1])
    figure.suptitle(plain(title))
    for channel, axes in enumerate(axes_list[:rows]):
        axes.imshow(
            saliency[None], aspect="auto", cmap="Oranges", vmin=0, vmax=max(float(saliency.max()), 1e-12), alpha=0.8,
            extent=(-0.5, len(series) - 0.5, 0, 1), transform=axes.get_xaxis_transform(),
        )  # fmt: skip
        axes.plot(series[:, channel], color="black", linewidth=1)
        axes.set_xlim(-0.5, len(series) - 0.5)
        finite = series[:, channel][np.isfinite(series[:, channel])]
        if finite.size:
            margin = 0.05 * (np.ptp(finite) or 1.0)
            axes.set_ylim(finite.min() - margin, finite.max() + margin)
        axes.set_ylabel(f"ch {channel + 1}", rotation=0, ha="right", va="center")
        axes.set_yticks([])
        if channel < rows - 1:
            axes.set_xticks([])
    axes_list[rows - 1].set_xlabel("step; darker background: more attended to" + _unshown(channels, rows))
    axes_list[rows].bar([str(period) for period in periods], weights, color="tab:blue")
    axes_list[rows].set(xlabel="period (steps)", ylabel="weight", ylim=(0, max(1e-6, *weights) * 1.15))
    save(figure, path)


def _unshown(channels: int, rows: int) -> str:
    return f" (first {rows} of {channels} channels)" if channels > rows else ""


def short(name: str, most: int = 18) -> str:
    """A name of at most `most` characters, for an axis."""
    return plain(name if len(name) <= most else f"{name[: most - 1]}…")


def plain(text: str) -> str:
    """Text that matplotlib must not read as a formula."""
    return text.replace("$", r"\$")


def metric_curves(
    rows: Sequence[Mapping[str, float]], columns: Sequence[tuple[str, str]], title: str, path: Path
) -> None:
    """rows: a run's table, one mapping an epoch. columns: names and labels; those that no row has are left out."""
    present = [(name, label) for name, label in columns if any(name in row for row in rows)]
    figure = Figure(figsize=(3.4 * len(present), 3.4), layout="constrained")
    figure.suptitle(plain(title))
    for axes, (name, label) in zip(figure.subplots(1, len(present), squeeze=False)[0], present, strict=True):
        points = [(row["epoch"], row[name]) for row in rows if name in row]
        axes.plot(*zip(*points, strict=True), marker=".")
        axes.set(xlabel="epoch", ylabel=label)
    save(figure, path)


def risk_curves(risk: np.ndarray, label: np.ndarray, title: str, path: Path) -> None:
    """risk, label: (cases,). Receiver operating characteristic, precision against recall, and calibration."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    figure.suptitle(plain(title))
    roc, ranked, calibrated = figure.subplots(1, 3)
    if 0 < label.sum() < len(label):
        false_positives, true_positives, _ = roc_curve(label, risk)
        precision, recall, _ = precision_recall_curve(label, risk)
        roc.plot(false_positives, true_positives)
        ranked.plot(recall, precision)
    roc.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    ranked.axhline(label.mean(), color="grey", linewidth=0.8)
    mean, frequency, count = reliability(risk, label)
    calibrated.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    calibrated.plot(mean, frequency, marker="o")
    for x, y, cases in zip(mean, frequency, count, strict=True):
        calibrated.annotate(f"{cases:.0f}", (x, y), textcoords="offset points", xytext=(4, -10), fontsize=7)
    roc.set(xlabel="false positive rate", ylabel="true positive rate")
    ranked.set(xlabel="recall", ylabel="precision", ylim=(0, 1.02))
    calibrated.set(xlabel="mean risk of a bin", ylabel="frequency (and cases)")
    save(figure, path)
