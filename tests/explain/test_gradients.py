"""Gradients: against finite differences, sums of integrated gradients, and the base order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genomepred.errors import ModelError
from genomepred.explain.gradients import METHODS, Attribution, Gradients
from genomepred.explain.windows import Output, Window
from genomepred.models.checkpoint import build
from genomepred.sequences.codes import Codes
from tests.explain.models import BASES, Profile, card_of, make, spread
from tests.helpers import examples


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_gradients_of_a_linear_model_are_its_weights_in_canonical_order() -> None:
    model = spread(build("linear", window=9, base_order="TGCA", n_policy="uniform"))
    output = Output(card_of(model))
    codes = np.array([0, 1, 2, 3, 4, 0, 1, 2, 3], np.uint8)
    weight = model.linear.weight.detach().numpy().reshape(9, 4)[:, ::-1]  # to A, C, G, T
    one_hot = np.vstack([np.eye(4), [0.25] * 4])[codes]
    find = {
        method: Gradients(model, output, method, baseline="uniform").attribute(codes[None], BASES)[
            0
        ]
        for method in METHODS
    }
    np.testing.assert_allclose(find["gradient"].values, weight, atol=1e-6)
    np.testing.assert_allclose(find["gradient-x-input"].values, weight * one_hot, atol=1e-6)
    from_uniform = weight * (one_hot - 0.25)
    np.testing.assert_allclose(find["integrated"].values, from_uniform, atol=1e-6)


def test_gradients_are_those_of_finite_differences() -> None:
    model = spread(Profile()).double()
    output = Output(card_of(model, activation="softmax"), "track1")
    codes = np.random.default_rng(0).integers(0, 5, 30, dtype=np.uint8)
    found = Gradients(model, output, "gradient").attribute(codes[None], slice(1, 4))[0].values
    x = model.encode(torch.from_numpy(codes)[None]).double()
    for place, channel in [(4, 0), (9, 3), (15, 1), (20, 2)]:
        sides = []
        for step in (-1e-4, 1e-4):
            moved = x.clone()
            moved[0, model.base_order.index("ACGT"[channel]), place] += step
            with torch.no_grad():
                sides.append(float(output.of(model.body(moved), slice(1, 4))))
        assert found[place, channel] == pytest.approx((sides[1] - sides[0]) / 2e-4, abs=1e-5)


@settings(max_examples=examples(20))
@given(
    seed=st.integers(0, 99),
    baseline=st.sampled_from(["zeros", "uniform"]),
    name=st.sampled_from(["tf-cnn", "utr-attention", "basenji-maize"]),
)
def test_integrated_gradients_sum_to_the_difference_from_the_baseline(
    seed: int, baseline: str, name: str
) -> None:
    model = make(name, window=64)
    codes = np.random.default_rng(seed).integers(0, 5, 64, dtype=np.uint8)
    integrated = Gradients(model, Output(model.card), "integrated", baseline=baseline, steps=400)
    (found,) = integrated.attribute(codes[None], BASES)
    with torch.no_grad():
        assert found.reference == pytest.approx(float(model(torch.from_numpy(codes)[None])))
        start = torch.full((1, 4, 64), 0.25 if baseline == "uniform" else 0.0)
        assert found.baseline == pytest.approx(float(model.body(start)))
    difference = found.reference - found.baseline
    assert found.values.sum() == pytest.approx(difference, abs=0.01 * (1 + abs(difference)))


def test_more_steps_come_closer() -> None:
    model = make("tf-cnn", window=64)
    codes = np.random.default_rng(0).integers(0, 4, 64, dtype=np.uint8)
    errors = []
    for steps in (2, 20, 500):
        integrated = Gradients(model, Output(model.card), "integrated", steps=steps)
        (found,) = integrated.attribute(codes[None], BASES)
        errors.append(abs(float(found.values.sum()) - (found.reference - found.baseline)))
    assert errors[0] > errors[1] > errors[2]


def test_the_number_of_steps_in_a_batch_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("tf-cnn", window=64)
    codes = np.random.default_rng(0).integers(0, 4, (2, 64), dtype=np.uint8)
    gradients = Gradients(model, Output(model.card), "integrated", steps=11)
    expected = gradients.attribute(codes, BASES)
    monkeypatch.setattr(gradients, "_batch", 3)
    for found, wanted in zip(gradients.attribute(codes, BASES), expected, strict=True):
        np.testing.assert_allclose(found.values, wanted.values, atol=1e-6)
        assert (found.reference, found.baseline) == (wanted.reference, wanted.baseline)


@pytest.mark.parametrize("method", METHODS)
def test_windows_are_computed_together_and_keep_their_order(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = spread(Profile())
    model.card = card_of(model)
    rng = np.random.default_rng(0)
    windows = [
        Window(f"w{i}", "c", 0, rng.integers(0, 5, 30, dtype=np.uint8), (5, 25 if i < 250 else 9))
        for i in range(300)
    ]
    gradients = Gradients(model, Output(model.card, "track1"), method, steps=5)
    single = Gradients(model, Output(model.card, "track1"), method, steps=5)
    monkeypatch.setattr(single, "_windows", 1)
    sizes: list[int] = []
    attribute = gradients.attribute

    def counted(codes: Codes, bins: slice) -> list[Attribution]:
        sizes.append(len(codes))
        return attribute(codes, bins)

    monkeypatch.setattr(gradients, "attribute", counted)
    pairs = list(zip(gradients.each(iter(windows)), single.each(iter(windows)), strict=True))
    assert [window for (window, _), _ in pairs] == windows
    for (_, found), (_, alone) in pairs:
        np.testing.assert_allclose(found.values, alone.values, atol=1e-5)
        np.testing.assert_allclose(found.reference, alone.reference, atol=1e-5)
        np.testing.assert_allclose(found.baseline, alone.baseline, atol=1e-5)
    # 250 windows of ten bins, then 50 of two; batches of 256 rows.
    assert sizes == ([51] * 4 + [46, 50] if method == "integrated" else [250, 50])


def test_a_model_given_codes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("tf-cnn", window=64)
    monkeypatch.setattr(model, "encode", lambda codes: codes.long())
    with pytest.raises(ModelError, match=r"given \[64\] numbers a window, not \[4, 64\].*use ism"):
        Gradients(model, Output(model.card), "gradient")
