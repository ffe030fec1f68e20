from __future__ import annotations

import csv
import io
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from genomepred.data.examples import Codes, Examples
from genomepred.errors import DataError, ModelError, OutputError
from genomepred.evaluation.metrics import binary_metrics
from genomepred.models.checkpoint import build
from genomepred.models.layers import SequenceModel
from genomepred.training.fit import (
    HISTORY,
    PREVIOUS,
    STATE,
    Epoch,
    Fit,
    Settings,
    _read_state,
    _Trainer,
    fit,
    raw_predictor,
)
from genomepred.training.tasks import Task, find_task

W = 24
MOTIF = np.array([1, 1, 0, 2, 1, 0, 2], np.uint8)  # CCAGCAG
BINARY = find_task("binary")


class Planted:
    """Random sequences; half of them, labeled 1, hold the motif somewhere."""

    window, tracks, task = W, ("motif",), "binary"

    def __init__(self, size: int) -> None:
        self.size = size

    def examples(self, seed: int) -> Examples:
        rng = np.random.default_rng(seed)
        codes: Codes = rng.integers(0, 4, (2 * self.size, W), dtype=np.uint8)
        for row in range(self.size):
            at = rng.integers(0, W - len(MOTIF))
            codes[row, at : at + len(MOTIF)] = MOTIF
        labels = (np.arange(2 * self.size) < self.size).astype(np.float32)[:, None]
        return Examples(codes, labels).take(rng.permutation(2 * self.size))

    def epoch(self, number: int) -> Examples:
        return self.examples(number)

    def validation(self) -> Examples:
        return self.examples(999)

    def test(self) -> dict[str, Examples]:
        return {"test": self.examples(12345)}

    def facts(self) -> dict[str, object]:
        return {}


def make_model(seed: int = 0) -> SequenceModel:
    torch.manual_seed(seed)
    return build("tf-cnn-v2", window=W, filters=16, kernel=8, hidden=[16])  # has dropout


def weights(model: SequenceModel) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("optimizer", [pytest.param("adam", marks=pytest.mark.slow), "adamw"])
def test_a_planted_motif_is_learned(tmp_path: Path, optimizer: str) -> None:
    model = make_model()
    settings = Settings(epochs=6, batch_size=64, learning_rate=3e-3, optimizer=optimizer)
    course = fit(model, Planted(1000), BINARY, settings, out=tmp_path)
    held_out = Planted(500).test()["test"]
    metrics = binary_metrics(held_out.labels, raw_predictor(model).predict(held_out.codes))
    assert metrics["auROC"] > 0.9
    assert not model.training
    with open(tmp_path / HISTORY, newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("epoch", "loss", "validation_loss"),
        *("auROC", "auPRC", "MCC", "accuracy", "sensitivity", "specificity"),
        *("learning_rate", "seconds"),
    ]
    assert [int(row["epoch"]) for row in rows] == list(range(len(course.epochs)))
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert [float(row["auPRC"]) for row in rows] == [epoch.score for epoch in course.epochs]


def test_a_regression_is_learned_on_its_own_scale() -> None:
    class Shifted(Planted):
        def examples(self, seed: int) -> Examples:
            found = super().examples(seed)
            return Examples(found.codes, found.labels * 1000 - 5e4)

    data = Shifted(1000)
    task = find_task("regression", data.epoch(0).labels)
    model = make_model()
    course = fit(model, data, task, Settings(epochs=4, batch_size=64, learning_rate=3e-3))
    best = course.best_epoch
    assert best.metrics["R2"] > 0.4
    assert best.validation_loss == pytest.approx(best.metrics["MSE"] / 500**2, rel=1e-3)
    task.fold(model)
    held_out = data.validation()
    values = raw_predictor(model).predict(held_out.codes)[:, 0]
    assert task.metrics(held_out.labels, values)["R2"] == pytest.approx(best.score, abs=1e-4)


