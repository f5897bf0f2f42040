"""The task of health records: losses, unknown labels, measures over batches, divergence."""

import lightning
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from seqattn.errors import SeqattnError
from seqattn.metrics.clinical import clinical_metrics
from seqattn.tasks.clinical import ClinicalPrediction, measured

TINY = {"embed_dim": 8, "embed_time": 8, "num_heads": 2, "time_heads": 2, "num_layers": 1, "fusion": None}


def task(labels=("death",), **options) -> ClinicalPrediction:
    torch.manual_seed(0)
    arguments = {"model_options": TINY, "labels": labels, "num_channels": 3, "num_steps": 6}
    return ClinicalPrediction(**(arguments | options))


def stays(count: int = 10, labels: int = 1) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, 2, (count, labels), generator=generator)
    values = torch.randn(count, 5, 3, generator=generator)
    mask = torch.rand(count, 5, 3, generator=generator) < 0.6
    times = torch.rand(count, 5, generator=generator).sort(1).values
    return [
        {
            "values": values[i], "mask": mask[i], "times": times[i], "lengths": torch.tensor(5),
            "label": label[i, 0] if labels == 1 else label[i].float(),
        }
        for i in range(count)
    ]  # fmt: skip


def trainer(**options) -> lightning.Trainer:
    defaults = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    return lightning.Trainer(**(defaults | options), enable_progress_bar=False, enable_model_summary=False)


def test_one_label_is_cross_entropy_over_two_logits():
    module, logits = task(), torch.randn(6, 2)
    label = torch.tensor([0, 1, 1, 0, -1, 1])
    known = label >= 0
    assert module.loss(logits, label).item() == pytest.approx(F.cross_entropy(logits[known], label[known]).item())
    weighted = task(positive_weight=[3.0])
    each = F.cross_entropy(logits[known], label[known], reduction="none") * torch.tensor([1.0, 3, 3, 1, 3])
    assert weighted.loss(logits, label).item() == pytest.approx(each.mean().item())
    torch.testing.assert_close(module.risk(logits), logits.softmax(-1)[:, 1:])


def test_several_labels_are_binary_cross_entropy_over_the_known_ones():
    module, logits = task(["a", "b"], positive_weight=[1.0, 2.5]), torch.randn(4, 2)
    label = torch.tensor([[1, 0], [0, 1], [1, torch.nan], [torch.nan, torch.nan]])
    known = ~label.isnan()
    factor = torch.tensor([1.0, 2.5]).expand(4, 2).where(label == 1, 1.0)
    each = factor * F.binary_cross_entropy_with_logits(logits, label.nan_to_num(), reduction="none")
    assert module.loss(logits, label).item() == pytest.approx(each[known].mean().item())
    assert module.loss(logits, torch.full((4, 2), torch.nan)).item() == 0
    torch.testing.assert_close(module.risk(logits), logits.sigmoid())


@pytest.mark.parametrize("labels", [["death"], ["a", "b", "c"]], ids=["one", "three"])
def test_validation_is_over_all_stays_whatever_the_batches(labels):
    module, data = task(labels), stays(11, len(labels))
    if len(labels) == 1:
        data[3]["label"] = torch.tensor(-1)
    else:
        data[3]["label"][1] = torch.nan
    found = [trainer().validate(module, DataLoader(data, batch_size=size), verbose=False)[0] for size in (11, 4)]
    assert found[0].keys() == {"val_loss", "val_auroc", "val_auprc", "val_f1"}
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    risk, label = module.risks(DataLoader(data, batch_size=4))
    assert risk.shape == label.shape == (11, len(labels))
    assert label.isnan().sum() == 1
    expected = measured(risk, label)
    assert {f"val_{name}": expected[name] for name in ("auroc", "auprc", "f1")} == pytest.approx(
        {name: value for name, value in found[0].items() if name != "val_loss"}, abs=1e-6
    )


def test_measures_are_of_known_labels_and_means_over_labels():
    generator = torch.Generator().manual_seed(1)
    risk, label = torch.rand(30, 3, generator=generator), torch.randint(0, 2, (30, 3), generator=generator).float()
    label[:5, 1], label[:, 2] = torch.nan, torch.nan  # the last one is not known of anyone
    each = [clinical_metrics(risk[5 * n :, n].double(), label[5 * n :, n]) for n in range(2)]
    for name, value in measured(risk, label).items():
        assert value == pytest.approx(np.mean([found[name] for found in each]), abs=1e-9)
    nobody = measured(risk[:, 2:], label[:, 2:])
    assert all(np.isnan(value) for value in nobody.values())


def test_a_loss_that_becomes_nan_stops_the_training():
    module, data = task(), stays()
    data[5]["values"][data[5]["mask"]] = torch.inf
    loader = DataLoader(data, batch_size=5)
    with pytest.raises(SeqattnError, match=r"diverged in epoch 1 .*lower optimizer\.lr"):
        trainer().fit(module, loader, loader)


def test_learns_and_predicts():
    module, data = task(optimizer={"lr": 0.02}), stays(16)
    for stay in data:
        stay["values"][:, 0] += 2 * stay["label"]
    loader = DataLoader(data, batch_size=8)
    trainer(max_epochs=40).fit(module, loader, loader)
    risk, label = module.risks(loader)
    assert clinical_metrics(risk[:, 0].double(), label[:, 0])["auroc"] == 1
    predicted = trainer().predict(module, loader)
    torch.testing.assert_close(torch.cat(predicted), risk)


@pytest.mark.parametrize("model", ["interleaved", "gru_d"])
def test_loads_without_arguments(model, tmp_path):
    options = TINY if model == "interleaved" else {"hidden": 4}
    module, data = task(model=model, model_options=options), DataLoader(stays(), batch_size=5)
    fitted = trainer(max_epochs=1)
    fitted.fit(module, data, data)
    fitted.save_checkpoint(tmp_path / "a.ckpt")
    again = ClinicalPrediction.load_from_checkpoint(tmp_path / "a.ckpt", map_location="cpu")
    assert again.num_parameters == module.num_parameters
    torch.testing.assert_close(again.risks(data)[0], module.risks(data)[0])
