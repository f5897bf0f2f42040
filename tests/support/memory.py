"""Memory that nobody wrote, filled with NaN."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor


def with_poisoned_memory(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> Any:
    """What `run` returns where torch hands out new memory full of NaN."""
    plain = {name: getattr(torch, name) for name in ("empty", "empty_like")}
    new_empty = torch.Tensor.new_empty

    def poisoned(made: Tensor) -> Tensor:
        return made.fill_(float("nan")) if made.is_floating_point() else made

    with monkeypatch.context() as patch:
        for name, function in plain.items():
            patch.setattr(torch, name, lambda *a, function=function, **o: poisoned(function(*a, **o)))
        patch.setattr(torch.Tensor, "new_empty", lambda *a, **o: poisoned(new_empty(*a, **o)))
        return run()
