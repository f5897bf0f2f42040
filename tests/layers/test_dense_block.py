"""The dense block with and without gradients, whole and padded."""

import pytest
import torch

from seqattn.layers.dense_block import DenseBlock


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("depth", [1, 4])
def test_without_gradients_it_is_the_same(batch, depth):
    torch.manual_seed(0)
    block, x = DenseBlock(4, depth).double(), torch.randn(batch, 4, 11, 7, dtype=torch.float64)
    mask = None if batch == 1 else (torch.arange(11) < torch.tensor([[11], [6], [9]]))[:, None, :, None]
    x = x if mask is None else x.where(mask, 0)
    before = x.clone()
    expected = block(x, mask).detach()
    with torch.no_grad():
        torch.testing.assert_close(block(x, mask), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(x, before)


def test_every_unit_sees_all_outputs_before_it_the_newest_first():
    torch.manual_seed(1)
    block, x = DenseBlock(3, 3).double(), torch.randn(1, 3, 5, 4, dtype=torch.float64)
    outputs = [x]
    for unit in block.units:
        outputs.insert(0, unit(torch.cat(outputs, dim=1)))
    torch.testing.assert_close(block(x), outputs[0])


def test_ensembles_over_parameters_without_gradients():
    blocks, x = [DenseBlock(4) for _ in range(2)], torch.randn(2, 4, 9, 6)
    parameters, _ = torch.func.stack_module_state(blocks)
    with torch.no_grad():
        got = torch.vmap(lambda p: torch.func.functional_call(blocks[0], p, (x,)))(parameters)
        for one, block in zip(got, blocks, strict=True):
            torch.testing.assert_close(one, block(x))
