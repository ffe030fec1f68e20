from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from genomepred.errors import DataError
from genomepred.evaluation.metrics import binary_metrics, regression_metrics
from genomepred.models.checkpoint import build
from genomepred.training.tasks import Task, find_task

NAN = math.nan


def floats(*rows: object) -> np.ndarray:
    return np.array(rows, np.float32)


def test_squared_error_of_standardized_labels_leaves_out_missing_ones() -> None:
    labels = floats([1, 10], [3, NAN], [5, 30])
    task = find_task("regression", labels)
    assert task.shift == pytest.approx((3, 20))
    assert task.scale == pytest.approx((math.sqrt(8 / 3), 10))
    values = torch.tensor([[0.5, 0.0], [0.0, 99.0], [-0.5, 2.0]], requires_grad=True)
    loss = task.loss(values, torch.from_numpy(labels))
    a = 2 / math.sqrt(8 / 3)
    expected = [(0.5 + a) ** 2, (0 + 1) ** 2, 0, (-0.5 - a) ** 2, (2 - 1) ** 2]
    assert loss.item() == pytest.approx(sum(expected) / 5)
    loss.backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()
    assert values.grad[1, 1] == 0


def test_a_folded_model_predicts_in_the_labels_unit() -> None:
    labels = floats([1, 10], [3, 20], [5, 36])
    task = find_task("regression", labels)
    torch.manual_seed(0)
    model = build("tf-cnn", window=20, tracks=2, filters=4, hidden=[4]).eval()
    codes = torch.randint(0, 5, (6, 20), dtype=torch.uint8)
    with torch.no_grad():
        before = model(codes).numpy()[:, 0]
        task.fold(model)
        after = model(codes).numpy()[:, 0]
    assert np.allclose(after, task.restore(before), rtol=1e-5)
    assert np.allclose(after, before * task.scale + task.shift, rtol=1e-5)


def test_other_tasks_keep_their_values() -> None:
    values = floats([1, 2])
    assert find_task("binary", floats([0, 1], [1, 0])).restore(values) is values


def test_cross_entropy_of_classes_without_missing_labels_is_torch_s_to_the_bit() -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 2, (256, 1)).float()
    gradients = []
    for loss in (functional.binary_cross_entropy_with_logits, find_task("binary").loss):
        torch.manual_seed(1)
        values = torch.randn(256, 1, requires_grad=True)
        found = loss(values, labels)
        found.backward()
        gradients.append((found.detach(), values.grad))
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert torch.equal(gradients[0][1], gradients[1][1])


def test_cross_entropy_of_classes_leaves_out_missing_labels_and_weighs_positives() -> None:
    labels = floats([1, NAN], [0, 1], [0, 0], [0, NAN])
    task = find_task("binary", labels, class_weights="balanced")
    assert task.weights == (3, 1)
    values = torch.tensor([[0.3, NAN], [1.0, -2.0], [0.0, 0.5], [-1.0, 7.0]])
    values[0, 1] = 5
    losses = [
        3 * math.log1p(math.exp(-0.3)),
        math.log1p(math.exp(1)),
        math.log(2),
        math.log1p(math.exp(-1)),
        math.log1p(math.exp(2)),
        math.log1p(math.exp(0.5)),
    ]
    assert task.loss(values, torch.from_numpy(labels)).item() == pytest.approx(sum(losses) / 6)


def test_weights_may_be_numbers() -> None:
    labels = floats([1, 0], [0, 1])
    assert find_task("binary", labels, class_weights="2.5").weights == (2.5, 2.5)
    assert find_task("binary", labels, class_weights="2.5,4").weights == (2.5, 4)
    assert find_task("binary", floats([0, 0], [0, 1]), class_weights="balanced").weights == (1, 1)


@pytest.mark.parametrize("name", ["regression", "binary", "profile"])
def test_a_batch_without_any_label_has_loss_0_and_no_gradient(name: str) -> None:
    labels = floats([0, 1], [1, 0])
    values = torch.randn(3, 2, requires_grad=True)
    loss = find_task(name, labels).loss(values, torch.full((3, 2), NAN))
    loss.backward()
    assert loss.item() == 0
    assert values.grad is not None
    assert not values.grad.any()


