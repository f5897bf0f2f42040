from collections import Counter
from itertools import chain

import pytest
import torch

from seqattn.data.speech_clips import EpochSampler, EvaluationClips, TrainingCrops, collate, rms_gain
from seqattn.data.speech_mixing import Mixtures
from seqattn.data.waveforms import MemoryWaveforms

pytest.importorskip("torchaudio")


@pytest.fixture
def source() -> Mixtures:
    """Clips of 300, 800 and 1500 samples."""
    generator = torch.Generator().manual_seed(0)
    clean, noise = ([torch.randn(size, generator=generator) for size in (300, 800, 1500)] for _ in range(2))
    return Mixtures(MemoryWaveforms(clean), MemoryWaveforms(noise), (0.0, 10.0))


def test_gain_brings_the_mean_square_to_one() -> None:
    noisy = torch.randn(3, 500) * torch.tensor([[1e-3], [1.0], [1e30]])
    scaled = rms_gain(noisy)[:, None].double() * noisy.double()
    torch.testing.assert_close(scaled.square().mean(1), torch.ones(3).double(), rtol=1e-6, atol=0)
    assert rms_gain(torch.zeros(2, 300)).tolist() == [1e6, 1e6]


def test_items_depend_on_seed_epoch_and_draw_alone(source: Mixtures) -> None:
    crops = TrainingCrops(source, 400, seed=5)
    item = crops[2, 4]
    assert item["index"] == 1
    for other, same in [
        (crops[2, 4], True),
        (TrainingCrops(source, 400, seed=5)[2, 4], True),
        (crops[3, 4], False),
        (crops[2, 1], False),
        (TrainingCrops(source, 400, seed=6)[2, 4], False),
    ]:
        assert torch.equal(item["noisy"], other["noisy"]) == same


def test_crops_start_anywhere(source: Mixtures) -> None:
    crops = TrainingCrops(source, 798, seed=0)
    clean = source.clean.read(1)
    starts = Counter()
    for epoch in range(60):
        item = crops[epoch, 1]
        found = [start for start in range(3) if torch.equal(item["clean"], item["gain"] * clean[start : start + 798])]
        starts.update(found)
    assert sorted(starts) == [0, 1, 2]
    assert starts.total() == 60


def test_evaluation_items_are_fixed(source: Mixtures) -> None:
    clips = EvaluationClips(source, 5, numbers=[2, 0])
    assert [int(clips[position]["index"]) for position in range(2)] == [2, 0]
    assert torch.equal(clips[0]["noisy"], clips[0]["noisy"])
    noisy, _ = clips.draw(2)
    assert torch.equal(clips[0]["noisy"], clips[0]["gain"] * noisy)
    batch = collate([clips[0], clips[1]])
    assert batch["noisy"].shape == (2, 1500)
    assert batch["lengths"].tolist() == [1500, 300]
    assert not batch["noisy"][1, 300:].any()
    assert batch["clean"].isfinite().all()


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize(("clips", "size"), [(7, None), (7, 3), (7, 7), (7, 20), (1, 5)])
def test_epoch_sampler(clips: int, size: int | None, world: int) -> None:
    samplers = [EpochSampler(clips, size, seed=3, rank=rank, world=world) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(4)
    drawn = list(chain(*samplers))
    wanted = size or clips
    assert {epoch for epoch, _ in drawn} == {4}
    assert [len(list(sampler)) for sampler in samplers] == [len(samplers[0])] * world
    distinct = {draw for _, draw in drawn}
    assert len(distinct) == wanted
    assert len(drawn) < wanted + world
    assert list(samplers[0]) == drawn[: len(samplers[0])]


@pytest.mark.parametrize(("clips", "size"), [(7, None), (7, 3), (7, 20), (1, 5)])
def test_epochs_of_any_size_pass_over_all_clips_in_turn(clips: int, size: int | None) -> None:
    sampler, order = EpochSampler(clips, size, seed=3), []
    for epoch in range(3 * clips):
        sampler.set_epoch(epoch)
        order += [draw % clips for _, draw in sampler]
    turns = [tuple(order[start : start + clips]) for start in range(0, len(order), clips)]
    assert all(sorted(turn) == list(range(clips)) for turn in turns)
    assert len(set(turns)) > 1 or clips == 1
