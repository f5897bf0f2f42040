"""Pictures of odd content: they must come out as whole PNG files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seqattn.experiment.figures import confusion_matrix, explained_series, learning_curves

ODD = ["$a_$", "x" * 60, "ü, ; {b}"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "figures" / "figure.png"


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        return image.size


def test_confusion_matrix_takes_any_class_name(path: Path) -> None:
    confusion_matrix(np.array([0, 1, 2, 2]), np.array([0, 2, 2, 2]), ODD, "$100_$", path)
    assert min(size(path)) > 200


def test_learning_curves_without_validation(path: Path) -> None:
    learning_curves([{"epoch": 1, "train_loss": 0.5}, {"epoch": 2, "train_loss": 0.2}], "validation", "run", path)
    assert min(size(path)) > 200


@pytest.mark.parametrize("channels", [1, 20])
def test_explained_series_with_missing_values(path: Path, channels: int) -> None:
    series = np.random.default_rng(0).normal(size=(9, channels))
    series[3:5] = np.nan
    series[:, 0] = np.nan
    explained_series(series, np.full(9, 1 / 9), [3, 4], [0.5, 0.5], "case 1: $a_$", path)
    assert min(size(path)) > 200
