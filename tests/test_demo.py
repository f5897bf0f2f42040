"""The demo's bar, through the command line: BasicMotions with the shipped configuration, seeds 0, 1 and 2."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_basic_motions_reaches_95_percent(tmp_path: Path, seed: int) -> None:
    command = [sys.executable, "-c", "from seqattn.cli import main; main()", "train", "classification"]
    command += ["--dataset", "BasicMotions", "--seed", str(seed), "--out", "run"]
    subprocess.run(command, cwd=tmp_path, check=True)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["protocol"] == "holdout"
    assert results["test"]["accuracy"] >= 0.95
    assert results["test"]["cases"] == 40
