"""SiLU of the causal convolution on a CPU: one task per sequence and chunk of steps, row after row as in memory.

The last channels are taken as a whole vector too, which overlaps the one before it and gives the same there. The
backward pass convolves again instead of keeping what goes into the SiLU.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqattn.kernels.causal_conv.operator import register_causal_conv
from seqattn.kernels.numba_support import jit, run_tasks
from seqattn.kernels.numba_vector import LANES, advance, broadcast, load, pointer, sigmoid, store

CHUNK = 64
"""Steps of a task."""


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool) -> Tensor:
    """out; see `register_causal_conv`."""
    out = torch.empty_like(x)
    _run(forward_tasks, x, weight, bias, reverse, (out.numpy(),))
    return out


def backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; see `register_causal_conv`."""
    (batch, length, channels), taps = x.shape, weight.shape[2]
    grad_x = torch.empty_like(x)
    sums = x.new_empty(batch * _chunks(length), taps + 1, channels)  # what each task gives to the weight and the bias
    _run(backward_tasks, x, weight, bias, reverse, (grad_out.detach().numpy(), grad_x.numpy(), sums.numpy()))
    total = sums.sum(0)
    return grad_x, total[:taps].T[:, None].contiguous(), x.new_empty(0) if bias is None else total[taps].clone()


