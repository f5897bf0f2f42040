import pytest
import torch
from torch.nn import functional as F

from seqattn.layers.patch_embedding import PatchEmbedding


@pytest.mark.parametrize(("length", "patch"), [(12, 4), (13, 4), (1, 4), (7, 1), (5, 7)])
def test_is_a_strided_convolution_of_the_padded_series(length, patch):
    embed, x = PatchEmbedding(3, 5, patch).double(), torch.randn(2, length, 3, dtype=torch.float64)
    torch.nn.init.normal_(embed.bias)
    tokens, lengths = embed(x)
    padded = F.pad(x, (0, 0, 0, -length % patch)).transpose(1, 2)
    expected = F.conv1d(padded, embed.weight, embed.bias, stride=patch).transpose(1, 2)
    torch.testing.assert_close(tokens, expected, rtol=1e-12, atol=1e-12)
    assert lengths is None


def test_a_partial_patch_is_a_token():
    _, lengths = PatchEmbedding(3, 5, 4)(torch.zeros(5, 13, 3), torch.tensor([0, 1, 4, 5, 13]))
    assert lengths.tolist() == [0, 1, 1, 2, 4]


def test_a_patch_needs_a_step():
    with pytest.raises(ValueError, match="patch_size is 0, it must be at least 1"):
        PatchEmbedding(3, 5, 0)
