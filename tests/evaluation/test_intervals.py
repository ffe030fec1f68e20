"""Bootstrap: metrics of counts are the metrics of the rows counted; intervals cover the truth."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genomepred.evaluation import intervals as bootstrap
from genomepred.evaluation.intervals import Resampled, binary, by_track, profile, regression
from tests.helpers import examples

sklearn = pytest.importorskip("sklearn.metrics")
stats = pytest.importorskip("scipy.stats")

Array = np.ndarray[Any, Any]


def by_hand_binary(labels: Array, scores: Array) -> dict[str, float]:
    called = scores > 0
    return {
        "auROC": sklearn.roc_auc_score(labels, scores),
        "auPRC": sklearn.average_precision_score(labels, scores),
        "MCC": sklearn.matthews_corrcoef(labels, called),
        "accuracy": sklearn.accuracy_score(labels, called),
        "sensitivity": sklearn.recall_score(labels, called),
        "specificity": sklearn.recall_score(1 - labels, ~called),
    }


def by_hand_regression(labels: Array, values: Array) -> dict[str, float]:
    return {
        "MSE": sklearn.mean_squared_error(labels, values),
        "MAE": sklearn.mean_absolute_error(labels, values),
        "R2": sklearn.r2_score(labels, values),
        "Pearson": stats.pearsonr(labels, values)[0],
        "Spearman": stats.spearmanr(labels, values)[0],
    }


def tied(seed: int, rows: int, step: float) -> tuple[Array, Array]:
    """Correlated values rounded to ``step``, so that there are ties."""
    rng = np.random.default_rng(seed)
    labels = rng.normal(size=rows)
    values = labels + rng.normal(size=rows)
    return tuple(np.round(x / step) * step for x in (labels, values))  # type: ignore[return-value]


@settings(max_examples=examples(60))
@given(
    seed=st.integers(0, 10_000), rows=st.integers(2, 60), step=st.sampled_from([1e-6, 0.25, 1.0])
)
@pytest.mark.parametrize(
    ("metrics", "by_hand"),
    [(binary, by_hand_binary), (regression, by_hand_regression)],
    ids=["binary", "regression"],
)
def test_metrics_of_counts_are_those_of_the_rows_repeated(
    metrics: Callable[[Array, Array], Resampled],
    by_hand: Callable[[Array, Array], dict[str, float]],
    seed: int,
    rows: int,
    step: float,
) -> None:
    labels, values = tied(seed, rows, step)
    if metrics is binary:
        labels = (labels > 0).astype(np.float64)
    counts = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=3)
    found = metrics(labels, values)(counts.astype(np.float64))
    for resample, count in enumerate(counts):
        drawn = np.repeat(labels, count), np.repeat(values, count)
        if any(np.ptp(x) == 0 for x in drawn):
            continue
        for name, expected in by_hand(*drawn).items():
            assert found[name][resample] == pytest.approx(expected, abs=1e-9), name


@settings(max_examples=examples(30))
@given(seed=st.integers(0, 10_000), rows=st.integers(3, 40))
def test_profiles_are_measured_as_a_whole(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    shares, predicted = rng.dirichlet(np.full(5, 0.7), size=(2, rows))
    counts = rng.multinomial(rows, np.full(rows, 1 / rows), size=3)
    found = profile(shares, predicted)(counts.astype(np.float64))
    for resample, count in enumerate(counts):
        y, p = np.repeat(shares, count, axis=0), np.repeat(predicted, count, axis=0)
        if np.count_nonzero(count) < 2:
            continue
        divergence = stats.entropy(y, p, axis=1).mean()
        spread = stats.entropy(y, np.broadcast_to(y.mean(axis=0), y.shape), axis=1).mean()
        centers = y @ np.arange(5), p @ np.arange(5)
        for name, expected in {
            "cross_entropy": divergence + stats.entropy(y, axis=1).mean(),
            "KL_divergence": divergence,
            "D2": 1 - divergence / spread,
            "mean_fraction_R2": sklearn.r2_score(*centers),
            "mean_fraction_Pearson": stats.pearsonr(*centers)[0],
        }.items():
            # Few rows that hardly differ give an R2 of thousands.
            assert found[name][resample] == pytest.approx(expected, rel=1e-8, abs=1e-9), name


def test_shares_of_nothing_are_finite() -> None:
    shares = np.array([[1.0, 0, 0], [0, 0, 1]])
    found = profile(shares, np.array([[0.5, 0.5, 0], [0, 0, 1]]))(np.ones((1, 2)))
    assert found["KL_divergence"] == pytest.approx(np.log(2) / 2)
    assert found["D2"] == pytest.approx(0.5)


def test_what_one_class_or_constant_values_leave_undefined_is_nan() -> None:
    labels, scores = np.array([1.0, 1, 0]), np.array([2.0, -1, 1])
    found = binary(labels, scores)(np.array([[2.0, 1, 0], [0, 0, 3]]))
    for name in ("auROC", "auPRC"):
        assert np.isnan(found[name]).all()
    assert found["sensitivity"] == pytest.approx([2 / 3, math.nan], nan_ok=True)
    assert found["MCC"].tolist() == [0, 0]
    found = regression(np.array([1.1, 1.1, 3.3]), scores)(np.array([[2.0, 1, 0], [0, 0, 3]]))
    for name in ("R2", "Pearson", "Spearman"):
        assert np.isnan(found[name]).all(), name
    assert found["MAE"] == pytest.approx([(0.9 * 2 + 2.1) / 3, 2.3])


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        labels = rng.normal(size=80)
        values = 0.6 * labels + 0.8 * rng.normal(size=80)
        metrics = by_track(regression, labels[:, None], values[:, None])
        _, low, high = bootstrap.bootstrap(metrics, 80, resamples=300, seed=seed)["Pearson"][:, 0]
        covered += bool(low <= 0.6 <= high)
    assert 0.89 <= covered / 200 <= 0.99


def test_equal_seeds_give_equal_intervals_whatever_the_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels, values = (x[:, None] for x in tied(0, 50, 1e-6))

    def intervals(seed: int) -> Array:
        metrics = by_track(regression, labels, values)
        return bootstrap.bootstrap(metrics, 50, resamples=40, seed=seed)["MSE"]

    first = intervals(1)
    assert np.array_equal(first, intervals(1))
    assert not np.array_equal(first[1:], intervals(2)[1:])
    monkeypatch.setattr(bootstrap, "_COUNTS", 150)
    assert np.allclose(first, intervals(1), atol=1e-12)


def test_missing_labels_are_left_out_track_by_track() -> None:
    labels, values = (np.stack([x, -2 * x + 1], 1) for x in tied(3, 40, 1e-6))
    labels[::3, 0] = np.nan
    labels = np.column_stack([labels, np.full(40, np.nan), np.full(40, 2.5)])
    values = np.column_stack([values, values])
    found = bootstrap.bootstrap(by_track(regression, labels, values), 40, resamples=20, seed=0)
    kept = ~np.isnan(labels[:, 0])
    for name, expected in by_hand_regression(labels[kept, 0], values[kept, 0]).items():
        assert found[name][0, 0] == pytest.approx(expected)
        assert found[name][0, 4] == pytest.approx(found[name][0, :2].mean())
        assert np.isnan(found[name][:, 2:4]).all()
        assert (found[name][1, :2] < found[name][0, :2]).all()
        assert (found[name][0, :2] < found[name][2, :2]).all()


def test_no_resamples_give_no_intervals() -> None:
    labels, values = (x[:, None] for x in tied(0, 20, 1e-6))
    found = bootstrap.bootstrap(by_track(regression, labels, values), 20, resamples=0, seed=0)
    assert np.isfinite(found["MSE"][0]).all()
    assert np.isnan(found["MSE"][1:]).all()
