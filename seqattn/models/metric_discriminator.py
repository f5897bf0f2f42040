"""The metric discriminator as CMGAN, MP-SENet and MambAttention train it (arXiv:2203.15149, section 2.3)."""

from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from seqattn.layers.dense_block import InstanceNorm
from seqattn.models.mambattention_official import convert_discriminator, official_entry


class MetricDiscriminator(nn.Module):
    """Guess a quality measure, scaled to [0, 1], of enhanced speech beside its clean reference.

    width: channels of the first of four convolutions, each of the others has twice as many as the one before it.
    Weights have a spectral norm of 1, by one power iteration a call in training. Layers are numbered as published.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = [2, width, 2 * width, 4 * width, 8 * width]
        for before, after in pairwise(channels):
            conv = nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False)
            layers += [spectral_norm(conv), InstanceNorm(after), nn.PReLU(after)]
        layers += [nn.AdaptiveMaxPool2d(1), nn.Flatten(), spectral_norm(nn.Linear(8 * width, 4 * width))]
        layers += [nn.Dropout(0.3), nn.PReLU(4 * width), spectral_norm(nn.Linear(4 * width, 1))]
        self.layers = nn.Sequential(*layers)
        self.slope = nn.Parameter(torch.ones(1))

    @classmethod
    def from_official(cls, state_dict: dict[str, Any]) -> Self:
        """The published discriminator with its weights.

        Raises:
            ValueError: an entry is missing or has another shape.
        """
        weights = state_dict.get("discriminator", state_dict)
        first = official_entry(weights, "layers.0.weight_orig", cls.__name__)
        model = cls(first.shape[0]).to(torch.promote_types(first.dtype, torch.float32))
        model.load_state_dict(convert_discriminator(weights, model))
        return model

    def forward(self, reference: Tensor, estimate: Tensor) -> Tensor:
        """Compressed magnitudes (batch, bins, frames), 16 of each or more -> (batch,) in (0, 1)."""
        raw = self.layers(torch.stack([reference, estimate], dim=1))[:, 0]
        return torch.sigmoid(self.slope * raw.to(self.slope.dtype))  # half precision would round the label's scale
