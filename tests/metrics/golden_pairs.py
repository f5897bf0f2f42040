"""The pairs of tests/golden/speech_metrics.npz with their stored values."""

import json
from pathlib import Path

import numpy as np

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "speech_metrics.npz")
CASES = json.loads(str(GOLDEN["cases"]))


def read(case):
    """Clean and degraded signals (samples,) in [-1, 1], and the stored values by name."""
    config = json.loads(str(GOLDEN[f"{case}/config"]))
    clean = GOLDEN[config["clean"]] / 32768
    start, end = config.get("zeroed_clean_samples", (0, 0))
    clean[start:end] = 0
    names = json.loads(str(GOLDEN[f"{case}/metric_names"]))
    values = dict(zip(names, GOLDEN[f"{case}/values"].tolist(), strict=True))
    return clean, GOLDEN[config["degraded"]] / 32768, values


def expected(values, name, scale):
    """The stored value of a segmental or composite measure.

    Where frames are silent it is the one without them: the published script's own LLR, CSIG and COVL are undefined.
    """
    return values.get(f"{name}_defined_frames_{scale}", values.get(f"{name}_{scale}"))
