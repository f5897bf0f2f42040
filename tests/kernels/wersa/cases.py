"""Random WERSA attention, with its output and gradients, for the tests of the operator and its backends."""

from dataclasses import dataclass

import torch

from seqattn.kernels import wersa_attention

FLOATING = ("q", "k", "v", "gains", "proj_q", "proj_k", "bandwidth")


@dataclass(frozen=True)
class Case:
    """Attention by its shapes and options; `gates` is "token" or "global", `mean` that of v.

    `exact`: gains and bandwidth are 1, so that filtered tokens, and products of 16 or 64 features, round to themselves.
    """

    batch: int = 2
    heads: int = 2
    length: int = 37
    dim: int = 6
    value_dim: int = 5
    features: int = 16
    levels: int = 3
    feature_map: str = "relu"
    tied: bool = True
    causal: bool = False
    gates: str = "token"
    lengths: tuple[int, ...] | None = None
    eps: float = 1e-6
    mean: float = 0.0
    exact: bool = False

    def draw(self, dtype=torch.float64, seed=0):
        """The floating inputs, rounded to float32 or, where `dtype` has fewer bits, to `dtype`."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(shape, generator=generator).to(dtype)

        batch, heads, length = self.batch, self.heads, self.length
        gains = (batch, length, self.levels + 1) if self.gates == "token" else (batch, self.levels + 1)
        tensors = {
            "q": normal(batch, heads, length, self.dim),
            "k": normal(batch, heads, length, self.dim),
            "v": normal(batch, heads, length, self.value_dim) + self.mean,
            "gains": normal(*gains),
            "proj_q": normal(self.dim, self.features),
            "proj_k": normal(self.dim, self.features),
            "bandwidth": torch.tensor(1.5).to(dtype),
        }
        if self.exact:
            tensors |= {name: torch.ones_like(tensors[name]) for name in ("gains", "bandwidth")}
        return {name: tensor for name, tensor in tensors.items() if name != "proj_k" or not self.tied}

    def options(self):
        lengths = None if self.lengths is None else torch.tensor(self.lengths, dtype=torch.int64)
        return {
            "levels": self.levels, "feature_map": self.feature_map, "causal": self.causal, "lengths": lengths,
            "eps": self.eps,
        }  # fmt: skip


def eighths(tensor, seed=0):
    """Weights like the tensor, multiples of 1/8: the same numbers in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(-16, 17, tensor.shape, generator=generator) / 8).to(tensor.dtype)


def run(tensors, options, backend="cpu", weights=None):
    """out, and the gradient of a weighted sum of it in every floating input."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    out = wersa_attention(**leaves, **options, backend=backend)
    weights = eighths(out) if weights is None else weights
    gradients = torch.autograd.grad(out, list(leaves.values()), weights, materialize_grads=True)
    named = {f"grad_{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return {"out": out.detach(), **named}


def widen(tensors):
    return {name: tensor.double() for name, tensor in tensors.items()}


def relative_error(got, expected, floor=0.0):
    """Largest difference over the largest expected entry, or over `floor` where that is more; inf for a stray NaN."""
    got, expected = got.double(), expected.double()
    assert got.shape == expected.shape, (got.shape, expected.shape)
    if torch.equal(got, expected):
        return 0.0
    error = ((got - expected).abs().max() / expected.abs().max().clamp_min(floor)).item()
    return error if error == error else float("inf")


def assert_close(got, expected, tolerance, *, forward=None):
    """Every entry of `expected` within `tolerance`, `forward` for out.

    Errors of gradients are relative to some thousandths of v's at least: those of q and k vanish for a single token,
    and that of a rectified map's bandwidth is eps times others, so it is measured against these.
    """
    assert got.keys() == expected.keys()
    for name, theirs in expected.items():
        floor = 1e-3 * expected["grad_v"].abs().max().item() if "grad" in name else 0.0
        if name == "grad_bandwidth":
            floor = expected["grad_q"].abs().sum().item() + floor
        error = relative_error(got[name], theirs, floor)
        bound = forward if name == "out" and forward else tolerance
        assert error <= bound, f"{name}: {error:.2e} is more than {bound}"
