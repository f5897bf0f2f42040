"""InterleavedEHR against the published network's golden values, and the properties we promise beyond them."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from loading import load
from torch.nn import functional as F

from seqattn.errors import SeqattnError
from seqattn.models.interleaved_ehr import InterleavedEHR
from seqattn.models.interleaved_ehr_official import official_name

ROOT = Path(__file__).parents[2]
GOLDEN = np.load(ROOT / "tests" / "golden" / "ehr.npz")
FULL = "ihm_self_cross_batch_seq_feature/"
GOLDEN_SIZES = {
    "num_channels": 5, "num_steps": 6, "num_labels": 2, "embed_dim": 16, "embed_time": 16, "num_heads": 2,
    "num_layers": 2,
}  # fmt: skip
SMALL = {
    "embed_dim": 8, "embed_time": 8, "num_heads": 2, "num_layers": 2, "time_heads": 2, "note_width": 6, "dropout": 0.0,
}  # fmt: skip
ONE_FEATURE_HEADS = ("attention.key.bias", "notes.key.bias")  # scores shift alike for all rows: their gradient is 0

golden_weights = load(ROOT / "tests" / "golden_weights.py")


def golden(name):
    value = torch.from_numpy(GOLDEN[name])
    return value.double() if value.is_floating_point() else value


def error(got, name):
    expected = golden(name)
    return ((got - expected).abs().max() / expected.abs().max()).item()


def golden_inputs():
    names = ("ts", "ts_mask", "ts_times", "reg", "note_vectors", "note_times", "note_mask", "n_rows")
    return [golden(f"inputs/small/{name}") for name in names]


def official(case=FULL):
    """Weights in float64; of a case without a trunk, the trunk is the full case's."""
    weights = golden_weights.official_state_dict(GOLDEN, FULL) | golden_weights.official_state_dict(GOLDEN, case)
    return {name: value.double() for name, value in weights.items()}


@pytest.fixture(scope="module")
def model():
    return InterleavedEHR.from_official(official(), **GOLDEN_SIZES, gate="hidden").eval()


def small(**options):
    torch.manual_seed(0)
    return InterleavedEHR(3, 6, 2, **(SMALL | options)).double().eval()


