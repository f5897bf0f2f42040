"""Optimizer and learning-rate schedule, shared by all tasks."""

import math
from typing import Any, Literal

from torch import nn
from torch.optim import Adam, AdamW
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau


def configure_optimizer(
    network: nn.Module, *, name: Literal["adam", "adamw"] = "adamw", lr: float = 1e-3, weight_decay: float = 0.0,
    scheduler: Literal["cosine", "plateau", "none"] = "none", epochs: int = 1, warmup_epochs: int = 0,
    min_lr: float = 0.0, plateau_factor: float = 0.5, plateau_patience: int = 10, fused: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """What a LightningModule's `configure_optimizers` returns.

    "adam" adds its weight decay to the gradient of every parameter, as the older publications do; "adamw" decays
    weights but no bias, norm, scale or parameter marked `_no_weight_decay`, as mamba-ssm marks A_log and D. "cosine"
    falls from lr to min_lr over `epochs`, after a linear warm-up; "plateau" multiplies the rate by plateau_factor when
    the training loss has not fallen for plateau_patience epochs.
    fused: torch's one-pass step, for which Lightning does not clip gradients under mixed precision.
    """
    if name == "adam":
        optimizer: Adam | AdamW = Adam(network.parameters(), lr=lr, weight_decay=weight_decay, fused=fused)
    else:
        groups = decay_groups(network, weight_decay)
        optimizer = AdamW(groups, lr=lr, fused=fused)
    if scheduler == "none":
        return {"optimizer": optimizer}
    if scheduler == "plateau":
        plateau = ReduceLROnPlateau(optimizer, factor=plateau_factor, patience=plateau_patience, min_lr=min_lr)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "train_loss"}}

    def factor(epoch: int) -> float:
        if epoch < warmup_epochs:
            return (epoch + 1) / (warmup_epochs + 1)
        progress = min(1.0, (epoch - warmup_epochs) / max(1, epochs - warmup_epochs))
        floor = min_lr / lr
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "epoch"}}


def decay_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups of AdamW: weights decay; biases, norms, scales and what is marked `_no_weight_decay` do not."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for path, parameter in network.named_parameters():
        exempt = parameter.dim() < 2 or path.endswith("bias") or getattr(parameter, "_no_weight_decay", False)
        (others if exempt else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
