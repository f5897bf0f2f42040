"""SiLU of the causal convolution on a CPU: one task per sequence and chunk of steps, a vector of channels at a time.

The backward pass convolves again instead of keeping what goes into the SiLU.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqattn.kernels.causal_conv.operator import register_causal_conv
from seqattn.kernels.numba_support import jit, run_tasks
from seqattn.kernels.numba_vector import LANES, advance, load, pointer, sigmoid, store
from seqattn.kernels.selective_scan.cpu_tiles import clear, read_row, read_steps, write_row, write_steps

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
    scratch = x.new_empty((4 * (CHUNK + 2 * taps) + taps + 1) * LANES)
    arguments = (x.detach().numpy(), rows.numpy(), reverse, *arrays)  # rows: the taps, then the bias
    run_tasks(kernel, arguments, scratch, x.shape[0] * _chunks(x.shape[1]))


def _chunks(length: int) -> int:
    return -(-length // CHUNK)


@jit
def read_places(array: Any, row: int, place: int, count: int, reverse: bool, first: int, width: int, tile: Any) -> None:
    """`count` rows of a tile from the places `place` on of a sequence, in the order of the convolution; 0 outside."""
    length, channels = array.shape[1], array.shape[2]
    before, inside = max(0, -place), min(place + count, length)
    clear(tile, 0, LANES, LANES, before)
    at = at_place(array, row, place + before, reverse) + first
    stride = -channels if reverse else channels
    here = max(0, inside - place - before)
    read_steps(pointer(array, 0), at, stride, width, here, advance(tile, before * LANES))
    clear(tile, (before + here) * LANES, LANES, LANES, count - before - here)


@jit
def at_place(array: Any, row: int, place: int, reverse: bool) -> int:
    """Index of the first channel at a place of a sequence."""
    length, channels = array.shape[1], array.shape[2]
    return (row * length + (length - 1 - place if reverse else place)) * channels


@jit
def read_taps(rows: Any, first: int, width: int, weights: Any) -> None:
    """The weights of a block of channels: one row for each tap, and one for the bias."""
    for k in range(rows.shape[0]):
        read_row(pointer(rows, 0), k * rows.shape[1] + first, width, weights, k)


@jit
def convolve(x: Any, weights: Any, taps: int, s: int) -> Any:
    """bias + Σ_k weight_k x_{s+k}, of row s of a tile whose first taps - 1 rows come before."""
    total = load(weights, taps * LANES)
    for k in range(taps):
        total = total + load(weights, k * LANES) * load(x, (s + k) * LANES)
    return total


@jit
def forward_tasks(x: Any, rows: Any, reverse: bool, out: Any, scratch: Any, task: int, stop: int) -> None:
    """Tasks `task` … `stop` - 1 of batch · chunks."""
    length, channels, taps = x.shape[1], x.shape[2], rows.shape[0] - 1
    chunks, weights = (length + CHUNK - 1) // CHUNK, pointer(scratch, 0)
    tile = advance(weights, (taps + 1) * LANES)
    y = advance(tile, (CHUNK + taps) * LANES)
    for index in range(task, stop):
        row, start = index // chunks, index % chunks * CHUNK
        steps = min(CHUNK, length - start)
        for first in range(0, channels, LANES):
            width = min(LANES, channels - first)
            read_taps(rows, first, width, weights)
            read_places(x, row, start - taps + 1, steps + taps - 1, reverse, first, width, tile)
            for s in range(steps):
                value = convolve(tile, weights, taps, s)
                store(y, s * LANES, value * sigmoid(value))
            at = at_place(x, row, start, reverse) + first
            write_steps(pointer(out, 0), at, -channels if reverse else channels, width, steps, y)


@jit
def backward_tasks(
    x: Any, rows: Any, reverse: bool, grad_out: Any, grad_x: Any, sums: Any, scratch: Any, task: int, stop: int
) -> None:
    """`forward_tasks` for gradients; sums: (tasks, taps + 1, channels), the gradients of the taps and the bias."""
    length, channels, taps = x.shape[1], x.shape[2], rows.shape[0] - 1
    chunks, weights = (length + CHUNK - 1) // CHUNK, pointer(scratch, 0)
    tile = advance(weights, (taps + 1) * LANES)
    d = advance(tile, (CHUNK + 2 * taps) * LANES)
    y = advance(d, (CHUNK + taps) * LANES)
    for index in range(task, stop):
        row, start = index // chunks, index % chunks * CHUNK
        steps = min(CHUNK, length - start)
        reach = steps + taps - 1
        for first in range(0, channels, LANES):
            width = min(LANES, channels - first)
            read_taps(rows, first, width, weights)
            read_places(x, row, start - taps + 1, reach + taps - 1, reverse, first, width, tile)
            read_places(grad_out, row, start, reach, reverse, first, width, d)
            before_silu(tile, weights, taps, reach, d)
            spread(weights, taps, steps, d, y)
            at = at_place(x, row, start, reverse) + first
            write_steps(pointer(grad_x, 0), at, -channels if reverse else channels, width, steps, y)
            sum_taps(tile, taps, steps, d, weights)
            for k in range(taps + 1):
                write_row(pointer(sums, 0), (index * (taps + 1) + k) * channels + first, width, weights, k)


@jit
def before_silu(x: Any, weights: Any, taps: int, steps: int, d: Any) -> None:
    """d, the gradient of out, becomes that of what goes into the SiLU."""
    for s in range(steps):
        value = convolve(x, weights, taps, s)
        gate = sigmoid(value)
        silu = value * gate
        store(d, s * LANES, load(d, s * LANES) * (gate + (silu - silu * gate)))


@jit
def spread(weights: Any, taps: int, steps: int, d: Any, y: Any) -> None:
    """y = the gradient of x: Σ_k weight_k d_{s+taps-1-k}."""
    for s in range(steps):
        total = load(weights, 0) * load(d, (s + taps - 1) * LANES)
        for k in range(1, taps):
            total = total + load(weights, k * LANES) * load(d, (s + taps - 1 - k) * LANES)
        store(y, s * LANES, total)


@jit
def sum_taps(x: Any, taps: int, steps: int, d: Any, sums: Any) -> None:
    """sums, of the shape of the weights = the gradients of taps and bias."""
    for k in range(taps):
        total = load(d, 0) * load(x, k * LANES)
        for s in range(1, steps):
            total = total + load(d, s * LANES) * load(x, (s + k) * LANES)
        store(sums, k * LANES, total)
    total = load(d, 0)
    for s in range(1, steps):
        total = total + load(d, s * LANES)
    store(sums, taps * LANES, total)


causal_conv_silu_cpu = register_causal_conv("cpu", forward, backward)
