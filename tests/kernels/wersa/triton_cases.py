"""Cases of the Triton kernels, and their errors against the reference.

As a program, under TRITON_INTERPRET=1, it prints the errors of the cases named by its arguments as JSON. Tiles are
small there, so that short sequences have several, and memory that nobody has written is NaN.
"""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))  # as a program
from loading import load

cases = load(Path(__file__).with_name("cases.py"))
Case = cases.Case

# run with tiles of 16 tokens, blocks of 16 features, parts of 32 tokens
SMALL = {"dim": 3, "value_dim": 5, "features": 9, "levels": 2, "heads": 1}
RAGGED = {"batch": 3, "lengths": (40, 0, 21)}
# a unit whose argument rounds to the other side of 0 would change the gradient of q or k by all that it passes on
HALF = SMALL | {"features": 16, "length": 40, "exact": True}
CASES = {
    "one-token": (Case(**SMALL, length=1), torch.float64),
    "no-tokens": (Case(**SMALL, length=0), torch.float64),
    "no-sequences": (Case(**SMALL, batch=0), torch.float64),
    "relu": (Case(**SMALL | {"heads": 2}, length=40), torch.float64),
    "two-blocks-of-features": (Case(**SMALL | {"features": 21, "levels": 4}, length=37), torch.float64),
    "ragged-untied-global": (Case(**SMALL, **RAGGED, length=40, tied=False, gates="global"), torch.float64),
    "levels-beyond-a-tile": (Case(**SMALL | {"levels": 7}, length=37), torch.float64),
    "levels-beyond-a-tile-causal": (Case(**SMALL | {"levels": 7}, length=37, causal=True), torch.float64),
    "levels-40-causal": (Case(**SMALL | {"levels": 40}, length=37, causal=True), torch.float64),
    "exp": (Case(**SMALL | {"features": 21}, length=37, feature_map="exp"), torch.float64),
    "exp-ragged-untied": (Case(**SMALL, **RAGGED, length=40, feature_map="exp", tied=False), torch.float64),
    "causal": (Case(**SMALL | {"features": 21}, length=70, causal=True), torch.float64),
    "causal-ragged-untied": (Case(**SMALL, **RAGGED, length=40, causal=True, tied=False), torch.float64),
    "causal-exp": (
        Case(**SMALL | {"features": 21, "levels": 4}, length=70, causal=True, feature_map="exp"), torch.float64,
    ),
    "causal-exp-ragged": (Case(**SMALL, **RAGGED, length=40, causal=True, feature_map="exp"), torch.float64),
    "float32": (Case(**SMALL | {"features": 16}, length=40), torch.float32),
    "float32-causal-exp": (Case(**SMALL, length=40, causal=True, feature_map="exp"), torch.float32),
    "float16": (Case(**SMALL | {"features": 32}, length=40), torch.float16),
    "float16-causal": (Case(**SMALL | {"features": 32}, length=40, causal=True), torch.float16),
    "float16-mean": (Case(**HALF, mean=5.0), torch.float16),
    "float16-causal-mean": (Case(**HALF, causal=True, mean=5.0), torch.float16),
    "bfloat16": (Case(**HALF), torch.bfloat16),
    "bfloat16-mean": (Case(**HALF, mean=5.0), torch.bfloat16),
    "bfloat16-causal-mean": (Case(**HALF, causal=True, mean=5.0), torch.bfloat16),
    "bfloat16-exp-mean": (Case(**HALF, feature_map="exp", mean=5.0), torch.bfloat16),
    "bfloat16-causal-exp-mean": (Case(**HALF, feature_map="exp", causal=True, mean=5.0), torch.bfloat16),
}  # fmt: skip
TWICE = ("two-blocks-of-features", "causal-exp")  # run again for the same bits


def errors(case, dtype, device="cpu", twice=False):
    """Largest errors of out and every gradient, relative to the largest entry; padding is NaN for Triton.

    With `twice` also "bits": whether a second run differs.
    """
    tensors, options = case.draw(dtype), case.options()
    expected = cases.run(cases.widen(tensors), options, "reference")
    for row, end in enumerate(case.lengths or ()):
        for name in ("q", "k", "v"):
            tensors[name][row, :, end:] = float("nan")
        if case.gates == "token":
            tensors["gains"][row, end:] = float("nan")
    given = {name: tensor.to(device) for name, tensor in tensors.items()}
    options = options | {"lengths": None if options["lengths"] is None else options["lengths"].to(device)}
    got = cases.run(given, options, "triton")
    largest = expected["grad_v"].abs().max().item() if expected["grad_v"].numel() else 1.0
    found = {}
    for name, theirs in expected.items():
        floor = 1e-3 * largest if "grad" in name else 0.0
        if name == "grad_bandwidth":
            floor += expected["grad_q"].abs().sum().item()
        found[name] = cases.relative_error(got[name].cpu(), theirs, floor) if theirs.numel() else 0.0
    if twice:
        again = cases.run(given, options, "triton")
        found["bits"] = float(not all(torch.equal(got[name], again[name]) for name in got))
    return found


def poison():
    """Memory that nobody has written holds NaN from now on."""
    empty, empty_like, new_empty = torch.empty, torch.empty_like, torch.Tensor.new_empty

    def nan(tensor):
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    torch.empty = lambda *a, **o: nan(empty(*a, **o))
    torch.empty_like = lambda *a, **o: nan(empty_like(*a, **o))
    torch.Tensor.new_empty = lambda *a, **o: nan(new_empty(*a, **o))


def main():
    from seqattn.kernels.wersa import triton, triton_filter, triton_problem  # noqa: F401

    triton_filter.TOKENS, triton_problem.TILE, triton_problem.FEATURES, triton_problem.PART = 64, 16, 16, 32
    poison()
    print(json.dumps({name: errors(*CASES[name], twice=name in TWICE) for name in sys.argv[1:]}))


if __name__ == "__main__":
    main()
