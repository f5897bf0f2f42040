import pytest
import torch

from seqattn.errors import SeqattnError
from seqattn.layers.note_attention import NoteAttention


def problem(**options):
    torch.manual_seed(0)
    layer = NoteAttention(8, 2, 6, 5, **options).double()
    query, key = torch.randn(4, 8, dtype=torch.float64), torch.randn(3, 3, 8, dtype=torch.float64)
    vectors, mask = torch.randn(3, 3, 6, dtype=torch.float64), torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]]) != 0
    return layer, (query, key, vectors, mask)


def test_projecting_before_the_sum_is_projecting_after_it():
    layer, (query, key, vectors, mask) = problem()
    out = layer(query, key, vectors, mask)
    for patient in range(2):
        valid = mask[patient]
        sums = []
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            scores = layer.query(query)[:, part] @ layer.key(key)[patient, valid][:, part].T / 2
            sums.append(scores.softmax(-1) @ vectors[patient, valid])
        expected = layer.out(torch.cat(sums, -1))
        torch.testing.assert_close(out[patient], expected, rtol=1e-12, atol=1e-12)


def test_without_a_note_the_result_is_the_bias():
    layer, arguments = problem()
    torch.testing.assert_close(layer(*arguments)[2], layer.out.bias.expand(4, -1), rtol=0, atol=0)


def test_padding_changes_nothing_not_even_a_gradient():
    layer, (query, key, vectors, mask) = problem()
    results = []
    for given in (vectors, vectors.masked_fill(~mask[..., None], torch.nan)):
        layer.zero_grad()
        out = layer(query, key, given, mask)
        out.square().sum().backward()
        results.append([out.detach(), *(parameter.grad.clone() for parameter in layer.parameters())])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
        assert one.isfinite().all()


def test_dropout_is_that_of_attention_weights():
    layer, arguments = problem(dropout=0.5)
    expected = layer.eval()(*arguments)
    layer.train()
    drawn = torch.stack([layer(*arguments) for _ in range(1000)])
    assert drawn[:, 0].std(0).max() > 0.01
    torch.testing.assert_close(drawn.mean(0), expected, rtol=0.2, atol=0.1)
    assert torch.equal(drawn[0, 2], expected[2])


def test_note_weights_are_shares_of_the_notes():
    layer, (query, key, vectors, mask) = problem()
    weights = layer.note_weights(query, key, mask)
    torch.testing.assert_close(weights.sum(-1)[:2], torch.ones(2, 2, 4, dtype=weights.dtype))
    assert not weights[2].any()
    expected = layer.out(torch.einsum("bhqn,bnf->bqhf", weights, vectors).flatten(2))
    torch.testing.assert_close(layer(query, key, vectors, mask), expected, rtol=1e-12, atol=1e-12)


def test_heads_divide_the_width():
    with pytest.raises(SeqattnError, match="3 heads do not divide embed_time=8"):
        NoteAttention(8, 3, 6, 5)
