"""Arguments that do not fit are named; unusual ones that do fit (empty, strided, NaN, padding) give correct results."""

from pathlib import Path

import numpy as np
import pytest
import torch
from loading import load

from seqattn.kernels import selective_scan

cases = load(Path(__file__).with_name("cases.py"))
Case, PER_STEP = cases.Case, cases.PER_STEP
BACKENDS = pytest.mark.parametrize("backend", ["reference", "cpu"])
WINDOWS = pytest.mark.parametrize("window", [1, 3, 40])
REVERSE = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
BATCH, LENGTH, CHANNELS, STATE = 2, 7, 6, 4


def zeros(*shape, dtype=torch.float64, device="cpu"):
    return torch.zeros(shape, dtype=dtype, device=device)


def refuse(message, backend="auto", **changes):
    case = Case(batch=BATCH, length=LENGTH, channels=CHANNELS, state=STATE)
    with pytest.raises(ValueError, match=message) as error:
        selective_scan(**case.draw() | {"delta_softplus": True} | changes, backend=backend)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("u", (LENGTH, CHANNELS)), ("u", (BATCH, 1, LENGTH, CHANNELS)),
        ("delta", (BATCH, LENGTH)), ("delta", (BATCH, LENGTH, 1)), ("delta", (BATCH, CHANNELS, LENGTH)),
        ("delta", (1, LENGTH, CHANNELS)), ("A", (CHANNELS,)), ("A", (STATE, CHANNELS)), ("A", (CHANNELS, 0)),
        ("B", (BATCH, STATE)), ("B", (BATCH, STATE, LENGTH)), ("B", (BATCH, LENGTH, STATE + 1)),
        ("B", (1, LENGTH, STATE)), ("B", (CHANNELS, STATE)), ("C", (BATCH, LENGTH + 1, STATE)),
        ("C", (BATCH, LENGTH, 2, STATE - 1)), ("C", (BATCH, LENGTH, 1, 1, STATE)), ("D", (STATE,)),
        ("D", (BATCH, CHANNELS)), ("D", ()), ("z", (BATCH, LENGTH)), ("z", (BATCH, LENGTH - 1, CHANNELS)),
        ("delta_bias", (1,)), ("delta_bias", (CHANNELS, 1)), ("initial_state", (BATCH, STATE, CHANNELS)),
        ("initial_state", (CHANNELS, STATE)), ("initial_state", (1, CHANNELS, STATE)),
    ],
    ids=lambda value: value if isinstance(value, str) else "x".join(map(str, value)) or "scalar",
)  # fmt: skip
def test_a_wrong_shape_is_named(name, shape):
    refuse(rf"^selective_scan: {name} has shape \({', '.join(map(str, shape))},?\)", **{name: zeros(*shape)})


@pytest.mark.parametrize("name", ["B", "C"])
@pytest.mark.parametrize("groups", [4, 0, 12])
def test_groups_that_do_not_divide_the_channels(groups, name):
    refuse(f"{name} has {groups} groups, which do not divide 6 channels", **{name: zeros(2, 7, groups, 4)})


def test_unequal_groups():
    refuse("B has shape .*, C .*same number of groups", B=zeros(2, 7, 2, 4), C=zeros(2, 7, 3, 4))


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex128, torch.bool])
def test_u_must_be_floating(dtype):
    refuse("u is torch.*: it must be float64, float32, bfloat16 or float16", u=zeros(2, 7, 6, dtype=dtype))