def patients(seed=0, count=4):
    """Arguments of forward without `regular`, by name: ragged rows, none in the third patient, notes 3, 0, 2, 1, …"""
    generator = torch.Generator().manual_seed(seed)
    rows = {"generator": generator, "dtype": torch.float64}
    lengths = torch.tensor([9, 4, 0, 7] * (count // 4))
    notes = torch.tensor([3, 0, 2, 1] * (count // 4))
    mask = torch.rand(count, 9, 3, **rows) < 0.5
    mask &= (torch.arange(9) < lengths[:, None])[..., None]
    return {
        "values": torch.randn(count, 9, 3, **rows), "mask": mask,
        "times": torch.rand(count, 9, **rows).sort(1).values, "note_vectors": torch.randn(count, 3, 6, **rows),
        "note_times": torch.rand(count, 3, **rows), "note_mask": torch.arange(3) < notes[:, None], "lengths": lengths,
    }  # fmt: skip


def poisoned(batch):
    """The same patients, with NaN, infinities and claims of observations wherever nothing counts."""
    inside = torch.arange(9) < batch["lengths"][:, None]
    return batch | {
        "values": batch["values"].masked_fill(~batch["mask"], torch.nan),
        "times": batch["times"].masked_fill(~inside, torch.nan),
        "mask": batch["mask"] | ~inside[..., None],
        "note_vectors": batch["note_vectors"].masked_fill(~batch["note_mask"][..., None], torch.inf),
        "note_times": batch["note_times"].masked_fill(~batch["note_mask"], torch.nan),
    }


def gradients(model, batch):
    model.zero_grad()
    logits = model(**batch)
    (logits * torch.linspace(-1, 2, logits.numel(), dtype=logits.dtype).view_as(logits)).sum().backward()
    return logits.detach(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_golden_outputs(model):
    arguments = golden_inputs()
    values, mask, times, regular, vectors, note_times, note_mask, lengths = arguments
    logits = model(*arguments)
    assert error(logits, FULL + "logits") < 1e-10
    assert error(logits.softmax(-1)[:, 1], FULL + "prob") < 1e-10
    assert error(F.cross_entropy(logits, golden("inputs/small/label")), FULL + "loss") < 1e-10
    mixed, attention, imputed, gate = model.mixture(values, mask, times, regular, lengths)
    notes = model.notes(model._query(), model.time_embedding(note_times), vectors, note_mask != 0)
    fused = model.trunk.sequences(notes, mixed)
    parts = {
        "series_attention": attention, "series_imputed": imputed, "gate": gate, "series_mixed": mixed,
        "notes_attention": notes, "fused_notes": fused[0], "fused_series": fused[1],
    }  # fmt: skip
    for name, part in parts.items():
        assert error(part, FULL + name) < 1e-10, name


def test_golden_gradients(model):
    arguments = golden_inputs()
    names = {0: "grad_ts", 2: "grad_ts_times", 3: "grad_reg", 4: "grad_note_vectors", 5: "grad_note_times"}
    for index in names:
        arguments[index].requires_grad_()
    model.zero_grad()
    logits = model(*arguments)
    (logits * golden_weights.loss_weight("logits", logits.shape)).sum().backward()
    assert_norms(model, "grad_norms")
    for index, name in names.items():
        grad = arguments[index].grad
        grad = grad.where(arguments[1] != 0, 0) if name == "grad_ts" else grad
        assert error(grad, FULL + name) < (5e-7 if name == "grad_note_vectors" else 1e-9), name
    model.zero_grad()
    F.cross_entropy(model(*arguments), golden("inputs/small/label")).backward()
    assert_norms(model, "grad_norms_loss")


def assert_norms(model, key):
    expected = dict(zip(map(str, GOLDEN[FULL + "names"]), GOLDEN[FULL + key], strict=True))
    for name, parameter in model.named_parameters():
        wanted = expected.pop(official_name(name))
        grad = parameter.grad[1:] if name.endswith("table") else parameter.grad  # theirs never trains row 0
        assert abs(grad.norm().item() - wanted) <= 1e-6 * wanted + 1e-8 * np.nanmax(GOLDEN[FULL + key]), name
    assert all("post_" in name for name in expected)


@pytest.mark.parametrize(("case", "gate"), [("gate_batch/", "patient"), ("gate_batch_seq/", "temporal")])
def test_golden_gates(case, gate):
    model = InterleavedEHR.from_official(official(case), **GOLDEN_SIZES, gate=gate).eval()
    values, mask, times, regular, *_, lengths = golden_inputs()
    mixed, attention, imputed, share = model.mixture(values, mask, times, regular, lengths)
    share = share[:, 0] if gate == "patient" else share
    parts = {"series_attention": attention, "series_imputed": imputed, "gate": share, "series_mixed": mixed}
    for name, part in parts.items():
        assert error(part, case + name) < 1e-10, name


def test_golden_with_the_grid_made_here():
    """`regular` left out: the published fill gives the published logits, the clean fill those of the clean grid."""
    arguments = golden_inputs()
    for fill, name in (("published", "reg"), ("forward", "reg_clean_fill")):
        model = InterleavedEHR.from_official(official(), **GOLDEN_SIZES).eval()
        model.fill = fill
        expected = model(*arguments[:3], golden(f"inputs/small/{name}"), *arguments[4:])
        torch.testing.assert_close(model(*arguments[:3], None, *arguments[4:]), expected, rtol=1e-12, atol=1e-12)


def test_golden_float32():
    weights = {name: value.float() for name, value in official().items()}
    model = InterleavedEHR.from_official(weights, **GOLDEN_SIZES).eval()
    arguments = [value.float() if value.is_floating_point() else value for value in golden_inputs()]
    logits = model(*arguments)
    assert logits.dtype == torch.float32
    assert error(logits, FULL + "logits") < 2e-6


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"gate": "patient"}, 2_604_931 - 3072),  # without the norms that the published network never uses
        ({"gate": "temporal"}, 2_604_931 - 3072),
        ({"gate": "hidden"}, 2_621_314 - 3072),
        ({"gate": "patient", "fusion": "mult"}, 3_424_899),
        ({"gate": "patient", "fusion": None}, 715_267),
    ],
)
def test_published_size(options, expected):
    assert sum(parameter.numel() for parameter in InterleavedEHR(17, 48, 2, **options).parameters()) == expected


MODALITIES = [
    *({"fusion": fusion} for fusion in ("interleaved", "mult")),
    *({"fusion": fusion, "encoder": encoder} for fusion in ("concat", "mag", "tensor")
      for encoder in ("attention", "lstm", "cnn")),
    *({"fusion": None, "modality": modality, "encoder": encoder} for modality in ("series", "notes")
      for encoder in ("attention", "lstm", "cnn")),
]  # fmt: skip
every_modality = pytest.mark.parametrize(
    "options", MODALITIES, ids=lambda options: "-".join(map(str, options.values()))
)


@every_modality
def test_each_patient_of_a_batch_gets_what_it_gets_alone(options):
    model, batch = small(**options), patients()
    logits, grads = gradients(model, batch)
    again, grads_again = gradients(model, poisoned(batch))
    torch.testing.assert_close(again, logits, rtol=1e-10, atol=1e-12)
    for name, grad in grads.items():
        torch.testing.assert_close(grads_again[name], grad, rtol=1e-9, atol=1e-12, msg=name)
    for row in range(4):
        length, notes = batch["lengths"][row], batch["note_mask"][row].sum()
        alone = {name: batch[name][row : row + 1, :length] for name in ("values", "mask", "times")}
        alone |= {name: batch[name][row : row + 1, :notes] for name in ("note_vectors", "note_times")}
        torch.testing.assert_close(model(**alone), logits[row : row + 1], rtol=1e-10, atol=1e-12)


@every_modality
def test_every_option_runs_and_every_parameter_learns(options):
    batch = patients(count=8)
    series = options["fusion"] is not None or options["modality"] == "series"
    gates = [{"gate": gate} for gate in ("patient", "temporal", "hidden")]
    branches = [*gates, {"branches": "attention"}, {"branches": "imputation"}] if series else [{}]
    for branch, rest in itertools.product(
        branches,
        [{}, {"flags": "density", "fill": "published", "time_init": "spread", "kernel_size": 2, "cross_layers": 1}],
    ):
        model = small(**options, **branch, **rest, embed_dim=16).train()
        logits, grads = gradients(model, batch)
        assert logits.shape == (8, 2)
        assert logits.isfinite().all()
        for name, grad in grads.items():
            assert grad.isfinite().all(), (branch, rest, name)
            assert grad.abs().max() > 1e-12 or name.endswith(ONE_FEATURE_HEADS), (branch, rest, name)


def test_a_patient_without_notes_is_one_with_padding_or_no_notes_at_all():
    model, batch = small(), patients()
    series = {name: batch[name] for name in ("values", "mask", "times", "lengths")}
    expected = model(**series)
    hidden = batch | {"note_mask": torch.zeros(4, 3)}
    empty = series | {"note_vectors": torch.zeros(4, 0, 6), "note_times": torch.zeros(4, 0)}
    for given in (hidden, empty):
        torch.testing.assert_close(model(**given), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model(**batch)[1], expected[1], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(model(**batch)[0], expected[0])


def test_no_patient_of_a_batch_has_a_row():
    model, batch = small(), patients()
    notes = {name: batch[name][2:3] for name in ("note_vectors", "note_times", "note_mask")}
    rows = {"values": torch.zeros(1, 0, 3), "mask": torch.zeros(1, 0, 3), "times": torch.zeros(1, 0)}
    rows = {name: value.double() for name, value in rows.items()}
    torch.testing.assert_close(model(**rows, **notes), model(**batch)[2:3], rtol=1e-10, atol=1e-12)


def test_dropout_acts_in_training_only():
    model, batch = small(dropout=0.3), patients()
    assert torch.equal(model(**batch), model(**batch))
    model.train()
    assert not torch.equal(model(**batch), model(**batch))


def test_attention_for_pictures():
    model, batch = small(), patients()
    weights = model.attention(batch["mask"], batch["times"], batch["lengths"])
    assert weights.shape == (4, 2, 6, 9)
    rows = batch["mask"].any(-1)
    assert not weights.masked_fill(rows[:, None, None], 0).any()
    torch.testing.assert_close(weights.sum(-1)[rows.any(1)], torch.ones(3, 2, 6, dtype=weights.dtype))


def test_compiles_as_one_graph_which_reads_nothing_back():
    model, batch = small(), patients()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**batch), model(**batch), rtol=1e-10, atol=1e-12)


