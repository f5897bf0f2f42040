"""Results that the backward pass computes again instead of keeping them."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from seqattn.kernels.arguments import is_transformed


class recomputing:
    """A context whose `again(function, *arguments)` gives the result that no operation within it keeps.

        with recomputing() as again:
            u = again(cheap, x)
            y = costly(u)  # would keep u for its gradients

    The function is called once more in the backward pass, however many operations need its result. Results are kept as
    usual while compiling, under the transforms of torch.func, for tensors without data, and where saved tensors have
    hooks already, those of a checkpoint for one.
    """

    def __init__(self) -> None:
        self._recipes: dict[Any, _Recipe] = {}
        self._hooks: saved_tensors_hooks | None = None

    def __enter__(self) -> Self:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling() and not _has_hooks():
            self._hooks = saved_tensors_hooks(self._pack, _unpack)
            self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._hooks is not None:
            self._hooks.__exit__(*error)

    def __call__(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """function(*arguments)."""
        result = function(*arguments)
        has_data = type(result) is Tensor and not result.is_meta
        if self._hooks is not None and has_data:
            self._recipes[_identity(result)] = _Recipe(function, arguments, result.device.type)
        return result

    def _pack(self, tensor: Tensor) -> "Tensor | _Recipe":
        recipe = self._recipes.get(_identity(tensor)) if self._recipes else None
        if recipe is None:
            return tensor
        recipe.savers += 1
        return recipe


class _Recipe:
    """How to compute a result again; it stays until all that have saved it have had it."""

    def __init__(self, function: Callable[..., Tensor], arguments: tuple[Any, ...], device: str) -> None:
        self.function, self.device = function, device
        self.arguments = [value.detach() if isinstance(value, Tensor) else value for value in arguments]
        self.autocast = {"enabled": torch.is_autocast_enabled(device), "dtype": torch.get_autocast_dtype(device)}
        self.savers, self.waiting = 0, 0
        self.result: Tensor | None = None

    def give(self) -> Tensor:
        if self.result is None:
            with torch.no_grad(), torch.autocast(self.device, cache_enabled=False, **self.autocast):  # type: ignore[arg-type]
                self.result = self.function(*self.arguments)
            self.waiting = self.savers
        result, self.waiting = self.result, self.waiting - 1
        if not self.waiting:
            self.result = None
        return result


def _unpack(kept: Tensor | _Recipe) -> Tensor:
    return kept.give() if isinstance(kept, _Recipe) else kept


def _identity(tensor: Tensor) -> Any:
    """The same for a tensor and what autograd makes of it to save it."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _has_hooks() -> bool:
    top = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return top is not None or is_transformed()
