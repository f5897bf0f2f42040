"""WaveletGate: which gain a coefficient takes, what the convolution sees, and the saving of odd tokens."""

import pytest
import torch

from seqattn.layers.wavelet_gate import WaveletGate


def gate_of(align="first", kind="token", kernel=5, causal=False, levels=3):
    torch.manual_seed(0)
    gate = WaveletGate(8, levels, kind, kernel, align, causal, dropout=0.1, ones=False).double().eval()
    torch.nn.init.normal_(gate.mlp[3].weight)
    torch.nn.init.constant_(gate.mlp[0].bias, 3.0)  # with no unit off, gains differ from token to token
    return gate


def token_gains(gate, x):
    """The gains of every token of one sequence (length, channels), a window at a time."""
    kernel = gate.conv.kernel_size[0]
    before = kernel - 1 if gate.causal else kernel // 2
    padded = torch.cat([x.new_zeros(before, 8), x, x.new_zeros(kernel - 1 - before, 8)])
    windows = padded.unfold(0, kernel, 1)  # (length, channels, kernel)
    u = (windows * gate.conv.weight[:, 0]).sum(-1) + gate.conv.bias
    return torch.sigmoid(gate.mlp(u)) * gate.scale_weights


@pytest.mark.parametrize("length", [1, 2, 7, 16, 21])
@pytest.mark.parametrize("align", ["first", "mean", "stretch"])
def test_every_block_takes_its_gain_as_defined(align, length):
    gate = gate_of(align)
    x, lengths = torch.randn(2, 21, 8, dtype=torch.float64), torch.tensor([21, length])
    x[1, length:] = 0
    got = gate(x, lengths)
    for row, end in enumerate(lengths.tolist()):
        gains = token_gains(gate, x[row, :end])
        power = max(8, 1 << (end - 1).bit_length())
        for band in range(4):
            block = 2 ** min(band + 1, 3)
            for first in range(0, end, block):
                expected = {
                    "first": gains[first],
                    "mean": gains[first : min(first + block, end)].mean(0),
                    "stretch": gains[first * end // power],
                }[align][band]
                torch.testing.assert_close(got[row, first, band], expected, rtol=1e-12, atol=1e-14)


def test_causal_gains_are_every_token_s_own_and_see_no_later_one():
    gate, x = gate_of(causal=True), torch.randn(1, 21, 8, dtype=torch.float64)
    torch.testing.assert_close(gate(x, None)[0], token_gains(gate, x[0]), rtol=1e-12, atol=1e-14)
    edited = x.clone()
    edited[:, 12:] += 1
    changed = (gate(edited, None) != gate(x, None)).any(-1)[0]
    assert changed.tolist() == [False] * 12 + [True] * 9


def test_one_set_of_gains_per_sequence_is_of_the_mean_over_valid_tokens():
    gate, x = gate_of(kind="global"), torch.randn(2, 21, 8, dtype=torch.float64)
    x[1, 6:] = 0
    means = torch.stack([x[0].mean(0), x[1, :6].mean(0)])
    expected = torch.sigmoid(gate.mlp(means)) * gate.scale_weights
    torch.testing.assert_close(gate(x, torch.tensor([21, 6])), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("align", "tokens"), [("first", 11), ("mean", 21)])
def test_only_gains_that_are_read_are_computed(align, tokens):
    gate, seen = gate_of(align), []
    gate.mlp.register_forward_hook(lambda _module, inputs, _out: seen.append(inputs[0].shape[1]))
    gate(torch.randn(1, 21, 8, dtype=torch.float64), None)
    assert seen == [tokens]


def test_gains_begin_at_a_quarter_or_at_one():
    x = torch.randn(1, 9, 8)
    for ones, expected in ((False, 0.25), (True, 1.0)):
        gate = WaveletGate(8, 3, "token", 5, "first", False, dropout=0.1, ones=ones).eval()
        assert (gate(x, None) - expected).abs().max() < (1e-9 if ones else 0.15)
