"""WersaAttention: golden vectors, presets, padding, causality, streaming, what it refuses."""

import json
import math
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

from seqattn.errors import SeqattnError
from seqattn.kernels import use_backend, wersa_attention
from seqattn.kernels.wersa.reference import filter_tokens
from seqattn.layers.wersa import PRESETS, WersaAttention, random_directions

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "wersa.npz")
CASES = json.loads(str(GOLDEN["cases"]))
OURS = {
    "scale_weights": "gate.scale_weights", "log_bandwidth": "raw_bandwidth", "Rq": "random_q", "Rk": "random_k",
    "wq": "q_proj", "wk": "k_proj", "wv": "v_proj", "wo": "out_proj", "pool": "gate.conv", "mlp": "gate.mlp",
    "norm": "out_norm",
}  # fmt: skip
BACKENDS = ["reference", "cpu"]
every_backend = pytest.mark.parametrize("backend", BACKENDS)


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


@every_backend
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


def tiny(**options):
    torch.manual_seed(0)
    return WersaAttention(8, 2, **({"levels": 3, "num_features": 16} | options)).double().eval()


VARIANTS = {
    "default": {},
    "global": {"gate": "global"},
    "mean": {"gate_align": "mean"},
    "port": {"preset": "port"},
    "softmax": {"preset": "softmax"},
    "causal": {"causal": True},
    "causal-softmax": {"causal": True, "preset": "softmax"},
    "even-kernel": {"gate_kernel": 4},
}
every_variant = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())


@every_variant
def test_padding_changes_nothing_not_even_a_gradient(options):
    layer, lengths = tiny(**options), torch.tensor([29, 17, 1, 0])
    x = torch.randn(4, 29, 8, dtype=torch.float64)
    valid = torch.arange(29) < lengths[:, None]
    results = []
    for padding, steps in ((0.0, 29), (float("nan"), 29), (float("inf"), 40)):
        given = torch.full((4, steps, 8), padding, dtype=torch.float64)
        given[:, :29] = torch.where(valid[..., None], x, padding)
        layer.zero_grad()
        out = layer(given, lengths=lengths)
        assert (out[:, 29:] == 0).all()
        assert (out[:, :29][~valid] == 0).all()
        out.square().sum().backward()
        results.append([out[:, :29].detach(), *(parameter.grad.clone() for parameter in layer.parameters())])
        mask = torch.arange(steps) < lengths[:, None]
        assert torch.equal(layer(given, mask), out)
    for other in results[1:]:
        for got, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)
    for row, length in enumerate(lengths[:3]):
        alone = layer(x[row : row + 1, :length])
        torch.testing.assert_close(results[0][0][row : row + 1, :length], alone, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(layer(x, lengths=torch.full((4,), 29)), layer(x), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("options", [{}, {"preset": "softmax"}], ids=["relu", "exp"])
def test_a_causal_output_does_not_depend_on_later_tokens_at_all(options):
    layer = tiny(causal=True, out_norm=False, **options)
    x = torch.randn(2, 60, 8, dtype=torch.float64)
    edited = x.clone()
    edited[:, 40:] = 5 * torch.randn(2, 20, 8, dtype=torch.float64)
    for backend in BACKENDS:
        with use_backend(backend):
            before, after = layer(x), layer(edited)
        assert torch.equal(before[:, :40], after[:, :40])
        assert not torch.equal(before[:, 40:], after[:, 40:])


def test_the_aligned_filter_would_not_be_causal():
    q, k, v = (torch.randn(1, 1, 64, 4, dtype=torch.float64) for _ in range(3))
    gains, proj = torch.rand(1, 64, 4, dtype=torch.float64), torch.randn(4, 8, dtype=torch.float64)
    edited = q.clone()
    edited[:, :, 30:] += 1
    moved = (filter_tokens(q, gains, causal=False) - filter_tokens(edited, gains, causal=False)).abs().amax((0, 1, 3))
    assert (moved[24:30] > 0).all()
    assert (moved[:24] == 0).all()
    causal = [wersa_attention(x, k, v, gains, proj, levels=3, causal=True) for x in (q, edited)]
    assert torch.equal(causal[0][:, :, :30], causal[1][:, :, :30])


@pytest.mark.parametrize("options", [{}, {"preset": "softmax"}, {"gate_kernel": 1}], ids=["relu", "exp", "kernel-1"])
def test_streaming_equals_the_whole_sequence_also_from_a_saved_state(tmp_path, options):
    layer = tiny(causal=True, **options)
    x = torch.randn(2, 23, 8, dtype=torch.float64)
    whole, pieces, state, at = layer(x), [], None, 0
    for tokens in (1, 1, 5, 1, 9, 6):
        piece = x[:, at] if tokens == 1 else x[:, at : at + tokens]
        out, state = layer.step(piece, state)
        assert out.shape == piece.shape
        pieces.append(out.view(2, tokens, 8))
        torch.save(state, tmp_path / "state.pt")
        state, at = torch.load(tmp_path / "state.pt", weights_only=True), at + tokens
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=1e-10, atol=1e-12)
    sizes = {name: tensor.shape for name, tensor in state.items()}
    assert {name: tensor.shape for name, tensor in layer.step(x[:, 0], state)[1].items()} == sizes


def test_reverse_is_the_causal_layer_on_each_sequence_flipped_at_its_own_length():
    layer, lengths = tiny(causal=True), torch.tensor([19, 7])
    x = torch.randn(2, 19, 8, dtype=torch.float64)
    out = layer(x, lengths=lengths, reverse=True)
    for row, length in enumerate(lengths):
        expected = layer(x[row : row + 1, :length].flip(1)).flip(1)
        torch.testing.assert_close(out[row : row + 1, :length], expected, rtol=1e-10, atol=1e-12)
        assert (out[row, length:] == 0).all()
    both = tiny()
    assert torch.equal(both(x, reverse=True), both(x))


@every_variant
def test_gradients_in_float64(options):
    layer = tiny(**options)
    for parameter in layer.parameters():  # off the initial values, where some derivatives are 0
        parameter.data += 0.1 * torch.randn_like(parameter)
    x = torch.randn(2, 11, 8, dtype=torch.float64, requires_grad=True)
    lengths, names = torch.tensor([11, 5]), list(dict(layer.named_parameters()))

    def function(x, *parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,), {"lengths": lengths})

    assert torch.autograd.gradcheck(function, (x, *layer.parameters()), fast_mode=True, atol=1e-6)


