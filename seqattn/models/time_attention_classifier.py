"""Irregular series without any clinical data handling: times, values and mask in, logits out."""

from typing import Any

from torch import Tensor, nn

from seqattn.errors import SeqattnError
from seqattn.models.interleaved_ehr import InterleavedEHR


class TimeAttentionClassifier(nn.Module):
    """Logits of irregularly observed series, by the series half of `InterleavedEHR`.

    Args:
        num_channels: of the series. num_classes: logits.
        window: length of the observed period, in the unit of the times; it begins at time 0.
        num_steps: bins that the window is cut into, and moments at which the attention looks at it.
        options: of `InterleavedEHR`, by name: embed_dim, gate, encoder, flags, time_init, dropout and others.

    Raises:
        SeqattnError: window is not positive, or as `InterleavedEHR`.
    """

    def __init__(
        self, num_channels: int, num_classes: int, *, window: float = 1.0, num_steps: int = 48, **options: Any
    ) -> None:
        super().__init__()
        if not window > 0:
            raise SeqattnError(f"TimeAttentionClassifier: window is {window}: it must be positive")
        self.window = window
        self.network = InterleavedEHR(num_channels, num_steps, num_classes, fusion=None, **options)

    def forward(
        self, times: Tensor, values: Tensor, mask: Tensor | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        """Logits (batch, num_classes).

        Args:
            times: (batch, length), ascending, from 0 to `window`.
            values: (batch, length, num_channels), best standardised, of any content where not observed.
            mask: of that shape, True or 1 where observed; None: where values are not NaN.
            lengths: (batch,) rows of each series, None means all; what lies past them changes nothing.

        Raises:
            SeqattnError: a shape does not fit.
        """
        observed = ~values.isnan() if mask is None else mask
        return self.network(values, observed, times / self.window, lengths=lengths)
