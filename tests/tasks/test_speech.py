"""The speech enhancement task: one training step, its optimizers, its validation, and what it does with bad clips."""

import copy
import sys
import types

import lightning
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from seqattn.data.speech_clips import collate, rms_gain
from seqattn.data.synthetic_speech import synthetic_corpus
from seqattn.errors import SeqattnError
from seqattn.metrics.perceptual import pesq_score
from seqattn.metrics.si_sdr import si_sdr
from seqattn.tasks import speech
from seqattn.tasks.speech import SpeechEnhancement
from seqattn.tasks.speech_losses import WEIGHTS, analysed, phase_losses, reconstruction_losses

pytest.importorskip("pesq")
NETWORK = {"channels": 8, "blocks": 1, "heads": 2, "n_fft": 60, "hop": 30, "d_state": 4, "expand": 1}
SAMPLES = 6000
ONLY = dict.fromkeys(WEIGHTS, 0.0)
CLEAN, NOISE = (torch.stack(part) for part in synthetic_corpus(7, 4, SAMPLES / 16000))


def tiny(**options) -> SpeechEnhancement:
    torch.manual_seed(0)
    return SpeechEnhancement(**({"model_options": NETWORK, "pesq_workers": 0} | options))


def items(lengths=(SAMPLES,) * 3):
    """Clips of those lengths, each as the data sets give it."""
    found = []
    for index, length in enumerate(lengths):
        clean = CLEAN[index, :length]
        noisy = clean + 0.4 * NOISE[index, :length]
        gain = rms_gain(noisy)
        item = {"noisy": gain * noisy, "clean": gain * clean, "gain": gain}
        found.append(item | {"lengths": torch.tensor(length), "index": torch.tensor(index)})
    return found


def trainer(**options) -> lightning.Trainer:
    defaults = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    return lightning.Trainer(**(defaults | options), enable_progress_bar=False, enable_model_summary=False)


class Seeded(lightning.Callback):
    def on_train_batch_start(self, *_):
        torch.manual_seed(5)


def fit(module, clips=None, **options) -> lightning.Trainer:
    """One step on one batch, an epoch of it."""
    done = trainer(callbacks=[Seeded()], **options)
    done.fit(module, DataLoader(clips or items(), batch_size=8, collate_fn=collate))
    return done


@pytest.fixture
def labels(monkeypatch):
    """What the discriminator was asked to say of every batch."""
    seen = []

    def spy(score, label):
        seen.append(label.clone())
        return loss(score, label)

    loss = speech.discriminator_loss
    monkeypatch.setattr(speech, "discriminator_loss", spy)
    return seen


def test_a_step_is_section_3_3(labels):
    """Discriminator first, on a detached spectrum; then the generator against the discriminator as it is by then."""
    module = tiny(lr=0.01)
    network, judge = copy.deepcopy(module.network), copy.deepcopy(module.discriminator)
    before = copy.deepcopy(module.state_dict())
    fit(module)
    options = {"lr": 0.01, "betas": (0.8, 0.99), "weight_decay": 0.01}
    optimizers = [torch.optim.AdamW(part.parameters(), **options) for part in (network, judge)]
    batch = collate(items())
    spectrum = network.spectrum
    torch.manual_seed(5)  # dropout
    target = analysed(spectrum, batch["clean"])
    magnitude, phase, complex_ = network(*spectrum(batch["noisy"]))
    waveform = spectrum.inverse(magnitude, phase, SAMPLES)
    quality = torch.tensor([pesq_score(*pair) for pair in zip(batch["clean"], waveform.detach(), strict=True)])
    torch.testing.assert_close(labels, [(quality - 1) / 3.5])
    real, fake = (judge(target.magnitude, other) for other in (target.magnitude, magnitude.detach()))
    (F.mse_loss(real, torch.ones(3)) + F.mse_loss(fake, labels[0])).backward()
    optimizers[1].step()
    terms = reconstruction_losses(spectrum, target, speech.Speech(magnitude, phase, complex_, waveform))
    terms["metric"] = (judge(target.magnitude, magnitude) - 1).square().mean()
    sum(WEIGHTS[name] * terms[name] for name in WEIGHTS).backward()
    optimizers[0].step()
    for part, name in ((network, "network"), (judge, "discriminator")):
        after = getattr(module, name).state_dict()
        assert any(not torch.equal(after[key], before[f"{name}.{key}"]) for key in after)
        for key, value in part.state_dict().items():
            torch.testing.assert_close(after[key], value, rtol=0, atol=2e-6, msg=f"{name}.{key}")
    assert all(parameter.requires_grad for parameter in module.discriminator.parameters())


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_of_0_drops_its_term_from_the_loss(name):
    module = tiny(loss_weights={name: 0})
    logged = fit(module).callback_metrics
    assert (module.discriminator is None) is (name == "metric")
    present = [term for term in WEIGHTS if f"train_{term}" in logged]
    assert set(WEIGHTS) - set(present) == ({"metric"} if name == "metric" else set())
    expected = sum(WEIGHTS[term] * logged[f"train_{term}"] for term in present if term != name)
    assert logged["train_loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_term_of_weight_0_cannot_spoil_the_gradient(monkeypatch):
    def infinite(spectrum, target, output):
        return reconstruction_losses(spectrum, target, output) | {"phase": (output.phase * 0).sum() / 0}

    monkeypatch.setattr(speech, "reconstruction_losses", infinite)
    module = tiny(loss_weights=ONLY | {"magnitude": 1.0})
    before = copy.deepcopy(module.network.state_dict())
    logged = fit(module).callback_metrics
    assert not logged["train_phase"].isfinite()
    assert logged["train_loss"] == logged["train_magnitude"]
    after = module.network.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(after[name], before[name]) for name in after)


