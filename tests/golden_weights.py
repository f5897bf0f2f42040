"""Weights of the golden vectors: drawn from the parameter's published name and shape (tests/golden/README.md)."""

import json
import zlib

import numpy as np
import torch


def draw(name, shape):
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape))


def recipe(name, shape, kind):
    shape = tuple(shape)
    z = draw(name, shape)
    values = {
        "weight": lambda: z / np.sqrt(np.prod(shape[1:])),
        "bias": lambda: 0.1 * z,
        "norm_weight": lambda: 1.0 + 0.1 * z,
        "prelu": lambda: 0.25 + 0.05 * z,
        "slope": lambda: 1.0 + 0.1 * z,
        "ssm_A_log": lambda: np.log(np.arange(1, shape[-1] + 1)) + 0.1 * z,
        "ssm_D": lambda: 1.0 + 0.1 * z,
        "dt_bias": lambda: np.log(np.expm1(0.02)) + 0.1 * z,
        "table": lambda: 0.2 * z,
    }
    return np.asarray(values[kind](), dtype=np.float32) if kind in values else None


def loss_weight(label, shape):
    return torch.from_numpy(draw("loss_weight." + label, shape).astype(np.float32))


def official_state_dict(golden, prefix=""):
    """The published model's state dict, float32, without entries of kind "fixed"; spectral vectors as they settle."""
    shapes, kinds = (json.loads(str(golden[prefix + key])) for key in ("shapes", "kinds"))
    by_name = lambda table, index, name: table[name] if isinstance(table, dict) else table[index]  # noqa: E731
    state = {}
    for index, name in enumerate(golden[prefix + "names"]):
        values = recipe(str(name), by_name(shapes, index, name), by_name(kinds, index, name))
        if values is not None:
            assert values.reshape(-1)[0] == np.float32(golden[prefix + "first_values"][index])
            state[str(name)] = torch.from_numpy(values)
        elif by_name(kinds, index, name).startswith("spectral"):
            matrix = state[str(name)[:-1] + "orig"].double().flatten(1)
            left, _, right = torch.linalg.svd(matrix, full_matrices=False)
            state[str(name)] = left[:, 0] if str(name).endswith("u") else right[0]
    return state
