"""Checks of an operator's tensors that are the same for every operator."""

from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
Fail = Callable[[str], NoReturn]


def check_float(name: str, tensor: Tensor, fail: Fail) -> None:
    """The tensor that the others go by is of a dtype that the operators compute."""
    if tensor.dtype not in FLOATS:
        fail(f"{name} is {tensor.dtype}: it must be float64, float32, bfloat16 or float16")


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], beside: str, fail: Fail) -> None:
    """`tensor` has the shape that goes with the arguments named `beside`."""
    if tensor.shape != shape:
        fail(f"{name} has shape {tuple(tensor.shape)}: it must be {tuple(shape)} to go with {beside}")


def check_kind(name: str, tensor: Tensor, main_name: str, main: Tensor, alike: bool, fail: Fail) -> None:
    """Device and dtype are those of `main`; unless `alike`, float32 is allowed beside half precision."""
    if tensor.device != main.device:
        fail(f"{name} is on {tensor.device}, {main_name} on {main.device}: move them to one device")
    allowed = {main.dtype} if alike else {main.dtype, torch.promote_types(main.dtype, torch.float32)}
    if tensor.dtype not in allowed:
        expected = " or ".join(sorted(str(dtype) for dtype in allowed))
        fail(f"{name} is {tensor.dtype}, {main_name} {main.dtype}: {name} must be {expected}")


def check_tensors(fail: Fail, **values: object) -> None:
    """Every value is a tensor or None."""
    for name, value in values.items():
        if value is not None and not isinstance(value, Tensor):
            fail(f"{name} is of type {type(value).__name__}: it must be a tensor")


def refuse_forward_mode(operator: str, backend: str, *tensors: Tensor | None) -> None:
    """Raise NotImplementedError where a derivative in forward mode is asked for: a kernel would give none, silently."""
    if torch.compiler.is_compiling() or backend == "reference":
        return
    if any(tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise NotImplementedError(
            f"{operator}: backend {backend!r} has no derivatives in forward mode (torch.func.jvp): use "
            'backend="reference"'
        )


def is_transformed(*tensors: Tensor) -> bool:
    """Whether forward mode or a transform of torch.func is at work, which not every operator can follow."""
    if torch.compiler.is_compiling():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def check_lengths(lengths: Tensor, main_name: str, main: Tensor, length: int, fail: Fail) -> None:
    """`lengths` is (batch,) integers in [0, length] on the device of `main` (batch, …).

    Values are read on a CPU only, and not while compiling: elsewhere that would stall, and the kernels clamp.
    """
    check_tensors(fail, lengths=lengths)
    if lengths.shape != main.shape[:1] or lengths.dtype not in (torch.int64, torch.int32):
        fail(
            f"lengths is {lengths.dtype} of shape {tuple(lengths.shape)}: it must be int64 or int32 of shape "
            f"({main.shape[0]},)"
        )
    if lengths.device != main.device:
        fail(f"lengths is on {lengths.device}, {main_name} on {main.device}: move them to one device")
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling() and lengths.numel():
        low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > length:
            fail(f"lengths go from {low} to {high}: they must lie in [0, {length}], the length of {main_name}")
