"""Speech enhancement as a LightningModule: MambAttention, its metric discriminator and the published objective."""

import importlib.util
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import lightning
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import ExponentialLR
from torchmetrics import MeanMetric

from seqattn.errors import SeqattnError
from seqattn.metrics.si_sdr import si_sdr
from seqattn.models.mambattention import MambAttention
from seqattn.models.metric_discriminator import MetricDiscriminator
from seqattn.tasks.optimizers import decay_groups
from seqattn.tasks.pesq_workers import PesqWorkers, Scores, collect
from seqattn.tasks.speech_losses import (
    WEIGHTS,
    Speech,
    analysed,
    discriminator_loss,
    phase_losses,
    reconstruction_losses,
)

PESQ_RANGE = (1.0, 4.5)  # to which the discriminator's 0 and 1 belong
QUEUED = 4  # validation batches a worker that wait for their PESQ
Batch = dict[str, Tensor]


class SpeechEnhancement(lightning.LightningModule):
    """Adversarial training on clips scaled by `gain`, and validation on whole utterances.

    Args:
        model_options: constructor arguments of `MambAttention`.
        loss_weights: of the terms in `WEIGHTS`, default those; a metric weight of 0 trains without a discriminator.
        lr, betas, weight_decay: of both AdamW optimizers. decay: by which the rate is multiplied after every epoch.
        exempt: keep weight decay off biases, norms, slopes and the scan's A_log and D; the publication does not.
        gradient_clip: largest norm of the generator's and of the discriminator's gradient, None means any.
        pesq_workers: processes that compute PESQ, 0 means this one.

    A batch is a dict, see `seqattn.data.speech`. Logs train_loss and every term as train_NAME; val_si_sdr and
    val_si_sdr_noisy (dB, over the clips that have one), val_magnitude, val_phase and val_complex errors, and where the
    package pesq is installed val_pesq and val_pesq_failed, the share of the utterances that it refuses.

    Raises SeqattnError where training needs the package pesq and it is not there, and where training diverges.
    """

    def __init__(
        self, *, model_options: dict[str, Any] | None = None, loss_weights: dict[str, float] | None = None,
        lr: float = 5e-4, betas: tuple[float, float] = (0.8, 0.99), weight_decay: float = 0.01, decay: float = 0.99,
        exempt: bool = False, gradient_clip: float | None = None, pesq_workers: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.network = MambAttention(**(model_options or {}))
        self.loss_weights = WEIGHTS | (loss_weights or {})
        if unknown := sorted(self.loss_weights.keys() - WEIGHTS.keys()):
            raise SeqattnError(f"no loss term is named {unknown[0]!r}: the terms are {', '.join(WEIGHTS)}")
        if not any(self.loss_weights.values()):
            raise SeqattnError("every loss weight is 0, which trains nothing: leave one at its default")
        self.scores_pesq = importlib.util.find_spec("pesq") is not None
        self.discriminator = MetricDiscriminator() if self.loss_weights["metric"] > 0 else None
        self.workers = PesqWorkers(pesq_workers)
        self.train_terms = _means("loss", *WEIGHTS)
        self.val_terms = _means("si_sdr", "si_sdr_noisy", "magnitude", "phase", "complex", "pesq", "pesq_failed")
        self._pending: deque[Scores] = deque()

    @property
    def monitor(self) -> str:
        """The logged metric that the best epoch has the most of."""
        return "val_pesq" if self.scores_pesq else "val_si_sdr"

    @property
    def num_parameters(self) -> int:
        """Of the network that enhances."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def forward(self, waveform: Tensor, lengths: Tensor | None = None) -> Tensor:
        """See `MambAttention.enhance`."""
        return self.network.enhance(waveform, lengths)

    def enhanced(self, noisy: Tensor, lengths: Tensor | None = None) -> Speech:
        """All forms of the enhanced speech, of noisy waveforms (batch, samples) scaled by their gain."""
        spectrum = self.network.spectrum
        frames = None if lengths is None else spectrum.frames(lengths)
        magnitude, phase, complex_ = self.network(*spectrum(noisy, lengths), frames)
        return Speech(magnitude, phase, complex_, spectrum.inverse(magnitude, phase, noisy.shape[1], lengths))

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        optimizers = self.optimizers()
        generator, *others = optimizers if isinstance(optimizers, list) else [optimizers]
        target = analysed(self.network.spectrum, batch["clean"])
        output = self.enhanced(batch["noisy"])
        scores = self.workers.submit(target.waveform, output.waveform) if self.discriminator is not None else []
        terms = reconstruction_losses(self.network.spectrum, target, output)
        if self.discriminator is not None:
            self._discriminator_step(others[0], target, output, scores)
            with _frozen(self.discriminator):
                verdict = self.discriminator(target.magnitude, output.magnitude)
            terms["metric"] = (verdict - 1).square().mean()
        weights = {name: weight for name, weight in self.loss_weights.items() if weight}
        loss = torch.stack([weight * terms[name] for name, weight in weights.items()]).sum()
        self._descend(generator, loss)
        for name, value in (("loss", loss), *terms.items()):
            mean = _mean(self.train_terms, name)
            mean.update(value.detach())
            self.log(f"train_{name}", mean, on_step=False, on_epoch=True, prog_bar=name == "loss")

    def _discriminator_step(self, optimizer: Any, target: Speech, output: Speech, scores: Scores) -> None:
        assert self.discriminator is not None
        loss = (self.discriminator(target.magnitude, target.magnitude) - 1).square().mean()
        verdict = self.discriminator(target.magnitude, output.magnitude.detach())
        low, high = PESQ_RANGE
        labels = ((collect(scores) - low) / (high - low)).to(verdict)
        self._descend(optimizer, loss + discriminator_loss(verdict, labels))

    def _descend(self, optimizer: Any, loss: Tensor) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        largest = self.hparams["gradient_clip"]
        if largest is not None:  # only here: float16 gradients have been scaled back
            self.clip_gradients(optimizer, gradient_clip_val=largest, gradient_clip_algorithm="norm")

    def on_train_epoch_end(self) -> None:
        if not _mean(self.train_terms, "loss").compute().isfinite():
            raise SeqattnError(
                f"training diverged in epoch {self.current_epoch + 1} (the loss is not finite): lower optimizer.lr or "
                "set trainer.gradient_clip"
            )
        schedulers = self.lr_schedulers()
        for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
            scheduler.step()  # type: ignore[union-attr]

    def on_validation_epoch_start(self) -> None:
        self._pending.clear()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        lengths = batch["lengths"]
        output = self.enhanced(batch["noisy"], lengths)
        if self.scores_pesq:
            self._pending.append(self.workers.submit(batch["clean"], output.waveform, lengths))
            self._score_pending(QUEUED * self.workers.count)  # what waits holds its waveforms
        noisy = si_sdr(batch["clean"], batch["noisy"], lengths)
        measurable = noisy.isfinite()  # neither is silent, and they differ
        _mean(self.val_terms, "si_sdr").update(si_sdr(batch["clean"], output.waveform, lengths)[measurable])
        _mean(self.val_terms, "si_sdr_noisy").update(noisy[measurable])
        for index, length in enumerate(lengths.tolist()):  # whole clips, so that padding counts for nothing
            target = analysed(self.network.spectrum, batch["clean"][index : index + 1, :length])
            frames = target.magnitude.shape[2]
            magnitude, phase, complex_ = (form[index : index + 1, :, :frames] for form in output[:3])
            errors = {
                "magnitude": (target.magnitude - magnitude).square().mean(),
                "phase": torch.stack(list(phase_losses(target.phase, phase).values())).sum(),
                "complex": 2 * (target.complex - complex_).square().mean(),
            }
            for name, error in errors.items():
                _mean(self.val_terms, name).update(error)

    def _score_pending(self, left: int) -> None:
        """Wait for the PESQ of the oldest batches until only `left` of them are pending."""
        while len(self._pending) > left:
            values = collect(self._pending.popleft()).to(self.device)
            _mean(self.val_terms, "pesq").update(values[~values.isnan()])
            _mean(self.val_terms, "pesq_failed").update(values.isnan().float())

    def on_validation_epoch_end(self) -> None:
        names = [name for name in self.val_terms if self.scores_pesq or not name.startswith("pesq")]
        self._score_pending(0)
        self.log_dict({f"val_{name}": _mean(self.val_terms, name).compute() for name in names}, prog_bar=True)
        for name in self.val_terms:
            _mean(self.val_terms, name).reset()

    def configure_optimizers(self) -> Any:
        networks = [self.network, *([self.discriminator] if self.discriminator is not None else [])]
        options = self.hparams
        optimizers, schedulers = [], []
        for network in networks:
            decayed = options["weight_decay"]
            groups = decay_groups(network, decayed) if options["exempt"] else network.parameters()
            optimizer = AdamW(groups, lr=options["lr"], betas=tuple(options["betas"]), weight_decay=decayed)
            optimizers.append(optimizer)
            schedulers.append(ExponentialLR(optimizer, options["decay"]))
        return optimizers, schedulers

    def teardown(self, stage: str) -> None:
        self.workers.close()


def _means(*names: str) -> nn.ModuleDict:
    """A mean for each name; without the check for NaN, which would hide a diverged network, weights are ignored."""
    return nn.ModuleDict({name: MeanMetric(nan_strategy="disable") for name in names})


def _mean(means: nn.ModuleDict, name: str) -> MeanMetric:
    return cast(MeanMetric, means[name])


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """No gradients for the parameters of `network` inside."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)
