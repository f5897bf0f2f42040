"""Operators: tensors in, tensors out."""

from seqattn.kernels.backend import BACKENDS, BackendStatus, backend_status, resolve_backend, use_backend
from seqattn.kernels.selective_scan import selective_scan, selective_scan_step

__all__ = [
    "BACKENDS",
    "BackendStatus",
    "backend_status",
    "resolve_backend",
    "selective_scan",
    "selective_scan_step",
    "use_backend",
]
