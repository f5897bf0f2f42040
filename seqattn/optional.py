"""Packages that only parts of seqattn need: imported where they are used, and named when they are missing."""

import importlib
from types import ModuleType

from seqattn.errors import SeqattnError

# package -> what it is for, and the extra that brings it
_PACKAGES = {
    "soundfile": ("reading audio", "speech"),
    "torchaudio": ("resampling and mixing audio", "speech"),
    "pesq": ("computing PESQ", "speech"),
    "pystoi": ("computing STOI", "speech"),
    "pyarrow": ("reading and writing parquet files", "ehr"),
    "transformers": ("encoding notes by a language model", "text"),
}


def require(package: str) -> ModuleType:
    """Import and return one of the packages of the extras.

    Raises SeqattnError, which names the extra to install, where the package is missing or does not load.
    """
    purpose, extra = _PACKAGES[package]
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise SeqattnError(f"{purpose} needs the package {package}: pip install 'seqattn[{extra}]'") from None
    except (ImportError, OSError, RuntimeError) as error:  # a missing shared library, or a build for another torch
        reason = " ".join(str(error).split())[:200]
        problem = f"{purpose} needs the package {package}, which does not load here ({reason})"
        raise SeqattnError(f"{problem}: install it anew with pip install 'seqattn[{extra}]'") from error
