"""Operators: tensors in, tensors out."""

from seqattn.kernels.backend import BACKENDS, BackendStatus, backend_status, resolve_backend, use_backend

__all__ = ["BACKENDS", "BackendStatus", "backend_status", "resolve_backend", "use_backend"]
