"""Time-series classification as a LightningModule."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import CatMetric, MeanMetric, SumMetric
from torchmetrics.functional.classification import binary_auroc, multiclass_f1_score, multiclass_recall

from seqattn.errors import SeqattnError
from seqattn.layers.normalize import ChannelNormalizer
from seqattn.models.mptsnet import MPTSNet
from seqattn.models.sequence_classifier import MIXERS, SequenceClassifier
from seqattn.tasks.optimizers import configure_optimizer


def sequence_classifier(mixer: str, in_channels: int, seq_len: int, num_classes: int, **options: Any) -> nn.Module:
    """A `SequenceClassifier` from the arguments every model here takes."""
    return SequenceClassifier(in_channels, num_classes, mixer=mixer, max_length=seq_len, **options)


# network(in_channels, seq_len, num_classes, **model_options)
MODELS: dict[str, Callable[..., nn.Module]] = {
    "mptsnet": MPTSNet,
    **{mixer: partial(sequence_classifier, mixer) for mixer in MIXERS},
}


def classification_metrics(probabilities: Tensor, labels: Tensor) -> dict[str, float | None]:
    """accuracy, balanced_accuracy (mean recall), macro_f1 and auroc (macro, one against the rest).

    probabilities: (cases, classes); labels: (cases,). A class without a case does not count towards a mean, as in
    scikit-learn; auroc is None where no class has cases both in and outside it.
    """
    classes, probabilities = probabilities.shape[1], probabilities.double()
    present = torch.bincount(labels, minlength=classes)
    occurring = (present + torch.bincount(probabilities.argmax(-1), minlength=classes)) > 0
    recall = multiclass_recall(probabilities, labels, classes, average="none")[present > 0]
    f1 = multiclass_f1_score(probabilities, labels, classes, average="none")[occurring]
    separable = ((present > 0) & (present < len(labels))).nonzero().flatten().tolist()
    areas = [binary_auroc(probabilities[:, index], (labels == index).long()).item() for index in separable]
    return {
        "accuracy": (probabilities.argmax(-1) == labels).double().mean().item(),
        "balanced_accuracy": recall.mean().item(),
        "macro_f1": f1.mean().item(),
        "auroc": sum(areas) / len(areas) if areas else None,
    }


class TimeSeriesClassification(lightning.LightningModule):
    """A network over standardised series, cross-entropy, and the metrics of the field.

    Args:
        model: a key of `MODELS`. model_options: its constructor arguments besides in_channels, seq_len and num_classes.
        classes: labels in the order of the logits. in_channels, seq_len: of the data. min_length: the shortest
            series of TRAIN and TEST, so that a prediction can refuse shorter ones.
        mean, std: per channel, see `ChannelNormalizer`; None leaves the values as they are.
        label_smoothing: of the training loss.
        optimizer: arguments of `configure_optimizer`.

    A batch is a dict: x (batch, length, channels) with NaN where missing, lengths (batch,), label (batch,).
    Logs train_loss, val_loss, val_accuracy and val_score: the accuracy, ties broken by the lower loss.
    """

    def __init__(
        self, *, model: str = "mptsnet", model_options: dict[str, Any], classes: Sequence[str], in_channels: int,
        seq_len: int, min_length: int = 1, mean: Sequence[float] | None = None, std: Sequence[float] | None = None,
        label_smoothing: float = 0.0, optimizer: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.save_hyperparameters()
        self.normalizer = ChannelNormalizer(mean or [0.0] * in_channels, std or [1.0] * in_channels)
        self.network = MODELS[model](in_channels, seq_len, len(classes), **model_options)
        self.label_smoothing, self.optimizer_options = label_smoothing, optimizer or {}
        # by default NaN is dropped, which would hide a diverged network; without that check weights are ignored
        self.train_loss, self.val_loss = MeanMetric(nan_strategy="disable"), MeanMetric(nan_strategy="disable")
        self.val_accuracy, self.val_cases = MeanMetric(), SumMetric()
        self.test_probabilities, self.test_labels = CatMetric(), CatMetric()

    def forward(self, x: Tensor, lengths: Tensor, **options: Any) -> Any:
        """Logits (batch, classes) of raw series; `options` go to the network."""
        return self.network(self.normalizer(x, lengths), lengths, **options)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        logits = self(batch["x"], batch["lengths"])
        loss = F.cross_entropy(logits, batch["label"], label_smoothing=self.label_smoothing)
        self.train_loss.update(loss.detach().expand(len(logits)))
        self.log("train_loss", self.train_loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def on_train_epoch_end(self) -> None:
        if not self.train_loss.compute().isfinite():
            raise SeqattnError(
                f"training diverged in epoch {self.current_epoch + 1} (the loss is not finite): lower optimizer.lr or "
                "set trainer.gradient_clip"
            )

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        logits = self(batch["x"], batch["lengths"]).float()
        self.val_loss.update(F.cross_entropy(logits, batch["label"], reduction="none"))
        self.val_cases.update(len(logits))
        self.val_accuracy.update((logits.argmax(-1) == batch["label"]).double())

    def on_validation_epoch_end(self) -> None:
        loss, accuracy = self.val_loss.compute(), self.val_accuracy.compute()
        score = accuracy + 0.5 / self.val_cases.compute() / (1 + loss)  # less than one case's worth
        self.log_dict({"val_loss": loss, "val_accuracy": accuracy, "val_score": score}, prog_bar=True)
        self.val_loss.reset()
        self.val_accuracy.reset()
        self.val_cases.reset()

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.test_probabilities.update(self.predict_step(batch, batch_idx))
        self.test_labels.update(batch["label"])

    def on_test_epoch_end(self) -> None:
        metrics = classification_metrics(self.test_probabilities.compute(), self.test_labels.compute().long())
        self.log_dict({f"test_{name}": value for name, value in metrics.items() if value is not None})
        self.test_probabilities.reset()
        self.test_labels.reset()

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Class probabilities (batch, classes)."""
        return self(batch["x"], batch["lengths"]).float().softmax(-1)

    def configure_optimizers(self) -> Any:
        fused = not self.trainer.precision.endswith("mixed")
        return configure_optimizer(self.network, fused=fused, **self.optimizer_options)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.network.parameters())

    @torch.inference_mode()
    def probabilities(self, batches: Any) -> Tensor:
        """Class probabilities (cases, classes) on the CPU, over an iterable of batches, in its order."""
        was_training = self.training
        self.eval()
        parts = [self.predict_step({k: v.to(self.device) for k, v in batch.items()}, 0).cpu() for batch in batches]
        self.train(was_training)
        return torch.cat(parts)
