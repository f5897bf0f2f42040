"""Rows of tokens between arrays and the scratch memory of the filters: channels filled up to whole vectors.

A window is an array (batch, heads, tokens, dim) whose first token is number `shift` of the sequences.
"""

from typing import Any

from seqattn.kernels.numba_support import jit
from seqattn.kernels.numba_vector import LANES, lane_total, load, pointer, store


@jit
def padded(dim: int) -> int:
    """Elements of a row."""
    return (dim + LANES - 1) // LANES * LANES


@jit
def read_rows(
    window: Any, shift: int, sequence: int, head: int, start: int, rows: int, end: int, scratch: Any, place: int
) -> None:  # fmt: skip
    """Tokens [start, start + rows) to the rows from `place` on, zeros for what lies outside [0, end)."""
    dim, width = window.shape[3], padded(window.shape[3])
    for row in range(rows):
        token, at = start + row, (place + row) * width
        if 0 <= token < end:
            copy_row(pointer(window, row_at(window, sequence, head, token - shift)), pointer(scratch, at), dim)
            for channel in range(dim, width):
                scratch[at + channel] = 0
        else:
            for channel in range(width):
                scratch[at + channel] = 0


@jit
def write_rows(
    window: Any, shift: int, sequence: int, head: int, start: int, rows: int, end: int, scratch: Any, place: int
) -> None:  # fmt: skip
    """The rows from `place` on to tokens [start, start + rows) of the window, zeros from `end` on."""
    dim, width = window.shape[3], padded(window.shape[3])
    for token in range(start, min(start + rows, shift + window.shape[2])):
        if token < end:
            at = pointer(scratch, (place + token - start) * width)
            copy_row(at, pointer(window, row_at(window, sequence, head, token - shift)), dim)
        else:
            for channel in range(dim):
                window[sequence, head, token - shift, channel] = 0


@jit
def row_at(window: Any, sequence: int, head: int, token: int) -> int:
    """Index of a row's first element."""
    return ((sequence * window.shape[1] + head) * window.shape[2] + token) * window.shape[3]


@jit
def copy_row(source: Any, target: Any, dim: int) -> None:
    """`dim` elements from one address to another."""
    whole = dim // LANES * LANES
    for at in range(0, whole, LANES):
        store(target, at, load(source, at))
    for at in range(whole, dim):
        target[at] = source[at]


@jit
def dot_rows(left: Any, right: Any, width: int) -> Any:
    """The scalar product of two rows, given by the addresses of their first elements."""
    total = load(left, 0) * load(right, 0)
    for at in range(LANES, width, LANES):
        total = total + load(left, at) * load(right, at)  # vectors have no +=
    return lane_total(total)
