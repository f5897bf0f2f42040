"""Encoders of single modalities, and the fusions that the interleaved one is compared with."""

import pytest
import torch

from seqattn.layers.interleaved_fusion import InterleavedFusion
from seqattn.layers.modality_fusion import FUSIONS, build_trunk
from seqattn.layers.step_encoders import ENCODERS, FlatCNN, StatesOfLSTM

SIZES = {"channels": 8, "heads": 2, "layers": 2, "cross_layers": 2}


def trunk(fusion, encoder="attention", steps=5, **options):
    torch.manual_seed(0)
    return build_trunk(fusion, encoder, **SIZES, steps=steps, **options).double()


def inputs(steps=5):
    torch.manual_seed(1)
    return torch.randn(3, steps, 8, dtype=torch.float64), torch.randn(3, steps, 8, dtype=torch.float64)


@pytest.mark.parametrize("steps", [1, 5, 8])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_encoder_gives_a_vector_of_its_width(encoder, steps):
    model = trunk(None, encoder, steps, kernel_size=2)
    out = model(inputs(steps)[0])
    assert out.shape == (3, model.width)


def test_lstm_reads_both_directions_unless_told_otherwise():
    x, _ = inputs()
    both = StatesOfLSTM(8, 2).double()
    backward = StatesOfLSTM(8, 2, state="backward").double()
    backward.load_state_dict(both.state_dict())
    sequence, _ = both.lstm(x)
    out = both(x)
    torch.testing.assert_close(out, torch.cat([sequence[:, -1, :8], sequence[:, 0, 8:]], -1))
    assert torch.equal(backward(x), out[:, 8:])


@pytest.mark.parametrize("steps", [8, 5])
def test_cnn_pairs_steps_and_an_odd_one_with_nothing(steps):
    torch.manual_seed(0)
    model, (x, _) = FlatCNN(8, 2, steps, kernel_size=3).double(), inputs(steps)
    y = x
    for conv in model.convs:
        padded = torch.nn.functional.pad(y.transpose(1, 2), (1, 1))
        y = conv(padded).relu().transpose(1, 2)
        y = torch.stack([y[:, start : start + 2].amax(1) for start in range(0, y.shape[1], 2)], 1)
    expected = model.out(y.transpose(1, 2).flatten(1)).relu()
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


def test_interleaved_layers_attend_across_before_either_is_updated():
    notes, series = inputs()
    model = InterleavedFusion(8, 2, 2, 5).double()
    pair = [8**0.5 * x + model.position.table for x in (notes, series)]
    for layer in model.layers:
        for index in range(2):
            pair[index] = pair[index] + layer.self_attentions[index](layer.self_norms[index](pair[index]))
        normed = [norm(x) for norm, x in zip(layer.cross_norms, pair, strict=True)]
        pair = [pair[index] + layer.cross_attentions[index](normed[index], normed[1 - index]) for index in range(2)]
        pair = [pair[index] + layer.feed_forwards[index](layer.ff_norms[index](pair[index])) for index in range(2)]
    expected = [norm(x) for norm, x in zip(model.norms, pair, strict=True)]
    for got, wanted in zip(model.sequences(notes, series), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    last = torch.cat([x[:, -1] for x in expected], -1)
    torch.testing.assert_close(model(notes, series), last, rtol=1e-12, atol=1e-12)


def test_mult_attends_to_the_other_and_then_to_itself():
    notes, series = inputs()
    model = trunk("mult")
    first = model.notes_memory(model.notes_from_series(notes, series))[:, -1]
    second = model.series_memory(model.series_from_notes(series, notes))[:, -1]
    torch.testing.assert_close(model(notes, series), torch.cat([first, second], -1))


def test_concat_joins_the_vectors_and_tensor_all_their_products():
    notes, series = inputs()
    joined, products = trunk("concat", "lstm"), trunk("tensor", "lstm")
    torch.testing.assert_close(
        joined(notes, series), torch.cat([joined.notes(notes), joined.series(series)], -1), rtol=0, atol=0
    )
    weight = products.out.weight.view(8, 9, 17)
    one = torch.ones(3, 1, dtype=torch.float64)
    first, second = torch.cat([products.notes(notes), one], -1), torch.cat([products.series(series), one], -1)
    expected = (torch.einsum("oij,bi,bj->bo", weight, first, second) + products.out.bias).relu()
    torch.testing.assert_close(products(notes, series), expected, rtol=1e-12, atol=1e-12)


def test_mag_shifts_every_step_of_every_patient_by_its_own_length():
    notes, series = inputs()
    series = series * torch.tensor([0.01, 1, 100], dtype=torch.float64)[:, None, None]
    model = trunk("mag").eval()
    captured = []
    model.norm.register_forward_hook(lambda _, given, __: captured.append(given[0] - notes))
    model(notes, series)
    share = captured[0].norm(dim=-1) / notes.norm(dim=-1)
    assert share[0].max() < 1 - 1e-3  # small shifts stay what they are
    torch.testing.assert_close(share[2], torch.ones(5, dtype=torch.float64), rtol=1e-4, atol=0)
    alone = torch.cat([model(notes[row : row + 1], series[row : row + 1]) for row in range(3)])
    torch.testing.assert_close(model(notes, series), alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_both_modalities_count(fusion):
    notes, series = (x.requires_grad_() for x in inputs())
    model = trunk(fusion)
    out = model(notes, series)
    assert out.shape == (3, model.width)
    (out * torch.randn_like(out)).sum().backward()
    assert notes.grad.any()
    assert series.grad.any()
