"""Operators: tensors in, tensors out."""

from seqattn.kernels.backend import BACKENDS, BackendStatus, backend_status, resolve_backend, use_backend
from seqattn.kernels.selective_scan import selective_scan, selective_scan_step
from seqattn.kernels.time_attention import time_attention
from seqattn.kernels.wersa import haar_transform, inverse_haar_transform, wersa_attention, wersa_attention_step

__all__ = [
    "BACKENDS",
    "BackendStatus",
    "backend_status",
    "haar_transform",
    "inverse_haar_transform",
    "resolve_backend",
    "selective_scan",
    "selective_scan_step",
    "time_attention",
    "use_backend",
    "wersa_attention",
    "wersa_attention_step",
]
