"""Random irregular series, with their time attention and gradients, for the tests of the operator and its backends."""

from dataclasses import dataclass

import torch

from seqattn.kernels import time_attention

FLOATING = ("query", "key", "values")


@dataclass(frozen=True)
class Case:
    """An irregular series by its shapes; `spread` stretches the scores, `observed` is the share of observed values.

    `observed` 0 gives every channel one observation. Channel 1 of sample 0 is never observed, if there are more.
    """

    batch: int = 2
    queries: int = 7
    heads: int = 2
    length: int = 37
    dim: int = 4
    channels: int = 5
    spread: int = 1
    observed: float = 0.3
    lengths: tuple[int, ...] | None = None

    def draw(self, dtype=torch.float64, seed=0):
        """query, key and values of `dtype`, and the mask.

        Queries and keys are multiples of 1/8, whose products are exact: scores far apart leave no digits for rounding.
        """
        generator = torch.Generator().manual_seed(seed)

        def eighths(*shape):
            return (torch.randint(-16, 17, shape, generator=generator) / 8).to(dtype)

        shape = (self.batch, self.length, self.channels)
        mask = torch.rand(shape, generator=generator) < self.observed
        if self.observed == 0 and self.length:
            rows = torch.randint(self.length, (self.batch, 1, self.channels), generator=generator)
            mask = mask.scatter(1, rows, True)
        if self.batch and self.channels > 1:
            mask[0, :, 1] = False
        return {
            "query": self.spread * eighths(self.queries, self.heads, self.dim),
            "key": eighths(self.batch, self.length, self.heads, self.dim),
            "values": torch.randn(shape, generator=generator).to(dtype),
            "mask": mask,
        }

    def options(self):
        return {"lengths": None if self.lengths is None else torch.tensor(self.lengths, dtype=torch.int64)}


def eighths(tensor, seed=0):
    """Weights like the tensor, multiples of 1/8: the same numbers in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(-16, 17, tensor.shape, generator=generator) / 8).to(tensor.dtype)


def run(tensors, options, backend="cpu", weights=None):
    """out, and the gradient of a weighted sum of it in every floating input."""
    leaves = {name: tensors[name].detach().requires_grad_() for name in FLOATING}
    out = time_attention(**leaves, mask=tensors["mask"], **options, backend=backend)
    weights = eighths(out) if weights is None else weights
    gradients = torch.autograd.grad(out, list(leaves.values()), weights, materialize_grads=True)
    named = {f"grad_{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return {"out": out.detach(), **named}


def widen(tensors):
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def relative_error(got, expected, floor=0.0):
    """Largest difference over the largest expected entry, or over `floor` where that is more; inf for a stray NaN."""
    got, expected = got.double(), expected.double()
    assert got.shape == expected.shape, (got.shape, expected.shape)
    if torch.equal(got, expected):
        return 0.0
    error = ((got - expected).abs().max() / expected.abs().max().clamp_min(floor)).item()
    return error if error == error else float("inf")


def errors(got, expected, tensors):
    """Relative errors of all results; those of gradients at least relative to some thousandths of their usual size.

    Where one observation outweighs the others, what is left of the gradients of query and key is a difference of nearly
    equal numbers, whose rounding is relative to that size.
    """
    assert got.keys() == expected.keys()
    largest = 1e-3 * _largest(expected["grad_values"])
    sizes = {"grad_query": tensors["key"], "grad_key": tensors["query"], "grad_values": torch.ones(1)}
    return {
        name: relative_error(got[name], theirs, largest * _largest(sizes[name]) if name in sizes else 0.0)
        for name, theirs in expected.items()
    }


def _largest(tensor):
    return tensor.abs().max().item() if tensor.numel() else 1.0


def assert_close(got, expected, tensors, tolerance, *, forward=None):
    """Every entry of `expected` within `tolerance`, `forward` for out."""
    for name, error in errors(got, expected, tensors).items():
        bound = forward if name == "out" and forward else tolerance
        assert error <= bound, f"{name}: {error:.2e} is more than {bound}"
