"""Causal WERSA attention on a CPU: a block of chunks at a time, with the state of summed keys before every chunk.

What the exponents of "exp" are relative to rises along a sequence, to mu_t at token t: key j counts e^(mu_j - mu_t) for
query t, and a state moves from mu to mu' with e^(mu - mu'). No exponent is positive.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from seqattn.kernels.wersa.cpu_problem import Gradients, Problem

CHUNK = 64
"""Most tokens of a chunk."""


class Layout(NamedTuple):
    """Tokens of a chunk, of a block of whole chunks, and windows of whole blocks; the last ones reach past the end."""

    chunk: int
    block: int
    windows: list[slice]


class Chunks(NamedTuple):
    """Features, values and decays of the chunks in one block; decays are None for "relu"."""

    phi_q: Tensor  # (batch · heads · chunks, tokens, features)
    phi_k: Tensor
    values: Tensor  # (batch · heads · chunks, tokens, value_dim + 1)
    within: Tensor | None  # (batch · heads · chunks, query, key): e^(mu_j - mu_t)
    from_start: Tensor | None  # (batch · heads · chunks, tokens, 1): e^(mu before the chunk - mu_t)
    to_end: Tensor | None  # (batch · heads · chunks, tokens, 1): e^(mu_t - mu at the chunk's end)
    across: Tensor | None  # (batch · heads · chunks, 1, 1): e^(mu before the chunk - mu at its end)


def forward(p: Problem, tokens: int, out: Tensor, normaliser: Tensor, sums: Tensor, log_max: Tensor) -> None:
    """Fill out, normaliser, sums and log_max of `register_wersa`, in blocks of about `tokens` tokens."""
    state, layout = sums.flatten(0, 1).zero_(), _layout(p, tokens)
    for window in layout.windows:
        queries, keys = (p.window(x, window.start, window.stop - window.start) for x in (p.q, p.k))
        for (block, q), (_, k) in zip(queries.blocks(layout.block), keys.blocks(layout.block), strict=True):
            products = p.key_products(k, block)
            if p.exponential:
                _continue_maxima(products.amax(-1), block, log_max)
            chunks = _chunks(p, block, q, products, log_max, layout.chunk)
            states = _states(_product(chunks.phi_k, chunks.to_end, chunks.values), chunks.across, state)
            summed = _scaled(chunks.phi_q @ states, chunks.from_start)
            summed.baddbmm_(_weights(chunks.phi_q, chunks.phi_k, chunks), chunks.values)
            p.divide(_rows(summed, q), block, out, normaliser)


def backward(
    p: Problem, tokens: int, gradients: Gradients, grad_out: Tensor, out: Tensor, normaliser: Tensor, sums: Tensor,
    log_max: Tensor, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor,
) -> None:  # fmt: skip
    """Fill the gradients of q, k and v; what gains, projections and bandwidth receive is added up in `gradients`.

    Back in time; only the states at the starts of blocks are kept.
    """
    layout = _layout(p, tokens)
    befores = _block_states(p, layout, sums, log_max)
    after = torch.zeros_like(befores[0])  # Σ phi(q) grad_summedᵀ of later queries, relative to mu at a block's end
    halos = [p.q[:, :, :0]] * 2  # the gradients of filtered q and k in the tokens after a window
    for window in reversed(layout.windows):
        count = window.stop - window.start
        queries, keys = (p.window(x, window.start, count) for x in (p.q, p.k))
        blocks = zip(queries.blocks(layout.block), keys.blocks(layout.block), strict=True)
        for (block, q), (_, k) in reversed(list(blocks)):
            chunks = _chunks(p, block, q, p.key_products(k, block), log_max, layout.chunk)
            grad = p.summed_gradient(grad_out, out, normaliser, block).view_as(chunks.values)
            grad_phi_q, grad_phi_k, grad_values = _differentiate(chunks, grad, befores.pop(), after)
            p.put(p.blank(_rows(grad_values, q)[..., :-1], block), block, grad_v)
            q.copy_(gradients.of_queries(q, _rows(chunks.phi_q, q), _rows(grad_phi_q, q)))
            k.copy_(gradients.of_keys(k, _rows(chunks.phi_k, k), _rows(grad_phi_k, k)))
        for index, (x, filtered, target) in enumerate(((p.q, queries, grad_q), (p.k, keys, grad_k))):
            grad = torch.cat([filtered.tokens, halos[index]], 2)
            p.filter.backward(grad, x, target, window.start, count)
            halos[index] = grad[:, :, : p.filter.halo]


def _layout(p: Problem, tokens: int) -> Layout:
    chunk = max(1, -(-p.length // -(-max(1, p.length) // CHUNK)))  # equal ones, not a full and a nearly empty one
    # the state kept for a block, features · (value_dim + 1) a head, takes at most about what its q, k, v and out take
    block = max(1, max(tokens, p.features // 4) // chunk) * chunk
    size = -(-max(block, p.filter.halo) // block) * block
    end = -(-p.length // chunk) * chunk
    return Layout(chunk, block, [slice(start, min(start + size, end)) for start in range(0, p.length, size)])


def _chunks(p: Problem, block: slice, q: Tensor, products: Tensor, log_max: Tensor, size: int) -> Chunks:
    """The chunks of a block, from its filtered queries and the products of its keys, which are spoilt."""
    rows = (p.query_features(q), products, p.values(block))
    phi_q, products, values = (x.reshape(-1, size, x.shape[-1]) for x in rows)
    if not p.exponential:
        return Chunks(phi_q, products, values, None, None, None, None)
    before, mu = _exponents(p, block, log_max, size)
    end = mu[:, -1:]
    decays = ((mu.transpose(1, 2) - mu), before - mu, mu - end, before - end)
    return Chunks(phi_q, products.sub_(mu).exp_(), values, *(decay.exp() for decay in decays))


def _exponents(p: Problem, block: slice, log_max: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """mu before every chunk of `size` tokens, (batch · heads · chunks, 1, 1), and at its tokens, (…, tokens, 1)."""
    numbers = torch.arange(block.start, block.stop)
    before = log_max[:, :, (numbers[::size] - 1).clamp(min=0)]
    return before.view(-1, 1, 1), log_max[:, :, numbers.clamp(max=p.length - 1)].view(-1, size, 1)


def _continue_maxima(maxima: Tensor, block: slice, log_max: Tensor) -> None:
    """log_max (batch, heads, length) of a block, from the maxima of its own tokens and what stands before it."""
    place = log_max[:, :, block]
    running = maxima.view(*log_max.shape[:2], -1)[:, :, : place.shape[2]].cummax(-1).values
    if block.start:
        # 0 may stand for nothing: then the sequence is empty, and its weights are all 0
        running = torch.maximum(running, log_max[:, :, block.start - 1, None])
    place.copy_(running.masked_fill_(running == -math.inf, 0))


def _block_states(p: Problem, layout: Layout, sums: Tensor, log_max: Tensor) -> list[Tensor]:
    """The state at the start of every block, (batch · heads, features, value_dim + 1)."""
    states = [torch.zeros_like(sums).flatten(0, 1)]
    last = (layout.windows[-1].stop - 1) // layout.block * layout.block if layout.windows else 0
    for window in layout.windows:
        keys = p.window(p.k, window.start, max(0, min(window.stop, last) - window.start))
        for block, k in keys.blocks(layout.block):
            state, phi = states[-1], p.key_products(k, block)
            if p.exponential:
                before, mu = _exponents(p, block, log_max, layout.block)
                end = mu[:, -1:]
                state, phi = state * (before - end).exp(), phi.sub_(end).exp_()
            states.append(state.baddbmm(phi.transpose(1, 2), p.values(block)))
    return states


def _states(increments: Tensor, across: Tensor | None, state: Tensor, back: bool = False) -> Tensor:
    """The state before every chunk, or after it where time goes `back`; `state` moves over all of them.

    increments: (batch · heads · chunks, features, value_dim + 1). state: (batch · heads, features, value_dim + 1).
    """
    states, chunks = torch.empty_like(increments), len(increments) // len(state)
    steps = [increments, states] if across is None else [increments, states, across]
    pieces = list(zip(*(x.unflatten(0, (-1, chunks)).unbind(1) for x in steps), strict=True))
    pieces = pieces[::-1] if back else pieces
    pieces[0][1].copy_(state)
    for (increment, place, *decay), following in zip(pieces, [*(piece[1] for piece in pieces[1:]), state], strict=True):
        if decay:
            torch.addcmul(increment, place, decay[0], out=following)
        else:
            torch.add(increment, place, out=following)
    return states


def _differentiate(chunks: Chunks, grad: Tensor, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of phi_q, phi_k and values, from those of summed values; `after` moves to the block's start."""
    phi_q, phi_k, values, _, from_start, to_end, across = chunks
    states = _states(_product(phi_k, to_end, values), across, before)
    afters = _states(_product(phi_q, from_start, grad), across, after, back=True)
    weights, grad_weights = _weights(phi_q, phi_k, chunks), _weights(grad, values, chunks)
    grad_phi_q = _scaled(grad @ states.transpose(1, 2), from_start).baddbmm_(grad_weights, phi_k)
    grad_phi_k = _scaled(values @ afters.transpose(1, 2), to_end).baddbmm_(grad_weights.transpose(1, 2), phi_q)
    grad_values = _scaled(phi_k @ afters, to_end).baddbmm_(weights.transpose(1, 2), grad)
    return grad_phi_q, grad_phi_k, grad_values


def _weights(of_queries: Tensor, of_keys: Tensor, chunks: Chunks) -> Tensor:
    """(batch · heads · chunks, query, key): products of rows, decayed, of keys up to each query."""
    products = of_queries @ of_keys.transpose(1, 2)
    return _scaled(products, chunks.within).tril_()


def _product(phi: Tensor, decay: Tensor | None, rows: Tensor) -> Tensor:
    """Σ decay phi rowsᵀ over the tokens of every chunk."""
    return (phi if decay is None else phi * decay).transpose(1, 2) @ rows


def _scaled(x: Tensor, decay: Tensor | None) -> Tensor:
    """x times decay, in place."""
    return x if decay is None else x.mul_(decay)


def _rows(x: Tensor, like: Tensor) -> Tensor:
    """(batch · heads · chunks, tokens, columns) as rows of whole blocks."""
    return x.view(*like.shape[:2], -1)
