"""Time2Vec (arXiv:1907.05321): a vector for every moment, and the moments that a model asks about."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from seqattn.errors import SeqattnError


class TimeEmbedding(nn.Module):
    """e(t) = [a t + b, sin(w_1 t + f_1), …, sin(w_{E-1} t + f_{E-1})].

    Args:
        width: E, at least 2.
        init: "default" draws every w from [-1, 1], the published choice: over a window of [0, 1] all moments then look
            much alike. "spread" spaces the w evenly in logarithm from half a cycle a window to half a cycle a step,
            with phases over the whole circle.
        steps: of a window, for "spread".

    Raises:
        SeqattnError: the width is below 2, or init is another word.
    """

    def __init__(self, width: int, init: Literal["default", "spread"] = "default", steps: int = 48) -> None:
        super().__init__()
        if width < 2:
            raise SeqattnError(f"TimeEmbedding: the width is {width}: it must be at least 2")
        if init not in ("default", "spread"):
            raise SeqattnError(f'TimeEmbedding: init is {init!r}: it must be "default" or "spread"')
        self.linear, self.periodic = nn.Linear(1, 1), nn.Linear(1, width - 1)
        if init == "spread":
            with torch.no_grad():
                self.periodic.weight.copy_(math.pi * torch.logspace(0, math.log10(max(steps, 1)), width - 1)[:, None])
                self.periodic.bias.uniform_(-math.pi, math.pi)

    def forward(self, times: Tensor) -> Tensor:
        """(…) -> (…, width), in the type of the weights, computed in float32 at least.

        times: 0 is the beginning of the window, 1 its end; all finite.
        """
        dtype = self.linear.weight.dtype
        wide = torch.promote_types(dtype, torch.float32)
        t = times.to(wide)[..., None]
        # products by hand: under autocast a linear layer would round times to half precision
        trend = t * self.linear.weight[:, 0].to(wide) + self.linear.bias.to(wide)
        waves = torch.sin(t * self.periodic.weight[:, 0].to(wide) + self.periodic.bias.to(wide))
        return torch.cat([trend, waves], dim=-1).to(dtype)


def query_times(steps: int, like: Tensor) -> Tensor:
    """(steps,) moments from 0 to 1, both ends among them, on the device of `like`, float32 at least."""
    return torch.linspace(0, 1, steps, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
