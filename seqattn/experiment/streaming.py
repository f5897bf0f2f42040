"""A recording of any length through a network in fixed memory: overlapping segments, cross-faded."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from seqattn.data.audio import SAMPLE_RATE, resample
from seqattn.errors import SeqattnError
from seqattn.layers.spectrum import SILENCE

# waveform (batch, samples) at SAMPLE_RATE and gain (batch,), both on the CPU -> waveform of the same shape
Enhancer = Callable[[Tensor, Tensor], Tensor]

SEGMENT_SECONDS = 6.0  # the most that keeps a network of the published size below 2 GB
CONTEXT_SECONDS = 0.5  # nearest to the whole file's output for such segments: docs/results/speech.md
FADE_SECONDS = 0.05  # long enough to hide a join, short enough not to be heard as a double


class Segment(NamedTuple):
    """Samples of the file: the network is given [start, stop), and [first, last), fades included, is used."""

    start: int
    stop: int
    first: int
    last: int


@dataclass(frozen=True)
class Segmentation:
    """How a recording is cut, in seconds.

    segment: what the network is given at once. context: what is discarded of it where it meets a neighbour.
    fade: how long two neighbours overlap in the output.

    Raises:
        SeqattnError: segments too short for their context and fades, or a context shorter than half a fade.
    """

    segment: float = SEGMENT_SECONDS
    context: float = CONTEXT_SECONDS
    fade: float = FADE_SECONDS

    def __post_init__(self) -> None:
        if not 0 <= self.fade <= 2 * self.context:
            raise SeqattnError(
                f"a context of {self.context:g} s is too short for fades of {self.fade:g} s: "
                f"give at least {max(self.fade, 0) / 2:g} s"
            )
        shortest = 2 * (self.context + self.fade)
        if not shortest < self.segment < math.inf:
            raise SeqattnError(
                f"segments of {self.segment:g} s are too short for {self.context:g} s of context at either side: "
                f"give more than {shortest:g} s"
            )

    def samples(self, rate: int) -> int:
        """Samples in a whole segment at `rate` Hz."""
        hop, context = self._aligned(rate)
        return hop + 2 * context

    def segments(self, length: int, rate: int) -> list[Segment]:
        """The segments of `length` samples at `rate` Hz; one up to the length of a segment.

        All have the same length but the last, which is moved back to end with the file and may lack a few samples:
        the network normalises over what it is given, so a shorter one would sound different.
        """
        (hop, context), unit, fade = self._aligned(rate), _unit(rate), round(self.fade * rate)
        size = hop + 2 * context
        final = _multiple(max(length - size, 0), unit)
        starts = [*range(0, final, hop), final]
        joins = [(after + before + size) // 2 for before, after in pairwise(starts)]
        firsts = [0, *(join - fade // 2 for join in joins)]
        lasts = [*(join - fade // 2 + fade for join in joins), length]
        stops = [min(start + size, length) for start in starts]
        return [Segment(*numbers) for numbers in zip(starts, stops, firsts, lasts, strict=True)]

    def _aligned(self, rate: int) -> tuple[int, int]:
        """Samples from segment to segment, and of context: multiples of `_unit`, so that resampling a segment gives
        what resampling the whole gives, away from its ends."""
        unit = _unit(rate)
        hop = _multiple((self.segment - 2 * self.context) * rate, unit)
        return hop, _multiple(self.context * rate, unit)


@dataclass(frozen=True)
class Measurement:
    """What one pass over a recording found: samples, the gain of every channel (channels,), clipped samples."""

    length: int
    gain: Tensor
    clipped: int


def measure(blocks: Iterable[Tensor], channels: int, rate: int, full_scale: float, name: str) -> Measurement:
    """Read a recording once.

    blocks: (channels, samples) each, in order. The gain is sqrt(L / sum y^2) of the recording at SAMPLE_RATE, where
    resampling block by block changes the power of a long recording by less than 1e-4.
    A sample is clipped where it is at `full_scale` or beyond and repeats its predecessor: a flat top.

    Raises:
        SeqattnError: NaN or infinite samples, with the place, or none at all.
    """
    length, resampled, clipped = 0, 0, 0
    power = torch.zeros(channels, dtype=torch.float64)
    before = torch.zeros(channels, 1)
    for block in blocks:
        finite = block.isfinite().all(0)
        if not finite.all():
            place = (length + int(finite.int().argmin())) / rate
            raise SeqattnError(f"{name} holds NaN or infinite samples, the first at {place:.3f} s: repair or cut it")
        joined = torch.cat([before, block], 1)
        clipped += int(((block == joined[:, :-1]) & (block.abs() >= full_scale)).sum())
        before = block[:, -1:]
        length += block.shape[1]
        wave = resample(block, rate, SAMPLE_RATE)
        power += wave.double().square().sum(1)
        resampled += wave.shape[1]
    if length == 0:
        raise SeqattnError(f"{name} holds no samples: leave it out")
    return Measurement(length, (power / resampled).clamp(min=SILENCE).rsqrt().float(), clipped)


def enhance_stream(
    read: Callable[[int], Tensor], segments: Sequence[Segment], rate: int, enhancer: Enhancer, gain: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (noisy, enhanced) pieces (channels, samples) at `rate` Hz that make up the whole recording.

    read: returns the next so many samples, (channels, samples). gain: (channels,).
    """
    given = faded = torch.empty(len(gain), 0)
    start = 0
    for number, segment in enumerate(segments):
        held = given[:, segment.start - start :]
        given = torch.cat([held, read(segment.stop - segment.start - held.shape[1])], 1)
        start = segment.start
        used = slice(segment.first - start, segment.last - start)
        enhanced = enhance_at(given, rate, enhancer, gain)[:, used]
        if fade := faded.shape[1]:
            ramp = (torch.arange(fade) + 0.5) / fade
            enhanced = torch.cat([torch.lerp(faded, enhanced[:, :fade], ramp), enhanced[:, fade:]], 1)
        following = segments[number + 1].first if number + 1 < len(segments) else segment.last
        kept = following - segment.first
        faded = enhanced[:, kept:]
        yield given[:, used][:, :kept], enhanced[:, :kept]


def enhance_at(waveform: Tensor, rate: int, enhancer: Enhancer, gain: Tensor) -> Tensor:
    """Enhance (channels, samples) at `rate` Hz; one channel at a time, since eight at once need eight times the memory.

    Raises:
        SeqattnError: the network returned NaN or infinite samples.
    """
    wave = resample(waveform, rate, SAMPLE_RATE)
    with torch.inference_mode():
        enhanced = torch.cat([enhancer(wave[i : i + 1], gain[i : i + 1]) for i in range(len(wave))])
    if not enhanced.isfinite().all():
        raise SeqattnError("the network returned NaN or infinite samples: its weights are damaged, use another run")
    return resample(enhanced, SAMPLE_RATE, rate)[:, : waveform.shape[1]]


def _unit(rate: int) -> int:
    """The fewest samples at `rate` Hz that are a whole number of samples at SAMPLE_RATE."""
    return rate // math.gcd(rate, SAMPLE_RATE)


def _multiple(number: float, unit: int) -> int:
    """The first multiple of `unit` that is not below `number`."""
    return math.ceil(round(number / unit, 6)) * unit
