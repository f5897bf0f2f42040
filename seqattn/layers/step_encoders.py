"""From a regular sequence to one vector: attention, an LSTM or a CNN."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seqattn.layers.attention_stack import AttentionStack


class LastOfAttention(nn.Module):
    """The last step of a self-attention stack: (batch, steps, channels) -> (batch, channels)."""

    def __init__(self, channels: int, heads: int, layers: int, steps: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.stack, self.width = AttentionStack(channels, heads, layers, steps, dropout=dropout), channels

    def forward(self, x: Tensor) -> Tensor:
        return self.stack(x)[:, -1]


class StatesOfLSTM(nn.Module):
    """The top layer's final states of a bidirectional LSTM with `channels` units a direction.

    state: "both" directions, 2 · channels wide, or "backward", the released code's.
    """

    def __init__(
        self, channels: int, layers: int, dropout: float = 0.0, state: Literal["both", "backward"] = "both"
    ) -> None:
        super().__init__()
        self.state, self.width = state, 2 * channels if state == "both" else channels
        between = dropout if layers > 1 else 0.0
        self.lstm = nn.LSTM(channels, channels, layers, batch_first=True, bidirectional=True, dropout=between)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, steps, channels) -> (batch, width)."""
        _, (hidden, _) = self.lstm(x)  # (layers * 2, batch, channels): the last two are the top layer's
        return hidden[-1] if self.state == "backward" else torch.cat([hidden[-2], hidden[-1]], dim=-1)


class FlatCNN(nn.Module):
    """Per layer a convolution, relu and the maximum of pairs of steps; what remains through a linear map and relu.

    kernel_size: steps; ends are padded so that a convolution keeps the length. An odd step pairs with nothing.
    """

    def __init__(self, channels: int, layers: int, steps: int, kernel_size: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(channels, channels, kernel_size) for _ in range(layers))
        for _ in range(layers):
            steps = (steps + 1) // 2
        self.padding = ((kernel_size - 1) // 2, kernel_size // 2)
        self.pool, self.dropout = nn.MaxPool1d(2, ceil_mode=True), nn.Dropout(dropout)
        self.out, self.width = nn.Linear(steps * channels, channels), channels

    def forward(self, x: Tensor) -> Tensor:
        """(batch, steps, channels) -> (batch, channels)."""
        x = x.transpose(1, 2)
        for conv in self.convs:
            x = self.pool(torch.relu(conv(F.pad(x, self.padding))))
        return torch.relu(self.out(self.dropout(x.flatten(1))))


ENCODERS = ("attention", "lstm", "cnn")


def step_encoder(
    name: str, channels: int, heads: int, layers: int, steps: int, *, kernel_size: int = 1,
    lstm_state: Literal["both", "backward"] = "both", dropout: float = 0.0,
) -> LastOfAttention | StatesOfLSTM | FlatCNN:  # fmt: skip
    """The encoder of that name, with an attribute `width`: of the vector it gives."""
    if name == "lstm":
        return StatesOfLSTM(channels, layers, dropout, lstm_state)
    if name == "cnn":
        return FlatCNN(channels, layers, steps, kernel_size, dropout)
    return LastOfAttention(channels, heads, layers, steps, dropout)
