"""The objective of MambAttention against the plain transcription in benchmarks/, values and gradients."""

from pathlib import Path

import pytest
import torch
from loading import load

from seqattn.layers.spectrum import Spectrum, to_complex
from seqattn.tasks.speech_losses import (
    WEIGHTS,
    Speech,
    analysed,
    discriminator_loss,
    phase_losses,
    reconstruction_losses,
)

plain = load(Path(__file__).parents[2] / "benchmarks" / "plain_mambattention.py")
NAN = float("nan")


@pytest.fixture(params=[(400, 100, 2, 1700), (60, 15, 3, 315), (32, 16, 1, 64)], ids=str)
def case(request, monkeypatch):
    """A spectrum, a target waveform, and random magnitude and phase for it that want gradients, in float64."""
    n_fft, hop, batch, samples = request.param
    monkeypatch.setattr(plain, "FFT", n_fft)
    monkeypatch.setattr(plain, "HOP", hop)
    generator = torch.Generator().manual_seed(n_fft)
    waveform = torch.randn(batch, samples, generator=generator, dtype=torch.float64)
    shape = (batch, n_fft // 2 + 1, samples // hop + 1)
    magnitude = 0.1 + torch.rand(shape, generator=generator, dtype=torch.float64)
    phase = 6 * torch.rand(shape, generator=generator, dtype=torch.float64) - 3
    return Spectrum(n_fft, hop), waveform, magnitude.requires_grad_(), phase.requires_grad_()


def gradients(loss, *inputs):
    found = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(x) if gradient is None else gradient for x, gradient in zip(inputs, found, strict=True)]


def test_every_term_and_its_gradient_is_the_published_one(case):
    spectrum, waveform, magnitude, phase = case
    complex_ = to_complex(magnitude, phase)
    output = Speech(magnitude, phase, complex_, spectrum.inverse(magnitude, phase, waveform.shape[1]))
    terms = reconstruction_losses(spectrum, analysed(spectrum, waveform), output)
    expected = plain.generator_losses((magnitude, phase, plain.polar(magnitude, phase)), waveform)
    assert terms.keys() == expected.keys() == WEIGHTS.keys() - {"metric"}
    for name, term in terms.items():
        torch.testing.assert_close(term, expected[name], rtol=1e-10, atol=1e-12, msg=name)
        pairs = zip(gradients(term, magnitude, phase), gradients(expected[name], magnitude, phase), strict=True)
        for got, wanted in pairs:
            assert (got - wanted).abs().max() <= 1e-8 * wanted.abs().max() + 1e-13, name


def test_the_weights_are_the_published_ones():
    assert WEIGHTS == plain.LOSS_WEIGHTS


def test_phases_wrap_and_the_first_differences_are_the_raw_error(case):
    _, _, _, phase = case
    target = phase.detach().roll(1, 2)
    expected = plain.phase_losses(target, phase)
    got = phase_losses(target, phase)
    assert list(got) == ["instantaneous", "group_delay", "frequency"]
    for term, wanted in zip(got.values(), expected, strict=True):
        torch.testing.assert_close(term, wanted, rtol=1e-10, atol=0)
    turned = phase_losses(target + 2 * torch.pi, phase)
    assert all(torch.isclose(turned[name], got[name], rtol=1e-9) for name in got)
    shifted = phase_losses(phase + 0.5, phase)  # a constant error is in the first bin and frame alone
    assert shifted["instantaneous"].item() == pytest.approx(0.5)
    assert shifted["group_delay"].item() == pytest.approx(0.5 / phase.shape[1])
    assert shifted["frequency"].item() == pytest.approx(0.5 / phase.shape[2])


@pytest.mark.parametrize("labels", [[0.1, NAN, 0.9, 1.04], [NAN, NAN, 0.5, NAN], [0.2, 0.3, 0.4, 0.5]])
def test_a_clip_without_label_drops_only_itself(labels):
    score = torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64, requires_grad=True)
    label = torch.tensor(labels, dtype=torch.float64)
    known = ~label.isnan()
    loss = discriminator_loss(score, label)
    expected = (score[known] - label[known]).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    (gradient,), (wanted,) = gradients(loss, score), gradients(expected, score)
    torch.testing.assert_close(gradient, wanted)
    assert (gradient[~known] == 0).all()


def test_no_label_at_all_is_a_loss_of_0_without_gradient():
    score = torch.tensor([0.2, 0.4], requires_grad=True)
    loss = discriminator_loss(score, torch.full((2,), NAN))
    loss.backward()
    assert loss.item() == 0
    assert score.grad.tolist() == [0, 0]