def test_cross_entropy_of_shares_by_hand() -> None:
    labels = floats([0.25, 0.75], [1, 0], [0.5, NAN])
    values = torch.tensor([[0.0, 0.0], [math.log(3), 0.0], [5.0, 5.0]])
    loss = find_task("profile").loss(values, torch.from_numpy(labels))
    assert loss.item() == pytest.approx((math.log(2) - math.log(0.75)) / 2)


def test_metrics_are_means_over_the_tracks_whose_labels_vary() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (50, 3)).astype(np.float32)
    labels[:, 1] = 0
    labels[::3, 2] = NAN
    values = (labels + rng.normal(size=labels.shape)).astype(np.float32)
    values[np.isnan(labels)] = 0
    known = ~np.isnan(labels[:, 2])
    first = binary_metrics(labels[:, 0], values[:, 0])
    third = binary_metrics(labels[known, 2], values[known, 2])
    task = find_task("binary")
    assert task.track_metrics(labels, values) == [first, {}, third]
    assert task.metrics(labels, values) == {
        name: pytest.approx((first[name] + third[name]) / 2) for name in first
    }
    with pytest.raises(DataError, match="constant labels: in none of 1 tracks"):
        task.metrics(labels[:, 1:2], values[:, 1:2])


def test_regression_metrics_per_track() -> None:
    labels, values = floats([1, 5], [2, 6], [3, NAN]), floats([1, 6], [2, 6], [4, 0])
    each = Task("regression").track_metrics(labels, values)
    assert each[0] == regression_metrics(labels[:, 0], values[:, 0])
    assert each[1]["MSE"] == pytest.approx(0.5)
    assert math.isnan(each[1]["Pearson"])  # the predictions are constant
    together = Task("regression").metrics(labels, values)
    assert together["Pearson"] == each[0]["Pearson"]
    assert together["MAE"] == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_a_profile_is_measured_on_whole_rows() -> None:
    task = find_task("profile")
    labels = floats([0.2, 0.8], [0.6, 0.4], [0.5, NAN])
    values = np.log(floats([0.2, 0.8], [0.6, 0.4], [0.5, 0.5]))
    found = task.metrics(labels, values)
    assert found["KL_divergence"] == pytest.approx(0, abs=1e-7)
    assert found["D2"] == pytest.approx(1)
    assert [track["R2"] for track in task.track_metrics(labels[:2], values[:2])] == [
        pytest.approx(1)
    ] * 2
    with pytest.raises(DataError, match="no labels"):
        task.metrics(labels[2:], values[2:])


@pytest.mark.parametrize(
    ("name", "labels", "weights", "message"),
    [
        ("ranking", floats([1], [2]), "none", "unknown task 'ranking'; there are regression"),
        ("regression", floats([1, 7], [2, 7]), "none", "constant labels: track 2: all 2 are 7"),
        ("regression", floats([1, NAN], [2, NAN]), "none", "track 2: none is known"),
        ("regression", floats([1], [math.inf]), "none", "track 1: infinite labels"),
        ("regression", floats([1], [2]), "balanced", "only binary labels have classes"),
        ("binary", floats([1], [2]), "none", "label 2 is neither 0 nor 1"),
        ("binary", floats([1], [0]), "heavy", "'heavy' are neither none, balanced"),
        ("binary", floats([1], [0]), "1,2", "one positive number or 1 of them"),
        ("binary", floats([1], [0]), "-1", "positive number"),
        ("profile", floats([1.5, -0.5], [0.5, 0.5]), "none", "track 2: label -0.5 is no share"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    name: str, labels: np.ndarray, weights: str, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        find_task(name, labels, class_weights=weights)
    assert "\n" not in str(caught.value)


def test_headlines_are_metrics_of_their_tasks() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(20, 2)).astype(np.float32)
    shares = rng.dirichlet([1, 1], 20).astype(np.float32)
    for name, labels in (
        ("regression", values * 2),
        ("binary", (values > 0).astype(np.float32)),
        ("profile", shares),
    ):
        task = find_task(name)
        assert task.headline in task.metrics(labels, values)
