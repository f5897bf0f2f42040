"""A speech-enhancement run from configuration to results.

holdout: speakers (and, where noise is mixed, noises) held out of training select the epoch; the test list is used once.
paper: the test list selects the epoch, as most published recipes do; it is optimistic.
Where the data set has a validation list of its own, that one selects in both.
"""

import contextlib
import math
import os
import statistics
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from safetensors.torch import save

from seqattn.data.audio import SAMPLE_RATE
from seqattn.data.speech import SpeechDataModule
from seqattn.errors import SeqattnError
from seqattn.experiment.callbacks import read_table
from seqattn.experiment.figures import metric_curves
from seqattn.experiment.run_directory import RunDirectory, atomic_write, is_first_process
from seqattn.experiment.speech_config import SpeechConfig
from seqattn.experiment.trainer import build_trainer, check_devices, check_weights, fit, read_checkpoint
from seqattn.tasks.speech import SpeechEnhancement

MANY_FILES = 100  # to resample: their user is told why nothing happens yet
SMALLEST_SPECTRUM = 16  # the discriminator halves both axes four times


def train_run(config: SpeechConfig, out: Path | None = None, resume: Path | None = None) -> RunDirectory:
    """Train and write a run directory; with `resume`, finish an interrupted one.

    config: of the run to resume, when resuming. out: the folder, default runs/speech/NAME.

    Raises:
        SeqattnError: the data, the configuration or the machine do not allow it.
    """
    check_devices(config.trainer)
    _check_metric_loss(config, build_module(config))  # every mistake that can be met before anything is written
    data = data_module(config)
    with plain_warnings():
        _prepare(data)
        data.setup()
    if resume is not None:
        run = RunDirectory.open(resume)
    else:
        run = RunDirectory.create(out, "speech", config.name)
        run.write_config(config)
        if out is not None and run.path != out and is_first_process():
            print(f"{out} is in use: this run goes into {run.path}", flush=True)
    if run.results.is_file():
        raise SeqattnError(f"{run.path} has finished already: read its results.json, or train a new run")
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    module = build_module(config)
    if is_first_process() and not module.scores_pesq:
        print("the package pesq is not installed: the best epoch is that of the highest SI-SDR", flush=True)
    trainer = build_trainer(
        config.trainer.model_copy(update={"gradient_clip": None}),  # which the module does itself
        run, seed=config.seed, monitor=module.monitor, mode="max", find_unused_parameters=True,
    )  # fmt: skip
    fit(trainer, module, data, run, run.last if run.last.is_file() else None)
    if is_first_process():
        _finish(config, run, module.monitor, data.selection)
    return run


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Show warnings as a sentence on stderr, without the file and line that they come from."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *where, **more: print(f"warning: {message}", file=sys.stderr, flush=True)
        yield


def _prepare(data: SpeechDataModule) -> None:
    """Resample files of other rates, in all cores; `setup` would do it in one."""
    waiting = data.waiting()
    if len(waiting) > MANY_FILES and is_first_process():
        folder = min(waiting).parents[1]
        print(f"resampling {len(waiting)} files to {SAMPLE_RATE // 1000} kHz into {folder}", flush=True)
    data.prepare_data()


def data_module(config: SpeechConfig) -> SpeechDataModule:
    """The data of a configuration."""
    return SpeechDataModule(**config.data.model_dump(), protocol=config.protocol, seed=config.seed)


def build_module(config: SpeechConfig) -> SpeechEnhancement:
    """The task of a configuration, untrained."""
    workers = config.pesq_workers
    if workers is None:
        cores = (os.cpu_count() or 1) // config.trainer.devices
        workers = max(1, min(config.data.batch_size, cores - 1))
    return SpeechEnhancement(
        model_options=config.model.network_options(), loss_weights=config.loss.model_dump(),
        gradient_clip=config.trainer.gradient_clip, pesq_workers=workers, **config.optimizer.model_dump(),
    )  # fmt: skip


