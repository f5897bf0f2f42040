"""Time attention on a CPU: two matrix products a block, of torch's BLAS, with weights e^score in between.

A few samples, or some rows of one, at a time: their scores stay in the cache, and are computed again in the backward
pass. Samples whose scores may be too far apart for one exponential go to `cpu_far`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from seqattn.kernels.time_attention import cpu_far
from seqattn.kernels.time_attention.operator import register_time_attention

BLOCK = 2**17
"""Most scores of a block."""
NEAR = {torch.float32: 40.0, torch.float64: 300.0}
"""Largest absolute score of samples whose weights need no base: sums of their products stay normal numbers."""


class Part(NamedTuple):
    """Consecutive samples that are done at once; one where it is not near."""

    samples: slice
    end: int  # rows up to the last observation of any
    near: bool


class Problem:
    """The tensors of one call in the dtype of the arithmetic."""

    def __init__(self, query: Tensor, key: Tensor, values: Tensor, mask: Tensor) -> None:
        self.dtype = torch.promote_types(query.dtype, torch.float32)
        self.scale = query.shape[2] ** -0.5
        self.query = (query.to(self.dtype) * self.scale).transpose(0, 1).contiguous()  # (heads, queries, dim)
        self.seen = mask.any(-1)  # (batch, length)
        self.key = key if self.seen.all() else key.masked_fill(~self.seen[..., None, None], 0)
        values = values.to(self.dtype).where(mask, 0)
        self.observations = torch.cat([values, mask.to(self.dtype)], dim=-1)  # (batch, length, 2 channels)
        self.rows = self.query.shape[0] * self.query.shape[1]  # scores of a token
        self.channels = values.shape[2]

    def parts(self) -> Iterator[Part]:
        """All samples in order."""
        ends, near = self._ends(), self._near()
        start, batch = 0, len(ends)
        while start < batch:
            stop, end = start + 1, ends[start]
            while stop < batch and near[start] and near[stop]:
                longest = max(end, ends[stop])
                if (stop + 1 - start) * longest * self.rows > BLOCK:
                    break
                stop, end = stop + 1, longest
            yield Part(slice(start, stop), end, near[start])
            start = stop

    def _ends(self) -> list[int]:
        steps = torch.arange(1, self.seen.shape[1] + 1)
        found: list[int] = torch.nn.functional.pad(self.seen * steps, (1, 0)).amax(-1).tolist()
        return found

    def _near(self) -> list[bool]:
        """Whether Σ_d |query_d| max_l |key_ld| bounds a sample's scores closely enough, (batch,)."""
        if not self.rows or not self.key.shape[1]:
            return [True] * self.key.shape[0]
        largest = self.key.abs().amax(1).to(self.dtype).movedim(0, -1)  # (heads, dim, batch)
        found: list[bool] = ((self.query.abs() @ largest).amax((0, 1)) <= NEAR[self.dtype]).tolist()
        return found

    def tiles(self, part: Part) -> Iterator[slice]:
        """Rows of the series that make a block."""
        tokens = max(1, BLOCK // max(1, self.rows * (part.samples.stop - part.samples.start)))
        for start in range(0, part.end, tokens):
            yield slice(start, min(start + tokens, part.end))

    def keys(self, part: Part, tile: slice) -> Tensor:
        """(samples, heads, tokens, dim)."""
        return self.key[part.samples, tile].to(self.dtype).transpose(1, 2)

    def weights(self, keys: Tensor) -> Tensor:
        """e^score, (samples, heads, queries, tokens)."""
        return (self.query @ keys.mT).exp_()


def forward(query: Tensor, key: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """out, normaliser and base; see `register_time_attention`."""
    p = Problem(query, key, values, mask)
    shape = (key.shape[0], query.shape[0], query.shape[1], values.shape[2])
    out, normaliser, base = p.query.new_empty(shape), p.query.new_empty(shape), p.query.new_zeros(shape)
    for part in p.parts():
        if not part.near:
            _far_forward(p, part, out, normaliser, base)
            continue
        averages, sums = (tensor[part.samples].permute(0, 3, 2, 1) for tensor in (out, normaliser))
        summed = p.query.new_zeros(averages.shape[0], 2 * p.channels, p.rows)
        for tile in p.tiles(part):
            weights = p.weights(p.keys(part, tile)).flatten(1, 2)
            summed.baddbmm_(p.observations[part.samples, tile].mT, weights.mT)
        numerator, weight = summed.unflatten(2, p.query.shape[:2]).tensor_split(2, dim=1)
        sums.copy_(weight)
        torch.div(numerator, weight.clamp_min(torch.finfo(p.dtype).tiny), out=averages)
    return out, normaliser, base


def backward(
    grad_out: Tensor, query: Tensor, key: Tensor, values: Tensor, mask: Tensor, out: Tensor, normaliser: Tensor,
    base: Tensor, wants_values: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of query, key and values; see `register_time_attention`."""
    p = Problem(query, key, values, mask)
    shares = grad_out / normaliser.masked_fill(normaliser == 0, torch.inf)
    grad_query = torch.zeros_like(p.query)
    grad_key, grad_values = torch.zeros(key.shape, dtype=p.dtype), torch.zeros(values.shape, dtype=p.dtype)
    for part in p.parts():
        # each (samples, heads, queries, channels)
        factors = [tensor[part.samples].transpose(1, 2) for tensor in (shares, out, base)]
        if not part.near:
            _far_backward(p, part, [factor[0] for factor in factors], grad_query, grad_key, grad_values)
            continue
        left = torch.cat([factors[0], -factors[0] * factors[1]], dim=-1).flatten(1, 2)
        for tile in p.tiles(part):
            keys = p.keys(part, tile)
            weights, observations = p.weights(keys), p.observations[part.samples, tile]
            if wants_values:
                of_values = left[..., : p.channels].mT @ weights.flatten(1, 2)
                torch.mul(of_values.mT, observations[..., p.channels :], out=grad_values[part.samples, tile])
            of_scores = (left @ observations.mT).view(weights.shape).mul_(weights)
            # transposed: BLAS is three times as fast with few rows as with few columns
            grad_query += (keys.mT @ of_scores.mT).sum(0).mT
            grad_key[part.samples, tile] = (p.query.mT @ of_scores).permute(0, 3, 1, 2)
    grad_query = (grad_query * p.scale).transpose(0, 1).contiguous()
    return (
        grad_query.to(query.dtype), grad_key.to(key.dtype),
        grad_values.to(values.dtype) if wants_values else values.new_empty(0),
    )  # fmt: skip


def _far_forward(p: Problem, part: Part, out: Tensor, normaliser: Tensor, base: Tensor) -> None:
    """One sample, by some queries at a time."""
    rows, sample = slice(0, part.end), part.samples.start
    keys, observations = p.keys(part, rows)[0], p.observations[sample, rows]
    for queries in _queries(p, part):
        results = cpu_far.attend(p.query[:, queries] @ keys.mT, observations)
        for tensor, result in zip((out, normaliser, base), results, strict=True):
            tensor[sample, queries] = result.transpose(0, 1)


def _far_backward(
    p: Problem, part: Part, factors: list[Tensor], grad_query: Tensor, grad_key: Tensor, grad_values: Tensor
) -> None:
    """One sample. factors: shares, out and base, (heads, queries, channels)."""
    rows, sample = slice(0, part.end), part.samples.start
    keys, observations = p.keys(part, rows)[0], p.observations[sample, rows]
    for queries in _queries(p, part):
        scores = p.query[:, queries] @ keys.mT
        of_values = cpu_far.differentiate(scores, observations, *(factor[:, queries] for factor in factors))
        grad_values[sample, rows] += of_values
        grad_query[:, queries] += (keys.mT @ scores.mT).mT
        grad_key[sample, rows] += (p.query[:, queries].mT @ scores).permute(2, 0, 1)


def _queries(p: Problem, part: Part) -> Iterator[slice]:
    heads, queries, _ = p.query.shape
    count = max(1, BLOCK // max(1, heads * part.end))
    for start in range(0, queries, count):
        yield slice(start, min(start + count, queries))


time_attention_cpu = register_time_attention("cpu", forward, backward)
