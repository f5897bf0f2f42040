"""MambAttention against the published network's golden values, and the properties we promise beyond them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from loading import load

from seqattn.layers.spectrum import rms_gain
from seqattn.models.mambattention import MambAttention
from seqattn.models.mambattention_official import official_name
from seqattn.models.metric_discriminator import MetricDiscriminator
from seqattn.tasks.speech_losses import WEIGHTS, Speech, analysed, phase_losses, reconstruction_losses

ROOT = Path(__file__).parents[2]
GOLDEN = np.load(ROOT / "tests" / "golden" / "mambattention.npz")
TINY = {"channels": 8, "blocks": 1, "heads": 2, "n_fft": 60, "hop": 15}

golden_weights = load(ROOT / "tests" / "golden_weights.py")


def tensor(name, dtype=torch.float64):
    return torch.from_numpy(GOLDEN[name]).to(dtype)


def relative_error(got, expected):
    return ((got - expected).abs().max() / expected.abs().max()).item()


def angle_error(got, expected):
    return ((got - expected + torch.pi) % (2 * torch.pi) - torch.pi).abs()


@pytest.fixture(scope="module")
def official():
    return golden_weights.official_state_dict(GOLDEN)


@pytest.fixture(scope="module")
def model(official):
    return MambAttention.from_official({name: value.double() for name, value in official.items()}).eval()


@pytest.fixture(scope="module")
def discriminator():
    weights = golden_weights.official_state_dict(GOLDEN, "disc/")
    return MetricDiscriminator.from_official(weights).double().eval()


def tiny(**options):
    torch.manual_seed(0)
    return MambAttention(**(TINY | options)).double().eval()


def clips(batch, samples, seed=0):
    return torch.randn(batch, samples, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_published_size():
    assert sum(parameter.numel() for parameter in MambAttention().parameters()) == 2_325_841
    separate = MambAttention(attention="separate")
    assert sum(parameter.numel() for parameter in separate.parameters()) == 2_392_913
    assert sum(parameter.numel() for parameter in MetricDiscriminator().parameters()) == 181_650


def test_golden_units(model):
    block, x = model.blocks[0], tensor("unit/x_seq").requires_grad_()
    mixer = block.time_mixer
    forward, backward = mixer.mixers
    hat = torch.nn.functional.rms_norm(x, (64,), eps=1e-5)
    both = [x + forward(hat * mixer.norms[0]), x + backward(hat * mixer.norms[1], reverse=True)]
    cases = {
        "mixer": forward(x),
        "attention": block.attentions[0](x),
        "bimamba": torch.cat(both, -1),
    }
    for name, out in cases.items():
        assert relative_error(out, tensor(f"unit/{name}")) < 1e-10, name
        x.grad = None
        (out * golden_weights.loss_weight(name, out.shape)).sum().backward(retain_graph=True)
        assert relative_error(x.grad, tensor(f"unit/{name}_grad_x")) < 5e-7, name
    fused = mixer(x)  # what the block uses: the same with every projection folded into one
    assert relative_error(fused, mixer.fusion(cases["bimamba"])) < 1e-12
    out = block(tensor("unit/x_tf").permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert relative_error(out, tensor("unit/block0")) < 1e-10
    encoded = model.encoder(tensor("unit/x_enc"), None)[:, :8]
    assert relative_error(encoded, tensor("unit/encoder")) < 5e-7


def test_golden_front_end(model):
    noisy = torch.from_numpy(GOLDEN["noisy_int16"]).double()[None] / 32768
    gain = float(GOLDEN["norm_factor"])
    magnitude, phase = model.spectrum(noisy * gain)
    assert relative_error(magnitude, tensor("noisy_mag")) < 1e-6
    # where a bin is nearly empty its angle is that of rounding noise
    loud = magnitude > 1e-2
    assert angle_error(phase, tensor("noisy_pha"))[loud].max() < 1e-4


@pytest.fixture(scope="module")
def golden_run(model):
    """Inputs with gradients, and every output, of the float64 network."""
    magnitude, phase = tensor("noisy_mag").requires_grad_(), tensor("noisy_pha").requires_grad_()
    return magnitude, phase, *model(magnitude, phase)


def test_golden_float64(model, golden_run):
    _, _, magnitude, phase, complex_ = golden_run
    assert relative_error(magnitude, tensor("mag")) < 1e-10
    assert angle_error(phase, tensor("pha")).max() < 1e-6
    assert relative_error(complex_[:, ::4], tensor("com")) < 5e-7
    waveform = model.spectrum.inverse(magnitude, phase, 8000)
    assert relative_error(waveform, tensor("wav_normalised")) < 1e-9
    gain = float(GOLDEN["norm_factor"])
    assert relative_error(waveform / gain, tensor("wav")) < 5e-7


def test_enhance_is_front_end_network_and_inverse(model):
    noisy = torch.from_numpy(GOLDEN["noisy_int16"]).double()[None, :1000] / 32768
    gain = torch.tensor([float(GOLDEN["norm_factor"])], dtype=torch.float64)
    with torch.no_grad():
        magnitude, phase, _ = model(*model.spectrum(noisy * gain))
    expected = model.spectrum.inverse(magnitude, phase, 1000) / gain
    assert torch.equal(model.enhance(noisy, gain=gain), expected)
    assert torch.equal(model.enhance(noisy), model.enhance(noisy, gain=rms_gain(noisy)))


def test_golden_gradients(model, golden_run):
    noisy, noisy_phase, magnitude, _, complex_ = golden_run
    model.zero_grad()
    shape = (*complex_.shape,)
    loss = (magnitude * golden_weights.loss_weight("mag", magnitude.shape)).sum()
    loss = loss + (complex_ * golden_weights.loss_weight("com", shape)).sum()
    loss.backward(retain_graph=True)
    assert relative_error(noisy.grad, tensor("grad_noisy_mag")) < 5e-7
    assert relative_error(noisy_phase.grad, tensor("grad_noisy_pha")) < 5e-7
    assert_norms(model, GOLDEN["names"], GOLDEN["grad_norms"], official_name)
    noisy.grad = noisy_phase.grad = None


def test_golden_losses(model, discriminator, golden_run):
    noisy, noisy_phase, magnitude, phase, complex_ = golden_run
    model.zero_grad()
    noisy.grad = noisy_phase.grad = None
    gain = float(GOLDEN["norm_factor"])
    clean = torch.from_numpy(GOLDEN["clean_int16"]).double()[None] / 32768 * gain
    target = analysed(model.spectrum, clean)
    # its first frame is silent: angles are 0, or pi where a transform gives -0, as the golden run's did in these bins
    target.phase[:, 101:200, 0] = torch.pi
    output = Speech(magnitude, phase, complex_, model.spectrum.inverse(magnitude, phase, 8000))
    terms = reconstruction_losses(model.spectrum, target, output)
    generated = discriminator(target.magnitude, magnitude)
    terms["metric"] = (generated - 1).square().mean()
    total = sum(WEIGHTS[name] * term for name, term in terms.items())
    phases = phase_losses(target.phase, phase)
    ours = [
        terms["magnitude"],
        *phases.values(),
        terms["complex"],
        terms["time"],
        terms["metric"],
        terms["consistency"],
    ]
    got = torch.stack([*ours, total]).detach().numpy()
    np.testing.assert_allclose(got, GOLDEN["loss_values"], rtol=1e-7)
    scores = {
        "generated": generated,
        "clean": discriminator(target.magnitude, target.magnitude),
        "noisy": discriminator(target.magnitude, tensor("noisy_mag")),
    }
    for name, score in scores.items():
        assert relative_error(score, tensor(f"disc_clean_{name}")) < 1e-6, name
    total.backward(retain_graph=True)
    assert relative_error(noisy.grad, tensor("grad_noisy_mag_total_loss")) < 5e-7
    assert_norms(model, GOLDEN["names"], GOLDEN["grad_norms_total_loss"], official_name)
    discriminator.zero_grad()
    discriminator(target.magnitude, tensor("noisy_mag")).sum().backward()

    def name_of(name):
        name = name.replace("parametrizations.weight.original", "weight_orig")
        return "layers.18.slope" if name == "slope" else name

    assert_norms(discriminator, GOLDEN["disc/names"], GOLDEN["disc/grad_norms"], name_of)


def assert_norms(network, names, norms, name_of):
    expected = dict(zip(map(str, names), norms, strict=True))
    largest = np.nanmax(norms)
    for name, parameter in network.named_parameters():
        wanted = expected[name_of(name)]
        assert abs(parameter.grad.norm().item() - wanted) <= 1e-6 * wanted + 1e-8 * largest, name


def test_golden_float32(official):
    model = MambAttention.from_official({"generator": official}).eval()
    with torch.no_grad():
        magnitude, phase, complex_ = model(tensor("noisy_mag", torch.float32), tensor("noisy_pha", torch.float32))
    assert magnitude.dtype == torch.float32
    assert (magnitude - tensor("mag")).abs().max() < 5e-5
    assert (complex_[:, ::4] - tensor("com")).abs().max() < 5e-4
    assert angle_error(phase, tensor("pha")).mean() < 1e-4
    assert (model.spectrum.inverse(magnitude, phase, 8000) - tensor("wav_normalised")).abs().max() < 1e-4


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mixer": "lbmamba"},
        {"mixer": "lstm"},
        {"mixer": "conformer", "kernel_size": 5},
        {"attention": "separate", "attention_position": "after"},
        {"attention": "none"},
    ],
    ids=["mamba", "lbmamba", "lstm", "conformer", "after", "no attention"],
)
def test_each_clip_of_a_batch_is_enhanced_as_alone(options):
    model, noisy = tiny(**options), clips(3, 700)
    lengths = torch.tensor([700, 7, 333])
    for row, length in enumerate(lengths):
        noisy[row, length:] = torch.nan
    batch = model.enhance(noisy, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = model.enhance(noisy[row : row + 1, :length])
        torch.testing.assert_close(batch[row, :length], alone[0], rtol=1e-8, atol=1e-9)
        assert (batch[row, length:] == 0).all()


@pytest.mark.parametrize("mixer", ["mamba", "lbmamba", "lstm", "conformer"])
def test_every_parameter_learns_unless_a_norm_follows(mixer):
    model = tiny(mixer=mixer)
    spectrum = model.spectrum(clips(2, 300))
    magnitude, _, complex_ = model(*spectrum)
    (magnitude.square().sum() + (complex_ * torch.randn_like(complex_)).sum()).backward()
    dead = {"conv.bias", "squeeze.bias", "mask_decoder.up.bias"}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if not any(name.endswith(end) for end in dead) and "fusion.bias" not in name:
            assert parameter.grad.abs().max() > 1e-12, name


def test_padding_reaches_no_gradient():
    model, noisy = tiny(), clips(2, 300)
    lengths = torch.tensor([300, 130])

    def gradients(fill):
        model.zero_grad()
        magnitude, phase = model.spectrum(noisy, lengths)
        frames = model.spectrum.frames(lengths)
        magnitude[1, :, frames[1] :] = phase[1, :, frames[1] :] = fill
        model(magnitude, phase, frames)[2].sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    for one, other in zip(gradients(0.0), gradients(torch.nan), strict=True):
        assert torch.equal(one, other)


def test_checkpointing_changes_nothing():
    plain, saving = tiny(), tiny(checkpoint=True)
    saving.load_state_dict(plain.state_dict())
    spectrum = plain.spectrum(clips(1, 200))
    for model in (plain, saving):
        model(*spectrum)[2].sum().backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("samples", [1, 15, 44, 200])
def test_enhance_keeps_the_length_and_is_finite_on_silence(samples):
    model = tiny()
    assert model.enhance(clips(2, samples)).shape == (2, samples)
    assert model.enhance(torch.zeros(1, samples, dtype=torch.float64)).isfinite().all()


def test_enhance_does_not_depend_on_the_level():
    model, noisy = tiny(), clips(1, 400)
    torch.testing.assert_close(model.enhance(noisy / 1024), model.enhance(noisy) / 1024)  # exact powers of two
    half = rms_gain(noisy) / 2
    assert not torch.allclose(model.enhance(noisy, gain=half), model.enhance(noisy))


def test_bad_input():
    with pytest.raises(ValueError, match="3 heads do not divide 64"):
        MambAttention(heads=3)
    with pytest.raises(ValueError, match="multiple of 4"):
        MambAttention(n_fft=402)
    with pytest.raises(ValueError, match=r"has shape \(400,\): give \(batch, samples\)"):
        tiny().enhance(torch.zeros(400))
    with pytest.raises(ValueError, match=r"lengths has shape \(1,\): it must be \(2,\)"):
        tiny().enhance(torch.zeros(2, 400), torch.tensor([3]))
    with pytest.raises(ValueError, match=r"no entry .*is it a MambAttention's"):
        MambAttention.from_official({"mask_decoder.lsigmoid.slope": torch.ones(201, 1)})


def test_from_official_keeps_every_bit_and_widens_half_precision(official):
    exact = {name: value.double() * (1 + 1e-12) for name, value in official.items()}
    loaded = MambAttention.from_official(exact).state_dict()
    assert torch.equal(loaded["mask_decoder.slope"], exact["mask_decoder.lsigmoid.slope"].flatten())
    half = MambAttention.from_official({name: value.half() for name, value in official.items()})
    assert all(value.dtype == torch.float32 for value in half.parameters())
    weights = golden_weights.official_state_dict(GOLDEN, "disc/")
    with pytest.raises(ValueError, match=r"no entry 'layers\.0\.weight_orig'; is it a MetricDiscriminator's"):
        MetricDiscriminator.from_official({})
    with pytest.raises(ValueError, match=r"layers\.1\.bias is \(2,\) in the state dict and \(16,\)"):
        MetricDiscriminator.from_official(weights | {"layers.1.bias": torch.ones(2)})


def test_from_official_names_what_is_wrong(official):
    unknown = official | {"extra.weight": torch.ones(1)}
    with pytest.raises(ValueError, match=r"unknown entry 'extra\.weight'"):
        MambAttention.from_official(unknown)
    wrong = official | {"mask_decoder.mask_conv.1.bias": torch.ones(2)}
    with pytest.raises(ValueError, match=r"mask_conv\.1\.bias is \(2,\) in the state dict and \(1,\) in the network"):
        MambAttention.from_official(wrong)