def test_loss_weights_that_train_nothing_or_nobody_knows():
    with pytest.raises(SeqattnError, match="every loss weight is 0"):
        tiny(loss_weights=ONLY)
    with pytest.raises(SeqattnError, match="no loss term is named 'phas': the terms are magnitude, phase, complex"):
        tiny(loss_weights={"phas": 1.0})


def test_a_silent_clip_drops_only_itself(labels):
    clips = items()
    clips[1] = clips[1] | {name: torch.zeros(SAMPLES) for name in ("noisy", "clean")}
    module = tiny()
    fit(module, clips)
    (found,) = labels
    assert found.isnan().tolist() == [False, True, False]
    assert all(value.isfinite().all() for value in module.state_dict().values())
    alone = tiny()
    fit(alone, clips[:1])
    assert labels[1].item() == pytest.approx(found[0].item(), abs=1e-3)


def test_only_silence_trains_on_and_stays_finite(labels):
    clips = [item | {name: torch.zeros(SAMPLES) for name in ("noisy", "clean")} for item in items()]
    module = tiny()
    fit(module, clips)
    assert labels[0].isnan().all()
    assert all(value.isfinite().all() for value in module.state_dict().values())


def norms_of(module, **options) -> tuple[list[float], list[torch.Tensor]]:
    """The norm of the gradient that each optimizer has stepped with, and the gradients."""
    gradients = []

    class Watch(lightning.Callback):
        def on_fit_start(self, trainer, module):
            for optimizer in trainer.optimizers:
                optimizer.register_step_post_hook(lambda optimizer, *_: gradients.append(flat(optimizer)))

    def flat(optimizer):
        parts = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        return torch.cat(parts)

    done = trainer(callbacks=[Seeded(), Watch()], **options)
    done.fit(module, DataLoader(items(), batch_size=8, collate_fn=collate))
    return [gradient.norm().item() for gradient in gradients], gradients


def test_gradients_of_both_networks_are_clipped():
    free, directions = norms_of(tiny())
    assert len(free) == 2  # discriminator, generator
    assert min(free) > 0.02
    clipped, shortened = norms_of(tiny(gradient_clip=0.01))
    assert clipped == pytest.approx([0.01, 0.01], rel=1e-3)
    torch.testing.assert_close(shortened[0], directions[0] * 0.01 / free[0], rtol=1e-3, atol=1e-8)
    assert norms_of(tiny(gradient_clip=1e6))[0] == pytest.approx(free)


def test_exempt_keeps_weight_decay_off_norms_slopes_biases_and_the_scan():
    module = tiny(exempt=True, weight_decay=0.1)
    optimizers, _ = module.configure_optimizers()
    for optimizer, network in zip(optimizers, (module.network, module.discriminator), strict=True):
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        decayed, others = optimizer.param_groups
        assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
        groups = [{names[id(parameter)] for parameter in group["params"]} for group in (decayed, others)]
        assert groups[0] | groups[1] == set(names.values())
        assert all(name.endswith(("weight", "original", "original0")) for name in groups[0])
        assert not [name for name in groups[0] if "norm" in name or "slope" in name or name.endswith(("A_log", ".D"))]
        assert "slope" in groups[1] or "mask_decoder.slope" in groups[1]
    assert {name.rpartition(".")[2] for name in groups[1]} >= {"bias", "slope"}
    (group,) = tiny(weight_decay=0.1).configure_optimizers()[0][0].param_groups
    assert (group["weight_decay"], len(group["params"])) == (0.1, len(list(module.network.parameters())))


def validated(module, clips, batch_size) -> dict[str, float]:
    loader = DataLoader(clips, batch_size=batch_size, collate_fn=collate)
    (logged,) = trainer().validate(module, loader, verbose=False)
    return logged


