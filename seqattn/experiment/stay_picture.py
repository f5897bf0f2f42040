"""The picture of one stay: its observations, where time attention looked, and its share in the mixture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from seqattn.experiment.figures import plain, save, short

MOST_VARIABLES = 40  # rows of dots: those with the most observations
MOST_NOTES = 20  # rows of weights: those of the latest notes
STRONGEST = 3.0  # z-score that has the full colour


@dataclass(frozen=True, eq=False)
class StayPicture:
    """What is drawn.

    hours, channels, values: (observations,), when, the position in `variables`, the z-score.
    row_hours: (rows,) when each row of the series was. attention: (steps, rows), each step's weights.
    gate: (steps, features), the share of time attention, None for a model without imputation.
    notes: (notes,) hours. note_attention: (steps, notes), each step's weights, None for a model without notes.
    window: hours.
    """

    title: str
    window: float
    variables: Sequence[str]
    hours: NDArray[np.floating]
    channels: NDArray[np.integer]
    values: NDArray[np.floating]
    row_hours: NDArray[np.floating]
    attention: NDArray[np.floating]
    gate: NDArray[np.floating] | None
    notes: NDArray[np.floating]
    note_attention: NDArray[np.floating] | None = None


def draw_stay(picture: StayPicture, path: Path) -> None:
    """Write a PNG of three panels over the hours of the window, and one more where the model attends to notes."""
    count = np.bincount(picture.channels, minlength=len(picture.variables))
    order = np.argsort(-count, kind="stable")[:MOST_VARIABLES]
    shown = np.sort(order[count[order] > 0])
    heights = [0.6 + 0.17 * max(4, len(shown)), 3, 1.4]
    looks_at_notes = picture.note_attention is not None and len(picture.notes) > 0
    if looks_at_notes:
        heights.insert(2, 0.5 + 0.2 * min(len(picture.notes), MOST_NOTES))
    figure = Figure(figsize=(9.5, sum(heights) + 0.8), layout="constrained")
    figure.suptitle(plain(picture.title), fontsize=11)
    seen, looked, *read, mixed = figure.subplots(len(heights), 1, height_ratios=heights, sharex=True)
    _observations(figure, seen, picture, shown, int((count > 0).sum()))
    _attention(figure, looked, picture)
    if picture.note_attention is not None and looks_at_notes:
        _note_attention(figure, read[0], picture, picture.note_attention)
    _gate(mixed, picture)
    before = min([0.0, *picture.notes.tolist()])
    margin = 0.015 * (picture.window - before)
    mixed.set(xlim=(before - margin, picture.window + margin), xlabel="hours from the start of the window")
    mixed.set_xticks(np.linspace(0, picture.window, 9))
    save(figure, path)


def _observations(figure: Figure, axes: Axes, picture: StayPicture, shown: NDArray[np.integer], observed: int) -> None:
    place = np.full(len(picture.variables), -1)
    place[shown] = np.arange(len(shown))
    kept = place[picture.channels] >= 0
    colours = {"cmap": "coolwarm", "vmin": -STRONGEST, "vmax": STRONGEST, "edgecolors": "grey", "linewidths": 0.3}
    dots = axes.scatter(picture.hours[kept], place[picture.channels[kept]], c=picture.values[kept], s=22, **colours)  # type: ignore[arg-type]
    figure.colorbar(dots, ax=axes, label="z-score", extend="both", pad=0.01)
    axes.set_yticks(range(len(shown)), [short(picture.variables[channel], 24) for channel in shown], fontsize=7)
    axes.set_ylim(max(len(shown), 1) - 0.4, -0.6)
    axes.grid(axis="y", linewidth=0.3)
    for number, hour in enumerate(picture.notes):
        axes.axvline(hour, color="tab:green", linestyle=":", linewidth=1, label="" if number else "note")
    if len(picture.notes):
        axes.legend(loc="upper right", fontsize=7)
    more = f", the {len(shown)} most observed of {observed} variables" if observed > len(shown) else ""
    axes.set_title(f"observations{more}" if len(shown) else "no observations", fontsize=9, loc="left")


def _attention(figure: Figure, axes: Axes, picture: StayPicture) -> None:
    """Weights of the rows summed over bins as wide as a step."""
    steps = len(picture.attention)
    edges = np.linspace(0, picture.window, steps + 1)
    place = np.clip(np.searchsorted(edges, picture.row_hours, side="right") - 1, 0, steps - 1)
    binned = np.zeros((steps, steps))
    np.add.at(binned.T, place, picture.attention.T)
    half = picture.window / (steps - 1) / 2
    rows = np.linspace(-half, picture.window + half, steps + 1)
    image = axes.pcolormesh(edges, rows, binned, cmap="Oranges", vmin=0, vmax=max(float(binned.max()), 1e-12))
    figure.colorbar(image, ax=axes, label="weight", pad=0.01)
    axes.plot([0, picture.window], [0, picture.window], color="grey", linewidth=0.6, linestyle="--")
    axes.set(ylim=(-half, picture.window + half), ylabel="of the step at hour")
    axes.set_title("time attention to the observations of each hour, mean of the heads", fontsize=9, loc="left")


def _note_attention(figure: Figure, axes: Axes, picture: StayPicture, weights: NDArray[np.floating]) -> None:
    """One row a note, the latest last, over the steps that look at it."""
    latest = slice(max(len(picture.notes) - MOST_NOTES, 0), None)
    hours, weights = picture.notes[latest], weights[:, latest]
    half = picture.window / (len(weights) - 1) / 2
    steps = np.linspace(-half, picture.window + half, len(weights) + 1)
    rows = np.arange(len(hours) + 1) - 0.5
    image = axes.pcolormesh(steps, rows, weights.T, cmap="Greens", vmin=0, vmax=max(float(weights.max()), 1e-12))
    figure.colorbar(image, ax=axes, label="weight", pad=0.01)
    axes.plot(hours, np.arange(len(hours)), "k|", markersize=7)
    axes.set_yticks(range(len(hours)), [f"note at {hour:.1f} h" for hour in hours], fontsize=7)
    axes.set_ylim(len(hours) - 0.5, -0.5)
    more = f", the latest {len(hours)} of {len(picture.notes)}" if len(picture.notes) > len(hours) else ""
    axes.set_title(f"time attention of each step to the notes{more}, mean of the heads", fontsize=9, loc="left")


def _gate(axes: Axes, picture: StayPicture) -> None:
    axes.set(ylim=(0, 1), ylabel="share")
    axes.axhline(0.5, color="grey", linewidth=0.6, linestyle="--")
    axes.set_title("gate: 1 is time attention, 0 is imputation", fontsize=9, loc="left")
    if picture.gate is None:
        axes.text(0.5, 0.6, "this model has time attention alone", ha="center", transform=axes.transAxes, fontsize=8)
        return
    hours = np.linspace(0, picture.window, len(picture.gate))
    low, middle, high = np.percentile(picture.gate, [10, 50, 90], axis=1)
    if picture.gate.shape[1] > 1:
        axes.fill_between(hours, low, high, alpha=0.25, linewidth=0, label="10 to 90 % of the features")
    axes.plot(hours, middle, label="median of the features" if picture.gate.shape[1] > 1 else "")
    if picture.gate.shape[1] > 1:
        axes.legend(loc="upper right", fontsize=7, ncols=2)