def without_norm(gains, **options):
    """A layer without output norm whose gate gives these gains whatever the input."""
    layer = tiny(out_norm=False, eps=0.0, **options)
    nn.init.zeros_(layer.gate.mlp[3].weight)
    nn.init.zeros_(layer.gate.mlp[3].bias)
    layer.gate.scale_weights.data = 2 * torch.as_tensor(gains, dtype=torch.float64)
    return layer


def test_equal_gains_leave_rectified_attention_as_it_is_without_a_filter():
    x = torch.randn(2, 37, 8, dtype=torch.float64)
    one, third = without_norm([1.0] * 4), without_norm([1 / 3] * 4)
    q, k, v = one._heads(x)
    phi_q, phi_k = (torch.relu(rows @ one.random_q) for rows in (q, k))
    weights = phi_q @ phi_k.transpose(-1, -2)
    heads = weights / weights.sum(-1, keepdim=True) @ v
    torch.testing.assert_close(one(x), one.out_proj(heads.transpose(1, 2).flatten(2)), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(third(x), one(x), rtol=1e-11, atol=1e-12)


def test_attention_weights_are_positive_and_sum_to_one():
    layer = without_norm([0.9, 0.2, 1.1, 0.5])
    x = torch.randn(2, 37, 8, dtype=torch.float64)
    nn.init.zeros_(layer.v_proj.weight)
    nn.init.ones_(layer.v_proj.bias)
    nn.init.eye_(layer.out_proj.weight)
    nn.init.zeros_(layer.out_proj.bias)
    torch.testing.assert_close(layer(x), torch.ones_like(x), rtol=1e-12, atol=1e-12)
    layer.eps = 1e-2  # D / (D + eps)
    assert (layer(x) < 1).all()
    assert (layer(x) > 0.5).all()


def test_the_bandwidth_of_a_rectified_map_is_dead():
    layer = tiny(preset="port", out_norm=False)
    x = torch.randn(2, 37, 8, dtype=torch.float64)
    layer.eps = 0.0
    out = layer(x)
    out.square().sum().backward()
    assert layer.raw_bandwidth.grad.abs() < 1e-12 * layer.q_proj.weight.grad.norm()
    layer.raw_bandwidth.data += 3
    torch.testing.assert_close(layer(x), out, rtol=1e-12, atol=1e-13)
    assert "raw_bandwidth" not in dict(tiny().named_parameters())  # so it is no parameter where it does nothing
    softmax = tiny(preset="softmax")
    softmax(x).square().sum().backward()
    assert softmax.raw_bandwidth.grad.abs() > 1e-6


def test_a_common_factor_of_the_scale_weights_changes_nothing_in_a_rectified_layer():
    layer = tiny(out_norm=False, eps=0.0)
    x = torch.randn(2, 37, 8, dtype=torch.float64)
    out = layer(x)
    layer.gate.scale_weights.data *= 2.5
    torch.testing.assert_close(layer(x), out, rtol=1e-11, atol=1e-12)


def test_shifts_by_whole_blocks_move_the_output_and_others_do_not():
    layer = tiny(gate="global", out_norm=False, eps=0.0)
    nn.init.normal_(layer.gate.scale_weights)
    x = torch.randn(1, 64, 8, dtype=torch.float64)
    out = layer(x)
    for shift in (8, 16, 24):
        torch.testing.assert_close(layer(x.roll(shift, 1)), out.roll(shift, 1), rtol=1e-10, atol=1e-12)
    for shift in (1, 2, 4):
        assert (layer(x.roll(shift, 1)) - out.roll(shift, 1)).abs().max() > 1e-3 * out.abs().max()
    swapped = torch.arange(64).view(8, 2, 4).flip(1).flatten()  # the halves of every block of 8
    torch.testing.assert_close(layer(x[:, swapped]), out[:, swapped], rtol=1e-10, atol=1e-12)
    shuffled = torch.randperm(64)
    assert (layer(x[:, shuffled]) - out[:, shuffled]).abs().max() > 1e-3 * out.abs().max()
    layer.gate.scale_weights.data.fill_(0.7)
    nn.init.zeros_(layer.gate.mlp[3].weight)
    nn.init.zeros_(layer.gate.mlp[3].bias)  # all gains equal
    torch.testing.assert_close(layer(x[:, shuffled]), layer(x)[:, shuffled], rtol=1e-10, atol=1e-12)


def test_the_softmax_preset_starts_with_gains_of_one_and_the_scale_of_softmax_attention():
    layer = WersaAttention(32, 2, preset="softmax").eval()
    assert torch.equal(layer.gate(torch.randn(1, 9, 32), None), torch.ones(1, 9, 5))
    assert 1 / layer.bandwidth.item() ** 2 == pytest.approx(1 / math.sqrt(16))
    assert layer.random_q.shape == (16, 256)


def test_orthogonal_directions_have_the_lengths_of_normal_ones():
    drawn = random_directions(16, 40, orthogonal=True, generator=torch.Generator().manual_seed(0)).double()
    for block in drawn.split(16, dim=1):
        products = block.T @ block
        off = products - products.diag().diag()
        assert off.abs().max() < 1e-5
    means = random_directions(8, 20000, True, torch.Generator().manual_seed(2)).mean(1)
    assert means.abs().max() < 0.03  # no direction is preferred
    lengths = random_directions(8, 20000, True, torch.Generator().manual_seed(1)).square().sum(0)
    assert lengths.mean().item() == pytest.approx(8, rel=0.03)
    assert lengths.var().item() == pytest.approx(16, rel=0.1)


def test_random_matrices_come_from_the_seed_and_are_saved():
    one, same, other = (WersaAttention(8, 2, seed=seed, tie_features=False) for seed in (3, 3, 4))
    assert torch.equal(one.random_q, same.random_q)
    assert torch.equal(one.random_k, same.random_k)
    assert not torch.equal(one.random_q, other.random_q)
    assert not torch.equal(one.random_q, one.random_k)
    other.load_state_dict(one.state_dict())
    x = torch.randn(2, 30, 8)
    assert torch.equal(other.eval()(x), one.eval()(x))
    assert not any("random" in name for name, _ in one.named_parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"preset": "softmax"}, {"causal": True}], ids=["relu", "exp", "causal"])
