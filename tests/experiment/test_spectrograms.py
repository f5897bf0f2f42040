"""Spectrograms of streams: right in level and place, the same however the stream is cut, bounded in size."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from seqattn.experiment.spectrograms import COLUMNS, Spectrogram, before_and_after


def tone(frequency: float, seconds: float, rate: int) -> Tensor:
    return torch.sin(2 * math.pi * frequency * torch.arange(round(seconds * rate)) / rate)[None]


def spectrogram(wave: Tensor, rate: int, block: int = 5000) -> Spectrogram:
    collected = Spectrogram(wave.shape[1], rate)
    for part in wave.split(block, dim=1):
        collected.add(part)
    return collected


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_a_tone_has_its_level_at_its_place(rate: int) -> None:
    collected = spectrogram(torch.cat([tone(1000, 1, rate), torch.zeros(1, rate)], 1), rate)
    image = collected.decibels()
    columns = image.shape[1]
    assert columns == 1 + 2 * rate // collected.hop
    loud, quiet = image[:, columns // 4], image[:, columns * 3 // 4]
    assert loud.argmax() == pytest.approx(1000 * collected.size / rate, abs=0.5)
    assert loud.max() == pytest.approx(0, abs=1.5)
    assert quiet.max() == -200


def test_the_blocks_do_not_matter() -> None:
    wave = torch.randn(2, 30_011, generator=torch.Generator().manual_seed(0))
    whole = spectrogram(wave, 16000, 100_000).decibels()
    np.testing.assert_allclose(spectrogram(wave, 16000, 37).decibels(), whole, atol=1e-3)


def test_a_long_stream_is_pooled_to_a_bounded_picture() -> None:
    wave = tone(1000, 60, 8000)
    collected = spectrogram(wave, 8000)
    image = collected.decibels()
    assert collected.pooled == 4
    assert COLUMNS / 2 < image.shape[1] <= COLUMNS
    np.testing.assert_allclose(image.max(0)[1:-2], 0, atol=0.1)  # a tone is as loud in every column


@pytest.mark.parametrize(("samples", "channels"), [(1, 1), (100, 2), (40_000, 8)])
def test_a_picture_of_anything(tmp_path: Path, samples: int, channels: int) -> None:
    drawn = spectrogram(torch.zeros(channels, samples), 16000), spectrogram(torch.ones(channels, samples), 16000)
    before_and_after(drawn, "$a_$.wav", tmp_path / "a" / "a.png")
    with Image.open(tmp_path / "a" / "a.png") as image:
        image.load()
        assert min(image.size) > 400