def _run(
    kernel: Any, x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool, arrays: tuple[np.ndarray, ...]
) -> None:
    channels, _, taps = weight.shape
    rows = torch.cat([weight.detach()[:, 0].T, (x.new_zeros(channels) if bias is None else bias.detach())[None]])
    scratch = x.new_empty((CHUNK + 3 * taps + 1) * -(-channels // LANES) * LANES)
    arguments = (x.detach().numpy(), rows.numpy(), reverse, *arrays)  # rows: the taps, then the bias
    run_tasks(kernel, arguments, scratch, x.shape[0] * _chunks(x.shape[1]))


def _chunks(length: int) -> int:
    return -(-length // CHUNK)


@jit
def first_channel(at: int, channels: int) -> int:
    """Of the block of LANES channels that lies `at` elements from the start of a row of whole blocks."""
    return min(at, channels - LANES)


@jit
def read_rows(rows: Any, width: int, weights: Any) -> None:
    """Rows of channels to rows of whole blocks, `width` elements."""
    channels = rows.shape[1]
    for k in range(rows.shape[0]):
        for at in range(0, width, LANES):
            store(weights, k * width + at, load(pointer(rows, k * channels), first_channel(at, channels)))


@jit
def write_rows(sums: Any, width: int, array: Any, task: int) -> None:
    """The reverse of `read_rows`, to a task's part of an array."""
    taps, channels = array.shape[1], array.shape[2]
    for k in range(taps):
        for at in range(0, width, LANES):
            row = pointer(array, (task * taps + k) * channels)
            store(row, first_channel(at, channels), load(sums, k * width + at))


@jit
def origin_of(x: Any, row: int, reverse: bool) -> int:
    """Index of the first step of a sequence in the order of the convolution."""
    return (row * x.shape[1] + (x.shape[1] - 1 if reverse else 0)) * x.shape[2]


@jit
def convolve(x: Any, step: int, stride: int, weights: Any, taps: int, width: int, skipped: int) -> Any:
    """bias + Σ_k weight_k x_{t-(taps-1)+k} of one block; step: its index at t; skipped: taps before the sequence."""
    total = load(weights, taps * width)
    for k in range(skipped, taps):
        total = total + load(weights, k * width) * load(x, step + (k - taps + 1) * stride)
    return total


@jit
def forward_tasks(x: Any, rows: Any, reverse: bool, out: Any, scratch: Any, task: int, stop: int) -> None:
    """Tasks `task` … `stop` - 1 of batch · chunks."""
    length, channels, taps = x.shape[1], x.shape[2], rows.shape[0] - 1
    chunks, width = (length + CHUNK - 1) // CHUNK, (channels + LANES - 1) // LANES * LANES
    weights, stride = pointer(scratch, 0), -channels if reverse else channels
    read_rows(rows, width, weights)
    for index in range(task, stop):
        origin, start = origin_of(x, index // chunks, reverse), index % chunks * CHUNK
        for place in range(start, min(start + CHUNK, length)):
            skipped = max(0, taps - 1 - place)
            for at in range(0, width, LANES):
                step = origin + place * stride + first_channel(at, channels)
                value = convolve(pointer(x, 0), step, stride, advance(weights, at), taps, width, skipped)
                store(pointer(out, 0), step, value * sigmoid(value))


@jit
def before_silu(
    x: Any, grad_out: Any, step: int, stride: int, weights: Any, taps: int, width: int, skipped: int
) -> Any:  # fmt: skip
    """The gradient of what goes into the SiLU, as `convolve` gives it."""
    value = convolve(x, step, stride, weights, taps, width, skipped)
    gate = sigmoid(value)
    silu = value * gate
    return load(grad_out, step) * (gate + (silu - silu * gate))


@jit
def add_products(x: Any, step: int, stride: int, d: Any, total: Any, taps: int, width: int, skipped: int) -> None:
    """total += what the gradients of taps and bias receive from one step."""
    for k in range(skipped, taps):
        product = d * load(x, step + (k - taps + 1) * stride)
        store(total, k * width, load(total, k * width) + product)
    store(total, taps * width, load(total, taps * width) + d)


@jit
def spread(d: Any, weights: Any, taps: int, width: int, seen: int) -> Any:
    """The gradient of x: Σ_s weight_{taps-1-s} d_{t+s}, over the `seen` steps there are."""
    total = load(d, 0) * load(weights, (taps - 1) * width)
    for s in range(1, seen):
        total = total + load(d, s * width) * load(weights, (taps - 1 - s) * width)
    return total


@jit
def backward_tasks(
    x: Any, rows: Any, reverse: bool, grad_out: Any, grad_x: Any, sums: Any, scratch: Any, task: int, stop: int
) -> None:
    """`forward_tasks` for gradients; sums: (tasks, taps + 1, channels), the gradients of the taps and the bias."""
    length, channels, taps = x.shape[1], x.shape[2], rows.shape[0] - 1
    chunks, width = (length + CHUNK - 1) // CHUNK, (channels + LANES - 1) // LANES * LANES
    weights, stride = pointer(scratch, 0), -channels if reverse else channels
    total = advance(weights, (taps + 1) * width)
    kept = advance(total, (taps + 1) * width)  # the gradients of what goes into the SiLU
    read_rows(rows, width, weights)
    for index in range(task, stop):
        origin, start = origin_of(x, index // chunks, reverse), index % chunks * CHUNK
        end = min(start + CHUNK, length)
        reach = min(end + taps - 1, length)  # the steps before have seen the chunk's
        for at in range(0, (taps + 1) * width, LANES):
            store(total, at, broadcast(x.dtype.type(0)))
        for place in range(start, reach):
            skipped = max(0, taps - 1 - place)
            for at in range(0, width, LANES):
                step = origin + place * stride + first_channel(at, channels)
                source, block = pointer(x, 0), advance(weights, at)
                d = before_silu(source, pointer(grad_out, 0), step, stride, block, taps, width, skipped)
                store(kept, (place - start) * width + at, d)
                if place < end:
                    add_products(source, step, stride, d, advance(total, at), taps, width, skipped)
        for place in range(start, end):
            for at in range(0, width, LANES):
                step = origin + place * stride + first_channel(at, channels)
                own, block = advance(kept, (place - start) * width + at), advance(weights, at)
                store(pointer(grad_x, 0), step, spread(own, block, taps, width, min(taps, reach - place)))
        write_rows(total, width, sums, index)


causal_conv_silu_cpu = register_causal_conv("cpu", forward, backward)