def test_half_precision():
    model, batch = small().float(), patients()
    single = {name: value.float() if value.is_floating_point() else value for name, value in batch.items()}
    expected = model(**single)
    with torch.autocast("cpu", torch.bfloat16):
        assert (model(**single) - expected).abs().max() < 0.05 * expected.abs().max()
    logits = model.bfloat16()(**single)
    assert logits.dtype == torch.bfloat16
    assert (logits - expected).abs().max() < 0.1 * expected.abs().max()


def test_saved_weights_give_the_same_logits(tmp_path):
    model, batch = small(), patients()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    torch.manual_seed(1)
    other = InterleavedEHR(3, 6, 2, **SMALL).double().eval()
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(other(**batch), model(**batch))


@pytest.mark.parametrize("options", [{}, {"fusion": "tensor", "encoder": "lstm"}], ids=["interleaved", "tensor"])
def test_learns_what_needs_both_modalities(options):
    torch.manual_seed(0)
    batch = patients(count=16)
    label = torch.arange(16) % 2
    batch["mask"][:, 0], batch["lengths"] = True, batch["lengths"].clamp_min(1)
    batch["note_mask"][:, 0] = True
    one, other = torch.arange(16) // 2 % 2, torch.arange(16) // 2 % 2 ^ label  # either alone says nothing
    batch["values"][:, 0, 0] = 2.0 * (2 * one - 1)
    batch["note_vectors"][:, :, 0] = 2.0 * (2 * other - 1)[:, None]
    model = small(**options, embed_dim=16).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(**batch), label)
        loss.backward()
        optimizer.step()
    assert loss < 0.05


