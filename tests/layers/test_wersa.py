"""WersaAttention: presets, padding, causality, streaming, precision, what it refuses."""

import warnings

import numpy as np
import pytest
import torch
from torch.export import Dim

from seqattn.errors import SeqattnError
from seqattn.kernels import use_backend, wersa_attention
from seqattn.kernels.wersa.reference import filter_tokens
from seqattn.layers.wersa import PRESETS, WersaAttention

BACKENDS = ["reference", "cpu"]


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


@pytest.mark.filterwarnings("ignore:.*levels span:UserWarning")
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
    assert state["tail"].untyped_storage().nbytes() == state["tail"].nbytes  # no view that keeps the stream in memory


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


def test_random_matrices_do_not_depend_on_the_default_dtype_or_device():
    expected = WersaAttention(8, 2, orthogonal=True).random_q
    torch.set_default_dtype(torch.float64)
    try:
        drawn = WersaAttention(8, 2, orthogonal=True).random_q
    finally:
        torch.set_default_dtype(torch.float32)
    assert drawn.dtype == torch.float64
    assert torch.equal(drawn.float(), expected)
    assert WersaAttention(8, 2).half().random_q.dtype == torch.float16
    with torch.device("meta"):
        assert WersaAttention(8, 2).random_q.is_meta


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
    masked = compiled(x, torch.arange(21) < lengths[:, None])
    torch.testing.assert_close(masked, expected, rtol=1e-12, atol=1e-13)
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
        ({"levels": 1.5}, "levels is 1.5: it must be an integer"),
        ({"levels": 41}, "levels is 41: it must be at most 40"),
        ({"qk_act": "none"}, "qk_act is 'none': it must be one of gelu, None"),
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
    for mask in (torch.ones(1, 5), torch.ones(1, 4, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"it must be \(1, 5\) booleans"):
            layer(x, mask)


def test_inputs_of_another_shape_are_named():
    for shape in ((2, 5, 7), (5, 8)):
        with pytest.raises(ValueError, match=r"x has shape .* it must be \(batch, length, 8\)"):
            tiny()(torch.zeros(shape))
    layer = tiny(causal=True)
    _, state = layer.step(torch.zeros(2, 8, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"tail of the state has shape \(2, 32, 8\): it must be \(3, 32, 8\)"):
        layer.step(torch.zeros(3, 8, dtype=torch.float64), state)


@every_variant
@pytest.mark.filterwarnings("ignore:.*levels span:UserWarning")
def test_nothing_in_nothing_out(options):
    for shape in ((2, 0, 8), (0, 5, 8)):
        layer, x = tiny(**options), torch.zeros(shape, dtype=torch.float64)
        assert layer(x).shape == shape
        assert layer(x, lengths=torch.zeros(shape[0], dtype=torch.int64)).shape == shape
        layer(x).sum().backward()
        if layer.causal:
            assert layer.step(x)[0].shape == shape


@every_variant
def test_wrong_lengths_are_named(options):
    layer, x = tiny(**options), torch.zeros(2, 9, 8, dtype=torch.float64)
    for lengths, message in (
        ([9, 9], "lengths is of type list: it must be a tensor"),
        (torch.tensor([9, 10]), r"lengths go from 9 to 10: they must lie in \[0, 9\]"),
        (torch.tensor([-1, 9]), "lengths go from -1 to 9"),
        (torch.tensor([9]), r"lengths is torch.int64 of shape \(1,\): it must be .*\(2,\)"),
        (torch.tensor([9.0, 9.0]), "lengths is torch.float32"),
    ):
        with pytest.raises(ValueError, match="WersaAttention: " + message):
            layer(x, lengths=lengths)


@pytest.mark.parametrize("levels", [4, 30, np.int64(40)])
@pytest.mark.parametrize("options", [{}, {"gate_align": "mean"}, {"preset": "port"}, {"causal": True}])
def test_levels_beyond_the_length_are_warned_of_and_work(levels, options):
    layer, x = tiny(levels=levels, **options), torch.randn(1, 9, 8, dtype=torch.float64)
    with pytest.warns(UserWarning, match=rf"{levels} levels span {2 ** int(levels)} tokens, the input has 9"):
        out = layer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with use_backend("reference"):
            torch.testing.assert_close(layer(x), out, rtol=1e-9, atol=1e-11)  # once is enough
        tiny(levels=3)(x)
        if layer.causal:
            torch.testing.assert_close(layer.step(x)[0], out, rtol=1e-9, atol=1e-11)


def test_no_activation_is_not_that_of_the_preset():
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    for preset, qk_act in (("default", "gelu"), ("port", "gelu"), ("softmax", None)):
        layer, same, other = (
            tiny(preset=preset, out_norm=False, **given)
            for given in ({}, {"qk_act": qk_act}, {"qk_act": None if qk_act else "gelu"})
        )
        assert torch.equal(layer(x), same(x))
        assert not torch.allclose(layer(x), other(x))


def test_a_state_of_another_layer_is_refused():
    x = torch.zeros(2, 8, dtype=torch.float64)
    _, state = tiny(causal=True).step(x)
    for options, message in (
        ({"levels": 2}, "made with 3 levels, not 2"),
        ({"num_features": 8}, "sums of the state"),
        ({"preset": "softmax"}, "log_max of the state"),
        ({"gate_kernel": 5}, "tail of the state"),
    ):
        with pytest.raises(ValueError, match=message):
            tiny(causal=True, **options).step(x, state)
    with pytest.raises(ValueError, match="the state has no tail"):
        tiny(causal=True).step(x, {})


def test_only_a_causal_layer_streams():
    with pytest.raises(SeqattnError, match="causal=True"):
        tiny().step(torch.zeros(1, 8))


def test_presets_are_those_of_the_documentation():
    assert set(PRESETS) == {"default", "port", "softmax"}
    layer = WersaAttention(16, 2, preset="port")
    assert layer.levels == 2
    assert layer.random_q.shape == layer.random_k.shape == (8, 1024)
    assert layer.gate.align == "stretch"
