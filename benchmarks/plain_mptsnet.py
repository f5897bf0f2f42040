"""MPTSNet written down step by step as published, for comparison only: six convolutions, a Python loop over segments.

Parameter names are those of the published state dict, so `MPTSNet.from_official(plain.state_dict(), ...)` holds the
same network.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sinusoid(length: int, channels: int) -> Tensor:
    position = torch.arange(length, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, channels, 2).float() * (-math.log(10000.0) / channels))
    table = torch.zeros(length, channels)
    table[:, 0::2], table[:, 1::2] = torch.sin(position * rate), torch.cos(position * rate)
    return table


class ChannelAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = channels // 16
        self.fc = nn.Sequential(
            nn.Conv1d(channels, reduced, 1, bias=False), nn.ReLU(), nn.Conv1d(reduced, channels, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.fc(F.adaptive_avg_pool1d(x, 1)) + self.fc(F.adaptive_max_pool1d(x, 1)))


class SpatialAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv1(torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], dim=1)))


class CBAMBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channel_attention, self.spatial_attention = ChannelAttention(channels), SpatialAttention()

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.channel_attention(x)
        return x * self.spatial_attention(x)


class Inception(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.kernels = nn.ModuleList(nn.Conv1d(in_channels, out_channels, 2 * r + 1, padding=r) for r in range(6))
        self.CBAMBlock = CBAMBlock(out_channels)
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.CBAMBlock(torch.stack([kernel(x) for kernel in self.kernels], dim=-1).mean(-1))


class Layer(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, 4)
        self.ffn = nn.Sequential(nn.Linear(channels, 256), nn.ReLU(), nn.Linear(256, channels))
        self.layernorm1, self.layernorm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layernorm1(x + self.attention(x, x, x)[0])
        return self.layernorm2(x + self.ffn(x))


class Transformer(nn.Module):
    """Tokens (batch, n, size) -> (batch, n, size): CLS, positions, one layer, Linear on [token ; CLS]."""

    def __init__(self, size: int, channels: int, length: int, project: bool) -> None:
        super().__init__()
        self.embedding = nn.Linear(size, channels) if project else nn.Identity()
        self.cls_token = nn.Parameter(torch.randn(1, 1, channels))
        self.register_buffer("table", sinusoid(length + 1, channels), persistent=False)
        self.transformer_blocks = nn.ModuleList([Layer(channels)])
        self.output_layer = nn.Linear(2 * channels, size)

    def forward(self, tokens: Tensor) -> Tensor:
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), self.embedding(tokens)], dim=1)
        x = (x + self.table[: x.shape[1]]).transpose(0, 1)
        x = self.transformer_blocks[0](x).transpose(0, 1)
        cls = x[:, :1].expand(-1, x.shape[1] - 1, -1)
        return self.output_layer(torch.cat([x[:, 1:], cls], dim=-1))


class Block(nn.Module):
    def __init__(self, length: int, channels: int, token_channels: int, periods: list[int]) -> None:
        super().__init__()
        self.length, self.periods = length, periods
        self.cnn = nn.Sequential(Inception(channels, 1024), nn.GELU(), Inception(1024, channels))
        self.transformer = Transformer(channels, channels, length, project=False)
        self.transformers = nn.ModuleList(
            Transformer(channels * period, token_channels, -(-length // period), project=True) for period in periods
        )

    def weights(self, x: Tensor) -> Tensor:
        """One FFT a sample and period, as published."""
        out = torch.zeros(len(x), len(self.periods), device=x.device)
        top = self.length // 2
        for row, series in enumerate(x.detach().mean(1)):
            for column, period in enumerate(self.periods):
                amplitude = torch.fft.fft(series).abs() * 2 / self.length
                bins = torch.arange(top, device=x.device)
                out[row, column] = amplitude[(bins - self.length / period).abs().argmin()]  # the lower one on a tie
        return out.softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, length = x.shape
        results = []
        for index, period in enumerate(self.periods):
            segments = -(-length // period)
            folded = F.pad(x, (0, segments * period - length)).reshape(batch, channels, period, segments)
            parts = [folded[..., j] + self.cnn(folded[..., j]) for j in range(segments)]
            tokens = torch.stack([part.flatten(1) for part in parts], dim=1)
            mixed = self.transformers[index](tokens).reshape(batch, segments, channels, period)
            results.append(mixed.permute(0, 2, 3, 1).reshape(batch, channels, -1)[..., :length])
        weights = self.weights(x)[:, None, None].expand(-1, channels, length, -1)
        fused = (torch.stack(results, dim=-1) * weights).sum(-1)
        return fused + self.transformer(x.transpose(1, 2)).transpose(1, 2) + x


class PlainMPTSNet(nn.Module):
    """x (batch, channels, length) -> logits; interleaved fold, CLS tokens."""

    def __init__(self, in_channels: int, length: int, classes: int, periods: list[int]) -> None:
        super().__init__()
        channels = min(max(4 * in_channels, 64), 256)
        token_channels = min(max(4 * channels, 256), 512)
        self.enc_embedding = nn.Module()
        self.enc_embedding.value_embedding = nn.Module()
        conv = nn.Conv1d(in_channels, channels, 3, padding=1, padding_mode="circular", bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="leaky_relu")
        self.enc_embedding.value_embedding.tokenConv = conv
        self.register_buffer("table", sinusoid(length, channels), persistent=False)
        self.model = nn.ModuleList(Block(length, channels, token_channels, periods) for _ in range(2))
        self.layer_norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(0.1)
        self.fc = nn.Linear(channels * length, classes)

    def forward(self, x: Tensor) -> Tensor:
        embedded = self.enc_embedding.value_embedding.tokenConv(x).transpose(1, 2)
        x = self.dropout(embedded + self.table).transpose(1, 2)
        for block in self.model:
            x = self.layer_norm(block(x).transpose(1, 2)).transpose(1, 2)
        return self.fc(self.dropout(F.gelu(x)).flatten(1))