def _check_metric_loss(config: SpeechConfig, module: SpeechEnhancement) -> None:
    if module.discriminator is None:
        return
    if not module.scores_pesq:
        raise SeqattnError(
            "the metric loss needs the package pesq: pip install 'seqattn[speech]', or set loss.metric=0"
        )
    spectrum = module.network.spectrum
    frames = int(spectrum.frames(torch.tensor(config.data.segment)))
    if min(frames, spectrum.bins) < SMALLEST_SPECTRUM:
        raise SeqattnError(
            f"the metric loss judges spectra of at least {SMALLEST_SPECTRUM} frames and bins, these have {frames} and "
            f"{spectrum.bins}: raise data.segment or model.n_fft, or set loss.metric=0"
        )


def load_module(run: RunDirectory) -> SpeechEnhancement:
    """The run's best network, in evaluation mode, on the CPU.

    Raises:
        SeqattnError: there is no checkpoint, or it is of another model.
    """
    config = run.read_config(SpeechConfig)
    checkpoint = read_checkpoint(run.best)
    stored = checkpoint.get("hyper_parameters", {}).get("model_options", {})
    if stored != config.model.network_options():
        raise SeqattnError(
            f"{run.best} is a checkpoint of another model than {run.config} says: put back the one this run wrote"
        )
    module = SpeechEnhancement(**checkpoint["hyper_parameters"])
    check_weights(checkpoint, module, run.best)
    module.load_state_dict(checkpoint["state_dict"])
    return module.eval()


def _finish(config: SpeechConfig, run: RunDirectory, monitor: str, selection: str) -> None:
    """Write results, the chosen weights and the learning curves."""
    rows = read_table(run.metrics)
    scored = [row for row in rows if math.isfinite(row.get(monitor, math.nan))]
    if not scored:
        raise SeqattnError(f"no epoch of {run.path} has a finite {monitor}: lower optimizer.lr and train again")
    best = max(scored, key=lambda row: row[monitor])
    module = load_module(run)
    weights = {name: value.contiguous() for name, value in module.network.state_dict().items()}
    atomic_write(run.weights, lambda file: file.write(save(weights)) and None)
    curves = [
        ("train_loss", "training loss"),
        ("val_si_sdr", "validation SI-SDR (dB)"),
        ("val_pesq", "validation PESQ"),
    ]
    title = f"{config.name}, {config.protocol} protocol, seed {config.seed}"
    metric_curves(rows, curves, title, run.figures / "learning_curves.png")
    results: dict[str, Any] = {
        "task": "speech",
        "config": config.name,
        "model": config.model.name,
        "protocol": config.protocol,
        "selection": f"best epoch on {selection}, by {monitor}",
        "seed": config.seed,
        "best_epoch": int(best["epoch"]),
        "epochs": int(rows[-1]["epoch"]),
        "validation": {name: value for name, value in best.items() if name.startswith("val_") and math.isfinite(value)},
        "parameters": module.num_parameters,
        "seconds_per_epoch": round(statistics.median(row["seconds"] for row in rows), 3),
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "threads": torch.get_num_threads(),
    }
    run.write_results(results)
    print(summary_sentence(results, run), flush=True)


def summary_sentence(results: dict[str, Any], run: RunDirectory) -> str:
    """The line a run ends with."""
    found = results["validation"]
    ratio, noisy = (found.get(name, math.nan) for name in ("val_si_sdr", "val_si_sdr_noisy"))
    pesq = f"PESQ {found['val_pesq']:.2f}, " if "val_pesq" in found else ""
    return (
        f"{results['config']}: validation {pesq}SI-SDR {ratio:.1f} dB (noisy {noisy:.1f}) in epoch "
        f"{results['best_epoch']} "
        f"({results['protocol']} protocol: {results['selection']}); run directory {run.path}"
    )