@pytest.mark.parametrize("name", cases.FLOATING[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.complex128])
def test_dtypes_beside_float64(dtype, name):
    shapes = {key: tensor.shape for key, tensor in Case(length=LENGTH).draw().items()}
    refuse(
        f"{name} is {dtype}, u torch.float64: {name} must be torch.float64", **{name: zeros(*shapes[name]).to(dtype)}
    )


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("z", torch.float32), ("delta", torch.float32), ("delta", torch.float16), ("A", torch.float16),
        ("B", torch.float64), ("initial_state", torch.float64), ("D", torch.float16), ("A", torch.complex64),
    ],
)  # fmt: skip
def test_dtypes_beside_bfloat16(name, dtype):
    tensors = Case(length=LENGTH).draw(torch.bfloat16)
    refuse(f"{name} is {dtype}, u torch.bfloat16", **tensors | {name: tensors[name].to(dtype)})


@pytest.mark.parametrize("name", cases.FLOATING[1:])
def test_devices_must_be_one(name):
    tensor = Case(length=LENGTH).draw()[name]
    refuse(f"{name} is on meta, u on cpu: move them to one device", **{name: tensor.to("meta")})


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.tensor([-1, 3]), r"lengths go from -1 to 3: they must lie in \[0, 7\]"),
        (torch.tensor([0, 8]), r"lengths go from 0 to 8: they must lie in \[0, 7\]"),
        (torch.tensor([3]), r"lengths is torch.int64 of shape \(1,\)"),
        (torch.tensor([[3, 3]]), r"lengths is torch.int64 of shape \(1, 2\)"),
        (torch.tensor([3.0, 3.0]), "lengths is torch.float32"),
        (torch.tensor([True, False]), "lengths is torch.bool"),
        (torch.tensor([3, 3], device="meta"), "lengths is on meta, u on cpu"),
    ],
    ids=["negative", "too-large", "too-few", "two-axes", "float", "bool", "other-device"],
)
@BACKENDS
def test_lengths(backend, lengths, message):
    refuse(message, backend, lengths=lengths)


@pytest.mark.parametrize("window", [0, -1, True, False, 2.5])
@BACKENDS
def test_window_must_be_a_positive_integer(backend, window):
    refuse(f"window is {window}: it must be an integer of at least 1", backend, window=window)


@pytest.mark.parametrize("backend", ["fast", "CPU", ""])
def test_an_unknown_backend(backend):
    refuse(f"backend '{backend}' is unknown; choose one of auto, reference, cpu", backend)


def test_numpy_integers_and_huge_windows():
    tensors = Case(batch=2, length=7, channels=6, state=4).draw()
    whole = selective_scan(**tensors, window=7)
    for window in (np.int64(7), np.int32(8), 2**63):
        torch.testing.assert_close(selective_scan(**tensors, window=window), whole)


@pytest.mark.parametrize("name", ["u", "A", "B", "D", "initial_state"])
def test_what_is_not_a_tensor_is_named(name):
    refuse(f"^selective_scan: {name} is of type ndarray: it must be a tensor", **{name: np.zeros((2, 7, 6))})


def test_lengths_that_are_a_list_or_int16():
    refuse("^selective_scan: lengths is of type list: it must be a tensor", lengths=[3, 7])
    refuse("lengths is torch.int16 .* int64 or int32", lengths=torch.tensor([3, 7], dtype=torch.int16))


def test_forward_mode_is_refused_by_the_kernel_and_done_by_the_reference():
    tensors = Case(batch=1, length=4, channels=2, state=2).draw()

    def scan(u, backend):
        return selective_scan(**tensors | {"u": u}, backend=backend).sum()

    u, tangent = tensors["u"], torch.ones_like(tensors["u"])
    with pytest.raises(NotImplementedError, match="has no derivatives in forward mode"):
        torch.func.jvp(lambda u: scan(u, "cpu"), (u,), (tangent,))
    _, slope = torch.func.jvp(lambda u: scan(u, "reference"), (u,), (tangent,))
    expected = torch.autograd.grad(scan(u.requires_grad_(), "cpu"), u)[0].sum()
    torch.testing.assert_close(slope, expected)


def test_lengths_may_be_int32():
    tensors = Case(length=LENGTH).draw()
    short, long = (
        selective_scan(**tensors, lengths=torch.tensor([3, 7], dtype=kind)) for kind in (torch.int32, torch.int64)
    )
    assert torch.equal(short, long)


