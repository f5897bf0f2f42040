"""The signal front end: torch's own transform, its inverse, ragged batches, short clips, gradients."""

import pytest
import torch

from seqattn.layers.spectrum import Spectrum, rms_gain, to_complex


def waves(batch, samples, dtype=torch.float64):
    return torch.randn(batch, samples, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize(("n_fft", "hop"), [(400, 100), (128, 32), (60, 15)])
def test_equals_torch_stft(n_fft, hop):
    spectrum, x = Spectrum(n_fft, hop, compression=0.3), waves(2, 10 * n_fft)
    magnitude, phase = spectrum(x)
    window = torch.hann_window(n_fft, dtype=x.dtype)
    expected = torch.stft(x, n_fft, hop, window=window, center=True, pad_mode="reflect", return_complex=True)
    assert magnitude.shape == (2, spectrum.bins, 1 + 10 * n_fft // hop)
    torch.testing.assert_close(magnitude, expected.abs() ** 0.3, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(to_complex(magnitude, phase), torch.view_as_real(expected.abs() ** -0.7 * expected))


@pytest.mark.parametrize("samples", [1, 99, 100, 200, 201, 399, 400, 1001, 3200, 3299])
def test_inverse_has_every_sample(samples):
    spectrum, x = Spectrum(), waves(2, samples)
    assert int(spectrum.frames(torch.tensor(samples))) == spectrum(x)[0].shape[2]
    torch.testing.assert_close(spectrum.inverse(*spectrum(x), samples), x, rtol=0, atol=1e-9)


def test_inverse_of_a_changed_spectrum_is_torch_istft():
    spectrum, x = Spectrum(), waves(1, 3200)
    magnitude, phase = spectrum(x)
    magnitude, phase = magnitude * torch.rand_like(magnitude), phase + torch.randn_like(phase)
    expected = torch.istft(
        torch.polar(magnitude ** (1 / 0.3), phase), 400, 100, window=torch.hann_window(400, dtype=x.dtype), length=3200
    )
    torch.testing.assert_close(spectrum.inverse(magnitude, phase, 3200), expected, rtol=0, atol=1e-10)


def test_ragged_clips_are_transformed_as_alone():
    spectrum, lengths = Spectrum(), torch.tensor([2345, 1, 150, 800])
    x = waves(4, 2345)
    poisoned = x.clone()
    for row, length in enumerate(lengths):
        poisoned[row, length:] = torch.nan
    magnitude, phase = spectrum(poisoned, lengths)
    back = spectrum.inverse(magnitude, phase, 2345, lengths)
    gains = rms_gain(poisoned, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = x[row : row + 1, :length]
        expected = spectrum(alone)
        frames = spectrum.frames(torch.tensor(length))
        torch.testing.assert_close(magnitude[row, :, :frames], expected[0][0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(phase[row, :, :frames], expected[1][0], rtol=1e-12, atol=1e-9)
        assert (magnitude[row, :, frames:] == 0).all()
        torch.testing.assert_close(back[row, :length], alone[0], rtol=0, atol=1e-9)
        assert (back[row, length:] == 0).all()
        torch.testing.assert_close(gains[row], rms_gain(alone)[0])


def test_gain_makes_the_mean_square_one_and_silence_stays_finite():
    x = 0.003 * waves(3, 1000)
    x[1] = 0
    gain = rms_gain(x)
    assert gain.isfinite().all()
    torch.testing.assert_close((x * gain[:, None]).square().mean(-1), torch.tensor([1.0, 0.0, 1.0], dtype=x.dtype))


def test_smooth_form_has_a_finite_gradient_on_silence():
    spectrum = Spectrum()
    x = torch.zeros(1, 800, dtype=torch.float64, requires_grad=True)
    sum(part.sum() for part in spectrum(x, smooth=True)).backward()
    assert x.grad.isfinite().all()


def test_smooth_form_gradient():
    spectrum = Spectrum(16, 4)
    x = waves(2, 24).requires_grad_()
    lengths = torch.tensor([24, 13])
    assert torch.autograd.gradcheck(lambda x: spectrum(x, lengths, smooth=True)[0], x)
    magnitude = torch.rand(2, 9, 7, dtype=torch.float64, requires_grad=True)
    phase = torch.randn(2, 9, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m, p: spectrum.inverse(m, p, 24, lengths), (magnitude, phase))
