"""Which implementation of an operator runs, and why."""

import os
import sys
import warnings
from collections.abc import Callable, Collection
from importlib import import_module
from importlib.util import find_spec
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from seqattn.kernels.arguments import refuse_forward_mode

BACKENDS = ("reference", "cpu", "triton", "mamba_ssm")
AUTO = "auto"
VARIABLE = "SEQATTN_BACKEND"

_default: str | None = None
_warned: set[str] = set()


class BackendStatus(NamedTuple):
    """One line of `backend_status`: a backend, whether it can run here, and why (not)."""

    name: str
    available: bool
    reason: str


class use_backend:
    """Set the backend of every operator called without one: `use_backend("reference")`.

    As a context manager it restores the previous default on leaving. `"auto"` is triton for CUDA tensors and cpu for
    CPU tensors. The setting is global to the process, goes before the variable `SEQATTN_BACKEND`, and is read when a
    function is compiled, not when the compiled function runs.

    Raises:
        ValueError: the name is not one of `BACKENDS` or "auto".
    """

    def __init__(self, name: str) -> None:
        global _default
        _check_name(name)
        self._previous = _default
        _default = name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        global _default
        _default = self._previous


def backend_status() -> list[BackendStatus]:
    """Return for every backend whether it can run on this machine, and the reason."""
    return [BackendStatus(name, *_availability(name)) for name in BACKENDS]


def resolve_backend(requested: str, device_type: str, implementations: Collection[str]) -> str:
    """Return the implementation to run for tensors on `device_type` ("cpu", "cuda", ...).

    Args:
        requested: a name from `BACKENDS`, or "auto" for the default: `use_backend`, then `SEQATTN_BACKEND`, then triton
            for CUDA tensors and cpu for CPU tensors, with the reference (and one warning) where that cannot run.
        implementations: the backends the operator has.

    Raises:
        ValueError: the name is unknown, or the operator has no such implementation.
        RuntimeError: a backend asked for by name cannot run here; the message says why.
    """
    name = requested if requested != AUTO else _default or os.environ.get(VARIABLE) or AUTO
    _check_name(name)
    if name == AUTO:
        return _automatic(device_type, implementations)
    if name not in implementations:
        raise ValueError(f"backend {name!r} does not exist for this operator; it has {', '.join(implementations)}")
    if reason := _obstacle(name, device_type):
        raise RuntimeError(f"backend {name!r} cannot run on {device_type} tensors: {reason}")
    return name


# torch.compile then calls it while tracing; torch.compiler.assume_constant_result sets the same mark but imports dynamo
resolve_backend._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _automatic(device_type: str, implementations: Collection[str]) -> str:
    preferred = {"cuda": "triton", "cpu": "cpu"}.get(device_type)
    if device_type == "meta":
        return "reference"
    if preferred is None:
        reason = f"there is no kernel for {device_type} tensors"
    elif preferred not in implementations:
        reason = f"this operator has no {preferred} kernel"
    else:
        reason = _obstacle(preferred, device_type)
        if not reason:
            return preferred
    message = f"seqattn runs the slow reference implementation on {device_type} tensors: {reason}"
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=5)
    return "reference"


def _obstacle(name: str, device_type: str) -> str:
    """Why `name` cannot run on `device_type` tensors; "" where it can."""
    available, reason = _availability(name)
    if not available:
        return reason
    if name == "cpu" and device_type != "cpu":
        return "it takes CPU tensors"
    if name == "triton" and device_type != "cuda" and not _triton_interpreter():
        return "it takes CUDA tensors (CPU tensors only under TRITON_INTERPRET=1)"
    if name == "mamba_ssm" and device_type != "cuda":
        return "it takes CUDA tensors"
    return ""


def _availability(name: str) -> tuple[bool, str]:
    if name == "reference":
        return True, "plain PyTorch"
    package = {"cpu": "numba"}.get(name, name)
    if find_spec(package) is None:
        return False, f"{package} is not installed"
    if name == "triton" and _triton_interpreter():
        return True, "Triton's interpreter (TRITON_INTERPRET=1)"
    if name == "cpu":
        return True, "numba is installed"
    if not torch.cuda.is_available():
        return False, "there is no CUDA device"
    return True, f"{package} is installed and there is a CUDA device"


def _triton_interpreter() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _check_name(name: str) -> None:
    if name != AUTO and name not in BACKENDS:
        raise ValueError(f"backend {name!r} is unknown; choose one of {', '.join((AUTO, *BACKENDS))}")


def load_backend(module: str) -> bool:
    """Import a backend at its first use."""
    import_module(module)
    return True


# torch.compile then calls it while tracing
load_backend._dynamo_marked_constant = True  # type: ignore[attr-defined]


def implementation(
    operator: str, implementations: dict[str, tuple[str, str]], requested: str, *tensors: Tensor | None
) -> Callable[..., Any]:
    """The function that computes an operator here.

    Args:
        implementations: backend: module and function. requested: "auto" or a backend.
        tensors: the floating arguments; the first one's device decides.

    Raises:
        ValueError: as `resolve_backend`.
        NotImplementedError: a derivative in forward mode is asked of a kernel.
    """
    assert tensors[0] is not None
    name = resolve_backend(requested, tensors[0].device.type, tuple(implementations))
    refuse_forward_mode(operator, name, *tensors)
    module, function = implementations[name]
    load_backend(module)
    return getattr(sys.modules[module], function)
