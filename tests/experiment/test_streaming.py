"""Segments of a recording: they cover it, and what a network with a short reach makes of them joins up to the whole."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from seqattn.data.synthetic_speech import synthetic_corpus
from seqattn.errors import SeqattnError
from seqattn.experiment.enhancers import load_enhancer
from seqattn.experiment.streaming import Segmentation, enhance_at, enhance_stream, measure
from seqattn.layers.spectrum import rms_gain

pytest.importorskip("torchaudio")

SHORT = Segmentation(segment=1.0, context=0.2, fade=0.05)
RATES = [8000, 16000, 22050, 44100, 48000]


def identity(waveform: Tensor, gain: Tensor) -> Tensor:
    return waveform


def blur(waveform: Tensor, gain: Tensor) -> Tensor:
    """A moving average that reaches 0.1 s to either side."""
    sums = F.pad(waveform.double(), (1601, 1600)).cumsum(1)
    return ((sums[:, 3201:] - sums[:, :-3201]) / 3201).float()


def compress(waveform: Tensor, gain: Tensor) -> Tensor:
    return torch.tanh(waveform * gain[:, None]) / gain[:, None]


def speech(seconds: float, rate: int, channels: int = 1) -> Tensor:
    """Tones under 3 kHz whose level rises and falls, different in every channel."""
    time = torch.arange(round(seconds * rate), dtype=torch.float64) / rate
    tones = [
        torch.stack([torch.sin(2 * math.pi * (frequency * time + channel / 7)) for frequency in (180, 730, 2900)]).sum(
            0
        )
        for channel in range(channels)
    ]
    level = 0.02 + 0.25 * torch.sin(math.pi * time * 0.7).square()
    return (torch.stack(tones) * level / 1.5).float()


def reader(wave: Tensor):
    """Hands out a waveform piece by piece."""
    place = 0

    def read(samples: int) -> Tensor:
        nonlocal place
        place += samples
        return wave[:, place - samples : place]

    return read


def stream(wave: Tensor, rate: int, enhancer, segmentation: Segmentation = SHORT, gain: Tensor | None = None) -> Tensor:
    """The enhanced recording; the noisy pieces must add up to `wave`."""
    gain = torch.ones(len(wave)) if gain is None else gain
    segments = segmentation.segments(wave.shape[1], rate)
    pieces = list(enhance_stream(reader(wave), segments, rate, enhancer, gain))
    assert torch.equal(torch.cat([noisy for noisy, _ in pieces], 1), wave)
    return torch.cat([enhanced for _, enhanced in pieces], 1)


@pytest.mark.parametrize("rate", [*RATES, 11025, 16001])
@pytest.mark.parametrize("seconds", [0.001, 0.9, 1.0, 1.0001, 1.61, 5.3, 20.0])
def test_segments_cover_a_recording(rate: int, seconds: float) -> None:
    length = max(1, round(seconds * rate))
    segments = SHORT.segments(length, rate)
    unit, size, fade = rate // math.gcd(rate, 16000), SHORT.samples(rate), round(0.05 * rate)
    assert segments[0].start == segments[0].first == 0
    assert segments[-1].stop == segments[-1].last == length
    for segment in segments:
        assert segment.start % unit == 0
        assert segment.stop - segment.start <= size
        assert segment.stop - segment.start > min(length, size) - unit
    for before, after in pairwise(segments):
        assert before.stop - before.start == size
        assert before.last - after.first == fade
        assert after.last - after.first >= 2 * fade
        assert after.first - after.start >= round(0.2 * rate) - fade  # context that is discarded
        assert before.stop - before.last >= round(0.2 * rate) - fade
    assert (len(segments) == 1) == (length <= size)


@pytest.mark.parametrize("length", [1, 15_999, 16_000, 16_001, 60_013])
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_nothing_changes_without_a_network(length: int, channels: int) -> None:
    wave = speech(4, 16000, channels)[:, :length]
    assert torch.equal(stream(wave, 16000, identity), wave)


@pytest.mark.parametrize("rate", RATES)
def test_segments_give_what_the_whole_gives(rate: int) -> None:
    wave, gain = speech(4.7, rate, 2), torch.ones(2)
    whole = enhance_at(wave, rate, blur, gain)
    assert whole.shape == wave.shape
    assert (whole - wave).abs().max() > 0.1
    torch.testing.assert_close(stream(wave, rate, blur), whole, rtol=0, atol=2e-6)


def test_a_context_shorter_than_the_reach_shows() -> None:
    wave = speech(4.7, 16000)
    cut = stream(wave, 16000, blur, Segmentation(segment=1.0, context=0.02, fade=0.01))
    assert (cut - enhance_at(wave, 16000, blur, torch.ones(1))).abs().max() > 1e-4


def by_loudness(waveform: Tensor, gain: Tensor) -> Tensor:
    """Depends on the whole segment, as the network does: up to 20 % louder."""
    return waveform * (1 + 0.2 * torch.tanh(20 * waveform.square().mean(1, keepdim=True)))


def roughness(wave: Tensor, segmentation: Segmentation, rate: int) -> float:
    """At the roughest join, the largest second difference over the largest within 0.1 s at either side."""
    second, margin = wave[0].diff(n=2).abs(), rate // 10
    ratios = []
    for before, after in pairwise(segmentation.segments(wave.shape[1], rate)):
        first, last = after.first - 3, before.last + 3
        beside = torch.cat([second[first - margin : first], second[last : last + margin]])
        ratios.append(float(second[first:last].max() / beside.max()))
    return max(ratios)


def test_joins_are_no_rougher_than_the_signal_elsewhere() -> None:
    time = torch.arange(16000 * 12) / 16000
    wave = (0.1 + 0.03 * time)[None] * torch.sin(2 * math.pi * 223.7 * time)[None]
    assert roughness(stream(wave, 16000, by_loudness), SHORT, 16000) < 1.02
    abrupt = Segmentation(segment=1.0, context=0.2, fade=0.0)
    assert roughness(stream(wave, 16000, by_loudness, abrupt), abrupt, 16000) > 1.5


def test_the_level_does_not_jump_between_segments() -> None:
    wave = torch.cat([speech(3, 16000), 0.03 * speech(3, 16000)], 1)
    gain = measure([wave], 1, 16000, 1.0, "a").gain
    torch.testing.assert_close(stream(wave, 16000, compress, gain=gain), compress(wave, gain), rtol=0, atol=1e-7)


@pytest.mark.parametrize("rate", [8000, 16000, 48000])
def test_the_gain_is_that_of_the_whole_recording(rate: int) -> None:
    wave = speech(3.3, rate, 2) * torch.tensor([[1.0], [0.1]])
    found = measure(wave.split(rate, dim=1), 2, rate, 1.0, "a")
    torch.testing.assert_close(found.gain, wave.square().mean(1).rsqrt(), rtol=2e-3, atol=0)  # tones lose at most 0.4 %
    assert (found.length, found.clipped) == (wave.shape[1], 0)


def test_power_above_the_networks_band_does_not_count() -> None:
    time = torch.arange(48000 * 2) / 48000
    low, high = (torch.sin(2 * math.pi * frequency * time)[None] for frequency in (500, 15_000))
    gains = [measure([wave], 1, 48000, 2.0, "a").gain for wave in (low, low + high)]
    torch.testing.assert_close(gains[1], gains[0], rtol=1e-3, atol=0)


def test_a_silent_recording_has_a_finite_gain() -> None:
    assert measure([torch.zeros(1, 100)], 1, 16000, 1.0, "a").gain.tolist() == pytest.approx([1e6])


def test_flat_tops_count_as_clipped() -> None:
    wave = torch.tensor([[0.0, 1.0, 0.2, 1.0, 1.0, 1.0, -1.0, -1.0, 0.5, 0.5]])
    assert measure(wave.split(4, dim=1), 1, 16000, 1.0, "a").clipped == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_sample_that_is_no_number_is_placed(value: float) -> None:
    wave = torch.zeros(2, 48000)
    wave[1, 40_000] = value
    with pytest.raises(SeqattnError, match=r"noisy\.wav holds NaN or infinite samples, the first at 2\.500 s"):
        measure(wave.split(7000, dim=1), 2, 16000, 1.0, "noisy.wav")


def test_a_network_that_returns_nan_is_refused() -> None:
    with pytest.raises(SeqattnError, match="its weights are damaged"):
        stream(speech(1, 16000), 16000, lambda waveform, gain: waveform * math.nan)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        ({"segment": 2.0, "context": 1.0}, r"segments of 2 s are too short for 1 s of context .* more than 2\.1 s"),
        ({"context": 0.01}, r"a context of 0\.01 s is too short for fades of 0\.05 s: give at least 0\.025 s"),
        ({"segment": math.nan}, "segments of nan s"),
        ({"segment": math.inf}, "segments of inf s"),
        ({"context": -1.0}, "context of -1 s"),
        ({"fade": -1.0}, "fades of -1 s"),
    ],
)
def test_segments_that_make_no_sense(seconds: dict[str, float], words: str) -> None:
    with pytest.raises(SeqattnError, match=words):
        Segmentation(**seconds)


def test_the_shipped_network_joins_its_segments() -> None:
    clean, noises = synthetic_corpus(3, 8, 3.0)
    wave = torch.cat(clean)[None]
    noise = noises[0].repeat(1 + wave.shape[1] // len(noises[0]))[: wave.shape[1]]
    wave = wave + 0.1 * wave.std() / noise.std() * noise
    network, gain, cut = load_enhancer(device="cpu"), rms_gain(wave), Segmentation(segment=6.0, context=0.5, fade=0.05)
    whole, out = network(wave, gain), stream(wave, 16000, network, cut, gain)
    bends = [(signal[0].diff(n=2).abs(), signal) for signal in (out, whole)]
    places = [segment.first for segment in cut.segments(wave.shape[1], 16000)[1:]]
    assert len(places) == 4
    for place in places:
        joined, seamless = (bend[place - 400 : place + 1200].max() for bend, _ in bends)
        assert joined < 1.5 * seamless + 1e-4
        before, after = (slice(place - 8000, place), slice(place + 800, place + 8800))
        levels = [out[0, part].square().mean() / whole[0, part].square().mean() for part in (before, after)]
        assert abs(10 * torch.log10(levels[0] / levels[1])) < 1.0  # dB
