"""Softmax of every channel of its own, in Numba, for scores that are too far apart for one exponential of all.

A score enters a channel's exponent relative to the largest one at which the channel was observed, so nothing overflows
and the sum of the weights is at least 1, whatever the range. No exponential of a channel lies in memory.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqattn.kernels.numba_support import jit, run_tasks
from seqattn.kernels.numba_vector import (
    LANES,
    broadcast,
    exp2,
    lane_total,
    load,
    load_broadcast,
    maximum,
    pointer,
    store,
)


def attend(scores: Tensor, observations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """out, sums of weights and what weights are relative to, (heads, queries, channels).

    scores: (heads, queries, length), contiguous. observations: [values, mask], (length, 2 channels).
    """
    channels = observations.shape[1] // 2
    values, mask = (_padded(half) for half in observations.tensor_split(2, dim=1))
    summed = scores.new_empty(3, *scores.shape[:2], values.shape[1])
    arguments = (scores.flatten(0, 1), values, mask, *summed.flatten(1, 2))
    _run(attend_rows, arguments, summed.shape[1] * summed.shape[2])
    numerator, normaliser, base = summed[..., :channels]
    return numerator / normaliser.clamp_min(torch.finfo(scores.dtype).tiny), normaliser, base


def differentiate(scores: Tensor, observations: Tensor, shares: Tensor, out: Tensor, base: Tensor) -> Tensor:
    """The gradient of values, (length, channels); scores become their gradients, in place.

    shares: (heads, queries, channels), the gradient of out by the sum of weights.
    """
    channels = observations.shape[1] // 2
    values, mask = (_padded(half) for half in observations.tensor_split(2, dim=1))
    factors = [_padded(factor.flatten(0, 1)) for factor in (shares, out, base)]
    grad = torch.zeros_like(values)
    arguments = (scores.flatten(0, 1), values, mask, *factors, grad)
    _run(differentiate_tokens, arguments, -(-scores.shape[2] // LANES))
    return grad[:, :channels]


def _padded(rows: Tensor) -> Tensor:
    """rows (count, channels), with zeros up to whole vectors."""
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % LANES)).contiguous()


def _run(kernel: Any, tensors: tuple[Tensor, ...], tasks: int) -> None:
    kind = tensors[0].numpy().dtype.type
    constants = (kind(np.finfo(kind).max / 2), kind(math.log2(math.e)), kind(0))
    run_tasks(kernel, (*(tensor.numpy() for tensor in tensors), *constants), tensors[0].new_empty(0), tasks)


@jit
def exponent_of(score: Any, seen: Any, base: Any, far: Any) -> Any:
    """score - base where a channel was seen, far below elsewhere."""
    return score + (seen * far - far) - base


@jit
def attend_rows(
    scores: Any, values: Any, mask: Any, numerator: Any, normaliser: Any, base: Any, far: Any, log2_e: Any, zero: Any,
    scratch: Any, first: int, stop: int,
) -> None:  # fmt: skip
    """Rows of queries: the largest score of every channel, then the sums relative to it."""
    length, width = scores.shape[1], values.shape[1]
    p_scores, p_values, p_mask = pointer(scores, 0), pointer(values, 0), pointer(mask, 0)
    for row in range(first, stop):
        for at in range(0, width, LANES):
            largest = broadcast(-far)
            for token in range(length):
                score, seen = load_broadcast(p_scores, row * length + token), load(p_mask, token * width + at)
                largest = maximum(largest, exponent_of(score, seen, broadcast(zero), broadcast(far)))
            weight, total = broadcast(zero), broadcast(zero)
            for token in range(length):
                score, seen = load_broadcast(p_scores, row * length + token), load(p_mask, token * width + at)
                exponent = exponent_of(score, seen, largest, broadcast(far))
                share = exp2(exponent * broadcast(log2_e)) * seen
                weight = weight + share
                total = total + share * load(p_values, token * width + at)
            store(pointer(numerator, row * width), at, total)
            store(pointer(normaliser, row * width), at, weight)
            store(pointer(base, row * width), at, largest)


@jit
def differentiate_tokens(
    scores: Any, values: Any, mask: Any, shares: Any, out: Any, base: Any, grad: Any, far: Any, log2_e: Any, zero: Any,
    scratch: Any, first: int, stop: int,
) -> None:  # fmt: skip
    """Blocks of LANES tokens: gradients of their scores, in place, and of their values."""
    (rows, length), width = scores.shape, values.shape[1]
    p_scores, p_values, p_mask, p_grad = pointer(scores, 0), pointer(values, 0), pointer(mask, 0), pointer(grad, 0)
    p_shares, p_out, p_base = pointer(shares, 0), pointer(out, 0), pointer(base, 0)
    for block in range(first, stop):
        for row in range(rows):
            for token in range(block * LANES, min((block + 1) * LANES, length)):
                score, total = load_broadcast(p_scores, row * length + token), broadcast(zero)
                for at in range(0, width, LANES):
                    of_token, of_row = token * width + at, row * width + at
                    seen = load(p_mask, of_token)
                    exponent = exponent_of(score, seen, load(p_base, of_row), broadcast(far))
                    share = exp2(exponent * broadcast(log2_e)) * seen * load(p_shares, of_row)
                    total = total + share * (load(p_values, of_token) - load(p_out, of_row))
                    store(p_grad, of_token, load(p_grad, of_token) + share)
                scores[row, token] = lane_total(total)
