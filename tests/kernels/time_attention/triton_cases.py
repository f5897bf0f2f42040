"""Cases of the Triton kernels, and their errors against the reference.

As a program, under TRITON_INTERPRET=1, it prints the errors of the cases named by its arguments as JSON. Tiles are
small there, so that short series have several, and memory that nobody has written is NaN.
"""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))  # as a program
from loading import load

cases = load(Path(__file__).with_name("cases.py"))
Case = cases.Case

# run with tiles of 16 queries, rows and channels
SMALL = {"batch": 1, "queries": 3, "heads": 1, "dim": 3, "length": 20}
CASES = {
    "one-row": (Case(**SMALL | {"length": 1}), torch.float64),
    "no-rows": (Case(**SMALL | {"length": 0}), torch.float64),
    "no-samples": (Case(**SMALL | {"batch": 0}), torch.float64),
    "two-tiles-of-everything": (Case(**SMALL | {"queries": 17, "dim": 17, "channels": 17}), torch.float64),
    "heads-and-samples": (Case(**SMALL | {"heads": 2, "batch": 2}), torch.float64),
    "single-observations": (Case(**SMALL, observed=0.0), torch.float64),
    "ragged": (Case(**SMALL | {"batch": 3}, lengths=(20, 0, 7)), torch.float64),
    "spread-30": (Case(**SMALL, spread=30), torch.float64),
    "spread-1000": (Case(**SMALL | {"channels": 17}, spread=1000, observed=0.1), torch.float64),
    "float32": (Case(**SMALL), torch.float32),
    "float32-spread-1000": (Case(**SMALL | {"dim": 4}, spread=1000), torch.float32),
    "float16": (Case(**SMALL | {"queries": 9}), torch.float16),
    "bfloat16": (Case(**SMALL | {"queries": 9}), torch.bfloat16),
}
TWICE = ("two-tiles-of-everything", "spread-1000")  # run again for the same bits


def errors(case, dtype, device="cpu", twice=False):
    """Largest errors of out and every gradient, as `cases.errors`; what is unobserved is NaN for Triton.

    With `twice` also "bits": whether a second run differs.
    """
    tensors, options = case.draw(dtype), case.options()
    expected = cases.run(cases.widen(tensors), options, "reference")
    observed = tensors["mask"]
    if case.lengths:
        observed = observed & (torch.arange(case.length) < options["lengths"][:, None])[..., None]
        options["lengths"] = options["lengths"].to(device)
    given = {name: tensor.to(device) for name, tensor in tensors.items()}
    given["values"] = given["values"].masked_fill(~observed.to(device), float("nan"))
    given["key"] = given["key"].masked_fill(~observed.any(-1).to(device)[..., None, None], float("nan"))
    got = cases.run(given, options, "triton")
    found = cases.errors({name: tensor.cpu() for name, tensor in got.items()}, expected, tensors)
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
    from seqattn.kernels.time_attention import triton

    triton.QUERIES = triton.TOKENS = triton.CHANNELS = 16
    poison()
    print(json.dumps({name: errors(*CASES[name], twice=name in TWICE) for name in sys.argv[1:]}))


if __name__ == "__main__":
    main()
