"""The regular grid against the rule written as loops, and against what the published code made of golden inputs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from seqattn.errors import SeqattnError
from seqattn.layers.imputation import ImputationEmbedding, regular_grid

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "ehr.npz")


def by_loops(values, mask, times, steps, lengths, fill):
    batch, _, channels = values.shape
    filled, flags = np.zeros((batch, steps, channels)), np.zeros((batch, steps, channels))
    for patient in range(batch):
        grid, newest = filled[patient], np.zeros(channels)
        rows = [(int(t * steps), row) for row, t in enumerate(times[patient][: lengths[patient]]) if 0 <= t < 1]
        if fill == "published":
            for step, row in rows:
                seen = mask[patient, row]
                flags[patient, step][seen] = 1
                before = grid[step - 1]  # of step 0 the last one, which is still 0
                grid[step] = np.where(seen, values[patient, row], np.where(before != 0, before, grid[step]))
            continue
        for step in range(steps):
            for _, row in (pair for pair in rows if pair[0] == step):
                seen = mask[patient, row]
                flags[patient, step][seen] = 1
                newest = np.where(seen, values[patient, row], newest)
            grid[step] = newest
    return np.concatenate([filled, flags], -1)


@pytest.mark.parametrize("fill", ["forward", "published"])
@pytest.mark.parametrize("steps", [1, 6, 48])
def test_is_the_rule(fill, steps):
    random = np.random.default_rng(steps)
    times = np.sort(random.uniform(-0.05, 1.1, (6, 40)), 1)
    times[3] = np.round(times[3], 1)  # equal times, and both ends
    values, mask = random.normal(size=(6, 40, 4)), random.random((6, 40, 4)) < 0.2
    values[0, :, 1] = 0  # an observed 0 is an observation
    lengths = np.array([40, 0, 1, 40, 17, 39])
    expected = by_loops(values, mask, times + 1e-9, steps, lengths, fill)
    given = torch.from_numpy(values).masked_fill(~torch.from_numpy(mask), torch.nan)
    got = regular_grid(
        given, torch.from_numpy(mask), torch.from_numpy(times), steps, lengths=torch.from_numpy(lengths), fill=fill
    )
    np.testing.assert_array_equal(got.numpy(), expected)


@pytest.mark.parametrize(("fill", "name"), [("forward", "reg_clean_fill"), ("published", "reg")])
def test_golden(fill, name):
    values, mask, times, expected = (
        torch.from_numpy(GOLDEN[f"inputs/small/{key}"]) for key in ("ts", "ts_mask", "ts_times", name)
    )
    lengths = torch.from_numpy(GOLDEN["inputs/small/n_rows"])
    assert torch.equal(regular_grid(values, mask, times, 6, lengths=lengths, fill=fill), expected)


def test_faults_of_the_published_fill():
    times = torch.tensor([[0.5, 1.2, 1.8, 3.2]]) / 6
    values = torch.tensor([[[2.0, 0], [5.0, 0], [0, 1.0], [0, 1.0]]])
    mask = values != 0
    published = regular_grid(values, mask, times, 6, fill="published")[0, :, 0]
    assert published.tolist() == [2, 2, 0, 0, 0, 0]  # the fresh 5 overwritten, then nothing carried past an empty hour
    assert regular_grid(values, mask, times, 6)[0, :, 0].tolist() == [2, 5, 5, 5, 5, 5]


@pytest.mark.parametrize("steps", [24, 48, 168])
def test_a_whole_hour_falls_into_its_own_bin(steps):
    hours = torch.arange(steps, dtype=torch.float32)
    values = torch.arange(steps, dtype=torch.float32)[None, :, None]
    grid = regular_grid(values, torch.ones_like(values), (hours / steps)[None], steps)
    assert torch.equal(grid[0, :, 0], hours)
    assert grid[0, :, 1].all()


def test_no_rows_at_all():
    grid = regular_grid(torch.zeros(2, 0, 3), torch.zeros(2, 0, 3), torch.zeros(2, 0), 4)
    assert grid.shape == (2, 4, 6)
    assert not grid.any()


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("kernel_size", [1, 3, 4])
def test_embedding_is_a_convolution_that_keeps_the_length(kernel_size):
    torch.manual_seed(0)
    layer, grid = ImputationEmbedding(6, 5, kernel_size).double(), torch.randn(2, 7, 6, dtype=torch.float64)
    same = nn.Conv1d(6, 5, kernel_size, padding="same", bias=False).double()
    same.load_state_dict(layer.conv.state_dict())
    out = layer(grid)
    assert out.shape == (2, 7, 5)
    torch.testing.assert_close(out, same(grid.transpose(1, 2)).transpose(1, 2), rtol=1e-12, atol=1e-12)


def test_bad_input():
    with pytest.raises(SeqattnError, match='fill is \'mean\': it must be "forward" or "published"'):
        regular_grid(torch.zeros(1, 1, 1), torch.ones(1, 1, 1), torch.zeros(1, 1), 3, fill="mean")
    with pytest.raises(SeqattnError, match="kernel_size is 0: it must be at least 1"):
        ImputationEmbedding(2, 2, 0)
