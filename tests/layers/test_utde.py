import pytest
import torch

from seqattn.errors import SeqattnError
from seqattn.layers.imputation import regular_grid
from seqattn.layers.utde import UTDE, MixtureGate

SHAPES = {"patient": (2, 1, 1), "temporal": (2, 6, 1), "hidden": (2, 6, 5)}


def problem():
    torch.manual_seed(0)
    query, key = torch.randn(6, 8, dtype=torch.float64), torch.randn(2, 9, 8, dtype=torch.float64)
    values, mask = torch.randn(2, 9, 3, dtype=torch.float64), torch.rand(2, 9, 3) < 0.4
    times = torch.rand(2, 9, dtype=torch.float64).sort(1).values
    return query, key, values, mask, regular_grid(values, mask, times, 6)


@pytest.mark.parametrize("level", SHAPES)
def test_the_gate_is_the_share_of_time_attention(level):
    arguments = problem()
    layer = UTDE(3, 5, 8, time_heads=2, gate=level).double()
    mixed, attention, imputed, gate = layer(*arguments)
    assert gate.shape == SHAPES[level]
    given = torch.cat([attention, imputed], -1)
    given = given.amax(1, keepdim=True) if level == "patient" else given
    hidden = (given @ layer.gate.hidden.weight.T + layer.gate.hidden.bias).relu()
    expected = (hidden @ layer.gate.out.weight.T + layer.gate.out.bias).sigmoid()
    torch.testing.assert_close(gate, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mixed, gate * attention + (1 - gate) * imputed, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(attention, layer.attention(*arguments[:4]))
    torch.testing.assert_close(imputed, layer.imputation(arguments[4]))


@pytest.mark.parametrize("branches", ["attention", "imputation"])
def test_one_branch_alone(branches):
    layer = UTDE(3, 5, 8, time_heads=2, branches=branches).double()
    mixture = layer(*problem())
    assert mixture.gate is None
    alone = mixture.attention if branches == "attention" else mixture.imputed
    assert mixture.mixed is alone
    assert {name.split(".")[0] for name, _ in layer.named_parameters()} == {branches}


def test_dropout_reaches_the_gate_in_training_only():
    torch.manual_seed(0)
    gate, x = MixtureGate(5, "temporal", 0.5), torch.randn(2, 6, 5)
    assert not torch.equal(gate(x, x), gate(x, x))
    gate.eval()
    assert torch.equal(gate(x, x), gate(x, x))


def test_bad_input():
    with pytest.raises(SeqattnError, match="level is 'batch': it must be one of patient, temporal, hidden"):
        MixtureGate(4, "batch")
    with pytest.raises(SeqattnError, match="branches is 'none': it must be one of both, attention, imputation"):
        UTDE(3, 5, 8, branches="none")
