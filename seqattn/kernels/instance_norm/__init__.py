"""Instance normalisation and PReLU in one."""

from seqattn.kernels.instance_norm.public import instance_norm_prelu

__all__ = ["instance_norm_prelu"]
