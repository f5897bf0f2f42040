"""Distributed training on the CPU: two processes, every validation case once, one voice."""

import subprocess
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from run_files import FILES, FOLD_FILES, files_of, results_of, table

from seqattn.data.uea import SeriesDataset, UEADataModule
from seqattn.tasks.classification import TimeSeriesClassification


def test_two_processes_train_and_validate_on_every_case(toy, tiny_arguments, environment, tmp_path) -> None:
    program = Path(sysconfig.get_path("scripts")) / "seqattn"
    hardware = ["--devices", "2", "--strategy", "ddp", "--accelerator", "cpu"]
    split = ["--set", "data.folds=1", "--set", "data.validation_fraction=0.25", "--set", "data.eval_batch_size=2"]
    arguments = [*tiny_arguments("Unequal", tmp_path / "run"), *hardware, *split]
    done = subprocess.run(
        [program, "train", "classification", *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert files_of(tmp_path / "run") == FILES
    assert done.stdout.count("test accuracy") == 1
    assert "sync_dist" not in done.stderr
    data = UEADataModule("Unequal", str(toy.folder), validation_fraction=0.25)
    data.setup()
    assert len(data.val_indices) == 9
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    module = TimeSeriesClassification.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    batch = SeriesDataset(data.train_set, data.classes).__getitems__(data.val_indices.tolist())
    with torch.no_grad():
        logits, labels = module(batch["x"], batch["lengths"]), batch["label"]
    last = table(tmp_path / "run" / "metrics.csv")[-1]
    assert float(last["val_accuracy"]) == pytest.approx((logits.argmax(-1) == labels).float().mean().item())
    assert float(last["val_loss"]) == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_two_processes_cross_validate(tiny_arguments, environment, tmp_path) -> None:
    program = Path(sysconfig.get_path("scripts")) / "seqattn"
    hardware = ["--devices", "2", "--strategy", "ddp", "--accelerator", "cpu"]
    arguments = [*tiny_arguments("Small", tmp_path / "run"), *hardware, "--set", "data.folds=2"]
    done = subprocess.run(
        [program, "train", "classification", *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    extra = {f"checkpoints/fold-{fold}/{name}" for fold in (1, 2) for name in FOLD_FILES}
    assert files_of(tmp_path / "run") == FILES | extra
    results = results_of(tmp_path / "run")
    lines = done.stderr.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"] * 2 + [
        f"epoch {epoch}/{results['epochs']}" for epoch in range(1, results["epochs"] + 1)
    ]
    tables = [table(tmp_path / "run" / "checkpoints" / f"fold-{fold}" / "metrics.csv") for fold in (1, 2)]
    scores = np.array([[float(row["val_score"]) for row in rows] for rows in tables]).mean(0)
    assert results["best_epoch"] == scores.argmax() + 1
    assert done.stdout.count("test accuracy") == 1
