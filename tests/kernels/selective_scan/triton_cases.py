"""Cases of the Triton scan, and their errors against the reference.

As a program, under TRITON_INTERPRET=1, it prints the errors of the cases named by its arguments as JSON. Tiles are
small there, so that short sequences have several, and memory that nobody has written is NaN.
"""

import json
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from seqattn.kernels.selective_scan import selective_scan


@dataclass(frozen=True)
class Case:
    """A scan; `options`: with D, gate, delta_bias, softplus and initial state. `cut`: in segments, side by side."""

    batch: int
    length: int
    channels: int
    states: int
    groups: int = 1
    window: int = 1
    reverse: bool = False
    lengths: tuple[int, ...] | None = None
    options: bool = True
    cut: bool = False
    dtype: torch.dtype = torch.float64


# run with chunks of 4 steps, tiles of 4 and 2 (backward), 4 channels a program, a local pass for windows above 8
CASES = {
    "one-step": Case(2, 1, 1, 1),
    "no-steps": Case(2, 0, 3, 2),
    "no-sequences": Case(0, 5, 3, 2),
    "plain": Case(1, 11, 3, 3, options=False),
    "reverse-groups-ragged": Case(3, 9, 6, 3, groups=2, reverse=True, lengths=(7, 0, 9)),
    "cut": Case(1, 13, 5, 2, cut=True),
    "cut-reverse-ragged": Case(2, 13, 3, 1, reverse=True, lengths=(13, 6), cut=True),
    "window-3-ragged": Case(3, 8, 3, 3, window=3, lengths=(8, 1, 7)),
    "window-3-reverse-groups-cut": Case(1, 11, 6, 2, groups=3, window=3, reverse=True, cut=True),
    "window-8-reverse-ragged": Case(2, 13, 3, 2, window=8, reverse=True, lengths=(13, 10)),
    "window-9-ragged": Case(2, 12, 3, 2, window=9, lengths=(12, 5)),
    "window-9-reverse-cut": Case(1, 15, 3, 2, window=9, reverse=True, cut=True),
    "full-window-reverse-groups-ragged": Case(3, 7, 4, 2, groups=2, window=100, reverse=True, lengths=(7, 0, 4)),
    "float32": Case(2, 9, 5, 3, window=4, dtype=torch.float32),
    "bfloat16": Case(2, 9, 5, 3, window=4, reverse=True, dtype=torch.bfloat16),
    "float16": Case(2, 9, 5, 3, lengths=(9, 4), dtype=torch.float16),
}  # fmt: skip


def errors(case: Case, device: str = "cpu", twice: bool = False) -> dict[str, float]:
    """Largest error of out, last state and every gradient, relative to the largest entry; padding is NaN for Triton.

    With `twice` also "bits": whether a second run differs.
    """
    tensors, lengths, weights = draw(case, device)
    expected = run(case, {name: tensor.double() for name, tensor in tensors.items()}, lengths, weights, "reference")
    if lengths is not None:
        padding = torch.arange(case.length, device=device) >= lengths[:, None]
        for name in {"u", "delta", "B", "C", "z"} & tensors.keys():
            tensors[name][padding] = torch.nan
    actual = run(case, tensors, lengths, weights, "triton")
    found = {name: _error(actual[name], expected[name]) for name in expected}
    if twice:
        again = run(case, tensors, lengths, weights, "triton")
        found["bits"] = float(not all(torch.equal(actual[name], again[name]) for name in actual))
    return found


def draw(case: Case, device: str) -> tuple[dict[str, torch.Tensor], torch.Tensor | None, list[torch.Tensor]]:
    """Inputs, lengths, and what out and last state are multiplied with for the loss."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, case.dtype)

    steps, weights = (case.batch, case.length), (case.groups, case.states)
    tensors = {
        "u": random(*steps, case.channels),
        "delta": random(*steps, case.channels) - (1 if case.options else 3),
        "A": -torch.exp(random(case.channels, case.states)),
        "B": random(*steps, *weights),
        "C": random(*steps, *weights),
    }
    if case.options:
        tensors["D"], tensors["delta_bias"] = random(case.channels), random(case.channels)
        tensors["z"] = random(*steps, case.channels)
        tensors["initial_state"] = random(case.batch, case.channels, case.states)
    lengths = None if case.lengths is None else torch.tensor(case.lengths, device=device)
    return tensors, lengths, [random(*steps, case.channels), random(case.batch, case.channels, case.states)]


def run(case, tensors, lengths, weights, backend) -> dict[str, torch.Tensor]:
    tensors = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    out, last = selective_scan(
        **tensors, delta_softplus=case.options, window=case.window, reverse=case.reverse, lengths=lengths,
        return_last_state=True, backend=backend,
    )  # fmt: skip
    loss = (out.double() * weights[0]).sum() + (last.double() * weights[1]).sum()
    gradients = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True, materialize_grads=True)
    return {"out": out.detach(), "last": last.detach(), **dict(zip(tensors, gradients, strict=True))}


def _error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    assert actual.shape == expected.shape
    if not expected.numel():
        return 0.0
    return ((actual.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


def _prepare() -> None:
    from triton.runtime import interpreter

    from seqattn.kernels.selective_scan import triton_problem as problem

    problem.FORWARD_TILE, problem.BACKWARD_TILE, problem.CHUNK, problem.FUSED_WINDOW, problem.CHANNELS = 4, 2, 4, 8, 4
    # the interpreter patches triton.language anew at every call of a function, which takes most of its time
    patch, patched = interpreter._patch_lang, set()

    def patch_once(function):
        if id(function.__globals__) not in patched:
            patched.add(id(function.__globals__))
            patch(function)
        return SimpleNamespace(restore=lambda: None)

    interpreter._patch_lang = patch_once
    new_empty = torch.Tensor.new_empty

    def poisoned(self, *args, **options):
        memory = new_empty(self, *args, **options)
        return memory.fill_(torch.nan) if memory.is_floating_point() else memory

    torch.Tensor.new_empty = poisoned


def main(names: list[str]) -> None:
    from seqattn.kernels.selective_scan import triton_problem

    torch.set_num_threads(1)
    _prepare()
    results = {}
    for name in names:
        triton_problem.ENOUGH_PROGRAMS = 8 if CASES[name].cut else 1
        results[name] = errors(CASES[name], twice=CASES[name].dtype == torch.float32)
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:])
