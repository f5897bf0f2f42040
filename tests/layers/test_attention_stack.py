import pytest
import torch
from torch import nn

from seqattn.errors import SeqattnError
from seqattn.layers.attention_stack import AttentionStack, MultiHeadAttention


def inputs():
    torch.manual_seed(0)
    return torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 5, 8, dtype=torch.float64)


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_attention_is_that_of_torch(cross):
    x, memory = inputs()
    ours, theirs = MultiHeadAttention(8, 2).double(), nn.MultiheadAttention(8, 2, batch_first=True).double()
    nn.init.normal_(ours.in_proj.bias)
    theirs.load_state_dict({name.replace("in_proj.", "in_proj_"): value for name, value in ours.state_dict().items()})
    memory = memory if cross else x
    expected, _ = theirs(x, memory, memory)
    torch.testing.assert_close(ours(x, memory if cross else None), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_stack_is_pre_norm_and_its_memory_stays(cross):
    x, memory = inputs()
    stack = AttentionStack(8, 2, 3, 5, cross=cross).double()
    for norm in (module for module in stack.modules() if isinstance(module, nn.LayerNorm)):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    expected = 8**0.5 * x + stack.position.table
    kept = 8**0.5 * memory + stack.memory_position.table if cross else None
    for layer in stack.layers:
        normed = layer.norm(expected)
        expected = expected + layer.attention(normed, layer.norm(kept) if cross else normed)
        hidden = layer.feed_forward.ff1(layer.ff_norm(expected)).relu()
        expected = expected + layer.feed_forward.ff2(hidden)
    got = stack(x, memory) if cross else stack(x)
    torch.testing.assert_close(got, stack.norm(expected), rtol=1e-12, atol=1e-12)


def test_dropout_acts_in_training_only():
    x, _ = inputs()
    stack = AttentionStack(8, 2, 1, 5, dropout=0.3).double()
    assert not torch.equal(stack(x), stack(x))
    stack.eval()
    assert torch.equal(stack(x), stack(x))


def test_heads_divide_the_channels():
    with pytest.raises(SeqattnError, match="3 heads do not divide 8 channels"):
        MultiHeadAttention(8, 3)
