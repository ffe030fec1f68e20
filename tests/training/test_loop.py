from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from genomepred.errors import ModelError
from genomepred.models import build
from genomepred.models.layers import SequenceModel
from genomepred.training.data import Codes, Examples, labelled
from genomepred.training.loop import Epoch, Settings, best_epoch, fit, raw_values
from genomepred.training.metrics import au_prc, binary_metrics

W = 24
MOTIF = np.array([1, 1, 0, 2, 1, 0, 2], np.uint8)  # CCAGCAG


class Planted:
    """Random sequences; the positives hold the motif somewhere."""

    def __init__(self, size: int) -> None:
        self.size = size

    def examples(self, seed: int) -> Examples:
        rng = np.random.default_rng(seed)
        codes: Codes = rng.integers(0, 4, (2 * self.size, W), dtype=np.uint8)
        for row in range(self.size):
            at = rng.integers(0, W - len(MOTIF))
            codes[row, at : at + len(MOTIF)] = MOTIF
        examples = labelled(codes[: self.size], codes[self.size :])
        order = rng.permutation(len(examples))
        return Examples(examples.codes[order], examples.labels[order])

    def epoch(self, number: int) -> Examples:
        return self.examples(number)

    def validation(self) -> Examples:
        return self.examples(999)


def make_model(seed: int = 0) -> SequenceModel:
    torch.manual_seed(seed)
    return build("tf-cnn", window=W, filters=16, kernel=8, hidden=[16])


def weights(model: SequenceModel) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_planted_motif_is_learned(tmp_path: Path) -> None:
    model = make_model()
    settings = Settings(epochs=6, batch_size=64, learning_rate=3e-3)
    epochs = fit(model, Planted(1000), au_prc, settings, history=tmp_path / "history.csv")
    held_out = Planted(500).examples(12345)
    metrics = binary_metrics(held_out.labels, raw_values(model, held_out.codes))
    assert metrics["auROC"] > 0.9
    assert not model.training
    with open(tmp_path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(len(epochs)))
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])


def test_the_same_seed_gives_the_same_weights() -> None:
    settings = Settings(epochs=2, batch_size=32)
    first, again, other = make_model(3), make_model(3), make_model(4)
    for model in (first, again, other):
        fit(model, Planted(100), au_prc, settings)
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(again), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(first), weights(other), strict=True))


def test_the_weights_of_the_best_epoch_are_kept_and_training_stops_without_improvement() -> None:
    scores = iter([0.5, 0.7, 0.6, 0.7, 0.1, 0.9])
    seen: list[list[torch.Tensor]] = []
    model = make_model()

    def metric(labels: object, values: object) -> float:
        seen.append(weights(model))
        return next(scores)

    epochs = fit(model, Planted(64), metric, Settings(epochs=6, batch_size=32, patience=3))
    assert [epoch.metric for epoch in epochs] == [0.5, 0.7, 0.6, 0.7, 0.1]
    assert best_epoch(epochs) == 1
    assert all(torch.equal(a, b) for a, b in zip(weights(model), seen[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(model), seen[-1], strict=True))


def test_learning_rate_rises_then_falls_to_zero() -> None:
    cosine = Settings(learning_rate=1.0, warmup=0.01)
    assert cosine.rate(0, 1000) == pytest.approx(0.1)
    assert cosine.rate(9, 1000) == pytest.approx(1.0, abs=1e-3)
    assert cosine.rate(500, 1000) == pytest.approx(0.5)
    assert cosine.rate(1000, 1000) == pytest.approx(0)
    constant = Settings(learning_rate=1.0, warmup=0.01, schedule="constant")
    assert constant.rate(4, 1000) == pytest.approx(0.5)
    assert constant.rate(999, 1000) == 1


def test_gradients_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = torch.optim.AdamW.step
    model = make_model()

    def recording(self: torch.optim.AdamW, *args: object) -> object:
        grads = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        norms.append(float(torch.stack(grads).norm()))
        return step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", recording)
    fit(model, Planted(64), au_prc, Settings(epochs=1, batch_size=32, clip=1e-3))
    assert len(norms) == 4
    assert max(norms) <= 1e-3 * 1.001


def test_a_loss_that_is_not_a_number_stops_the_training() -> None:
    with pytest.raises(ModelError, match=r"loss is nan at step 0; lower the learning rate"):
        fit(
            make_model(),
            Planted(64),
            au_prc,
            Settings(epochs=1),
            loss=lambda values, labels: functional.mse_loss(values, labels) * math.nan,
        )


def test_fewer_examples_than_a_batch_are_one_batch() -> None:
    epochs = fit(make_model(), Planted(10), au_prc, Settings(epochs=1, batch_size=512))
    assert math.isfinite(epochs[0].loss)


def test_raw_values_do_not_depend_on_how_rows_are_laid_out() -> None:
    model = make_model().eval()
    codes = np.random.default_rng(0).integers(0, 5, 200, dtype=np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(codes, W)[::3]
    windows.flags.writeable = False
    expected = raw_values(model, np.ascontiguousarray(windows), batch_size=1000)
    assert expected.shape == (len(windows), 1, 1)
    assert np.allclose(raw_values(model, windows, batch_size=7), expected, atol=1e-6)


def test_of_equal_epochs_the_first_is_the_best() -> None:
    assert best_epoch([Epoch(i, 0.0, m, 0.0, 0.0) for i, m in enumerate([0.1, 0.3, 0.3])]) == 1