@pytest.mark.parametrize(
    "options",
    [{"fusion": "mult", "cross_layers": 1}, {"fusion": "concat"}, {"fusion": None}, {"fusion": None, "encoder": "lstm"},
     {"fusion": None, "encoder": "cnn", "kernel_size": 3}, {"fusion": "concat", "encoder": "lstm"}],
    ids=["mult", "concat", "series", "lstm", "cnn", "concat lstm"],
)  # fmt: skip
def test_from_official_and_back(options):
    torch.manual_seed(0)
    sizes = GOLDEN_SIZES | options
    ours = InterleavedEHR(**sizes, lstm_state="backward").double().eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(1e-3 * torch.randn_like(parameter))
    published = {official_name(name).replace("trunk.", "any.").replace("trans_ts_mem.lstm", "any.lstm"): value
                 for name, value in ours.state_dict().items()}  # fmt: skip
    published |= {"bertrep.bert.embeddings.position_ids": torch.arange(3)}  # of a language model
    again = InterleavedEHR.from_official(published, **sizes).eval()
    arguments = golden_inputs()
    assert torch.equal(again(*arguments), ours(*arguments))  # random float64 weights, to the last bit


def test_published_names_of_the_other_fusions():
    names = {official_name(name) for name in InterleavedEHR(**GOLDEN_SIZES, fusion="mult").state_dict()}
    stacks = {name.split(".")[0] for name in names if name.startswith("trans")}
    assert stacks == {"trans_txt_with_ts", "trans_ts_with_txt", "trans_ts_mem", "trans_txt_mem"}
    inside = {name.removeprefix("trans_txt_with_ts.") for name in names if name.startswith("trans_txt_with_ts.")}
    ends = ("weight", "bias")
    assert inside == {
        "embed_positions_q.weight", "embed_positions_kv.weight",
        *(f"layer_norm.{end}" for end in ends),
        *(f"layers.{layer}.{part}{end}" for layer in range(2) for end in ends for part in (
            "self_attn.in_proj_", "self_attn.out_proj.", "layer_norms.0.", "layer_norms.1.", "fc1.", "fc2."
        )),
    }  # fmt: skip
    # the stack behind the notes' cross-attention is named after the series they attended to
    assert official_name("trunk.notes_memory.norm.weight") == "trans_ts_mem.layer_norm.weight"
    assert official_name("trunk.notes.stack.norm.weight") == "trans_txt_mem.layer_norm.weight"