@pytest.mark.parametrize(
    "empty", [{"length": 0}, {"batch": 0}, {"channels": 0}, {"batch": 0, "length": 0}, {"length": 0, "groups": 2}],
    ids=lambda empty: "-".join(f"{name}-{size}" for name, size in empty.items()),
)  # fmt: skip
@pytest.mark.parametrize("window", [1, 40])
@BACKENDS
def test_empty_tensors(backend, window, empty):
    case = Case(**{"window": window} | empty)
    tensors = case.draw()
    results = cases.run(tensors, case.options(), backend)
    assert results["out"].shape == tensors["u"].shape
    for name, tensor in tensors.items():
        assert results[f"grad_{name}"].shape == tensor.shape
        if name != "initial_state":
            assert not results[f"grad_{name}"].any(), name
    assert torch.equal(results["last_state"], tensors["initial_state"])
    assert torch.equal(results["grad_initial_state"], cases.eighths(results["last_state"], 1))


def test_empty_tensors_of_meta_device_have_shapes():
    case = Case(length=0)
    tensors = {name: tensor.to("meta") for name, tensor in case.draw().items()}
    assert selective_scan(**tensors).shape == (2, 0, 6)


@WINDOWS
@BACKENDS
def test_strided_tensors_equal_their_contiguous_copies(backend, window):
    case = Case(length=50, channels=17, groups=1, window=window)
    tensors = case.draw(torch.float32)
    strided = {
        "u": tensors["u"].mT.contiguous().mT,
        "delta": torch.stack([tensors["delta"]] * 2, -1)[..., 1],
        "A": tensors["A"].T.contiguous().T,
        "B": tensors["B"].movedim(1, -1).contiguous().movedim(-1, 1),
        "C": torch.cat([tensors["C"]] * 2, -1)[..., 4:],
        "D": torch.stack([tensors["D"]] * 3, 1)[:, 1],
        "z": tensors["z"].transpose(0, 1).contiguous().transpose(0, 1),
        "delta_bias": tensors["delta_bias"].repeat_interleave(2)[::2],
        "initial_state": tensors["initial_state"].permute(2, 0, 1).contiguous().permute(1, 2, 0),
    }
    for name, tensor in strided.items():
        assert torch.equal(tensor, tensors[name])
        assert not tensor.is_contiguous(), name
    cases.assert_same(cases.run(strided, case.options(), backend), cases.run(tensors, case.options(), backend))


@WINDOWS
@BACKENDS
def test_expanded_tensors_equal_their_copies(backend, window):
    case = Case(length=40, channels=17, window=window)
    tensors = case.draw(torch.float32)
    expanded = {name: tensor[:1].expand(tensor.shape) for name, tensor in tensors.items()}
    copies = {name: tensor.contiguous() for name, tensor in expanded.items()}
    assert all(0 in tensor.stride() for tensor in expanded.values())
    cases.assert_same(cases.run(expanded, case.options(), backend), cases.run(copies, case.options(), backend))


@WINDOWS
@BACKENDS
def test_an_expanded_gradient_equals_its_copy(backend, window):
    case = Case(length=40, window=window)
    expanded, copied = ({n: t.requires_grad_() for n, t in case.draw(torch.float32).items()} for _ in range(2))
    selective_scan(**expanded, window=window, delta_softplus=True, backend=backend).sum().backward()
    out = selective_scan(**copied, window=window, delta_softplus=True, backend=backend)
    out.backward(torch.ones_like(out))
    for name, tensor in expanded.items():
        assert torch.equal(tensor.grad, copied[name].grad), name


