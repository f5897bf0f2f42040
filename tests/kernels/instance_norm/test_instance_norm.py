"""Instance normalisation with PReLU against torch's two operators."""

import pytest
import torch
from torch.nn import functional as F

from seqattn.kernels.instance_norm import instance_norm_prelu

# the CPU kernel takes instances of 16 elements and more, 16 at a time
SHAPES = [(2, 3, 16), (1, 1, 5, 7), (2, 3, 4, 5), (3, 1, 31, 1), (1, 4, 33, 9), (2, 2, 3, 5)]


def named(shape):
    return "x".join(map(str, shape))


def expected_of(x, weight, bias, slope, eps=1e-5):
    return F.prelu(F.instance_norm(x, weight=weight, bias=bias, eps=eps), slope)


def random_inputs(shape, dtype=torch.float64):
    torch.manual_seed(0)
    parameters = [torch.randn(shape[1], dtype=dtype) for _ in range(3)]
    return [tensor.requires_grad_() for tensor in (3 * torch.randn(shape, dtype=dtype) + 1, *parameters)]


@pytest.mark.parametrize("eps", [1e-5, 0.3])
@pytest.mark.parametrize("shape", SHAPES, ids=named)
def test_equals_torch_with_every_gradient(shape, eps):
    inputs = random_inputs(shape)
    out, expected = instance_norm_prelu(*inputs, eps), expected_of(*inputs, eps)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(out)
    got, wanted = (torch.autograd.grad(y, inputs, grad) for y in (out, expected))
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


def test_gradients_by_finite_differences():
    torch.autograd.gradcheck(instance_norm_prelu, random_inputs((2, 2, 3, 7)))


def test_far_from_zero_in_single_precision():
    x, weight, bias, slope = random_inputs((1, 2, 40, 50), torch.float32)
    shifted = x.detach() + 1000
    exact = expected_of(*(tensor.double() for tensor in (shifted, weight, bias, slope)))
    torch.testing.assert_close(instance_norm_prelu(shifted, weight, bias, slope).double(), exact, rtol=1e-3, atol=1e-3)


def test_no_clips():
    inputs = random_inputs((0, 3, 4, 5))
    out = instance_norm_prelu(*inputs)
    assert out.shape == (0, 3, 4, 5)
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(out.sum(), inputs))


def test_a_constant_instance_gives_its_bias():
    x = torch.full((1, 2, 20), 3.0, requires_grad=True)
    weight, bias, slope = torch.ones(2), torch.tensor([0.5, -0.5]), torch.tensor([0.25, 0.25])
    out = instance_norm_prelu(x, weight, bias, slope)
    torch.testing.assert_close(out, torch.tensor([0.5, -0.125])[None, :, None].expand(1, 2, 20))
    assert torch.autograd.grad(out.square().sum(), x)[0].isfinite().all()


def test_nan_stays_in_its_instance():
    x, weight, bias, slope = random_inputs((2, 3, 5, 7))
    poisoned = x.detach().clone()
    poisoned[0, 1, 2, 3] = torch.nan
    poisoned.requires_grad_()
    out, clean = instance_norm_prelu(poisoned, weight, bias, slope), instance_norm_prelu(x, weight, bias, slope)
    elsewhere = torch.ones(2, 3, dtype=torch.bool)
    elsewhere[0, 1] = False
    assert out[0, 1].isnan().all()
    assert torch.equal(out[elsewhere], clean[elsewhere])
    grad = torch.autograd.grad(out[elsewhere].sum(), poisoned)[0]
    assert grad[elsewhere].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes_and_strides(dtype):
    x, weight, bias, slope = (tensor.detach().to(dtype) for tensor in random_inputs((2, 3, 9, 8)))
    out = instance_norm_prelu(x.transpose(2, 3), weight, bias, slope)
    assert out.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(out, expected_of(x.transpose(2, 3), weight, bias, slope), rtol=tolerance, atol=tolerance)


def test_threads_do_not_change_results():
    inputs, results = random_inputs((2, 5, 30, 9), torch.float32), []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        out = instance_norm_prelu(*inputs)
        results.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    torch.set_num_threads(before)
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_operator_registrations_and_torch_func():
    inputs = random_inputs((2, 3, 4, 5))
    instance_norm_prelu(*inputs)  # loads the operator
    torch.library.opcheck(torch.ops.seqattn.instance_norm_prelu_cpu, (*inputs, 1e-5))
    x, *parameters = (tensor.detach() for tensor in inputs)
    grad = torch.func.grad(lambda given: instance_norm_prelu(given, *parameters).square().sum())(x)
    expected = torch.autograd.grad(instance_norm_prelu(inputs[0], *parameters).square().sum(), inputs[0])[0]
    torch.testing.assert_close(grad, expected)