def test_half_precision_stays_near_single(dtype, options):
    layer = tiny(**options).to(dtype)
    x = torch.randn(2, 300, 8).to(dtype)
    expected = layer.double()(x.double())
    got = layer.to(dtype)(x)
    assert got.dtype == dtype
    assert got.isfinite().all()
    bound = {torch.bfloat16: 3e-2, torch.float16: 5e-3}[dtype]
    assert (got.double() - expected).square().mean().sqrt() < bound * expected.square().mean().sqrt()
    large = layer(100 * x)  # whose features overflow half precision
    assert large.isfinite().all()


def test_autocast_computes_in_half_precision():
    layer = tiny().float()
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(torch.randn(2, 30, 8))
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_nan_stays_in_its_own_sequence():
    layer = tiny()
    x = torch.randn(3, 30, 8, dtype=torch.float64)
    clean = layer(x)
    x[1, 4] = float("nan")
    out = layer(x)
    assert torch.equal(out[[0, 2]], clean[[0, 2]])
    assert out[1].isnan().all()


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"preset": "softmax"}], ids=["relu", "causal", "exp"])
def test_compiles_whole_and_exports_with_any_length(options):
    layer, x, lengths = tiny(**options), torch.randn(2, 21, 8, dtype=torch.float64), torch.tensor([21, 9])
    expected = layer(x, lengths=lengths)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, lengths=lengths), expected, rtol=1e-12, atol=1e-13)
    dynamic = {"x": {0: Dim("batch"), 1: Dim("length", min=2, max=10000)}, "lengths": {0: Dim("batch")}}
    program = torch.export.export(layer, (x,), {"lengths": lengths}, dynamic_shapes=dynamic)
    for length in (2, 16, 50):
        other, ends = torch.randn(3, length, 8, dtype=torch.float64), torch.tensor([length, 1, 0])
        got = program.module()(other, lengths=ends)
        torch.testing.assert_close(got, layer(other, lengths=ends), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 0}, "levels is 0"),
        ({"num_features": 0}, "num_features is 0"),
        ({"gate_kernel": 0}, "gate_kernel is 0"),
        ({"preset": "sofmax"}, "softmax"),
        ({"feature_map": "elu"}, "feature_map is 'elu'"),
        ({"gate": "none"}, "gate is 'none'"),
        ({"gate_align": "last"}, "gate_align is 'last'"),
        ({"causal": True, "gate": "global"}, "the future too"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(SeqattnError, match=message):
        WersaAttention(8, 2, **options)


def test_heads_must_divide_the_channels():
    with pytest.raises(SeqattnError, match="3 heads do not divide embed_dim=8"):
        WersaAttention(8, 3)


def test_masks_that_are_not_right_padding_are_refused():
    layer, x = tiny(), torch.randn(1, 5, 8, dtype=torch.float64)
    for mask in ([0, 0, 1, 1, 1], [1, 0, 1, 1, 1]):
        with pytest.raises(ValueError, match="move each sequence's valid tokens to the front"):
            layer(x, torch.tensor([mask], dtype=torch.bool))
    with pytest.raises(ValueError, match="give one of them"):
        layer(x, torch.ones(1, 5, dtype=torch.bool), lengths=torch.tensor([5]))
    with pytest.raises(ValueError, match="booleans"):
        layer(x, torch.ones(1, 5))


def test_levels_far_beyond_the_length_are_warned_of_and_work():
    layer, x = tiny(levels=12), torch.randn(1, 9, 8, dtype=torch.float64)
    with pytest.warns(UserWarning, match="12 levels span 4096 tokens, the input has 9"):
        out = layer(x)
    assert out.isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny(levels=3)(x)


def test_only_a_causal_layer_streams():
    with pytest.raises(SeqattnError, match="causal=True"):
        tiny().step(torch.zeros(1, 8))


def test_presets_are_those_of_the_documentation():
    assert set(PRESETS) == {"default", "port", "softmax"}
    layer = WersaAttention(16, 2, preset="port")
    assert layer.levels == 2
    assert layer.random_q.shape == layer.random_k.shape == (8, 1024)
    assert layer.gate.align == "stretch"
