"""The classification task: metrics, divergence, optimizers under mixed precision."""

import lightning
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score
from torch.utils.data import DataLoader

from seqattn.errors import SeqattnError
from seqattn.tasks.classification import TimeSeriesClassification, classification_metrics

CLASSES = ["a", "b", "c"]


def tiny(**options) -> TimeSeriesClassification:
    torch.manual_seed(0)
    network = {"periods": [5, 3], "hidden": 8, "d_model": 8, "d_token": 8, "heads": 2, "ff": 8}
    arguments = {"model_options": network, "classes": CLASSES, "in_channels": 2, "seq_len": 12}
    return TimeSeriesClassification(**(arguments | options))


def batches(x: torch.Tensor) -> DataLoader:
    cases = [{"x": row, "lengths": torch.tensor(12), "label": torch.tensor(i % 3)} for i, row in enumerate(x)]
    return DataLoader(cases, batch_size=4)


def trainer(**options) -> lightning.Trainer:
    defaults = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    return lightning.Trainer(**(defaults | options), enable_progress_bar=False, enable_model_summary=False)


def test_metrics_equal_scikit_learn_also_without_a_class():
    torch.manual_seed(0)
    probabilities = torch.randn(40, 4).softmax(-1)
    labels = torch.arange(40) % 3  # class 3 has no case
    got = classification_metrics(probabilities, labels)
    predicted = probabilities.argmax(-1)
    assert got["accuracy"] == (predicted == labels).double().mean().item()
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        assert got["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-6)
    assert got["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-6)
    areas = [roc_auc_score(labels == index, probabilities[:, index]) for index in range(3)]
    assert got["auroc"] == pytest.approx(sum(areas) / 3, abs=1e-6)
    assert classification_metrics(probabilities, torch.zeros(40, dtype=torch.long))["auroc"] is None


def test_a_loss_that_becomes_nan_stops_the_training():
    module, x = tiny(), torch.randn(8, 12, 2)
    x[5] = float("inf")
    with pytest.raises(SeqattnError, match=r"diverged in epoch 1 .*lower optimizer\.lr"):
        trainer().fit(module, batches(x))


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_clips_gradients_under_mixed_precision(name):
    module = tiny(optimizer={"name": name})
    trainer(precision="bf16-mixed", gradient_clip_val=1.0).fit(module, batches(torch.randn(8, 12, 2)))


def test_adamw_decays_weights_only():
    module = tiny(optimizer={"name": "adamw", "weight_decay": 0.1})
    trainer().fit(module, batches(torch.randn(4, 12, 2)))
    decayed, others = module.optimizers().optimizer.param_groups
    names = {id(parameter): name for name, parameter in module.network.named_parameters()}
    assert decayed["weight_decay"] == 0.1
    assert not [names[id(p)] for p in decayed["params"] if names[id(p)].endswith("bias") or p.dim() < 2]
    assert others["weight_decay"] == 0.0
    assert "weights.bias" in {names[id(p)] for p in others["params"]}


def test_validation_score_breaks_ties_by_the_loss_and_never_outweighs_a_case():
    module = tiny()

    def score(accuracy: float, loss: float, cases: int = 40) -> float:
        module.val_accuracy.update(
            torch.tensor([1.0] * round(accuracy * cases) + [0.0] * round((1 - accuracy) * cases))
        )
        module.val_cases.update(cases)
        module.val_loss.update(torch.full((cases,), loss))
        logged: dict[str, torch.Tensor] = {}
        module.log_dict = lambda values, **_: logged.update(values)
        module.on_validation_epoch_end()
        return logged["val_score"].item()

    assert score(1.0, 0.003) > score(1.0, 0.006) > score(1.0, 0.012)
    assert score(0.975, 0.0) < score(1.0, 100.0)


def test_trainer_test_logs_the_metrics():
    module = tiny()
    (logged,) = trainer().test(module, batches(torch.randn(9, 12, 2)), verbose=False)
    assert set(logged) == {"test_accuracy", "test_balanced_accuracy", "test_macro_f1", "test_auroc"}
