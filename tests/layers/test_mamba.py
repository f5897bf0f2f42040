"""Mamba and LBMamba: published outputs, parameters of mamba-ssm, reversal, padding, streaming, precision, tracing."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from loading import load
from torch.nn import functional as F

from seqattn.kernels import selective_scan, use_backend
from seqattn.layers.mamba import LBMamba, Mamba, official_window

TESTS = Path(__file__).parents[1]
LENGTHS = torch.tensor([13, 0, 1, 9, 5])
LAYERS = [
    pytest.param(Mamba, {}, id="mamba"),
    pytest.param(Mamba, {"bias": True, "d_conv": 3, "expand": 1, "dt_rank": 3}, id="mamba-bias-3-taps"),
    pytest.param(Mamba, {"conv_bias": False, "d_conv": 1, "d_state": 1}, id="mamba-1-tap-1-state"),
    pytest.param(LBMamba, {"window": 4}, id="lbmamba-4"),
    pytest.param(LBMamba, {"window": 64, "bias": True}, id="lbmamba-full-bias"),
    pytest.param(LBMamba, {"window": "official"}, id="lbmamba-official"),
]


golden_weights = load(TESTS / "golden_weights.py")


def build(layer, d_model=6, **options):
    torch.manual_seed(0)
    module = layer(d_model, **options).double()
    with torch.no_grad():  # steps large enough for the past, and the padding, to matter
        module.dt_proj.bias += 2
        for name, parameter in module.named_parameters():
            if name.endswith("proj.bias") and name != "dt_proj.bias":
                parameter.normal_()
    return module


def random_input(batch=5, length=13, d_model=6):
    return torch.randn(batch, length, d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(module, out, x):
    weight = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return torch.autograd.grad(out, [x, *module.parameters()], weight.to(out.dtype))


def assert_same(got, expected, tolerance=1e-10):
    for index, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, msg=lambda m, i=index: f"{i}: {m}")


def flip(x, lengths):
    steps = torch.arange(x.shape[1])
    place = torch.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)
    return x.gather(1, place[..., None].expand_as(x))


def test_equals_the_published_mixer():
    golden = np.load(TESTS / "golden" / "mamba_mixer.npz")
    module = Mamba(64, expand=4).double()
    kinds = {"A_log": "ssm_A_log", "D": "ssm_D", "dt_proj.bias": "dt_bias", "conv1d.bias": "bias"}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            kind = kinds.get(name, "weight")
            parameter.copy_(torch.from_numpy(golden_weights.recipe(f"{golden['prefix']}{name}", parameter.shape, kind)))
    x = torch.from_numpy(golden["x"]).double().requires_grad_()
    out = module(x)
    torch.testing.assert_close(out, torch.from_numpy(golden["out"]), rtol=0, atol=1e-10)
    (out * golden_weights.loss_weight("mixer", out.shape)).sum().backward()
    torch.testing.assert_close(x.grad, torch.from_numpy(golden["grad_x"]).double(), rtol=0, atol=5e-7)


def test_parameters_are_those_of_mamba_ssm():
    module = Mamba(40, d_state=8, d_conv=3, expand=2, bias=True, dtype=torch.bfloat16)
    assert {name: tuple(parameter.shape) for name, parameter in module.named_parameters()} == {
        "A_log": (80, 8), "D": (80,), "in_proj.weight": (160, 40), "in_proj.bias": (160,), "conv1d.weight": (80, 1, 3),
        "conv1d.bias": (80,), "x_proj.weight": (3 + 16, 80), "dt_proj.weight": (80, 3), "dt_proj.bias": (80,),
        "out_proj.weight": (40, 80), "out_proj.bias": (40,),
    }  # fmt: skip
    wide = {name for name, parameter in module.named_parameters() if parameter.dtype == torch.float32}
    assert wide == {"A_log", "D"}
    marked = {name for name, p in module.named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert marked == {"A_log", "D"}
    assert {name for name, p in module.named_parameters() if getattr(p, "_no_reinit", False)} == {"dt_proj.bias"}


@pytest.mark.parametrize("dt_init", ["random", "constant"])
def test_initialisation(dt_init):
    module = Mamba(64, dt_min=0.01, dt_max=0.5, dt_init=dt_init, dt_scale=2.0, dt_init_floor=0.02)
    steps = F.softplus(module.dt_proj.bias)
    assert steps.min() >= 0.02 * (1 - 1e-4)
    assert 0.3 < steps.max() <= 0.5
    torch.testing.assert_close(module.A_log.exp(), torch.arange(1.0, 17).expand(128, 16))
    torch.testing.assert_close(module.D, torch.ones(128))
    largest = module.dt_proj.weight.abs().max()
    assert 0.9 < largest <= 1.0
    assert (module.dt_proj.weight == largest).all() == (dt_init == "constant")


@pytest.mark.parametrize(("layer", "options"), LAYERS)
def test_reverse_is_a_flip_before_and_after(layer, options):
    module = build(layer, **options)
    for lengths in (None, LENGTHS):
        ends = torch.full((5,), 13) if lengths is None else lengths
        x = random_input().requires_grad_()
        out = module(x, lengths, reverse=True)
        expected = flip(module(flip(x, ends), lengths), ends)
        assert_same([out, *gradients(module, out, x)], [expected, *gradients(module, expected, x)])


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(("layer", "options"), LAYERS)
def test_padding_changes_nothing(layer, options, reverse):
    module = build(layer, **options)
    x = random_input()
    for row, end in enumerate(LENGTHS):
        x[row, end:] = math.nan
    x.requires_grad_()
    out = module(x, LENGTHS, reverse)
    weight = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(3))
    got = torch.autograd.grad(out, [x, *module.parameters()], weight)
    expected = [torch.zeros_like(gradient) for gradient in got]
    for row, end in enumerate(LENGTHS):
        assert (out[row, end:] == 0).all()
        alone = x.detach()[row : row + 1, :end].requires_grad_()
        out_alone = module(alone, reverse=reverse)
        torch.testing.assert_close(out[row : row + 1, :end], out_alone, rtol=1e-10, atol=1e-10)
        inputs = [alone, *module.parameters()]
        grads = torch.autograd.grad(out_alone, inputs, weight[row : row + 1, :end], materialize_grads=True)
        expected[0][row, :end] = grads[0][0]
        for total, grad in zip(expected[1:], grads[1:], strict=True):
            total += grad
    assert_same(got, expected)


@pytest.mark.parametrize("steps", [1, 5], ids=["token", "5-tokens"])
@pytest.mark.parametrize(("layer", "options"), LAYERS[:3])
def test_a_stream_of_tokens_equals_the_whole(layer, options, steps):
    assert_stream_equals_whole(build(layer, **options), steps)


@pytest.mark.parametrize(("window", "steps"), [(4, 4), (4, [8, 4, 1]), (1, 3), (20, 20)])
def test_a_stream_of_windows_equals_the_whole(window, steps):
    assert_stream_equals_whole(build(LBMamba, window=window), steps)


def assert_stream_equals_whole(module, steps):
    x = random_input()
    states = module.allocate_inference_cache(5, 13)
    assert [tuple(state.shape) for state in states] == [
        (5, module.d_inner, module.d_conv),
        (5, module.d_inner, module.d_state),
    ]
    outs = []
    for part in x.split(steps, dim=1):
        out, *returned = module.step(part, *states)
        assert all(ours is given for ours, given in zip(returned, states, strict=True))
        states = tuple(torch.load(save(state)) for state in states)  # a stream can be saved and resumed
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 1), module(x), rtol=1e-10, atol=1e-10)


def save(tensor):
    file = io.BytesIO()
    torch.save(tensor, file)
    file.seek(0)
    return file


def test_a_half_precision_stream_keeps_its_state_in_float32():
    torch.manual_seed(0)
    module = Mamba(16, dtype=torch.bfloat16)
    x = torch.randn(2, 40, 16, dtype=torch.bfloat16)
    conv_state, ssm_state = module.allocate_inference_cache(2, 40)
    assert (conv_state.dtype, ssm_state.dtype) == (torch.bfloat16, torch.float32)
    stream = torch.cat([module.step(x[:, t : t + 1], conv_state, ssm_state)[0] for t in range(40)], 1)
    assert stream.dtype == torch.bfloat16
    torch.testing.assert_close(stream, module(x), rtol=3e-2, atol=1e-2)
    assert module.allocate_inference_cache(2, 40, torch.bfloat16)[1].dtype == torch.bfloat16


def test_lbmamba_looks_ahead_inside_its_window_only():
    module = build(LBMamba, window=4)
    x = random_input(batch=1, length=11).requires_grad_()
    out = module(x)
    for t in range(11):
        (grad,) = torch.autograd.grad(out[0, t].sum(), x, retain_graph=True)
        seen = grad[0].abs().sum(-1) > 0
        assert seen.tolist() == [s <= t or s // 4 == t // 4 for s in range(11)]


def test_lbmamba_has_the_parameters_of_mamba():
    plain, windowed = build(Mamba), build(LBMamba, window=1)
    windowed.load_state_dict(plain.state_dict())
    x = random_input()
    assert torch.equal(plain(x), windowed(x))
    assert [official_window(length) for length in (1, 128, 129, 196, 256, 257, 1024, 4096)] == [
        4, 4, 8, 8, 8, 16, 16, 16,
    ]  # fmt: skip
    official, explicit = build(LBMamba, window="official"), build(LBMamba, window=8)
    x = random_input(batch=1, length=130)
    assert torch.equal(official(x), explicit(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "half-weights"])
def test_half_precision(dtype, autocast):
    torch.manual_seed(0)
    module = LBMamba(16, window=4)
    x = torch.randn(2, 50, 16, requires_grad=True)
    expected = module(x)
    expected_grads = gradients(module, expected, x)
    if not autocast:
        module = module.to(dtype)
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        out = module(x if autocast else x.to(dtype))
    assert out.dtype == dtype
    got = gradients(module, out, x)
    assert [grad.dtype for grad in got[1:]] == [parameter.dtype for parameter in module.parameters()]
    for ours, theirs in zip([out, *got], [expected, *expected_grads], strict=True):
        assert (ours.float() - theirs).norm() < 0.03 * theirs.norm()


@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "half-weights"])
def test_half_precision_keeps_rates_skip_and_bias_of_the_scan_in_float32(monkeypatch, autocast):
    kinds = []

    def spy(*arguments, **options):
        kinds.extend(tensor.dtype for tensor in arguments)
        return selective_scan(*arguments, **options)

    monkeypatch.setattr("seqattn.layers.mamba.selective_scan", spy)
    module, x = Mamba(16), torch.randn(2, 9, 16)
    if not autocast:
        module, x = module.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        module(x)
    half, full = torch.bfloat16, torch.float32
    assert kinds == [half, half, full, half, half, full, half, full]  # u, delta, A, B, C, D, z, delta_bias


@pytest.mark.parametrize("shape", [(0, 7), (3, 0), (2, 1)], ids=["batch-0", "length-0", "length-1"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_empty_and_single(shape, reverse):
    module = build(LBMamba, window=4)
    x = torch.zeros(*shape, 6, dtype=torch.float64, requires_grad=True)
    for lengths in (None, torch.full(shape[:1], shape[1])):
        out = module(x, lengths, reverse)
        assert out.shape == x.shape
        out.sum().backward()


def test_backends_agree():
    module = build(LBMamba, window=3)
    x = random_input().requires_grad_()
    out = module(x, LENGTHS)
    with use_backend("reference"):
        expected = module(x, LENGTHS)
    assert_same([out, *gradients(module, out, x)], [expected, *gradients(module, expected, x)])


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_whole(compiler, reverse):
    module = build(LBMamba, window=4, bias=True)
    x = random_input().requires_grad_()
    compiled = torch.compile(module, backend=compiler, fullgraph=True)
    out, expected = compiled(x, LENGTHS, reverse), module(x, LENGTHS, reverse)
    assert_same([out, *gradients(module, out, x)], [expected, *gradients(module, expected, x)])


@pytest.mark.parametrize("layer", [Mamba, LBMamba])
def test_exports_with_a_dynamic_batch_and_length(layer):
    module = build(layer)
    batch, length = torch.export.Dim("batch", min=2), torch.export.Dim("length", min=2)
    exported = torch.export.export(
        module, (random_input(), LENGTHS), dynamic_shapes=({0: batch, 1: length}, {0: batch})
    )
    x, lengths = random_input(3, 21), torch.tensor([21, 4, 0])
    torch.testing.assert_close(exported.module()(x, lengths), module(x, lengths), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Mamba(8, dt_init="zeros"), 'dt_init is \'zeros\': it must be "random" or "constant"'),
        (lambda: LBMamba(8, window=0), "window is 0: it must be an integer of at least 1"),
        (lambda: LBMamba(8, window="public"), "window is 'public'"),
        (lambda: Mamba(8)(torch.zeros(2, 5, 7)), r"x has shape \(2, 5, 7\): it must be \(batch, length, 8\)"),
        (lambda: Mamba(8)(torch.zeros(5, 8)), r"x has shape \(5, 8\)"),
        (lambda: Mamba(8)(torch.zeros(1, 5, 8), torch.tensor([5, 4])), r"lengths has shape \(2,\): it must be \(1,\)"),
        (lambda: Mamba(8)(torch.zeros(1, 5, 8), torch.tensor([6])), r"they must lie in \[0, 5\]"),
        (lambda: stream(LBMamba(8, window=4), 5), "5 steps are no multiple of window 4"),
        (lambda: stream(LBMamba(8, window="official"), 4), "step needs an integer window"),
        (lambda: stream(Mamba(8), 4, batch=2), r"conv_state has shape \(1, 16, 4\): it must be \(2, 16, 4\)"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def stream(module, steps, batch=1):
    return module.step(torch.zeros(batch, steps, 8), *module.allocate_inference_cache(1, steps))
