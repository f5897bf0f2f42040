"""Self-attention with heads of a few channels."""

from seqattn.kernels.self_attention.public import self_attention

__all__ = ["self_attention"]
