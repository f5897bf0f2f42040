"""Instance normalisation and PReLU on a CPU: one task per instance, which stays in the cache between its passes.

The last elements of an instance are taken as a whole vector too, which overlaps the one before it: elementwise results
are then written twice, and sums leave out the lanes that others have counted.
"""

from typing import Any

import numpy as np
import torch
from numba.extending import intrinsic
from torch import Tensor

from seqattn.kernels.instance_norm.operator import register_instance_norm
from seqattn.kernels.numba_support import jit, run_tasks
from seqattn.kernels.numba_vector import LANES, Lanes, broadcast, lane_total, load, pointer, store


def forward(x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """out and statistics; see `register_instance_norm`."""
    out, statistics = torch.empty_like(x), x.new_empty(*x.shape[:2], 2)
    arrays = (tensor.detach().numpy() for tensor in (x.flatten(2), weight, bias, slope))
    limit = x.new_full((1,), eps).numpy()
    arguments = (*arrays, limit, out.flatten(2).numpy(), statistics.numpy())
    run_tasks(forward_tasks, arguments, x.new_empty(LANES), x.shape[0] * x.shape[1])
    return out, statistics


def backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, bias: Tensor, slope: Tensor, statistics: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of x, weight, bias and slope; see `register_instance_norm`."""
    grad_x, sums = torch.empty_like(x), x.new_empty(*x.shape[:2], 3)  # of weight, bias and slope, of each instance
    given = (grad_out.flatten(2), x.flatten(2), weight, bias, slope, statistics)
    arrays = (tensor.detach().numpy() for tensor in given)
    arguments = (*arrays, grad_x.flatten(2).numpy(), sums.numpy())
    run_tasks(backward_tasks, arguments, x.new_empty(LANES), x.shape[0] * x.shape[1])
    return grad_x, *(total.clone() for total in sums.sum(0).unbind(1))


@intrinsic
def where_positive(typing_context: Any, x: Any, positive: Any, otherwise: Any) -> Any:
    """`positive` in the lanes where x > 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, positive, otherwise = (Lanes(builder, value) for value in arguments)
        return (x * -1).where_below(0, positive, otherwise).value

    return x(x, positive, otherwise), generate


@jit
def uncounted(size: int, mask: Any) -> None:
    """mask = 1 in the lanes of an instance's last vector that no whole vector before it holds, else 0."""
    for lane in range(LANES):
        mask[lane] = 1 if lane >= LANES - size % LANES else 0


@jit
def sum_of(x: Any, size: int, mask: Any, zero: Any) -> Any:
    """The sum of the elements."""
    total = zero
    for at in range(0, size - LANES + 1, LANES):
        total = total + load(x, at)
    return lane_total(total + load(x, size - LANES) * load(mask, 0))


@jit
def squares_of(x: Any, size: int, mask: Any, zero: Any, mean: Any) -> Any:
    """The sum of the squares of x - mean."""
    total = zero
    for at in range(0, size - LANES + 1, LANES):
        centred = load(x, at) - mean
        total = total + centred * centred
    centred = load(x, size - LANES) - mean
    return lane_total(total + centred * centred * load(mask, 0))


@jit
def normalize(x: Any, at: int, scale: Any, shift: Any, slope: Any, out: Any) -> None:
    """One vector of the result."""
    value = load(x, at) * scale + shift
    store(out, at, where_positive(value, value, value * slope))


@jit
def forward_tasks(
    x: np.ndarray, weight: Any, bias: Any, slope: Any, eps: Any, out: Any, statistics: Any, scratch: Any, task: int,
    stop: int,
) -> None:  # fmt: skip
    """Instances `task` … `stop` - 1 of batch · channels."""
    channels, size, zero = x.shape[1], x.shape[2], broadcast(x.dtype.type(0))
    mask, count = pointer(scratch, 0), x.dtype.type(size)
    uncounted(size, mask)
    for index in range(task, stop):
        row, channel = index // channels, index % channels
        source, target = pointer(x, index * size), pointer(out, index * size)
        mean = sum_of(source, size, mask, zero) / count
        variance = squares_of(source, size, mask, zero, broadcast(mean)) / count
        rate = x.dtype.type(1) / np.sqrt(variance + eps[0])
        statistics[row, channel, 0], statistics[row, channel, 1] = mean, rate
        scale = rate * weight[channel]
        factors = broadcast(scale), broadcast(bias[channel] - mean * scale), broadcast(slope[channel])
        for at in range(0, size - LANES + 1, LANES):
            normalize(source, at, *factors, target)
        normalize(source, size - LANES, *factors, target)


@jit
def gradients_at(grad: Any, x: Any, at: int, rate: Any, offset: Any, weight: Any, bias: Any, slope: Any) -> Any:
    """Of one vector: the normalised x, the gradient in front of the PReLU, and what the slope receives."""
    normal, outer = load(x, at) * rate + offset, load(grad, at)
    value = normal * weight + bias
    inner = where_positive(value, outer, outer * slope)
    return normal, inner, where_positive(value, value - value, outer * value)


@jit
def backward_tasks(
    grad: np.ndarray, x: np.ndarray, weight: Any, bias: Any, slope: Any, statistics: Any, grad_x: Any, sums: Any,
    scratch: Any, task: int, stop: int,
) -> None:  # fmt: skip
    """`forward_tasks` for gradients; sums: (batch, channels, 3), those of weight, bias and slope."""
    channels, size, zero = x.shape[1], x.shape[2], broadcast(x.dtype.type(0))
    mask, count = pointer(scratch, 0), x.dtype.type(size)
    uncounted(size, mask)
    for index in range(task, stop):
        row, channel = index // channels, index % channels
        source, outer, target = pointer(x, index * size), pointer(grad, index * size), pointer(grad_x, index * size)
        mean, rate = statistics[row, channel, 0], statistics[row, channel, 1]
        scaled, offset = broadcast(rate), broadcast(-mean * rate)
        factors = broadcast(weight[channel]), broadcast(bias[channel]), broadcast(slope[channel])
        of_weight, of_bias, of_slope = zero, zero, zero
        for at in range(0, size - LANES + 1, LANES):
            normal, inner, below = gradients_at(outer, source, at, scaled, offset, *factors)
            of_weight, of_bias, of_slope = of_weight + inner * normal, of_bias + inner, of_slope + below
        normal, inner, below = gradients_at(outer, source, size - LANES, scaled, offset, *factors)
        counts = load(mask, 0)
        totals = sums[row, channel]
        totals[0] = lane_total(of_weight + inner * normal * counts)
        totals[1] = lane_total(of_bias + inner * counts)
        totals[2] = lane_total(of_slope + below * counts)
        slanted, level = broadcast(totals[0] / count), broadcast(totals[1] / count)
        outside = broadcast(rate * weight[channel])
        for start in range(0, size, LANES):
            at = min(start, size - LANES)
            normal, inner, _ = gradients_at(outer, source, at, scaled, offset, *factors)
            store(target, at, (inner - level - normal * slanted) * outside)


instance_norm_prelu_cpu = register_instance_norm("cpu", forward, backward)
