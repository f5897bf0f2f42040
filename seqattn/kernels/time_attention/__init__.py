"""Time attention (mTAND): every channel of an irregular series is averaged over the times at which it was observed."""

from seqattn.kernels.time_attention.public import time_attention

__all__ = ["time_attention"]
