"""Blocks along time and frequency: a few sequences at a time give what all at once give."""

import pytest
import torch

from seqattn.layers import time_frequency
from seqattn.layers.time_frequency import NormalizedAttention, TimeFrequencyBlock


def run(block, x, frames):
    leaf = x.clone().requires_grad_()
    out = block(leaf, frames)
    if frames is not None:
        out = out.where((torch.arange(x.shape[1]) < frames[:, None])[..., None, None], 0)
    gradients = torch.autograd.grad(
        (out * torch.sin(torch.arange(out.numel())).view(out.shape)).sum(), [leaf, *block.parameters()]
    )
    return out.detach(), *gradients


@pytest.mark.parametrize("ragged", [False, True], ids=["whole", "ragged"])
@pytest.mark.parametrize("checkpoint", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("mixer", ["mamba", "lbmamba", "lstm", "conformer"])
def test_pieces_equal_the_whole(mixer, checkpoint, ragged, monkeypatch):
    torch.manual_seed(0)
    block = TimeFrequencyBlock(16, mixer=mixer, heads=2, checkpoint=checkpoint).double()
    x = torch.randn(3, 9, 5, 16, dtype=torch.float64)
    frames = torch.tensor([9, 4, 7]) if ragged else None
    monkeypatch.setattr(time_frequency, "PIECE", 10**6)
    expected = run(block, x, frames)
    for piece in (1, 20, 46):  # a sequence, two or four, five or nine of them
        monkeypatch.setattr(time_frequency, "PIECE", piece)
        for got, want in zip(run(block, x, frames), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_attention_equals_torchs_own():
    torch.manual_seed(0)
    ours = NormalizedAttention(32, heads=4).double()
    theirs = torch.nn.MultiheadAttention(32, 4, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.in_proj.weight)
        theirs.in_proj_bias.copy_(ours.in_proj.bias.normal_())
        theirs.out_proj.weight.copy_(ours.out_proj.weight)
        theirs.out_proj.bias.copy_(ours.out_proj.bias.normal_())
    x, lengths = torch.randn(3, 40, 32, dtype=torch.float64), torch.tensor([40, 1, 17])
    padding = torch.arange(40) >= lengths[:, None]
    normalised = ours.norm(x)
    expected, _ = theirs(normalised, normalised, normalised, key_padding_mask=padding, need_weights=False)
    got = ours(x, lengths)
    for row, end in enumerate(lengths):
        torch.testing.assert_close(got[row, :end], expected[row, :end], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", [(0, 6, 5, 16), (2, 0, 5, 16), (2, 6, 0, 16)])
def test_nothing_in_nothing_out(shape):
    assert TimeFrequencyBlock(16, heads=2)(torch.randn(shape)).shape == shape


def test_exports_with_any_batch():
    block = TimeFrequencyBlock(16, heads=2).eval()
    dynamic = ({0: torch.export.Dim("batch", min=2, max=64)},)
    exported = torch.export.export(block, (torch.randn(2, 30, 20, 16),), dynamic_shapes=dynamic, strict=False)
    x = torch.randn(5, 30, 20, 16)
    torch.testing.assert_close(exported.module()(x), block(x), rtol=1e-4, atol=1e-5)


def test_hooks_of_the_projections_run():
    attention, seen = NormalizedAttention(16, 2), []
    for module in (attention.in_proj, attention.out_proj):
        module.register_forward_hook(lambda *_: seen.append(1))
    attention(torch.randn(2, 5, 16))
    assert len(seen) == 2
