"""The published time attention in float64: averages of every head, and gradients (tests/golden/README.md)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from loading import load

from seqattn.kernels import time_attention

TESTS = Path(__file__).parents[2]
GOLDEN = np.load(TESTS / "golden" / "ehr.npz")
CASE, HEADS = "time_attention/", 8

golden_weights = load(TESTS / "golden_weights.py")
cases = load(Path(__file__).with_name("cases.py"))


def golden(name):
    return torch.from_numpy(GOLDEN[name]).double()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_averages_and_gradients(backend):
    state = {name: w.double() for name, w in golden_weights.official_state_dict(GOLDEN, CASE).items()}
    embedded = {name: golden(f"{CASE}{name}_embedding").requires_grad_() for name in "qk"}
    query, key = (
        torch.nn.functional.linear(x, *(state[f"time_attn_ts.linears.{index}.{kind}"] for kind in ("weight", "bias")))
        for index, x in enumerate(embedded.values())
    )
    query, key = query[0].unflatten(-1, (HEADS, -1)), key.unflatten(-1, (HEADS, -1))
    values, mask = golden("inputs/small/ts").requires_grad_(), golden("inputs/small/ts_mask")
    averages = time_attention(query, key, values, mask, backend=backend)
    flags = time_attention(query, key, mask, mask, backend=backend)
    assert cases.relative_error(averages.transpose(1, 2), golden(CASE + "core_values")) < 5e-7
    assert cases.relative_error(flags.transpose(1, 2), golden(CASE + "core_flags")) < 5e-7
    out = torch.nn.functional.linear(
        torch.cat([averages, flags], dim=-1).flatten(2),
        *(state[f"time_attn_ts.linears.2.{kind}"] for kind in ("weight", "bias")),
    )
    assert cases.relative_error(out, golden(CASE + "out")) < 1e-10
    (out * golden_weights.loss_weight("time_attention", out.shape)).sum().backward()
    for name, tensor in {"q_embedding": embedded["q"], "k_embedding": embedded["k"], "ts": values}.items():
        assert cases.relative_error(tensor.grad, golden(f"{CASE}grad_{name}")) < 1e-10, name
