"""What a run was made with: versions, commit, devices, kernel backends."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import seqattn

PACKAGES = (
    "torch", "lightning", "torchmetrics", "numpy", "numba", "triton", "scikit-learn", "sktime", "pydantic",
    "safetensors", "torchaudio", "mamba-ssm",
)  # fmt: skip


def describe_environment() -> dict[str, Any]:
    """Return versions (None where absent), git commit (None outside a checkout), devices and kernel backends.

    Everything in it is a plain type, ready for YAML and JSON.
    """
    return {
        "seqattn": seqattn.__version__,
        "commit": git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": _devices(),
        "backends": _backends(),
    }


def git_commit() -> str | None:
    """Return the commit of this checkout, with "-dirty" where files differ from it, or None; never fails."""
    root = Path(seqattn.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return found or None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads(), "gpus": gpus}


def _backends() -> list[dict[str, Any]]:
    from seqattn.kernels.backend import backend_status

    return [status._asdict() for status in backend_status()]
