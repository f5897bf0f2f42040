"""MPTSNet against the published network, its plain transcription, and the properties we promise beyond them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from loading import load

from seqattn.errors import SeqattnError
from seqattn.models.mptsnet import MPTSNet, fold, unfold
from seqattn.models.mptsnet_official import OFFICIAL_OPTIONS
from seqattn.models.saliency import period_saliency

ROOT = Path(__file__).parents[2]
GOLDEN = np.load(ROOT / "tests" / "golden" / "mptsnet.npz")
GOLDEN_CASE = {"in_channels": 6, "seq_len": 100, "num_classes": 4, "periods": [8, 10, 12, 11, 17]}
PREFIX = {"interleaved": "", "contiguous": "contiguous_"}


golden_weights = load(ROOT / "tests" / "golden_weights.py")
plain_mptsnet = load(ROOT / "benchmarks" / "plain_mptsnet.py")


def relative_error(got, expected):
    return ((got - expected).abs().max() / expected.abs().max()).item()


@pytest.fixture(scope="module")
def official_weights():
    return golden_weights.official_state_dict(GOLDEN)


def small(periods=(14, 10, 7), **options):
    torch.manual_seed(0)
    defaults = {"hidden": 12, "d_model": 8, "d_token": 8, "heads": 2, "ff": 8}
    return MPTSNet(3, 29, 5, list(periods), **(defaults | options)).eval()


@pytest.mark.parametrize("layout", ["interleaved", "contiguous"])
def test_golden_float64(official_weights, layout):
    weights = {name: value.double() for name, value in official_weights.items()}
    model = MPTSNet.from_official(weights, **GOLDEN_CASE, layout=layout).eval()
    x = torch.from_numpy(GOLDEN["x"]).double().transpose(1, 2).requires_grad_()
    logits, attention = model(x, return_attention=True)
    expected = torch.from_numpy(GOLDEN[PREFIX[layout] + "logits"])
    assert relative_error(logits, expected) < 1e-10
    assert relative_error(model(x), expected) < 1e-10
    weights_of_periods = torch.from_numpy(GOLDEN[PREFIX[layout] + "period_weights"])
    assert relative_error(torch.stack(attention.period_weights), weights_of_periods) < 1e-10
    (model(x) * golden_weights.loss_weight("logits", logits.shape)).sum().backward()
    grad = torch.from_numpy(GOLDEN[PREFIX[layout] + "grad_x"]).transpose(1, 2)
    assert relative_error(x.grad, grad) < 1e-10


@pytest.mark.parametrize("layout", ["interleaved", "contiguous"])
def test_golden_gradient_norms(official_weights, layout):
    weights = {name: value.double() for name, value in official_weights.items()}
    model = MPTSNet.from_official(weights, **GOLDEN_CASE, layout=layout).eval()
    x = torch.from_numpy(GOLDEN["x"]).double().transpose(1, 2)
    logits = model(x)
    (logits * golden_weights.loss_weight("logits", logits.shape)).sum().backward()
    # every published parameter is one of ours, possibly reordered: the norms are equal one by one
    expected = GOLDEN[PREFIX[layout] + "grad_norms"]
    expected = np.sort(expected[~np.isnan(expected)])
    got = np.sort([parameter.grad.norm().item() for parameter in model.parameters()])
    assert len(got) == len(expected)
    assert (np.abs(got - expected) <= 1e-6 * expected + 1e-8 * expected.max()).all()


@pytest.mark.parametrize("layout", ["interleaved", "contiguous"])
def test_golden_float32(official_weights, layout):
    model = MPTSNet.from_official(official_weights, **GOLDEN_CASE, layout=layout).eval()
    logits = model(torch.from_numpy(GOLDEN["x"]).transpose(1, 2))
    assert logits.dtype == torch.float32
    assert relative_error(logits, torch.from_numpy(GOLDEN[PREFIX[layout] + "logits"])) < 1e-5


@pytest.mark.parametrize(("channels", "length", "periods"), [(6, 40, [8, 13, 5]), (12, 29, [14, 10, 7, 5, 6])])
def test_equals_the_plain_transcription(channels, length, periods):
    torch.manual_seed(0)
    plain = plain_mptsnet.PlainMPTSNet(channels, length, 3, periods).eval()
    case = {"in_channels": channels, "seq_len": length, "num_classes": 3, "periods": periods}
    ours = MPTSNet.from_official(plain.state_dict(), **case).eval()
    x = torch.randn(2, length, channels)
    with torch.no_grad():
        assert relative_error(ours(x), plain(x.transpose(1, 2))) < 1e-5


@pytest.mark.parametrize(
    ("shape", "periods", "pointwise", "expected"),
    [
        ((6, 100, 4), [8, 10, 12, 11, 17], False, 19_528_892),
        ((12, 29, 9), [14, 10, 7, 5, 6], False, 17_946_241),
        ((30, 62, 2), [31, 21, 16, 12, 10], False, 61_153_322),
        # the published pointwise variant owns two (256 * 256 + 256) layers it never uses; ours leaves them out
        ((100, 40, 3), [20, 13, 10], True, 69_485_627 - 2 * (256 * 256 + 256)),
    ],
)
def test_published_parameter_counts(shape, periods, pointwise, expected):
    with torch.device("meta"):
        model = MPTSNet(*shape, periods, pointwise=pointwise, **OFFICIAL_OPTIONS)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


OPTIONS = {
    "default": {},
    "interleaved": {"layout": "interleaved"},
    "official": OFFICIAL_OPTIONS | {"layout": "interleaved"},
    "official-contiguous": OFFICIAL_OPTIONS,
    "circular": {"embed_padding": "circular"},
    "flatten": {"head": "flatten"},
    "head-bins": {"head_bins": 4},
    "pointwise": {"pointwise": True},
    "no-time-branch": {"time_branch": False},
    "token-steps": {"token_steps": 4},
    "official-weights": {"weighting": "official"},
    "one-norm-three-blocks": {"shared_norm": True, "blocks": 3},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_padding_never_changes_a_logit(options):
    model = small(**options).double()
    x, lengths = torch.randn(4, 29, 3, dtype=torch.float64), torch.tensor([29, 17, 7, 1])
    logits = model(x, lengths)
    poisoned = x.clone()
    for row, length in enumerate(lengths):
        poisoned[row, length:] = float("nan")
    torch.testing.assert_close(model(poisoned, lengths), logits, rtol=1e-10, atol=1e-12)
    longer = torch.cat([poisoned, torch.full((4, 9, 3), float("inf"), dtype=torch.float64)], dim=1)
    torch.testing.assert_close(model(longer, lengths), logits, rtol=1e-10, atol=1e-12)
    for row, length in enumerate(lengths):
        alone = model(x[row : row + 1, :length])
        torch.testing.assert_close(alone, logits[row : row + 1], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model(x[:1]), logits[:1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_every_parameter_learns_and_the_count_is_known(options):
    model = small(**options).train()
    model(torch.randn(4, 29, 3), torch.tensor([29, 17, 29, 8])).logsumexp(-1).sum().backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert unused == []
    count = sum(parameter.numel() for parameter in model.parameters())
    with pytest.raises(SeqattnError, match=f"need {count:,} parameters, more than max_parameters={count - 1:,}"):
        small(**(options | {"max_parameters": count - 1}))
    small(**(options | {"max_parameters": count}))


@pytest.mark.parametrize("layout", ["contiguous", "interleaved"])
@pytest.mark.parametrize(("length", "period"), [(100, 8), (29, 29), (29, 14), (7, 1), (12, 4)])
def test_unfold_inverts_fold(layout, length, period):
    x = torch.randn(2, length, 3)
    folded = fold(x, period, layout)
    assert folded.shape == (2, -(-length // period), period, 3)
    assert torch.equal(unfold(folded, length, layout), x)


def test_fold_index_tables():
    steps = torch.arange(100)[None, :, None]
    assert fold(steps, 8, "interleaved")[0, 0, :, 0].tolist() == [0, 13, 26, 39, 52, 65, 78, 91]
    assert fold(steps, 8, "contiguous")[0, 1, :, 0].tolist() == list(range(8, 16))
    x = torch.randn(2, 24, 3)
    assert fold(x, 8, "contiguous").data_ptr() == x.data_ptr()  # a view


def test_official_weights_are_uniform_in_the_second_block_and_input_weights_are_not():
    x = torch.sin(2 * torch.pi * torch.arange(29) / 14)[None, :, None].expand(2, 29, 3)
    _, official = small(weighting="official", bins=[2, 3, 4])(x, return_attention=True)
    assert (official.period_weights[1] - 1 / 3).abs().max() < 1e-3
    _, ours = small(weighting="input", bins=[2, 3, 4])(x, return_attention=True)
    assert ours.period_weights[1][:, 0].min() > 0.6


def test_input_weights_do_not_depend_on_scale():
    model, x = small(), torch.randn(2, 29, 3)
    weights = [model(x * scale, return_attention=True)[1].period_weights[0] for scale in (1.0, 1e3)]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)


def amplitudes_by_definition(x, bins, seq_len):
    """(length, channels) -> (periods,): every step of a series against the waves of its bins."""
    steps = torch.arange(len(x), dtype=torch.float64)
    angles = 2 * torch.pi * torch.tensor(bins, dtype=torch.float64)[:, None] * steps / seq_len
    real, imaginary = angles.cos() @ x, angles.sin() @ x
    return (2 / max(len(x), seq_len) * (real.square() + imaginary.square()).sqrt()).mean(-1)


@pytest.mark.parametrize("length", [1, 15, 29, 30, 58, 100])
def test_amplitudes_are_those_of_all_valid_steps(length):
    model = small(bins=[2, 3, 4]).double()
    x, lengths = torch.randn(2, 100, 3, dtype=torch.float64), torch.tensor([length, 100])
    mask = torch.arange(100) < lengths[:, None]
    x = x * mask[..., None]
    got = model.weights.amplitudes(x, mask)
    for row, steps in enumerate(lengths.tolist()):
        alone = model.weights.amplitudes(x[row : row + 1, :steps], None)[0]
        expected = amplitudes_by_definition(x[row, :steps], [2, 3, 4], 29)
        torch.testing.assert_close(alone, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(got[row], alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("length", [1, 17, 29])
def test_amplitudes_of_series_up_to_the_trained_length_are_the_plain_transform_s(length):
    weights, x = small(bins=[2, 3, 4]).weights, torch.randn(3, length, 3)
    spectrum = torch.fft.rfft(x.transpose(1, 2).contiguous(), n=29).abs() * (2 / 29)
    expected = torch.stack([spectrum[..., index] for index in (2, 3, 4)], dim=-1).mean(1)
    assert torch.equal(weights.amplitudes(x, None), expected)
    assert torch.equal(weights.amplitudes(x, torch.ones(3, length, dtype=torch.bool)), expected)


@pytest.mark.parametrize("weighting", ["input", "official"])
def test_a_period_after_the_trained_length_counts(weighting):
    steps = torch.arange(87)[None, :, None]
    late = torch.where(
        steps < 29, torch.sin(2 * torch.pi * 3 * steps / 29), 3 * torch.sin(2 * torch.pi * 2 * steps / 29)
    )
    model = small(weighting=weighting, bins=[2, 3, 4])
    weights = [model(x.expand(1, -1, 3), return_attention=True)[1].period_weights[0][0] for x in (late[:, :29], late)]
    assert weights[0].argmax() == 1
    assert weights[1].argmax() == 0


def test_attention_shapes():
    _, attention = small()(torch.randn(2, 29, 3), return_attention=True)
    assert [weights.shape for weights in attention.period_weights] == [(2, 3)] * 2
    assert [maps.shape for maps in attention.segments[0]] == [(2, 2, 4, 4), (2, 2, 4, 4), (2, 2, 6, 6)]
    assert attention.time[1].shape == (2, 2, 30, 30)
    assert attention.channel_gates[0][2].shape == (2, 5, 8)
    assert attention.position_gates[0][2].shape == (2, 5, 7)


@pytest.mark.parametrize("layout", ["contiguous", "interleaved"])
def test_saliency_is_the_attention_of_each_step_segment(layout):
    model = small(periods=(7,), layout=layout, blocks=1)
    x, lengths = torch.randn(2, 29, 3), torch.tensor([29, 15])
    saliency, weights = period_saliency(model, x, lengths)
    torch.testing.assert_close(saliency.sum(-1), torch.ones(2))
    assert (saliency[1, 15:] == 0).all()
    _, attention = model(x, lengths, return_attention=True)
    to_segments = attention.segments[0][0][0, :, 0, 1:].mean(0)
    segment = torch.arange(29) // 7 if layout == "contiguous" else torch.arange(29) % 5
    expected = to_segments[segment] / torch.bincount(segment)[segment]
    torch.testing.assert_close(saliency[0], expected / expected.sum(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(weights, torch.ones(2, 1))


def test_saliency_needs_cls():
    with pytest.raises(SeqattnError, match="no CLS"):
        period_saliency(small(pointwise=True), torch.randn(1, 29, 3), torch.tensor([29]))


@pytest.mark.parametrize(
    ("backend", "steps"),
    [("aot_eager", 29), ("aot_eager", 40), pytest.param("inductor", 29, marks=pytest.mark.slow)],
)  # inductor compiles C++ for a minute
def test_compiles_without_a_graph_break(backend, steps):
    torch._dynamo.reset()
    model = small(periods=(10,), blocks=1).train()
    model.dropout.p = model.embedding.dropout.p = 0.0
    x, lengths = torch.randn(3, steps, 3), torch.tensor([steps, 20, 11])
    expected, got = model(x, lengths), torch.compile(model, fullgraph=True, backend=backend)(x, lengths)
    assert relative_error(got, expected) < 1e-5
    grads, expected_grads = (
        torch.autograd.grad(logits.logsumexp(-1).sum(), list(model.parameters())) for logits in (got, expected)
    )
    largest = max(grad.abs().max() for grad in expected_grads)
    for (name, _), grad, expected_grad in zip(model.named_parameters(), grads, expected_grads, strict=True):
        assert (grad - expected_grad).abs().max() < 1e-5 * max(largest * 1e-2, expected_grad.abs().max()), name


def test_forward_never_reads_a_value_back():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():  # raises on .item(), .tolist(), data-dependent branches
        model = MPTSNet(3, 29, 5, [14, 7], hidden=8)
        for steps in (29, 40):
            for options in ({}, {"return_attention": True}):
                model(torch.randn(2, steps, 3), torch.tensor([steps, 11]), **options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_gpu_equals_cpu_and_never_waits_for_the_host(options):
    model = small(**options).double()
    x, lengths = torch.randn(4, 29, 3, dtype=torch.float64), torch.tensor([29, 17, 7, 1])
    expected = model(x, lengths)
    model, x, lengths = model.cuda(), x.cuda(), lengths.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        logits = model(x, lengths)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(logits.cpu(), expected, rtol=1e-9, atol=1e-10)


def test_overfits_a_tiny_set():
    torch.manual_seed(0)
    model = small().train()
    x, label = torch.randn(8, 29, 3), torch.arange(8) % 5
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), label).backward()
        optimizer.step()
    assert (model.eval()(x).argmax(-1) == label).all()


def test_bfloat16_autocast_stays_close():
    model, x = small(), torch.randn(4, 29, 3)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    assert relative_error(logits.float(), model(x)) < 5e-2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"periods": [30]}, "period 30 does not fit series of at most 29 steps"),
        ({"periods": []}, "no period"),
        ({"periods": [0, 3]}, "period 0"),
        ({"periods": [5], "bins": [1, 2]}, "bins"),
        ({"heads": 3}, "3 heads must divide both widths"),
    ],
)
def test_bad_periods(arguments, message):
    with pytest.raises(SeqattnError, match=message):
        small(**arguments)


def test_bad_inputs():
    model = small(head="flatten")
    with pytest.raises(ValueError, match=r"x has shape \(2, 29, 4\)"):
        model(torch.zeros(2, 29, 4))
    with pytest.raises(ValueError, match="30 steps, this model was built for at most 29"):
        model(torch.zeros(2, 30, 3))


def test_foreign_state_dict(official_weights):
    with pytest.raises(ValueError, match="no entry"):
        MPTSNet.from_official({"fc.weight": torch.zeros(4, 6400)}, **GOLDEN_CASE)
    with pytest.raises(ValueError, match=r"has 5 periods, periods=\[8, 10\]"):
        MPTSNet.from_official(official_weights, **(GOLDEN_CASE | {"periods": [8, 10]}))
    with pytest.raises(ValueError, match=r"project_in\.weight is .* in the state dict .*check periods"):
        MPTSNet.from_official(official_weights, **(GOLDEN_CASE | {"periods": [8, 10, 12, 11, 16]}))
