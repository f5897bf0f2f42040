"""Pictures of a recording before and after enhancement, in fixed memory."""

import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from seqattn.experiment.figures import save

WINDOW_SECONDS = 0.032  # resolves the harmonics of a voice
COLUMNS = 2000  # at most: more than a picture's width in pixels
RANGE_DB = 80.0  # from the loudest point of both pictures down


class Spectrogram:
    """Collects the spectrogram of a stream: mean power over the channels, at most `COLUMNS` columns.

    length: samples of the whole stream, rate: in Hz. Neighbouring frames of a long stream share a column.
    """

    def __init__(self, length: int, rate: int) -> None:
        self.rate, self.length = rate, length
        self.size = 2 * max(1, round(WINDOW_SECONDS * rate / 2))
        self.hop = max(1, self.size // 4)
        frames = 1 + length // self.hop
        self.pooled = math.ceil(frames / COLUMNS)
        self._window = torch.hann_window(self.size)
        self._power = torch.zeros(math.ceil(frames / self.pooled), self.size // 2 + 1, dtype=torch.float64)
        self._rest: Tensor | None = None
        self._seen = 0

    def add(self, samples: Tensor) -> None:
        """Take the next samples, (channels, samples)."""
        if self._rest is None:
            self._rest = samples.new_zeros(len(samples), self.size // 2)
        given = torch.cat([self._rest, samples], 1)
        count = max(0, 1 + (given.shape[1] - self.size) // self.hop)
        columns = (self._seen + torch.arange(count)) // self.pooled
        for channel in given if count else ():
            spectrum = torch.fft.rfft(channel.unfold(0, self.size, self.hop) * self._window)
            self._power.index_add_(0, columns, spectrum.abs().square().double() / len(given))
        self._seen += count
        self._rest = given[:, count * self.hop :]

    def decibels(self) -> np.ndarray:
        """(bins, columns) in dB, 0 for a sine at full scale, -200 at the least; to be called after the last `add`."""
        if self._rest is not None:
            self.add(self._rest.new_zeros(len(self._rest), self.size // 2))
        frames = torch.full((len(self._power),), self.pooled)
        frames[-1] = max(1, self._seen - self.pooled * (len(frames) - 1))
        sine = (self._window.double().sum() / 2) ** 2
        return (10 * (self._power / (frames[:, None] * sine)).clamp(min=1e-20).log10()).T.numpy()


def before_and_after(drawn: tuple[Spectrogram, Spectrogram], name: str, path: Path) -> None:
    """Draw the noisy recording, which comes first, above the enhanced one, in the same colours, as a PNG."""
    noisy, images = drawn[0], [spectrogram.decibels() for spectrogram in drawn]
    peak = max(float(image.max()) for image in images)
    seconds, kilohertz = noisy.length / noisy.rate, noisy.rate / 2000
    right = images[0].shape[1] * noisy.pooled * noisy.hop / noisy.rate
    title = name.replace("$", r"\$")  # no formula
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    both = figure.subplots(2, 1, sharex=True, sharey=True)
    for axes, image, kind in zip(both, images, ("noisy", "enhanced"), strict=True):
        shown = axes.imshow(
            image, origin="lower", aspect="auto", extent=(0, right, 0, kilohertz), cmap="magma", vmin=peak - RANGE_DB,
            vmax=peak,
        )  # fmt: skip
        axes.set(title=f"{title}: {kind}", ylabel="frequency (kHz)", xlim=(0, seconds), ylim=(0, kilohertz))
    both[1].set_xlabel("time (s)")
    figure.colorbar(shown, ax=both, label="level (dB, full-scale sine = 0)", shrink=0.8)
    save(figure, path)
