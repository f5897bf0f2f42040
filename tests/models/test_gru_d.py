"""GRU-D: padding, what is not observed, decay, gradients."""

import torch

from seqattn.models.gru_d import GRUD


def stays(seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, 7, 4, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 7, 4, generator=generator) < 0.5
    times = torch.rand(3, 7, generator=generator, dtype=torch.float64).sort(1).values
    return values, mask, times


def network():
    torch.manual_seed(1)
    model = GRUD(4, 48, 2, hidden=5).double().eval()
    torch.nn.init.normal_(model.input_decay)
    return model


def test_padding_and_what_is_not_observed_change_nothing():
    model, (values, mask, times), lengths = network(), stays(), torch.tensor([7, 1, 4])
    poisoned, late = values.clone(), times.clone()
    poisoned[~mask] = torch.nan
    for row, length in enumerate(lengths):
        poisoned[row, length:] = torch.nan
        late[row, length:] = torch.nan
    found = model(poisoned, mask, late, lengths=lengths)
    for row, length in enumerate(lengths.tolist()):
        part = slice(row, row + 1), slice(0, length)
        alone = model(values[part], mask[part], times[part])
        torch.testing.assert_close(found[row : row + 1], alone)


def test_time_since_an_observation_matters():
    model, (values, mask, times) = network(), stays()
    assert not torch.allclose(model(values, mask, times), model(values, mask, 3 * times))
    assert torch.allclose(model(values, mask, times), model(values, mask, times + 5))  # only differences do


def test_every_parameter_gets_a_gradient():
    model = network()
    model(*stays()).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_gradient():
    model, (values, mask, times) = network(), stays()
    assert torch.autograd.gradcheck(lambda v: model(v, mask, times), values.requires_grad_())
