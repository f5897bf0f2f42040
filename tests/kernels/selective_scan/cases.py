"""Random scans, with their outputs and gradients, for the tests of the operator and its backends."""

from dataclasses import dataclass

import torch

from seqattn.kernels import selective_scan

FLOATING = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
PER_STEP = ("u", "delta", "B", "C", "z")
RAGGED = (0, 1, 15, 100, 300)
SUMMED = ("grad_A", "grad_B", "grad_C")


@dataclass(frozen=True)
class Case:
    """A scan by its shapes and options; `without` names the optional inputs that are None."""

    batch: int = 2
    length: int = 37
    channels: int = 6
    state: int = 4
    groups: int | None = None
    window: int = 1
    reverse: bool = False
    lengths: tuple[int, ...] | None = None
    softplus: bool = True
    without: tuple[str, ...] = ()

    def draw(self, dtype=torch.float64, seed=0):
        """The floating inputs, rounded to float32 or, where `dtype` has fewer bits, to `dtype`."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(shape, generator=generator).to(dtype)

        batch, length, channels, state = self.batch, self.length, self.channels, self.state
        vectors = (batch, length, state) if self.groups is None else (batch, length, self.groups, state)
        delta, bias = normal(batch, length, channels), normal(channels)
        tensors = {
            "u": normal(batch, length, channels),
            # without softplus a step must be positive for the states to decay
            "delta": delta if self.softplus else delta.abs() / 2,
            "A": -normal(channels, state).exp(),
            "B": normal(*vectors),
            "C": normal(*vectors),
            "D": normal(channels),
            "z": normal(batch, length, channels),
            "delta_bias": bias if self.softplus else bias.abs() / 2,
            "initial_state": normal(batch, channels, state),
        }
        return {name: tensor for name, tensor in tensors.items() if name not in self.without}

    def options(self):
        lengths = None if self.lengths is None else torch.tensor(self.lengths, dtype=torch.int64)
        return {
            "delta_softplus": self.softplus, "window": self.window, "reverse": self.reverse, "lengths": lengths,
        }  # fmt: skip


def eighths(tensor, seed):
    """Weights like the tensor, multiples of 1/8: the same numbers in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(-16, 17, tensor.shape, generator=generator) / 8).to(tensor.dtype)


def run(tensors, options, backend="cpu"):
    """out, last_state, and the gradient of a loss that reads both in every floating input."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    results = selective_scan(**leaves, **options, return_last_state=True, backend=backend)
    weights = [eighths(result, seed) for seed, result in enumerate(results)]
    gradients = torch.autograd.grad(results, list(leaves.values()), weights, materialize_grads=True)
    named = {f"grad_{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return {"out": results[0].detach(), "last_state": results[1].detach(), **named}


def widen(tensors):
    return {name: tensor.double() for name, tensor in tensors.items()}


def relative_error(got, expected):
    """Largest difference over the largest expected entry; inf where either is NaN alone, 0 where both are zero."""
    got, expected = got.double(), expected.double()
    assert got.shape == expected.shape, (got.shape, expected.shape)
    if torch.equal(got, expected):
        return 0.0
    error = ((got - expected).abs().max() / expected.abs().max()).item()
    return error if error == error else float("inf")


def assert_close(got, expected, tolerance, *, summed=None, forward=None):
    """Every entry of `expected` within `tolerance`; `summed` for gradients of A, B, C, `forward` for the results."""
    assert got.keys() == expected.keys()
    for name, theirs in expected.items():
        bound = {"out": forward, "last_state": forward}.get(name, summed if name in SUMMED else None) or tolerance
        error = relative_error(got[name], theirs)
        assert error <= bound, f"{name}: {error:.2e} is more than {bound}"


def assert_same(got, expected):
    """Equal bit for bit, NaN included."""
    assert got.keys() == expected.keys()
    for name, theirs in expected.items():
        assert got[name].dtype == theirs.dtype, name
        bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[theirs.element_size()]
        same = torch.equal(got[name].contiguous().view(bits), theirs.contiguous().view(bits))
        assert same, f"{name}: {relative_error(got[name], theirs):.2e}"
