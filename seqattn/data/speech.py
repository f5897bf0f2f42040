"""Noisy and clean speech for training and evaluation: data sets, batches and Lightning data module."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from seqattn.data.samplers import EvaluationSampler, rank_and_world
from seqattn.data.speech_clips import Batch, EpochSampler, EvaluationClips, Source, TrainingCrops, collate, rms_gain
from seqattn.data.speech_folders import TEST_LIST, evaluation_pairs, read_splits
from seqattn.data.speech_mixing import Clip, Mixtures, clean_clips, noise_clips, part_clips
from seqattn.data.speech_pairs import RecordedPairs, warn_of_unequal
from seqattn.data.synthetic_speech import synthetic_corpus
from seqattn.data.waveforms import FileWaveforms, MemoryWaveforms, keep_in_memory
from seqattn.errors import SeqattnError

__all__ = ["EpochSampler", "EvaluationClips", "SpeechDataModule", "TrainingCrops", "rms_gain"]

SYNTHETIC_CLIPS = {"train": 48, "valid": 8, "test": 8}
SYNTHETIC_SECONDS = 3.0


class SpeechDataModule(LightningDataModule):
    """Noisy and clean speech at 16 kHz for training, validation and test.

    Args:
        source: "pairs" reads recorded pairs from data_dir; "mix" mixes clean recordings and noise on the fly;
            "synthetic" mixes speech-like signals and noises that are made from random numbers.
        data_dir: a folder of pairs in a published layout (`find_layout`). With "mix" and "synthetic" only its test
            pairs are used, as the test split; where it is not given, further speakers and noises are held out for that.
        clean_dirs, noise_dirs: folders of clean recordings and of noise, for "mix".
        snr_range: lowest and highest SNR in dB of a mixture, drawn uniformly.
        snrs: SNRs in dB, such as 0, 5, 10 and 15, of which one is drawn instead; default none.
        segment: samples of a training crop.
        batch_size, eval_batch_size: clips per training batch, and per validation or test batch; per process.
        protocol: "holdout" validates on speakers (and noises) held out of training; "paper" trains on all that is not
            test and validates on the test split, as many publications do. A published validation list serves in both.
        epoch_size: clips per training epoch over all processes, default every clip once.
        validation_clips: the most clips to validate on, evenly spread, default all.
        seed: draws mixtures, crops, held-out speakers and the training order.
        num_workers: processes per loader.
        cache_dir: where files of another rate than 16 kHz are kept resampled, default seqattn's cache.

    Folders may be named relative to $SEQATTN_DATA/speech (`find_folder`). After `setup`, `sources` maps train, valid
    and test to what they read; a training or validation source of up to MEMORY_LIMIT bytes (1 GiB, 4.6 hours of audio)
    is kept in memory, a larger one read on demand.

    A batch is a dict: noisy and clean (batch, samples) float32, both already multiplied by gain (batch,) float32, the
    `rms_gain` of the whole noisy clip, and 0 past the end; lengths (batch,) int64 valid samples; index (batch,) int64,
    the clip's number in its source. Training batches have `segment` samples, the others those of their longest clip.
    The samplers split the clips over processes themselves: build the Trainer with use_distributed_sampler=False.

    Raises SeqattnError for an option out of range and, in `setup`, for data that cannot be used.
    """

    sources: dict[str, Source]

    def __init__(
        self,
        source: Literal["pairs", "mix", "synthetic"] = "pairs",
        data_dir: str | None = None,
        *,
        clean_dirs: Sequence[str] = (),
        noise_dirs: Sequence[str] = (),
        snr_range: Sequence[float] = (-5.0, 15.0),
        snrs: Sequence[float] = (),
        segment: int = 32_000,
        batch_size: int = 8,
        eval_batch_size: int = 1,
        protocol: Literal["holdout", "paper"] = "holdout",
        epoch_size: int | None = None,
        validation_clips: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        clean_dirs, noise_dirs, snr_range, snrs = list(clean_dirs), list(noise_dirs), list(snr_range), list(snrs)
        self.save_hyperparameters(logger=False)
        self.source, self.data_dir, self.clean_dirs, self.noise_dirs = source, data_dir, clean_dirs, noise_dirs
        self.snr_range, self.snrs, self.segment, self.protocol, self.seed = snr_range, snrs, segment, protocol, seed
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.epoch_size, self.validation_clips, self.cache_dir = epoch_size, validation_clips, cache_dir
        self._check_options()

    def _check_options(self) -> None:
        for name in ("segment", "batch_size", "eval_batch_size", "epoch_size", "validation_clips"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SeqattnError(f"{name} is {value}; it must be at least 1")
        for name in ("seed", "num_workers"):
            if getattr(self, name) < 0:
                raise SeqattnError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.source not in ("pairs", "mix", "synthetic"):
            raise SeqattnError(f"source is {self.source!r}; it must be 'pairs', 'mix' or 'synthetic'")
        if self.protocol not in ("holdout", "paper"):
            raise SeqattnError(f"protocol is {self.protocol!r}; it must be 'holdout' or 'paper'")
        if len(self.snr_range) != 2 or not -100 <= self.snr_range[0] <= self.snr_range[1] <= 100:
            raise SeqattnError(f"snr_range is {self.snr_range}; give a lower and a higher SNR in dB, such as -5 and 15")
        if not all(-100 <= snr <= 100 for snr in self.snrs):
            raise SeqattnError(f"snrs is {self.snrs}; give SNRs in dB between -100 and 100, such as 0, 5, 10 and 15")
        if self.source == "pairs" and self.data_dir is None:
            raise SeqattnError("source 'pairs' needs data_dir, a folder of noisy and clean recordings: give it")

    @property
    def selection(self) -> str:
        """What the validation split is, in words: "held-out speakers", "the published validation list", ..."""
        self._find()
        return self._validation

    def waiting(self) -> set[Path]:
        """The copies that `prepare_data` has still to write into the cache."""
        return {copy for waveforms in self._files() for copy in waveforms.waiting()}

    def prepare_data(self) -> None:
        """Resample the files of other rates into the cache; Lightning calls it in one process."""
        for waveforms in self._files():
            waveforms.prepare()

    def _files(self) -> list[FileWaveforms]:
        parts = dict.fromkeys(part for source in self._find().values() for part in source.waveforms)
        return [part for part in parts if isinstance(part, FileWaveforms)]

    def setup(self, stage: str | None = None) -> None:
        """Find the recordings and part them into `sources`, once; unless the stage is "test", read them if they fit.

        Raises SeqattnError where there is nothing to train on, unless the stage is "test".
        """
        sources = self._find()
        if stage != "test":
            if not sources["train"].names:
                raise SeqattnError(f"{self.data_dir} has only test pairs, none to train on: add training folders")
            keep_in_memory(sources["train"].waveforms)
            keep_in_memory(sources["valid"].waveforms)

    def _find(self) -> dict[str, Source]:
        if not hasattr(self, "sources"):
            self.sources = self._build()
            different = dict.fromkeys(self.sources.values())  # the test split may be the validation split too
            recorded = [source for source in different if isinstance(source, RecordedPairs)]
            if rank_and_world()[0] == 0:
                warn_of_unequal(recorded)
        return self.sources

    def _build(self) -> dict[str, Source]:
        if self.source == "pairs":
            return self._recorded(str(self.data_dir))
        sources = self._mixed() if self.source == "mix" else self._synthetic()
        if self.data_dir is not None:
            sources["test"] = RecordedPairs(evaluation_pairs(self.data_dir), self.cache_dir)
        if self.protocol == "paper":
            sources["valid"], self._validation = sources["test"], TEST_LIST
        return sources

    def _recorded(self, folder: str) -> dict[str, Source]:
        splits = read_splits(folder, protocol=self.protocol)
        train, test = RecordedPairs(splits.train, self.cache_dir), RecordedPairs(splits.test, self.cache_dir)
        valid = test if splits.valid == splits.test else RecordedPairs(splits.valid, self.cache_dir)
        self._validation = splits.validation
        return {"train": train, "valid": valid, "test": test}

    def _mixed(self) -> dict[str, Source]:
        names = ["train", *["valid"] * (self.protocol == "holdout"), *["test"] * (self.data_dir is None)]
        clean, noise = clean_clips(self.clean_dirs), noise_clips(self.noise_dirs)
        unit = "recordings" if any(clip.group == str(clip.path) for clip in clean) else "speakers"
        self._validation = f"held-out {unit} and noises"
        parts = zip(
            names,
            part_clips(clean, len(names), self.seed, "clean"),
            part_clips(noise, len(names), self.seed, "noise"),
            strict=True,
        )
        return {name: self._mixtures(clean_part, noise_part) for name, clean_part, noise_part in parts}

    def _mixtures(self, clean: Sequence[Clip], noise: Sequence[Clip]) -> Mixtures:
        speech = FileWaveforms([clip.path for clip in clean], cache_dir=self.cache_dir)
        added = FileWaveforms([clip.path for clip in noise], cache_dir=self.cache_dir)
        return Mixtures(speech, added, self.snr_range, [clip.path.stem for clip in clean], self.snrs)

    def _synthetic(self) -> dict[str, Source]:
        sources: dict[str, Source] = {}
        self._validation = "other synthetic clips"
        for number, (name, clips) in enumerate(SYNTHETIC_CLIPS.items()):
            clean, noise = synthetic_corpus((self.seed, number), clips, SYNTHETIC_SECONDS)
            sources[name] = Mixtures(MemoryWaveforms(clean), MemoryWaveforms(noise), self.snr_range, snrs=self.snrs)
        return sources

    def train_dataloader(self) -> DataLoader[Batch]:
        source = self.sources["train"]
        rank, world = rank_and_world()
        sampler = EpochSampler(len(source.names), self.epoch_size, self.seed, rank=rank, world=world)
        if self.trainer is not None:  # worker processes read the order of a resumed epoch before Lightning sets it
            sampler.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
        return self._loader(TrainingCrops(source, self.segment, self.seed), sampler, self.batch_size)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The held-out clips; the test clips under protocol "paper"; at most validation_clips of them."""
        source = self.sources["valid"]
        clips = len(source.names)
        count = min(clips, self.validation_clips or clips)
        return self._evaluation_loader(source, [clips * place // count for place in range(count)])

    def test_dataloader(self) -> DataLoader[Batch]:
        source = self.sources["test"]
        return self._evaluation_loader(source, range(len(source.names)))

    def test_pairs(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, noisy and clean (samples,) of every test clip, as recorded: no gain is applied.

        After a clip that cannot be read, which raises SeqattnError, it goes on with the next.
        """
        clips = EvaluationClips(self.sources["test"], self.seed)
        return map(clips.named, clips.numbers)

    def _evaluation_loader(self, source: Source, numbers: Sequence[int]) -> DataLoader[Batch]:
        rank, world = rank_and_world()
        if not len(numbers):
            raise SeqattnError(f"{self.data_dir} has no test pairs: add the test folders of its layout")
        if len(numbers) < world:
            raise SeqattnError(f"{len(numbers)} clips cannot be evaluated by {world} processes: use fewer devices")
        sampler = EvaluationSampler(len(numbers), rank=rank, world=world)
        return self._loader(EvaluationClips(source, self.seed, numbers), sampler, self.eval_batch_size)

    def _loader(self, clips: Dataset[Batch], sampler: Sampler[Any], batch_size: int) -> DataLoader[Batch]:
        return DataLoader(
            clips,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self.seed),  # else each epoch draws from the global generator
        )
