"""GRU-D: a GRU whose inputs and state decay with the time since an observation (arXiv:1606.01865, section 2.3)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GRUD(nn.Module):
    """Logits of one stay from its irregular rows alone, the usual baseline.

    Args:
        num_channels: variables. num_steps: not used, every model of health records takes it. num_labels: logits.
        hidden: units of the state. dropout: on the last state.
    """

    def __init__(
        self, num_channels: int, num_steps: int, num_labels: int, *, hidden: int = 64, dropout: float = 0.2
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.input_decay = nn.Parameter(torch.zeros(2, num_channels))  # weight and bias of each channel's own decay
        self.state_decay = nn.Linear(num_channels, hidden)
        self.gates = nn.Linear(2 * num_channels + hidden, 2 * hidden)  # reset, update
        self.candidate = nn.Linear(2 * num_channels + hidden, hidden)
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(hidden, num_labels)

    def forward(
        self, values: Tensor, mask: Tensor, times: Tensor, regular: Tensor | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        """Logits (batch, num_labels).

        values, mask: (batch, length, channels), standardised, so that 0 is the mean of a channel; what mask leaves out
        changes nothing. times: (batch, length), ascending. regular: not used. lengths: (batch,) valid rows, None: all.
        """
        batch, length, _ = values.shape
        observed = mask.bool()
        if lengths is not None:
            rows = torch.arange(length, device=values.device) < lengths[:, None]
            observed, times = observed & rows[..., None], times.where(rows, 0)
        values = values.where(observed, 0)
        gap = torch.diff(times, dim=1, prepend=times[:, :1]).clamp_min(0)
        state = values.new_zeros(batch, self.hidden)
        last = since = torch.zeros_like(values[:, 0])  # of each channel: its latest value, and the time since then
        states = []
        for value, seen, step in zip(values.unbind(1), observed.unbind(1), gap.unbind(1), strict=True):
            since = since + step[:, None]  # of each channel's last observation
            weight, bias = self.input_decay
            filled = torch.where(seen, value, last * (-F.relu(weight * since + bias)).exp())  # equation 5, mean 0
            state = state * (-F.relu(self.state_decay(since))).exp()
            row = torch.cat([filled, seen.to(value.dtype)], 1)
            reset, update = self.gates(torch.cat([row, state], 1)).sigmoid().chunk(2, 1)
            proposed = self.candidate(torch.cat([row, reset * state], 1)).tanh()
            state = torch.lerp(state, proposed, update)
            last, since = torch.where(seen, value, last), since.where(~seen, 0)
            states.append(state)
        if lengths is not None:
            every = torch.stack(states, 1)  # (batch, length, hidden)
            state = every[torch.arange(batch, device=values.device), (lengths - 1).clamp_min(0)]
        return self.head(self.dropout(state))
