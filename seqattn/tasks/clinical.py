"""Prediction from irregular health records as a LightningModule: network, loss and the measures of the field."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import CatMetric, MeanMetric

from seqattn.errors import SeqattnError
from seqattn.metrics.clinical import METRICS, clinical_metrics, macro
from seqattn.models.gru_d import GRUD
from seqattn.models.interleaved_ehr import InterleavedEHR
from seqattn.tasks.optimizers import configure_optimizer

Batch = dict[str, Tensor]
INPUTS = ("values", "mask", "times", "regular", "note_vectors", "note_times", "note_mask", "lengths")
LOGGED = ("auroc", "auprc", "f1")

# network(num_channels, num_steps, num_labels, **model_options), called with the tensors of INPUTS by name
MODELS: dict[str, Callable[..., nn.Module]] = {"interleaved": InterleavedEHR, "gru_d": GRUD}


class ClinicalPrediction(lightning.LightningModule):
    """A network over one stay's records, its risk of each label, and their measures.

    Args:
        model: a key of `MODELS`; model_options: of its constructor, besides num_channels, num_steps and num_labels.
        labels: their names: one is a softmax over two logits and cross-entropy, as published for mortality; several are
            sigmoids and binary cross-entropy, as for phenotypes.
        num_channels: variables of the series, num_steps: of the regular grid.
        positive_weight: of each label's positive cases in the loss, default 1.
        optimizer: arguments of `configure_optimizer`.

    A batch is a dict, see `seqattn.data.clinical.datasets`. Logs train_loss, val_loss, val_auroc, val_auprc and val_f1
    (at 0.5), of several labels the means over labels, over all processes' stays; NaN for what needs both classes.
    """

    positive_weight: Tensor

    def __init__(
        self, *, model: str = "interleaved", model_options: dict[str, Any], labels: Sequence[str], num_channels: int,
        num_steps: int, positive_weight: Sequence[float] | None = None, optimizer: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.save_hyperparameters()
        self.labels = list(labels)
        outputs = 2 if len(self.labels) == 1 else len(self.labels)
        self.network = MODELS[model](num_channels, num_steps, outputs, **model_options)
        weight = torch.tensor(positive_weight or [1.0] * len(self.labels))
        self.register_buffer("positive_weight", weight, persistent=False)
        self.optimizer_options = optimizer or {}
        # by default NaN is dropped, which would hide a diverged network and part risks from labels; weights are ignored
        self.train_loss, self.val_loss = (MeanMetric(nan_strategy="disable") for _ in range(2))
        self.val_risk, self.val_label = (CatMetric(nan_strategy="disable") for _ in range(2))

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.network.parameters())

    def forward(self, batch: Batch) -> Tensor:
        """Logits (batch, 2) of one label, (batch, labels) of several."""
        return self.network(**{name: batch[name] for name in INPUTS if name in batch})

    def risk(self, logits: Tensor) -> Tensor:
        """Probabilities (batch, labels) of logits."""
        return logits.float().softmax(-1)[:, 1:] if len(self.labels) == 1 else logits.float().sigmoid()

    def losses(self, logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Loss, 0 where the label is unknown, and whether it is known, (batch, labels); label: as batches have it."""
        if len(self.labels) == 1:
            weight = torch.stack([torch.ones_like(self.positive_weight[0]), self.positive_weight[0]])
            each = F.cross_entropy(logits.float(), label, weight=weight, ignore_index=-1, reduction="none")
            return each[:, None], label[:, None] >= 0
        known = ~label.isnan()
        each = F.binary_cross_entropy_with_logits(
            logits.float(), label.float().where(known, 0), pos_weight=self.positive_weight, reduction="none"
        )
        return each.where(known, 0), known

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Mean over the known labels; 0 where there is none."""
        each, known = self.losses(logits, label)
        return each.sum() / known.sum().clamp_min(1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(self(batch), batch["label"])
        self.train_loss.update(loss.detach().expand(len(batch["label"])))
        self.log("train_loss", self.train_loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        if not self.train_loss.compute().isfinite():
            raise SeqattnError(
                f"training diverged in epoch {self.current_epoch + 1} (the loss is not finite): lower optimizer.lr or "
                "set trainer.gradient_clip"
            )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self(batch)
        each, known = self.losses(logits, batch["label"])
        self.val_loss.update(each[known])
        self.val_risk.update(self.risk(logits))
        self.val_label.update(_columns(batch["label"]))

    def on_validation_epoch_end(self) -> None:
        risk, label = self.val_risk.compute(), self.val_label.compute()
        found = dict.fromkeys(LOGGED, float("nan"))  # of a diverged network: training says so at the end of the epoch
        if risk.isfinite().all():
            found = measured(risk, label)
        self.log_dict({f"val_{name}": found[name] for name in LOGGED}, prog_bar=True)
        self.log("val_loss", self.val_loss.compute(), prog_bar=True)
        for metric in (self.val_loss, self.val_risk, self.val_label):
            metric.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Risks (batch, labels)."""
        return self.risk(self(batch))

    def configure_optimizers(self) -> Any:
        fused = not self.trainer.precision.endswith("mixed")
        return configure_optimizer(self.network, fused=fused, **self.optimizer_options)

    @torch.inference_mode()
    def risks(self, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
        """Risks and labels (cases, labels), NaN where unknown, on the CPU, in the order of the batches."""
        was_training = self.training
        self.eval()
        risks, labels = [], []
        for batch in batches:
            moved = {name: value.to(self.device) for name, value in batch.items()}
            risks.append(self.predict_step(moved, 0).cpu())
            labels.append(_columns(batch["label"]).cpu())
        self.train(was_training)
        return torch.cat(risks), torch.cat(labels)


def measured(risk: Tensor, label: Tensor, threshold: float = 0.5) -> dict[str, float]:
    """`clinical_metrics` of (cases, labels) at one threshold, mean over labels; unknown labels (NaN) do not count."""
    p, y = risk.double().cpu().numpy(), label.double().cpu().numpy()
    measure = partial(_known_metrics, threshold=threshold)
    return measure(p[:, 0], y[:, 0]) if p.shape[1] == 1 else macro(measure, p, y)


def _known_metrics(risk: Any, label: Any, threshold: float) -> dict[str, float]:
    known = label == label  # not NaN
    if not known.any():
        return dict.fromkeys(METRICS, float("nan"))
    return clinical_metrics(risk[known], label[known], threshold)


def _columns(label: Tensor) -> Tensor:
    """Labels as (batch, labels) floats, NaN where unknown."""
    if label.ndim == 2:
        return label.float()
    return label.float().where(label >= 0, torch.nan)[:, None]