def test_validation_measures_every_clip_as_if_alone():
    module = tiny().eval()
    clips = items((SAMPLES, 4801, 5010))
    logged = validated(module, clips, 3)
    assert logged == pytest.approx(validated(module, clips, 1), rel=1e-4, abs=1e-4)
    expected = {name: [] for name in ("si_sdr", "si_sdr_noisy", "pesq", "magnitude", "phase", "complex")}
    spectrum = module.network.spectrum
    for item in clips:
        clean, noisy = item["clean"][None], item["noisy"][None]
        with torch.no_grad():
            magnitude, phase, complex_ = module.network(*spectrum(noisy))
        waveform = spectrum.inverse(magnitude, phase, clean.shape[1])
        target = analysed(spectrum, clean)
        expected["si_sdr"].append(si_sdr(clean, waveform))
        expected["si_sdr_noisy"].append(si_sdr(clean, noisy))
        expected["pesq"].append(torch.tensor(pesq_score(clean[0], waveform[0])))
        expected["magnitude"].append(F.mse_loss(magnitude, target.magnitude))
        expected["phase"].append(sum(phase_losses(target.phase, phase).values()))
        expected["complex"].append(2 * F.mse_loss(complex_, target.complex))
    means = {
        f"val_{name}": torch.stack([v.squeeze() for v in values]).mean().item() for name, values in expected.items()
    }
    assert logged == pytest.approx(means | {"val_pesq_failed": 0}, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(("workers", "most"), [(0, 0), (1, 4), (2, 8)])
def test_validation_holds_a_few_waveforms_at_a_time(workers, most, monkeypatch):
    module, waiting, collected = tiny(), set(), []

    def submit(clean, enhanced, lengths):
        waiting.add(scores := (len(waiting) + len(collected),))
        assert len(waiting) <= most + 1
        return scores

    def collect(scores):
        waiting.remove(scores)
        collected.append(scores)
        return torch.tensor([float(scores[0])])

    module.workers = types.SimpleNamespace(submit=submit, count=workers, close=lambda: None)
    monkeypatch.setattr(speech, "collect", collect)
    logged = validated(module.eval(), items((1000,)) * 11, 1)
    assert collected == [(number,) for number in range(11)]
    assert logged["val_pesq"] == 5


def test_silent_and_short_clips_leave_the_validation_of_the_others():
    module, clips = tiny().eval(), items((SAMPLES, SAMPLES, 1000))
    alone = validated(module, clips[:1], 1)
    clips[1] = clips[1] | {"clean": torch.zeros(SAMPLES)}
    for item in clips:
        logged = validated(module, [clips[0], item], 2)
        assert logged["val_pesq"] == pytest.approx(alone["val_pesq"], rel=1e-4)
        assert logged["val_pesq_failed"] == (0 if item is clips[0] else 0.5)
        assert torch.tensor(logged["val_si_sdr"]).isfinite()
    assert validated(module, clips[:2], 2)["val_si_sdr"] == pytest.approx(alone["val_si_sdr"], abs=1e-3)


def test_a_diverged_network_has_no_score():
    module = tiny(loss_weights={"metric": 0})
    with torch.no_grad():
        module.network.mask_decoder.slope.fill_(torch.nan)
    assert torch.tensor(validated(module, items(), 3)["val_si_sdr"]).isnan()
    with pytest.raises(SeqattnError, match=r"diverged in epoch 1 .*lower optimizer\.lr"):
        fit(module)


def test_without_pesq_the_best_epoch_is_that_of_si_sdr(monkeypatch):
    assert tiny().monitor == "val_pesq"
    monkeypatch.setitem(sys.modules, "pesq", None)
    module = tiny(loss_weights={"metric": 0})
    assert module.monitor == "val_si_sdr"
    logged = validated(module, items(), 3)
    assert "val_si_sdr" in logged
    assert not [name for name in logged if "pesq" in name]
    with pytest.raises(SeqattnError, match="needs the package pesq"):
        fit(tiny())


def test_a_checkpoint_loads_without_arguments(tmp_path):
    module = tiny(loss_weights={"phase": 0.2}, exempt=True, gradient_clip=2.0)
    done = fit(module)
    done.save_checkpoint(tmp_path / "a.ckpt")
    loaded = SpeechEnhancement.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert loaded.hparams == module.hparams
    noisy = collate(items())["noisy"]
    assert torch.equal(loaded.eval()(noisy), module.eval()(noisy))
    assert module.num_parameters == sum(p.numel() for p in module.network.parameters())


def test_a_clip_can_be_learnt_by_heart():
    clips = items((4000,))
    module = tiny(lr=0.01, loss_weights={"metric": 0})
    module.scores_pesq = False
    before = validated(module, clips, 1)
    fit(module, clips, max_epochs=60)
    learnt = validated(module, clips, 1)
    assert learnt["val_si_sdr"] > learnt["val_si_sdr_noisy"] > before["val_si_sdr"]
    assert learnt["val_magnitude"] < before["val_magnitude"] / 3