def test_the_same_seed_gives_the_same_weights() -> None:
    settings = Settings(epochs=2, batch_size=32)
    first, again, other = make_model(3), make_model(3), make_model(4)
    for model in (first, again, other):
        fit(model, Planted(100), BINARY, settings)
    assert same(weights(first), weights(again))
    assert not same(weights(first), weights(other))


def test_another_seed_drops_other_units() -> None:
    first, other = make_model(3), make_model(3)
    fit(first, Planted(100), BINARY, Settings(epochs=1, batch_size=32))
    fit(other, Planted(100), BINARY, Settings(epochs=1, batch_size=32, seed=1))
    assert not same(weights(first), weights(other))


class Scripted(Task):
    """Scores that are given, whatever the model does."""

    def metrics(self, labels: object, values: object) -> dict[str, float]:
        SEEN.append(None)
        return {"auPRC": SCORES[len(SEEN) - 1]}


SCORES = [0.5, 0.7, 0.6, 0.7, 0.1, 0.9]
SEEN: list[None] = []


def test_the_weights_of_the_best_epoch_are_kept_and_training_stops_without_improvement() -> None:
    SEEN.clear()
    model = make_model()
    settings = Settings(epochs=6, batch_size=32, patience=3)
    course = fit(model, Planted(64), Scripted("binary"), settings)
    assert [epoch.score for epoch in course.epochs] == SCORES[:5]
    assert course.best_epoch.epoch == 1
    assert same(weights(model), list(course.best.values()))
    assert not same(weights(model), list(course.last.values()))
    # The rate's course depends on all epochs asked for; two epochs of six are the same.
    SEEN.clear()
    again = make_model()
    with pytest.raises(_StopError):
        fit(again, _Until(64, 2), Scripted("binary"), settings)
    assert same(weights(again), weights(model))


class _StopError(Exception):
    pass


class _From(Planted):
    """Data that begin with an epoch."""

    def __init__(self, size: int, first: int) -> None:
        super().__init__(size)
        self.first = first

    def epoch(self, number: int) -> Examples:
        assert number >= self.first
        return super().epoch(number)


class _Until(Planted):
    """Data that end before an epoch."""

    def __init__(self, size: int, last: int) -> None:
        super().__init__(size)
        self.last = last

    def epoch(self, number: int) -> Examples:
        if number == self.last:
            raise _StopError
        return super().epoch(number)


# Going on


def test_a_stopped_training_goes_on_to_the_same_end(tmp_path: Path) -> None:
    settings = Settings(epochs=5, batch_size=32, learning_rate=3e-3)
    for folder in "ab":
        (tmp_path / folder).mkdir()
    whole = make_model()
    undisturbed = fit(whole, Planted(100), BINARY, settings, out=tmp_path / "a")
    for last in (1, 3):
        with pytest.raises(_StopError):
            fit(make_model(), _Until(100, last), BINARY, settings, out=tmp_path / "b")
    model = make_model(seed=7)  # its weights come from the state
    course = fit(model, Planted(100), BINARY, settings, out=tmp_path / "b")
    assert same(weights(model), weights(whole))
    assert same(list(course.last.values()), list(undisturbed.last.values()))
    assert [r.metrics for r in course.epochs] == [r.metrics for r in undisturbed.epochs]
    assert [r.loss for r in course.epochs] == [r.loss for r in undisturbed.epochs]
    tables = [(tmp_path / x / HISTORY).read_text().splitlines() for x in "ab"]
    assert [line.rpartition(",")[0] for line in tables[0]] == [
        line.rpartition(",")[0] for line in tables[1]
    ]


def test_a_finished_state_trains_no_further(tmp_path: Path) -> None:
    settings = Settings(epochs=2, batch_size=32)
    first, again = make_model(), make_model(1)
    fit(first, Planted(64), BINARY, settings, out=tmp_path)
    fit(again, _Until(64, 2), BINARY, settings, out=tmp_path)
    assert same(weights(first), weights(again))


