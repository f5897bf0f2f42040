"""Where an MPTSNet looks: attention of CLS over the segments of each period, spread over time.

M(t) = sum_p w_p m_p(t), where m_p(t) is the attention paid by CLS to the segment that holds step t, averaged over
heads, renormalised over segments and divided by the segment's size, averaged over blocks (arXiv:2503.05582, section on
interpretability; the published code exposes none of it).
"""

import torch
from torch import Tensor

from seqattn.errors import SeqattnError
from seqattn.layers.masking import length_mask
from seqattn.models.mptsnet import MPTSNet, fold, unfold


def check_saliency(model: MPTSNet) -> None:
    """Raise SeqattnError where the model has no CLS token (pointwise), whose attention is the saliency."""
    if model.pointwise:
        raise SeqattnError("a pointwise MPTSNet has no CLS token to explain by; train with model.pointwise=false")


@torch.inference_mode()
def period_saliency(model: MPTSNet, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Return the saliency (batch, length), summing to 1 over each series, and the period weights (batch, periods).

    x: (batch, length, channels), as the model takes it; lengths: (batch,).

    Raises:
        SeqattnError: the model has no CLS token (pointwise).
    """
    check_saliency(model)
    _, attention = model(x, lengths, return_attention=True)
    steps = model.seq_len if model.whole_length else x.shape[1]
    total = x.new_zeros(len(x), steps)
    for weights, maps in zip(attention.period_weights, attention.segments, strict=True):
        for index, period in enumerate(model.periods):
            on_segments = maps[index][:, :, 0, 1:].mean(1)  # (batch, segments)
            share = on_segments / on_segments.sum(-1, keepdim=True).clamp_min(1e-12)
            valid = fold(length_mask(lengths, steps), period, model.layout)  # (batch, segments, period)
            density = valid * (share / valid.sum(-1).clamp_min(1))[..., None]
            total += weights[:, index, None] * unfold(density, steps, model.layout)
    total = torch.nn.functional.pad(total, (0, x.shape[1] - steps))  # negative padding crops
    total = total * length_mask(lengths, x.shape[1])
    return total / total.sum(-1, keepdim=True).clamp_min(1e-12), torch.stack(attention.period_weights).mean(0)
