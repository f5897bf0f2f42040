"""The short depthwise convolution in front of a selective scan."""

from seqattn.kernels.causal_conv.public import causal_conv_silu

__all__ = ["causal_conv_silu"]
