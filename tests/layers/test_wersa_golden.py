"""WersaAttention against recorded outputs and gradients: three presets, masks, lengths off the power of two, causal."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from seqattn.kernels import use_backend, wersa_attention
from seqattn.layers.wersa import WersaAttention

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "wersa.npz")
CASES = json.loads(str(GOLDEN["cases"]))
OURS = {
    "scale_weights": "gate.scale_weights", "log_bandwidth": "raw_bandwidth", "Rq": "random_q", "Rk": "random_k",
    "wq": "q_proj", "wk": "k_proj", "wv": "v_proj", "wo": "out_proj", "pool": "gate.conv", "mlp": "gate.mlp",
    "norm": "out_norm",
}  # fmt: skip


def ours(name):
    head = next(head for head in OURS if name == head or name.startswith(head + "."))
    return OURS[head] + name[len(head) :]


def golden_layer(case):
    """The layer of a golden case, float64, and the case's settings."""
    case_config = json.loads(str(GOLDEN[f"{case}/config"]))
    prefix = f"weights/{case_config['weights']}/"
    config = json.loads(str(GOLDEN[prefix + "config"]))
    layer = WersaAttention(
        config["width"], config["heads"], preset=config["preset"], levels=config["levels"],
        num_features=config["features"], gate_kernel=config["gate_kernel"], causal=case_config["causal"],
    )  # fmt: skip
    assert layer.feature_map == config["feature_map"]
    state = {
        ours(name.removeprefix(prefix)): torch.from_numpy(GOLDEN[name])
        for name in GOLDEN.files
        if name.startswith(prefix) and not name.endswith("config")
    }
    layer.load_state_dict(state)
    return layer.double().eval(), case_config


def loss_weight(shape):
    draws = np.random.default_rng(zlib.crc32(b"loss_weight.out")).standard_normal(tuple(shape))
    return torch.from_numpy(draws.astype(np.float32)).double()


def close(got, name, tolerance=5e-7):
    expected = torch.from_numpy(GOLDEN[name]).double()
    error = (got - expected).abs().max() / expected.abs().max()
    assert error < tolerance, f"{name}: {error:.2e}"


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("case", CASES)
def test_golden_vectors(case, backend):
    layer, config = golden_layer(case)
    x = torch.from_numpy(GOLDEN[f"{case}/x"]).double().requires_grad_()
    lengths = None if config["lengths"] is None else torch.tensor(config["lengths"])
    valid = torch.ones(x.shape[:2], dtype=torch.bool)
    if lengths is not None:
        valid = torch.arange(x.shape[1]) < lengths[:, None]
        assert torch.equal(valid, torch.from_numpy(GOLDEN[f"{case}/valid"]))
    blank = x.where(valid[..., None], 0)
    with use_backend(backend):
        gains = layer.gate(blank, lengths)
        if f"{case}/heads" in GOLDEN:
            options = {"levels": layer.levels, "feature_map": layer.feature_map, "eps": layer.eps}
            heads = wersa_attention(
                *layer._heads(blank), gains, layer.random_q, layer.random_k, bandwidth=layer.bandwidth,
                causal=layer.causal, lengths=lengths, **options,
            )  # fmt: skip
            close(heads, f"{case}/heads")
        out = layer(x, lengths=lengths)
        loss = (out * loss_weight(out.shape))[valid].sum()
        loss.backward()
    close(out.where(valid[..., None], 0), f"{case}/out")
    close(x.grad, f"{case}/grad_x")
    assert loss.item() == pytest.approx(float(GOLDEN[f"{case}/weighted_sum"]), rel=1e-9)
    parameters = dict(layer.named_parameters())
    norms = GOLDEN[f"{case}/grad_norms"]
    for name, norm in zip(json.loads(str(GOLDEN[f"{case}/grad_names"])), norms, strict=True):
        if ours(name) in parameters:
            got = parameters[ours(name)].grad.norm().item()
            assert abs(got - norm) <= 1e-6 * norm + 1e-8 * norms.max(), (name, got, norm)
        else:  # the bandwidth of a rectified map, which does nothing
            assert name == "log_bandwidth"
            assert norm < 1e-6 * norms.max()
    if layer.gate.align == "first" and not layer.causal:  # gains of odd tokens are never read
        gains, expected = gains[:, ::2], torch.from_numpy(GOLDEN[f"{case}/gains"]).double()[:, ::2]
        assert (gains - expected).abs()[valid[:, ::2]].max() < 1e-7
    elif layer.causal:
        close(gains, f"{case}/gains")
