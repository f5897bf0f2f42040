"""Irregular observations on a regular grid, and the embedding of that grid."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqattn.errors import SeqattnError
from seqattn.layers.masking import length_mask

Fill = Literal["forward", "published"]
ROUNDING = 1e-6  # relative: hour 7 of 48 is 7/48 in float32, and 48 times that lies below 7


def regular_grid(
    values: Tensor, mask: Tensor, times: Tensor, steps: int, *, lengths: Tensor | None = None, fill: Fill = "forward"
) -> Tensor:
    """(batch, steps, 2 · channels): for every bin of the window the values, then flags of what the bin itself observed.

    Args:
        values: (batch, length, channels), rows in order of time. mask: 0 or False where not observed.
        times: (batch, length), 0 the beginning of the window and 1 its end; rows outside are left out.
        lengths: (batch,) rows of each series, None means all.
        fill: "forward", a bin without an observation has the newest earlier one, or 0 where there is none.
            "published" repeats the released code: a bin without any row is 0 and ends what was carried, and a bin whose
            last row lacks the channel has the previous bin's value, unless that is 0, instead of its own.

    Raises:
        SeqattnError: fill is another word.
    """
    if fill not in ("forward", "published"):
        raise SeqattnError(f'regular_grid: fill is {fill!r}: it must be "forward" or "published"')
    batch, length, channels = values.shape
    if length == 0:
        return values.new_zeros(batch, steps, 2 * channels)
    position = times * (steps * (1 + ROUNDING))
    inside = (position >= 0) & (position < steps)  # False for NaN
    if lengths is not None:
        inside = inside & length_mask(lengths, length)
    observed = (mask != 0) & inside[..., None]
    bins = position.where(inside, steps).long()  # (batch, length), `steps` for the rows left out
    rows = torch.arange(length, device=values.device)
    newest = rows[:, None].where(observed, -1)  # (batch, length, channels)
    in_bin = _largest(newest, bins[..., None].expand_as(newest), steps)  # (batch, steps, channels), -1 for none
    values = values.where(observed, 0)
    if fill == "forward":
        filled = _rows_of(values, in_bin.cummax(1).values)
    else:
        last = _largest(rows.where(inside, -1)[..., None], bins[..., None], steps)
        filled = _published_fill(_rows_of(values, in_bin), in_bin, last)
    return torch.cat([filled, (in_bin >= 0).to(filled.dtype)], dim=-1)


def _largest(rows: Tensor, bins: Tensor, steps: int) -> Tensor:
    """(batch, steps, …): per bin the largest of `rows`, (batch, length, …), or -1."""
    empty = torch.full_like(rows[:, :1], -1).repeat(1, steps + 1, 1)
    return empty.scatter_reduce(1, bins, rows, "amax")[:, :steps]


def _rows_of(values: Tensor, index: Tensor) -> Tensor:
    """values[index] along the rows, 0 where the index is -1."""
    return values.gather(1, index.clamp_min(0)).where(index >= 0, 0)


def _published_fill(own: Tensor, in_bin: Tensor, last: Tensor) -> Tensor:
    """own: (batch, steps, channels) newest value within a bin; in_bin: its row; last: (batch, steps, 1) last row."""
    previous, filled = torch.zeros_like(own[:, 0]), []
    for value, row, last_row in zip(own.unbind(1), in_bin.unbind(1), last.unbind(1), strict=True):
        kept = (row == last_row) | (previous == 0)
        previous = value.where(kept, previous).where(last_row >= 0, 0)
        filled.append(previous)
    return torch.stack(filled, dim=1)


class ImputationEmbedding(nn.Module):
    """A convolution of stride 1, without bias, over the bins of a regular grid; its ends are padded with zeros.

    in_channels: of the grid. embed_dim: of the result. kernel_size: bins, at least 1.

    Raises:
        SeqattnError: kernel_size is below 1.
    """

    def __init__(self, in_channels: int, embed_dim: int, kernel_size: int = 1) -> None:
        super().__init__()
        if kernel_size < 1:
            raise SeqattnError(f"ImputationEmbedding: kernel_size is {kernel_size}: it must be at least 1")
        self.conv = nn.Conv1d(in_channels, embed_dim, kernel_size, bias=False)

    def forward(self, grid: Tensor) -> Tensor:
        """(batch, steps, in_channels) -> (batch, steps, embed_dim)."""
        taps = self.conv.kernel_size[0]
        if taps == 1:
            return F.linear(grid, self.conv.weight[:, :, 0])
        padded = F.pad(grid.transpose(1, 2), ((taps - 1) // 2, taps // 2))
        return self.conv(padded).transpose(1, 2)
