"""What every mixer inside SequenceClassifier promises: padding, direction, gradients, compilation, export, learning."""

import copy

import pytest
import torch
from torch.export import Dim

from seqattn.errors import SeqattnError
from seqattn.models.sequence_classifier import MIXERS, SequenceClassifier
from seqattn.tasks.optimizers import configure_optimizer

OPTIONS = {
    "mamba": {"mixer": "mamba"},
    "mamba-patches": {"mixer": "mamba", "patch_size": 4},
    "lbmamba": {"mixer": "lbmamba", "window": 3},
    "lbmamba-full-patches": {"mixer": "lbmamba", "window": 2**31 - 1, "patch_size": 3},
    "lbmamba-learned": {"mixer": "lbmamba", "positions": "learned", "max_length": 40},
    "lbmamba-mlp": {"mixer": "lbmamba", "mlp_ratio": 2},
    "attention": {"mixer": "attention", "positions": "sinusoidal"},
    "attention-learned-patches": {
        "mixer": "attention",
        "positions": "learned",
        "max_length": 40,
        "patch_size": 4,
        "mlp_ratio": 0,
    },
    "wersa": {"mixer": "wersa", "positions": "sinusoidal", "levels": 2, "num_features": 16},
    "wersa-patches": {"mixer": "wersa", "levels": 1, "num_features": 16, "patch_size": 4},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
every_mixer = pytest.mark.parametrize("mixer", MIXERS)


def small(**options):
    torch.manual_seed(0)
    return SequenceClassifier(3, 5, **({"d_model": 8, "depth": 3} | options)).eval()


def gradients(model, x, lengths=None):
    """Logits and the gradients of all parameters for a loss with a weight of its own for every logit."""
    model.zero_grad()
    logits = model(x, lengths)
    (logits * torch.linspace(-1, 2, logits.numel(), dtype=logits.dtype).view_as(logits)).sum().backward()
    return logits.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@every_option
def test_padding_never_changes_a_logit_nor_a_gradient(options):
    model = small(**options).double()
    x, lengths = torch.randn(4, 29, 3, dtype=torch.float64), torch.tensor([29, 17, 7, 1])
    logits, grads = gradients(model, x, lengths)
    poisoned = x.clone()
    for row, length in enumerate(lengths):
        poisoned[row, length:] = float("nan")
    longer = torch.cat([poisoned, torch.full((4, 9, 3), float("inf"), dtype=torch.float64)], dim=1)
    for given in (poisoned, longer):
        again, grads_again = gradients(model, given, lengths)
        torch.testing.assert_close(again, logits, rtol=1e-10, atol=1e-12)
        for name, grad in grads.items():
            torch.testing.assert_close(grads_again[name], grad, rtol=1e-9, atol=1e-11, msg=name)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(model(x[row : row + 1, :length]), logits[row : row + 1], rtol=1e-10, atol=1e-12)


@every_option
def test_every_parameter_gets_a_gradient(options):
    _, grads = gradients(small(**options).train(), torch.randn(4, 29, 3), torch.tensor([29, 17, 29, 8]))
    assert [name for name, grad in grads.items() if not grad.isfinite().all() or not grad.any()] == []


@pytest.mark.parametrize("options", [{"mixer": "mamba"}, {"mixer": "lbmamba", "window": 3}], ids=["mamba", "lbmamba"])
def test_odd_layers_run_on_each_sequence_flipped_at_its_own_length(options):
    model, lengths = small(**options).double(), torch.tensor([11, 6])
    x = torch.randn(2, 11, 3, dtype=torch.float64)
    logits = model(x, lengths)
    for row, length in enumerate(lengths):
        residual = model.embedding(x[row : row + 1, :length])[0]
        for block in model.blocks:  # flipping both streams after every layer, as published
            residual = (residual + block.mixer(block.norm(residual))).flip(1)
        expected = model.head(model.norm(residual).mean(1))
        torch.testing.assert_close(logits[row : row + 1], expected, rtol=1e-10, atol=1e-12)


def test_a_window_as_long_as_the_series_is_the_full_one():
    x, lengths = torch.randn(2, 29, 3), torch.tensor([29, 13])
    models = [small(mixer="lbmamba", window=window) for window in (1, 8, 29, 2**31 - 1)]
    one, eight, whole, full = (model(x, lengths) for model in models)
    torch.testing.assert_close(whole, full)
    assert not torch.allclose(one, eight)
    assert not torch.allclose(eight, full)
    assert torch.equal(one, small(mixer="mamba")(x, lengths))


def test_attention_without_positions_sees_a_bag_of_steps_and_with_them_an_order():
    x = torch.randn(2, 29, 3)
    bag = small(mixer="attention", positions="none")
    torch.testing.assert_close(bag(x), bag(x.flip(1)))
    for positions in ("sinusoidal", "learned"):
        ordered = small(mixer="attention", positions=positions, max_length=29)
        assert not torch.allclose(ordered(x), ordered(x.flip(1)))


def test_drop_path_grows_from_layer_to_layer():
    rates = [block.drop_path.rate for block in small(depth=5, drop_path=0.2).blocks]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert small(depth=1, drop_path=0.2).blocks[0].drop_path.rate == 0.2


@pytest.mark.parametrize(("mixer", "additions"), [("mamba", 4), ("lbmamba", 4), ("attention", 8), ("wersa", 8)])
def test_projections_into_the_residual_stream_start_small(mixer, additions):
    model = small(mixer=mixer, d_model=64, depth=4)
    for block in model.blocks:
        weight = block.mixer.out_proj.weight.detach()
        largest = weight.shape[1] ** -0.5 / additions**0.5  # of a uniform distribution
        assert 0.95 * largest < weight.abs().max() <= largest
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert not model.head.bias.any()


def test_attention_has_about_as_many_parameters_as_the_scans():
    counts = [sum(p.numel() for p in small(mixer=mixer, d_model=64, depth=4).parameters()) for mixer in MIXERS]
    assert max(counts) < 1.02 * min(counts)


@every_mixer
def test_only_weights_decay(mixer):
    model = small(mixer=mixer, positions="learned", max_length=29)
    decayed, others = configure_optimizer(model, weight_decay=0.1)["optimizer"].param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    exempt = {names[id(parameter)] for parameter in others["params"]}
    assert decayed["weight_decay"] == 0.1
    assert others["weight_decay"] == 0
    assert exempt | {names[id(parameter)] for parameter in decayed["params"]} == set(names.values())
    endings = ("bias", "norm.weight", "A_log", "D", "position_table", "scale_weights")
    assert exempt == {name for name in names.values() if name.endswith(endings)}


@every_option
def test_save_and_load(options):
    model, other = small(**options), SequenceClassifier(3, 5, **({"d_model": 8, "depth": 3} | options)).eval()
    other.load_state_dict(model.state_dict())
    x, lengths = torch.randn(2, 29, 3), torch.tensor([29, 4])
    assert torch.equal(other(x, lengths), model(x, lengths))
    assert torch.equal(copy.deepcopy(model)(x, lengths), model(x, lengths))


@every_mixer
def test_compiles_without_a_graph_break(mixer):
    torch._dynamo.reset()
    model = small(mixer=mixer, depth=2, patch_size=2, positions="sinusoidal").double()
    x, lengths = torch.randn(3, 29, 3, dtype=torch.float64), torch.tensor([29, 20, 11])
    logits, grads = gradients(model, x, lengths)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    got, got_grads = gradients(compiled, x, lengths)
    torch.testing.assert_close(got, logits, rtol=1e-10, atol=1e-12)
    for name, grad in grads.items():
        torch.testing.assert_close(got_grads[f"_orig_mod.{name}"], grad, rtol=1e-9, atol=1e-11, msg=name)


@every_mixer
@pytest.mark.parametrize("patch_size", [1, 4])
def test_exports_with_a_dynamic_length(mixer, patch_size):
    model = small(mixer=mixer, depth=2, patch_size=patch_size)
    batch, length = Dim("batch", min=2), Dim("length", min=patch_size + 1, max=4096)  # torch sets apart an axis of 1
    dynamic = {"x": {0: batch, 1: length}, "lengths": {0: batch}}
    example = (torch.randn(3, 29, 3), torch.tensor([29, 20, 11]))
    program = torch.export.export(model, example, dynamic_shapes=dynamic).module()
    x, lengths = torch.randn(5, 101, 3), torch.tensor([101, 3, 50, 77, 1])
    torch.testing.assert_close(program(x, lengths), model(x, lengths), rtol=1e-5, atol=1e-6)


@every_mixer
def test_overfits_a_tiny_set(mixer):
    torch.manual_seed(0)
    model = small(mixer=mixer, d_model=16, depth=2, positions="sinusoidal").train()
    x, label = torch.randn(8, 29, 3), torch.arange(8) % 5
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), label).backward()
        optimizer.step()
    assert (model.eval()(x).argmax(-1) == label).all()


