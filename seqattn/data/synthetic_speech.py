"""Speech-like signals and noises made from random numbers, so that everything runs without recordings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqattn.data.audio import SAMPLE_RATE

NOISES = ("white", "pink", "babble", "hum")
_LEVEL = 0.07  # root mean square of every signal
_BABBLE_VOICES = 6
_STEP = 80  # samples, 5 ms, from one amplitude of a harmonic to the next
_BANDWIDTHS = np.array([80.0, 110.0, 160.0, 220.0])  # Hz, of the four formants
# first four formants in Hz of vowels of a male speaker, after Peterson and Barney 1952 (the fourth is a round number)
_VOWELS = np.array(
    [
        [270, 2290, 3010, 3500],
        [530, 1840, 2480, 3500],
        [660, 1720, 2410, 3500],
        [730, 1090, 2440, 3500],
        [570, 840, 2410, 3500],
        [300, 870, 2240, 3500],
        [490, 1350, 1690, 3500],
    ],
    dtype=np.float64,
)
Signal = NDArray[np.floating]


@dataclass(frozen=True)
class Voice:
    """A speaker: middle pitch in Hz, and the factor of all formants."""

    pitch: float
    formants: float

    @classmethod
    def draw(cls, generator: np.random.Generator) -> "Voice":
        pitch = float(generator.uniform(85, 240))
        return cls(pitch, 0.9 + 0.25 * (pitch - 85) / 155 + float(generator.uniform(-0.05, 0.05)))


def synthetic_corpus(seed: int | Sequence[int], clips: int, seconds: float) -> tuple[list[Tensor], list[Tensor]]:
    """Clean signals and noises, `clips` of each, (samples,) float32 at 16 kHz, determined by the arguments.

    Each clean clip has a voice of its own; the noises go round NOISES, each with an RMS of 0.07 like the clean signals.
    """
    samples = max(1, round(seconds * SAMPLE_RATE))
    words = [seed] if isinstance(seed, int) else list(seed)
    clean, noises = [], []
    for number in range(clips):
        generator = np.random.default_rng([*words, number])
        clean.append(_as_tensor(utterance(generator, samples)))
        noises.append(_as_tensor(noise(NOISES[number % len(NOISES)], generator, samples)))
    return clean, noises


def utterance(generator: np.random.Generator, samples: int, voice: Voice | None = None) -> Signal:
    """A speech-like signal (samples,): syllables of a fricative and a gliding vowel, in phrases with pauses between.

    voice: the speaker, drawn where none is given.
    """
    voice = voice or Voice.draw(generator)
    signal = np.zeros(samples)
    vowel = _VOWELS[generator.integers(len(_VOWELS))]
    place = int(generator.uniform(0.02, 0.1) * SAMPLE_RATE)
    while place < samples:
        if generator.random() < 0.5:
            place = _put(signal, place, _fricative(generator, _duration(generator, 0.04, 0.12)))
        target = _VOWELS[generator.integers(len(_VOWELS))]
        place = _put(signal, place, _vowel(generator, voice, vowel, target, _duration(generator, 0.1, 0.32)))
        vowel = target
        if generator.random() < 0.2:
            place += _duration(generator, 0.12, 0.4)
    return _levelled(signal)


def noise(kind: str, generator: np.random.Generator, samples: int) -> Signal:
    """A noise (samples,) of one of the NOISES: white, pink, babble of several utterances, mains hum."""
    if kind == "babble":
        return _levelled(np.sum([utterance(generator, samples) for _ in range(_BABBLE_VOICES)], axis=0))
    if kind == "hum":
        return _levelled(_hum(generator, samples))
    white: Signal = generator.standard_normal(samples)
    if kind == "pink":  # power falls with 1/f
        white = _shaped(white, lambda frequency: 1 / np.sqrt(np.maximum(frequency, 20.0)))
    return _levelled(white)


def _vowel(generator: np.random.Generator, voice: Voice, start: Signal, end: Signal, samples: int) -> Signal:
    """Harmonics of a gliding pitch, weighted by resonances that move from one vowel to the next."""
    glide = np.linspace(0, 1, samples)
    low, high = voice.pitch * np.exp(generator.uniform(-0.25, 0.25, 2))
    pitch = low * (high / low) ** glide
    formants = voice.formants * (start + np.minimum(2 * glide, 1)[:, None] * (end - start))  # (samples, 4)
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    steps = np.arange(0, samples + _STEP, _STEP)  # amplitudes change slowly
    between = (np.arange(samples) % _STEP) / _STEP
    slow_pitch, slow_formants = pitch[np.minimum(steps, samples - 1)], formants[np.minimum(steps, samples - 1)]
    signal = np.zeros(samples)
    before, sine, twice_cosine = np.zeros(samples), np.sin(phase), 2 * np.cos(phase)
    for harmonic in range(1, int(0.95 * SAMPLE_RATE / 2 / max(low, high)) + 1):
        resonance = 1 / (1 + ((harmonic * slow_pitch[:, None] - slow_formants) / _BANDWIDTHS) ** 2)
        slow = (resonance.sum(1) + 0.01) / harmonic**0.5  # the source falls by 3 dB an octave
        amplitude = np.repeat(slow[:-1], _STEP)[:samples] + between * np.repeat(np.diff(slow), _STEP)[:samples]
        signal += amplitude * sine
        before, sine = sine, twice_cosine * sine - before  # sin((k + 1) x) = 2 cos(x) sin(kx) - sin((k - 1) x)
    return generator.uniform(0.5, 1.0) * _faded(signal / np.sqrt(np.mean(signal**2)))


def _fricative(generator: np.random.Generator, samples: int) -> Signal:
    """Noise around a frequency between 2.5 and 6.5 kHz."""
    centre, width = generator.uniform(2500, 6500), generator.uniform(600, 1500)
    burst = _shaped(generator.standard_normal(samples), lambda f: 1 / (1 + ((f - centre) / width) ** 2))
    return generator.uniform(0.1, 0.35) * _faded(burst / np.sqrt(np.mean(burst**2)))


def _hum(generator: np.random.Generator, samples: int) -> Signal:
    """Mains hum of 50 or 60 Hz with its harmonics, slowly swelling, over a little white noise."""
    time = np.arange(samples) / SAMPLE_RATE
    mains = generator.choice([50.0, 60.0])
    swell = 1 + 0.4 * np.sin(2 * np.pi * generator.uniform(0.1, 1.0) * time + generator.uniform(0, 2 * np.pi))
    signal = np.zeros(samples)
    for harmonic in range(1, 25):
        amplitude = generator.uniform(0.3, 1.0) / harmonic**0.7
        signal += amplitude * np.sin(2 * np.pi * harmonic * mains * time + generator.uniform(0, 2 * np.pi))
    return swell * signal + 0.05 * generator.standard_normal(samples)


def _shaped(signal: Signal, gain: Callable[[Signal], Signal]) -> Signal:
    spectrum = np.fft.rfft(signal)
    return np.fft.irfft(spectrum * gain(np.fft.rfftfreq(len(signal), 1 / SAMPLE_RATE)), len(signal))


def _faded(signal: Signal) -> Signal:
    """A rise over the first fifth and a fall over the last third, each half a cosine."""
    rise, fall = max(1, len(signal) // 5), max(1, len(signal) // 3)
    signal = signal.copy()
    signal[:rise] *= 0.5 - 0.5 * np.cos(np.pi * np.arange(rise) / rise)
    signal[-fall:] *= 0.5 + 0.5 * np.cos(np.pi * np.arange(fall) / fall)
    return signal


def _duration(generator: np.random.Generator, low: float, high: float) -> int:
    return int(generator.uniform(low, high) * SAMPLE_RATE)


def _put(signal: Signal, place: int, part: Signal) -> int:
    """Add a part at a place, as far as it fits, and return where it ends."""
    room = max(0, len(signal) - place)
    signal[place : place + len(part)] += part[:room]
    return place + len(part)


def _levelled(signal: Signal) -> Signal:
    return signal * (_LEVEL / np.sqrt(max(float(np.mean(signal**2)), 1e-12)))


def _as_tensor(signal: Signal) -> Tensor:
    return torch.from_numpy(signal.astype(np.float32))
