"""What a run directory of classification holds, and how tests read any run directory."""

import csv
import json
from pathlib import Path

import yaml

FILES = {
    *("config.yaml", "metrics.csv", "results.json", "model.safetensors", "predictions.csv"),
    *("checkpoints/best.ckpt", "checkpoints/last.ckpt", "figures/learning_curves.png", "figures/confusion_matrix.png"),
}
FOLD_FILES = ("best.ckpt", "last.ckpt", "metrics.csv", "rows.json")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def files_of(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and "tensorboard" not in path.parts}


def results_of(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


def results_config(run: Path) -> dict:
    return yaml.safe_load((run / "config.yaml").read_text())


def contents(*folders: Path) -> dict[str, bytes]:
    """Every file below the folders; a folder counts too."""
    found = [path for folder in folders for path in folder.rglob("*")]
    return {str(path): path.read_bytes() if path.is_file() else b"folder" for path in found}