@every_mixer
def test_bfloat16_autocast_keeps_the_residual_stream_in_float32(mixer):
    model, x, lengths = small(mixer=mixer), torch.randn(4, 29, 3), torch.tensor([29, 20, 11, 2])
    seen = []
    model.blocks[-1].register_forward_hook(lambda _module, _inputs, out: seen.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x, lengths)
    exact = model(x, lengths)
    assert seen == [torch.float32] * 2
    assert (logits.float() - exact).abs().max() < 5e-2 * exact.abs().max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixer": "lbmmba"}, "there is no mixer 'lbmmba'; did you mean lbmamba"),
        ({"mixer": "conv"}, "there is no mixer 'conv'; choose one of mamba, lbmamba, attention"),
        ({"positions": "learned"}, "learned positions need max_length"),
        ({"mixer": "attention", "heads": 3}, "3 heads do not divide d_model=8"),
    ],
    ids=["typo", "unknown", "no-max-length", "heads"],
)
def test_bad_options_are_one_sentence(options, message):
    with pytest.raises(SeqattnError, match=message):
        small(**options)


def test_bad_inputs_are_one_sentence():
    with pytest.raises(ValueError, match=r"x has shape \(2, 29, 4\), it must be \(batch, length, 3\)"):
        small()(torch.zeros(2, 29, 4))
    with pytest.raises(ValueError, match="x has 30 steps, the learned positions 29"):
        small(positions="learned", max_length=29)(torch.zeros(2, 30, 3))
