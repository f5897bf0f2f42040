"""The CPU kernels' arguments, and what they share: windows of filtered tokens, values, weights, and features."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from seqattn.kernels.linear import linear
from seqattn.kernels.wersa.cpu_filter import Filter
from seqattn.kernels.wersa.reference import TINY


class Window(NamedTuple):
    """Filtered tokens from number `start` on, (batch, heads, tokens, dim)."""

    start: int
    tokens: Tensor

    def blocks(self, tokens: int) -> Iterator[tuple[slice, Tensor]]:
        """Blocks of `tokens` tokens: their numbers, and the rows (batch · heads, tokens, dim), which may be written."""
        for first in range(0, self.tokens.shape[2], tokens):
            block = self.tokens[:, :, first : first + tokens]
            yield slice(self.start + first, self.start + first + block.shape[2]), block.flatten(0, 1)


class Problem:
    """Some sequences of one call, in the dtype of the arithmetic.

    Blocks are rows (batch · heads, tokens, …) of the tokens in a slice of numbers; a value row ends with a 1, so that
    a sum of values also sums the weights, and is 0 past its sequence's end.
    """

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, gains: Tensor, proj_q: Tensor, proj_k: Tensor | None,
        bandwidth: Tensor | None, lengths: Tensor | None, feature_map: str, causal: bool, eps: float,
    ) -> None:  # fmt: skip
        batch, self.heads, self.length, _ = q.shape
        self.dtype, self.exponential, self.eps = torch.promote_types(q.dtype, torch.float32), feature_map == "exp", eps
        self.q, self.k, self.v = q.to(self.dtype).contiguous(), k.to(self.dtype).contiguous(), v
        ends = torch.full((batch,), self.length) if lengths is None else lengths.to(torch.int64).clamp(0, self.length)
        self.ends, self.shortest = ends, int(ends.min()) if batch else 0
        self.filter = Filter(gains, ends, self.length, causal, self.dtype)
        self.bandwidth = 1.0 if bandwidth is None else bandwidth.to(self.dtype)
        self.scale = (1.0 if self.exponential else proj_q.shape[1] ** -0.5) / self.bandwidth
        self.proj_q = proj_q.to(self.dtype) * self.scale  # (dim, features)
        self.proj_k = self.proj_q if proj_k is None else proj_k.to(self.dtype) * self.scale
        self.features = proj_q.shape[1]

    def windows(self, x: Tensor, tokens: int) -> Iterator[Window]:
        """The filtered x in windows of at least `tokens` tokens where there are as many."""
        size = min(self.length, -(-tokens // self.filter.block) * self.filter.block)
        for start in range(0, self.length, max(1, size)):
            yield self.window(x, start, min(size, self.length - start))

    def window(self, x: Tensor, start: int, count: int) -> Window:
        """`count` tokens of the filtered x, 0 past the ends, where a causal window may reach."""
        tokens = x.new_empty(x.shape[0], self.heads, count, x.shape[3])
        self.filter.apply(x, tokens, start)
        return Window(start, tokens)

    def rows(self, x: Tensor, tokens: slice) -> Tensor:
        """A block of x (batch, heads, length, …), which may hold anything past the ends."""
        rows = x[:, :, tokens].flatten(0, 1).to(self.dtype)
        missing = tokens.stop - tokens.start - rows.shape[1]
        return F.pad(rows, (0, 0) * (x.ndim - 3) + (0, missing)) if missing else rows

    def values(self, tokens: slice) -> Tensor:
        """(batch · heads, tokens, value_dim + 1)."""
        block = self.v[:, :, tokens]
        values = self.q.new_ones(*block.shape[:2], tokens.stop - tokens.start, block.shape[3] + 1)
        values[:, :, : block.shape[2], :-1] = block
        return self.blank(values.flatten(0, 1), tokens)

    def put(self, rows: Tensor, tokens: slice, target: Tensor) -> None:
        """A block of target (batch, heads, length, …) = rows, 0 past the ends."""
        place = target[:, :, tokens]
        place.copy_(rows.unflatten(0, (-1, self.heads))[:, :, : place.shape[2]])

    def blank(self, rows: Tensor, tokens: slice, value: float = 0) -> Tensor:
        """rows with `value` past the ends, in place."""
        if tokens.stop <= self.shortest:
            return rows
        past = torch.arange(tokens.start, tokens.stop) >= self.ends[:, None]
        return rows.unflatten(0, (-1, self.heads)).masked_fill_(past[:, None, :, None], value).flatten(0, 1)

    def weight(self, normaliser: Tensor) -> Tensor:
        """The divisor, from the sum of the weights."""
        return normaliser.clamp_min(TINY) if self.exponential else normaliser + self.eps

    def divide(self, summed: Tensor, tokens: slice, out: Tensor, normaliser: Tensor) -> None:
        """From summed values to out and normaliser, which are whole arrays."""
        weights = summed[..., -1].contiguous()
        self.put(weights, tokens, normaliser)
        self.put(self.blank(summed[..., :-1] / self.weight(weights)[..., None], tokens), tokens, out)

    def summed_gradient(self, grad_out: Tensor, out: Tensor, normaliser: Tensor, tokens: slice) -> Tensor:
        """The gradient of summed values, (batch · heads, tokens, value_dim + 1), from that of out."""
        grad, normaliser = self.rows(grad_out, tokens), self.rows(normaliser, tokens)
        weights = self.weight(normaliser)
        summed = grad.new_empty(*grad.shape[:2], grad.shape[2] + 1)
        torch.div(grad, weights[..., None], out=summed[..., :-1])
        of_weights = -(summed[..., :-1] * self.rows(out, tokens)).sum(-1)
        if self.exponential:
            of_weights.masked_fill_(normaliser < TINY, 0)
        summed[..., -1] = of_weights
        return self.blank(summed, tokens)

    def query_features(self, x: Tensor) -> Tensor:
        """phi, up to a factor for every query, of filtered rows: (batch · heads, tokens, features)."""
        products = linear(x, self.proj_q.T)
        if not self.exponential:
            return products.relu_()
        return products.sub_(products.amax(-1, keepdim=True)).exp_()

    def key_products(self, x: Tensor, tokens: slice) -> Tensor:
        """phi of filtered rows for "relu"; for "exp" its logarithm, -inf past the ends."""
        products = linear(x, self.proj_k.T)
        if not self.exponential:
            return products.relu_()
        norms = x.square().sum(-1, keepdim=True) / (2 * self.bandwidth**2)
        return self.blank(products.sub_(norms + math.log(self.features) / 2), tokens, -math.inf)


class Gradients:
    """What the features receive, added up over blocks.

    Args:
        wants_proj: whether the projections' gradients are wanted.
    """

    def __init__(self, problem: Problem, tied: bool, wants_proj: bool) -> None:
        self.problem = problem
        self.bandwidth = problem.q.new_zeros(())
        self.proj_q = torch.zeros_like(problem.proj_q) if wants_proj else None
        self.proj_k = self.proj_q if tied or not wants_proj else torch.zeros_like(problem.proj_k)

    def of_queries(self, x: Tensor, phi: Tensor, grad: Tensor) -> Tensor:
        """The gradient of filtered query rows from that of their features."""
        return self._of_products(x, self._before_map(phi, grad), self.problem.proj_q, self.proj_q)

    def of_keys(self, x: Tensor, phi: Tensor, grad: Tensor) -> Tensor:
        """The gradient of filtered key rows from that of their features."""
        before, b = self._before_map(phi, grad), self.problem.bandwidth
        gradient = self._of_products(x, before, self.problem.proj_k, self.proj_k)
        if self.problem.exponential:  # of the norm; a query's cancels
            of_norms = before.sum(-1, keepdim=True)
            if isinstance(b, Tensor):
                self.bandwidth += (of_norms * x.square()).sum() / b**3
            gradient -= x * of_norms / b**2
        return gradient

    def _before_map(self, phi: Tensor, grad: Tensor) -> Tensor:
        """The gradient of what goes into the map, in place."""
        if self.problem.exponential:
            return grad.mul_(phi)
        return torch.ops.aten.threshold_backward.grad_input(grad, phi, 0, grad_input=grad)

    def _of_products(self, x: Tensor, grad: Tensor, proj: Tensor, into: Tensor | None) -> Tensor:
        gradient = linear(grad, proj)
        if isinstance(self.problem.bandwidth, Tensor):
            self.bandwidth -= (x * gradient).sum() / self.problem.bandwidth
        if into is not None:
            into += linear(x.flatten(0, 1).T, grad.flatten(0, 1).T) * self.problem.scale
        return gradient
