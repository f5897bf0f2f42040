"""The equations evaluated step by step in float64: outputs and every gradient (tests/golden/README.md)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from loading import load

from seqattn.kernels import selective_scan

TESTS = Path(__file__).parents[2]
GOLDEN = np.load(TESTS / "golden" / "lbmamba.npz")
CONFIGS = {case: json.loads(str(GOLDEN[f"{case}/config"])) for case in json.loads(str(GOLDEN["cases"]))}
# golden (batch, channels, length) and (batch, [groups,] state, length)
TIME_LAST = ("out", "u", "delta", "z", "B", "C")


golden_weights = load(TESTS / "golden_weights.py")
cases = load(Path(__file__).with_name("cases.py"))


def golden(key):
    name = key.rpartition("/")[2].removeprefix("grad_")
    tensor = torch.from_numpy(GOLDEN[key]).double()
    return tensor.movedim(-1, 1).contiguous() if name in TIME_LAST else tensor


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(("case", "window"), [(case, w) for case in CONFIGS for w in CONFIGS[case]["windows"]])
def test_output_and_gradients(case, window, backend):
    names = [key.rpartition("/")[2] for key in GOLDEN.files if key.startswith(f"{case}/in/")]
    inputs = {name: golden(f"{case}/in/{name}").requires_grad_() for name in names}
    out = selective_scan(**inputs, delta_softplus=CONFIGS[case]["softplus"], window=window, backend=backend)
    assert cases.relative_error(out, golden(f"{case}/window{window}/out")) < 1e-10
    weight = golden_weights.loss_weight("out", out.mT.shape).mT
    (out * weight).sum().backward()
    compared = [key for key in GOLDEN.files if key.startswith(f"{case}/window{window}/grad_")]
    assert len(compared) == len(inputs) > 0
    for key in compared:
        error = cases.relative_error(inputs[key.rpartition("grad_")[2]].grad, golden(key))
        assert error < 1e-10, f"{key}: {error:.2e}"
