"""The last layers of a predictor."""

import torch
from torch import Tensor, nn


class ResidualHead(nn.Module):
    """Logits W (x + W2 dropout(relu(W1 x))); width: of x."""

    def __init__(self, width: int, num_labels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.hidden, self.back = nn.Linear(width, width), nn.Linear(width, width)
        self.out, self.dropout = nn.Linear(width, num_labels), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width) -> (batch, num_labels)."""
        return self.out(x + self.back(self.dropout(torch.relu(self.hidden(x)))))