def test_a_grid_as_wide_as_the_trunk_has_no_projection_in_the_published_network():
    sizes = GOLDEN_SIZES | {"num_channels": 8}
    weights = {official_name(name): value for name, value in InterleavedEHR(**sizes).double().state_dict().items()}
    del weights["proj_ts.weight"]
    model = InterleavedEHR.from_official(weights, **sizes)
    grid = torch.randn(2, 6, 16, dtype=torch.float64)
    torch.testing.assert_close(model.series.imputation(grid), grid)


def test_from_official_names_what_is_wrong():
    weights = official()
    with pytest.raises(SeqattnError, match=r"no entry 'trans_txt_with_ts\."):
        InterleavedEHR.from_official(weights, **GOLDEN_SIZES, fusion="mult")
    with pytest.raises(SeqattnError, match=r"moe\.gate\.3\.weight is \(16, 16\) in the state dict and \(1, 16\) in"):
        InterleavedEHR.from_official(weights, **GOLDEN_SIZES, gate="temporal")
    with pytest.raises(SeqattnError, match=r"'trans_self_cross_ts_txt\.layers\.1\..* has no place in this network"):
        InterleavedEHR.from_official(weights, **(GOLDEN_SIZES | {"num_layers": 1}))
    with pytest.raises(SeqattnError, match=r"no entry 'trans_self_cross_ts_txt\.layers\.2\."):
        InterleavedEHR.from_official(weights, **GOLDEN_SIZES, cross_layers=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": "interleave"}, "fusion is 'interleave'; did you mean interleaved"),
        ({"encoder": "gru", "fusion": None}, "encoder is 'gru'; choose one of attention, lstm, cnn"),
        ({"modality": "note"}, "modality is 'note'; did you mean notes"),
        ({"fill": "mean"}, "fill is 'mean'; choose one of forward, published"),
        ({"gate": "batch"}, "level is 'batch': it must be one of patient, temporal, hidden"),
        ({"fusion": "mult", "encoder": "cnn"}, "the mult fusion attends throughout, so encoder cannot be 'cnn'"),
        ({"num_layers": 0}, "num_layers is 0: it must be at least 1"),
        ({"cross_layers": 0}, "cross_layers is 0: it must be at least 1"),
        ({"num_heads": 3}, "3 heads do not divide 8 channels"),
        ({"time_heads": 3}, "3 heads do not divide embed_time=8"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(SeqattnError, match=message):
        small(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.zeros(4, 9, 2)}, r"values has shape \(4, 9, 2\): it must be \(batch, length, 3\)"),
        ({"mask": torch.zeros(4, 8, 3)}, r"mask has shape \(4, 8, 3\): it must be \(4, 9, 3\)"),
        ({"times": torch.zeros(9)}, r"times has shape \(9,\): it must be \(4, 9\)"),
        ({"lengths": torch.zeros(3)}, r"lengths has shape \(3,\): it must be \(4,\)"),
        ({"regular": torch.zeros(4, 5, 6)}, r"regular has shape \(4, 5, 6\): it must be \(4, 6, 6\)"),
        ({"note_vectors": torch.zeros(4, 3, 5)}, r"note_vectors has shape \(4, 3, 5\): it must be \(4, notes, 6\)"),
        ({"note_vectors": torch.zeros(3, 3, 6)}, r"note_vectors has shape \(3, 3, 6\): it must be \(4, notes, 6\)"),
        ({"note_times": None}, "given without note_times"),
        ({"note_times": torch.zeros(4, 2)}, r"note_times has shape \(4, 2\): it must be \(4, 3\)"),
        ({"note_mask": torch.zeros(4, 2)}, r"note_mask has shape \(4, 2\): it must be \(4, 3\)"),
        ({"values": None}, "give values, mask and times"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(SeqattnError, match=message):
        small()(**(patients() | change))


def test_models_of_one_modality_say_what_they_lack():
    notes = small(fusion=None, modality="notes")
    with pytest.raises(SeqattnError, match="give note_vectors and note_times"):
        notes(None, None, None)
    with pytest.raises(SeqattnError, match="this model reads notes only"):
        notes.mixture(None, None, None)
    batch = patients()
    with pytest.raises(SeqattnError, match="no time attention over series to show"):
        small(fusion=None, branches="imputation").attention(batch["mask"], batch["times"])
    alone = {name: batch[name] for name in ("note_vectors", "note_times", "note_mask")}
    expected = notes(**batch)
    assert torch.equal(notes(None, None, None, **alone), expected)
