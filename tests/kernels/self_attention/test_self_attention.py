"""Self-attention on a CPU against softmax written out: output, gradient, ragged, NaN padding, far apart, same bits."""

import pytest
import torch
from memory import with_poisoned_memory

from seqattn.kernels.self_attention import public, self_attention
from seqattn.kernels.self_attention.cpu import self_attention_cpu

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

# batch, length, heads, width; lengths
SHAPES = {
    "one-step": ((2, 1, 1, 8), None),
    "less-than-a-vector": ((2, 15, 2, 8), None),
    "a-vector": ((1, 16, 3, 8), None),
    "a-tile-and-one": ((1, 65, 2, 8), None),
    "several-tiles": ((2, 150, 2, 16), None),
    "wide": ((1, 70, 1, 32), None),
    "ragged": ((5, 67, 2, 8), [67, 0, 1, 16, 65]),
    "ragged-wide": ((3, 33, 1, 24), [2, 33, 17]),
}
every_shape = pytest.mark.parametrize(("shape", "lengths"), SHAPES.values(), ids=SHAPES.keys())


def draw(shape, dtype=torch.float64, spread=1.0, seed=0):
    batch, length, heads, width = shape
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(batch, length, 3, heads, width, generator=generator, dtype=torch.float64)).to(dtype)


def written_out(packed, lengths):
    """(batch, length, heads, width), a sequence at a time."""
    out = torch.zeros_like(packed[:, :, 0])
    for row, end in enumerate([packed.shape[1]] * len(packed) if lengths is None else lengths):
        query, key, value = packed[row, :end].permute(1, 2, 0, 3)  # (heads, steps, width) each
        weights = (query @ key.mT / packed.shape[-1] ** 0.5).softmax(-1)
        out[row, :end] = (weights @ value).transpose(0, 1)
    return out


def run(function, packed, lengths):
    leaf = packed.detach().clone().requires_grad_()
    out = function(leaf, lengths)
    (grad,) = torch.autograd.grad(out, leaf, torch.sin(torch.arange(out.numel())).view(out.shape).to(out.dtype))
    return out.detach(), grad


def kernel(packed, lengths):
    return self_attention(packed, None if lengths is None else torch.tensor(lengths))


@every_shape
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_equals_softmax_written_out(shape, lengths, dtype, bound):
    packed = draw(shape, dtype)
    expected = run(written_out, packed.double(), lengths)
    for got, want in zip(run(kernel, packed, lengths), expected, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=bound, atol=bound)


@pytest.mark.parametrize("spread", [3, 30, 300])
def test_scores_far_apart(spread):
    packed = draw((2, 90, 2, 8), spread=spread)
    for got, want in zip(run(kernel, packed, [90, 77]), run(written_out, packed, [90, 77]), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8 * want.abs().max())


@every_shape
def test_equals_the_way_through_torch(shape, lengths):
    packed = draw(shape)
    if lengths is not None:
        packed, lengths = packed[[0]], lengths[:1]

    def through_torch(leaf, lengths):
        return public.scaled_dot_product(leaf, None if lengths is None else torch.tensor(lengths))

    for got, want in zip(run(kernel, packed, lengths), run(through_torch, packed, lengths), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("width", [8, 12], ids=["kernel", "torch"])
def test_padding_of_nan_changes_nothing(width):
    clean = draw((3, 20, 2, width))
    lengths = [20, 7, 13]
    poisoned = clean.clone()
    for row, end in enumerate(lengths):
        poisoned[row, end:] = float("nan")
    for got, want in zip(run(kernel, poisoned, lengths), run(kernel, clean, lengths), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-15)


def test_a_sequence_that_holds_nan_keeps_it_to_itself():
    clean = draw((3, 20, 2, 8))
    poisoned = clean.clone()
    poisoned[1, 4] = float("nan")
    for got, want in zip(run(kernel, poisoned, None), run(kernel, clean, None), strict=True):
        assert got[1].isnan().any()
        assert torch.equal(got[[0, 2]], want[[0, 2]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_same_bits_twice_on_any_number_of_threads_and_on_dirty_memory(dtype, monkeypatch):
    packed, before = draw((5, 67, 2, 8), dtype), torch.get_num_threads()
    lengths = [67, 0, 1, 16, 65]
    first = run(kernel, packed, lengths)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert all(map(torch.equal, run(kernel, packed, lengths), first))
            dirty = with_poisoned_memory(monkeypatch, lambda: run(kernel, packed, lengths))
            assert all(map(torch.equal, dirty, first))
    finally:
        torch.set_num_threads(before)


def test_batch_0_and_length_0():
    for shape in ((0, 5, 2, 8), (3, 0, 2, 8)):
        out, grad = run(kernel, draw(shape), None)
        assert out.shape == shape
        assert grad.shape == (shape[0], shape[1], 3, *shape[2:])


def test_strides():
    wide = draw((2, 20, 2, 16))
    for packed in (wide[..., :8], wide[..., ::2], wide.transpose(0, 1)[..., 8:]):
        torch.testing.assert_close(kernel(packed, None), kernel(packed.clone(), None), rtol=0, atol=0)


@pytest.mark.parametrize("lengths", [None, [9, 4]])
def test_operator(lengths):
    ends = None if lengths is None else torch.tensor(lengths)
    packed = draw((2, 9, 2, 8)).requires_grad_()
    assert set(torch.library.opcheck(self_attention_cpu, (packed, ends)).values()) == {"SUCCESS"}
    assert torch.autograd.gradcheck(lambda leaf: self_attention(leaf, ends), packed, fast_mode=True)
    torch.compiler.reset()
    compiled = torch.compile(lambda leaf, ends: self_attention(leaf, ends), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(packed, ends), self_attention(packed, ends))


def test_half_precision_goes_through_torch():
    packed = draw((2, 9, 2, 8), torch.bfloat16)
    assert kernel(packed, None).dtype == torch.bfloat16


def test_bad_input():
    with pytest.raises(ValueError, match=r"packed has shape \(2, 3, 4\)"):
        self_attention(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"lengths has shape \(3,\): it must be \(2,\)"):
        self_attention(torch.zeros(2, 9, 3, 2, 8), torch.tensor([1, 2, 3]))


def test_transforms_of_torch_func():
    packed = draw((2, 9, 2, 8))
    with pytest.raises(NotImplementedError, match="forward AD"):  # as torch's own, instead of a slope of 0
        torch.func.jvp(self_attention, (packed,), (packed,))
    leaf = packed.clone().requires_grad_()
    (want,) = torch.autograd.grad(self_attention(leaf).sin().sum(), leaf)
    torch.testing.assert_close(torch.func.grad(lambda leaf: self_attention(leaf).sin().sum())(packed), want)


def test_compiles_with_dynamic_shapes():
    torch.compiler.reset()
    compiled = torch.compile(lambda leaf: self_attention(leaf), fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in ((4, 33, 3, 8), (2, 20, 3, 8)):
        torch.testing.assert_close(compiled(draw(shape)), self_attention(draw(shape)))