@pytest.mark.parametrize("name", PER_STEP)
@WINDOWS
@REVERSE
@BACKENDS
def test_nan_stays_in_its_sequence(backend, reverse, window, name):
    case = Case(batch=3, length=70, channels=17, window=window, reverse=reverse)
    clean, poisoned = case.draw(torch.float32), case.draw(torch.float32)
    poisoned[name][1, 35] = torch.nan
    expected, got = (cases.run(tensors, case.options(), backend) for tensors in (clean, poisoned))
    for key in ("out", "last_state", *(f"grad_{each}" for each in (*PER_STEP, "initial_state"))):
        for row in (0, 2):
            assert torch.equal(got[key][row], expected[key][row]), key
    if name in ("C", "z"):  # neither enters the state
        touched = [35]
        assert torch.equal(got["last_state"], expected["last_state"])
    else:
        order = [69 - t if reverse else t for t in range(70)]
        touched = [t for t in range(70) if order[t] >= order[35] or order[t] // window == order[35] // window]
        assert got["last_state"][1].isnan().all()
    untouched = [t for t in range(70) if t not in touched]
    assert got["out"][1, touched].isnan().all()
    assert torch.equal(got["out"][1, untouched], expected["out"][1, untouched])


@pytest.mark.parametrize("name", ["u", "delta", "z", "A", "initial_state"])
@WINDOWS
@BACKENDS
def test_nan_stays_in_its_channel(backend, window, name):
    case = Case(length=50, channels=19, window=window)
    clean, poisoned = case.draw(torch.float32), case.draw(torch.float32)
    if name in PER_STEP:
        poisoned[name][:, 20, 5] = torch.nan
    else:
        poisoned[name][..., 5, :] = torch.nan
    expected, got = (cases.run(tensors, case.options(), backend) for tensors in (clean, poisoned))
    others = [channel for channel in range(19) if channel != 5]
    for key in ("out", "grad_u", "grad_delta", "grad_z"):
        assert torch.equal(got[key][..., others], expected[key][..., others]), key
        assert torch.isfinite(got[key][..., others]).all(), key
    for key in ("last_state", "grad_initial_state"):
        assert torch.equal(got[key][:, others], expected[key][:, others]), key
    for key in ("grad_A", "grad_D", "grad_delta_bias"):
        assert torch.equal(got[key][others], expected[key][others]), key
    assert got["out"][..., 5].isnan().any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@WINDOWS
@REVERSE
@BACKENDS
def test_what_lies_past_an_end_changes_nothing(backend, reverse, window, value):
    case = Case(batch=5, length=70, channels=17, window=window, reverse=reverse, lengths=(0, 1, 33, 64, 70))
    tensors, poisoned = case.draw(torch.float32), case.draw(torch.float32)
    for row, end in enumerate(case.lengths):
        for name in PER_STEP:
            poisoned[name][row, end:] = value
    expected, got = (cases.run(each, case.options(), backend) for each in (tensors, poisoned))
    cases.assert_same(got, expected)
    for row, end in enumerate(case.lengths):
        for key in ("out", *(f"grad_{name}" for name in PER_STEP)):
            assert not got[key][row, end:].any(), key
    assert torch.equal(got["last_state"][0], tensors["initial_state"][0])
    assert torch.equal(got["grad_initial_state"][0], cases.eighths(got["last_state"], 1)[0])


@WINDOWS
@BACKENDS
def test_a_gradient_of_nan_past_an_end_changes_nothing(backend, window):
    case = Case(length=50, channels=17, window=window, lengths=(33, 41))
    grads = []
    for poison in (0.0, torch.nan):
        tensors = {name: tensor.requires_grad_() for name, tensor in case.draw(torch.float32).items()}
        out = selective_scan(**tensors, **case.options(), backend=backend)
        weight = cases.eighths(out, 0)
        for row, end in enumerate(case.lengths):
            weight[row, end:] = poison
        gradients = torch.autograd.grad(out, list(tensors.values()), weight)
        grads.append(dict(zip(tensors, gradients, strict=True)))
    cases.assert_same(*grads)