def test_the_state_holds_nothing_but_tensors_and_plain_values(tmp_path: Path) -> None:
    fit(make_model(), Planted(64), BINARY, Settings(epochs=1, batch_size=32), out=tmp_path)
    state = read_state(tmp_path)
    assert set(state) == {"of", "model", "best", "optimizer", "scaler", "step", "epochs"}
    assert state["step"] == 4


def read_state(folder: Path, name: str = STATE) -> dict[str, Any]:
    packed = _read_state(folder / name)
    assert packed is not None
    state: dict[str, Any] = torch.load(io.BytesIO(packed), weights_only=True)
    return state


Damage = Callable[[bytes], bytes]


def flipped(at: float) -> Damage:
    def flip(whole: bytes) -> bytes:
        place = min(int(at * len(whole)), len(whole) - 1)
        return whole[:place] + bytes([whole[place] ^ 0x20]) + whole[place + 1 :]

    return flip


DAMAGES: list[Damage] = [
    *map(flipped, (0.0, 0.004, 0.01, 0.3, 0.5, 0.7, 0.9, 1.0)),
    *(lambda whole: b"", lambda whole: b"no state", lambda whole: whole[: len(whole) // 2]),
]


THREE = Settings(epochs=3, batch_size=32)


@pytest.fixture(scope="module")
def whole() -> list[torch.Tensor]:
    """Weights after three epochs that nothing stopped."""
    torch.set_num_threads(1)
    model = make_model()
    fit(model, Planted(64), BINARY, THREE)
    return weights(model)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a training that was stopped in its third epoch; to be copied."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(_StopError):
        fit(make_model(), _Until(64, 2), BINARY, THREE, out=folder)
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("both", [False, True])
def test_a_damaged_state_is_told_and_training_ends_the_same(
    whole: list[torch.Tensor],
    stopped: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Damage,
    both: bool,
) -> None:
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    assert len(read_state(tmp_path, PREVIOUS)["epochs"]) == 1
    for name in (STATE, PREVIOUS) if both else (STATE,):
        (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    capsys.readouterr()
    model = make_model()
    fit(model, Planted(64), BINARY, THREE, out=tmp_path)
    assert same(weights(model), whole)
    told = capsys.readouterr().err
    assert "state.pt is damaged" in told
    assert ("starts again" if both else "the state before, of 1 epochs") in told


def test_a_kill_between_both_states_leaves_the_one_before(
    whole: list[torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace

    def stopping(source: Path, target: Path) -> None:
        real(source, target)
        raise _StopError

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stopping)
        with pytest.raises(_StopError):
            fit(make_model(), Planted(64), BINARY, THREE, out=tmp_path)
    assert not (tmp_path / STATE).exists()
    model = make_model()
    fit(model, _From(64, 1), BINARY, THREE, out=tmp_path)
    assert same(weights(model), whole)


def test_a_state_of_other_settings_is_refused(tmp_path: Path) -> None:
    settings = Settings(epochs=1, batch_size=32)
    fit(make_model(), Planted(64), BINARY, settings, out=tmp_path)
    with pytest.raises(OutputError, match="of another training"):
        fit(make_model(), Planted(64), BINARY, replace(settings, epochs=2), out=tmp_path)


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    settings = Settings(epochs=1, batch_size=32)
    fit(make_model(), Planted(64), BINARY, settings, out=tmp_path)
    other = build("tf-cnn", window=W, filters=4, hidden=[16])
    with pytest.raises(OutputError, match="of another training") as caught:
        fit(other, Planted(64), BINARY, settings, out=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_line(small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(4_180_000))
    with pytest.raises(OutputError, match="full") as caught:
        fit(make_model(), Planted(64), BINARY, Settings(epochs=1), out=small_disk)
    assert "\n" not in str(caught.value)
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


LONG = Settings(epochs=8, batch_size=16, learning_rate=3e-3, patience=8)


class Halting(Planted):
    """Data that, in the fifth epoch, say so by a file and come no more."""

    def __init__(self, size: int, halted: Path) -> None:
        super().__init__(size)
        self.halted = halted

    def epoch(self, number: int) -> Examples:
        if number == 4:
            self.halted.touch()
            signal.pause()
        return super().epoch(number)


def train_long(out: Path, data: Planted) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    fit(make_model(), data, BINARY, LONG, out=out)


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_killed_process_loses_at_most_the_running_epoch(tmp_path: Path, number: int) -> None:
    out, halted = tmp_path / "out", tmp_path / "halted"
    out.mkdir()

    def epochs() -> int:
        try:
            return len((out / HISTORY).read_text().splitlines()) - 1
        except FileNotFoundError:
            return 0

    data = Halting(100, halted)
    process = get_context("spawn").Process(target=train_long, args=(out, data))
    process.start()
    while not halted.exists():
        assert process.is_alive()
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == -number
    assert epochs() == len(read_state(out)["epochs"]) == 4
    fit(make_model(seed=7), Planted(100), BINARY, LONG, out=out)
    undisturbed = fit(make_model(), Planted(100), BINARY, LONG)
    state = read_state(out)
    assert same(list(state["model"].values()), list(undisturbed.last.values()))
    assert same(list(state["best"].values()), list(undisturbed.best.values()))
    assert epochs() == 8


# Steps


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
    fit(model, Planted(64), BINARY, Settings(epochs=1, batch_size=32, clip=1e-3))
    assert len(norms) == 4
    assert max(norms) <= 1e-3 * 1.001


class Broken(Task):
    """A loss that is no number."""

    def loss(self, values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return super().loss(values, labels) * math.nan


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "warmup", "clip"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_settings_that_are_not_finite_are_refused(name: str, value: float) -> None:
    with pytest.raises(DataError, match=f"--{name.replace('_', '-')} {value} asked for"):
        Settings(**{name: value})


def test_a_loss_that_is_not_a_number_stops_the_training() -> None:
    with pytest.raises(ModelError, match=r"loss is nan at step 0; lower the learning rate"):
        fit(make_model(), Planted(64), Broken("binary"), Settings(epochs=1))


def test_predictions_that_are_not_numbers_stop_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = torch.optim.AdamW.step

    def explode(self: torch.optim.AdamW, *args: object) -> object:
        with torch.no_grad():
            self.param_groups[0]["params"][-1].fill_(math.inf)
        return step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", explode)
    with pytest.raises(ModelError, match="predictions are not finite after epoch 0"):
        fit(make_model(), Planted(64), BINARY, Settings(epochs=1))


def test_fewer_examples_than_a_batch_are_one_batch() -> None:
    course = fit(make_model(), Planted(10), BINARY, Settings(epochs=1, batch_size=512))
    assert math.isfinite(course.epochs[0].loss)


@pytest.mark.parametrize("precision", [pytest.param("bf16", marks=pytest.mark.slow), "fp16"])
def test_half_precision_learns_with_fp32_weights_and_goes_on_to_the_same_end(
    tmp_path: Path, precision: str
) -> None:
    model, stopped, plain = make_model(), make_model(), make_model()
    settings = Settings(epochs=3, batch_size=32, learning_rate=3e-3, precision=precision)
    course = fit(model, Planted(200), BINARY, settings)
    assert course.epochs[-1].loss < course.epochs[0].loss
    assert all(tensor.dtype != torch.float16 for tensor in model.state_dict().values())
    assert all(tensor.dtype != torch.bfloat16 for tensor in model.state_dict().values())
    fit(plain, Planted(200), BINARY, replace(settings, precision="auto"))
    assert not same(weights(model), weights(plain))
    with pytest.raises(_StopError):
        fit(stopped, _Until(200, 2), BINARY, settings, out=tmp_path)
    fit(stopped, Planted(200), BINARY, settings, out=tmp_path)
    assert same(weights(model), weights(stopped))


def test_steps_whose_scaled_gradients_overflow_are_left_out(tmp_path: Path) -> None:
    model = make_model()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    trainer = _Trainer(model, BINARY, Settings(precision="fp16"))
    trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 2.0**127})
    trainer._step(Planted(32).epoch(0), 1)
    assert same(before, list(model.parameters()))
    assert trainer.scaler.get_scale() == 2.0**126


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["auto", "fp16", "bf16", "fp32"])
def test_a_gpu_trains_and_goes_on_in_every_precision(tmp_path: Path, precision: str) -> None:
    settings = Settings(epochs=4, batch_size=64, learning_rate=3e-3, precision=precision)
    with pytest.raises(_StopError):
        fit(make_model().cuda(), _Until(500, 2), BINARY, settings, out=tmp_path)
    course = fit(make_model(1).cuda(), Planted(500), BINARY, settings, out=tmp_path)
    assert len(course.epochs) == 4
    assert course.epochs[-1].loss < course.epochs[0].loss
    assert course.best_epoch.score > 0.7


# Values and epochs


def test_raw_values_are_the_models_own_however_rows_are_laid_out() -> None:
    model = make_model().eval()
    codes = np.random.default_rng(0).integers(0, 5, 200, dtype=np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(codes, W)[::3]
    windows.flags.writeable = False
    with torch.no_grad():
        expected = model(torch.from_numpy(np.array(windows))).numpy()
    assert expected.shape == (len(windows), 1, 1)
    np.testing.assert_allclose(raw_predictor(model, 7).predict(windows), expected, atol=1e-6)


def epoch_of(number: int, score: float, loss: float = 0.0) -> Epoch:
    return Epoch(number, 0.0, loss, {}, score, 0.0, 0.0)


def test_of_equal_epochs_the_first_is_the_best() -> None:
    course = Fit([epoch_of(i, score) for i, score in enumerate([0.1, 0.3, 0.3])])
    assert course.best_epoch.epoch == 1


def test_an_undefined_score_is_below_all_others() -> None:
    scores = [math.nan, -0.2, math.nan, -0.1]
    epochs = [epoch_of(i, score, loss=-i) for i, score in enumerate(scores)]
    assert [Fit(epochs[: i + 1]).best_epoch.epoch for i in range(4)] == [0, 1, 1, 3]
    # Where none is defined the loss is all that is known.
    losses = [0.5, 0.3, 0.4, 0.3]
    undefined = Fit([epoch_of(i, math.nan, loss) for i, loss in enumerate(losses)])
    assert undefined.best_epoch.epoch == 1
    assert undefined.is_over(Settings(epochs=9, patience=2))


def test_a_training_whose_first_score_is_undefined_keeps_the_best_defined_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    SEEN.clear()
    monkeypatch.setattr("tests.training.test_fit.SCORES", [math.nan, 0.2, 0.1])
    model = make_model()
    course = fit(model, Planted(64), Scripted("binary"), Settings(epochs=3, batch_size=32))
    assert course.best_epoch.epoch == 1
    assert same(weights(model), list(course.best.values()))


@pytest.mark.parametrize(
    ("scores", "is_over"),
    [([], False), ([0.1], False), ([0.3, 0.1], False), ([0.3, 0.1, 0.2], True), ([0] * 3, True)],
)
def test_training_is_over_after_the_epochs_or_the_patience(
    scores: list[float], is_over: bool
) -> None:
    course = Fit([epoch_of(i, score) for i, score in enumerate(scores)])
    assert course.is_over(Settings(epochs=9, patience=2)) == is_over
    assert course.is_over(Settings(epochs=3, patience=9)) == (len(scores) == 3)
