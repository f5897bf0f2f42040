"""The pages of docs are what their scripts write: no figure is typed."""

import subprocess
import sys
from pathlib import Path

import pytest

PAGES = Path(__file__).parents[1] / "docs"


SCRIPTS = [
    "results/classification.py", "results/mixers.py", "results/mptsnet.py", "results/long_series.py",
    "results/speech.py", "results/ehr.py", "kernels/selective_scan.py", "kernels/wersa.py", "kernels/time_attention.py",
]  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_pages_are_generated(script: str) -> None:
    done = subprocess.run([sys.executable, PAGES / script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run {script} again\n{done.stderr}"
