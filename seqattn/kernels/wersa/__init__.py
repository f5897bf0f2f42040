"""WERSA: attention of cost linear in length, over wavelet-filtered queries and keys and random features."""

from seqattn.kernels.wersa.haar import haar_transform, inverse_haar_transform
from seqattn.kernels.wersa.public import wersa_attention, wersa_attention_step

__all__ = ["haar_transform", "inverse_haar_transform", "wersa_attention", "wersa_attention_step"]
