"""Metrics of resampled rows, and the intervals they give; with counts of 1 they are those of all.

A resample of n rows is a count for each row, so nothing is sorted twice: ranks, ROC and
precision-recall curves of a resample are cumulative sums of its counts along the order of all
rows. 1,000 resamples of 40,000 rows take some seconds on one core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
# Metrics of counts [resamples, rows]: [resamples] of one track, [resamples, columns] of several.
Resampled = Callable[[Float64], dict[str, Float64]]

# Counts held at a time. On one core, 1,000 resamples of 40,000 rows took 1.3 / 2.4 / 2.5 s (binary)
# and 2.6 / 3.2 / 3.3 s (regression) with 64k / 256k / 1M counts: larger blocks leave the cache.
_COUNTS = 1 << 16
# Share of its second moment below which a variance is rounding: the values are equal.
_EQUAL = 1e-12


def bootstrap(
    metrics: Resampled, rows: int, *, resamples: int, seed: int, interval: float = 0.95
) -> dict[str, Float64]:
    """Metrics of all rows with percentile intervals over resampled rows.

    Parameters
    ----------
    metrics : callable
        Metrics, float64 ``[r, columns]``, of counts, float64 ``[r, rows]``; see :func:`by_track`.
    rows : int
        Rows to draw, with replacement, from as many.
    resamples : int
        0 gives no intervals (NaN).
    seed : int
        Of the draws; equal seeds give equal intervals.
    interval : float, optional
        Share of the resamples inside the interval. Resamples in which a metric is undefined (one
        class only, say) are left out of its interval.

    Returns
    -------
    dict of str to float64 array, [3, columns]
        Value, lower and upper bound of each metric; NaN where undefined.
    """
    values = metrics(np.ones((1, rows)))
    drawn: dict[str, list[Float64]] = {name: [] for name in values}
    for counts in _counts(rows, resamples, seed):
        for name, value in metrics(counts).items():
            drawn[name].append(value)
    return {
        name: np.concatenate([value, _bounds(np.concatenate([value[:0], *drawn[name]]), interval)])
        for name, value in values.items()
    }


def _bounds(values: Float64, interval: float) -> Float64:
    """Lower and upper percentiles ``[2, columns]`` of what is known of ``[r, columns]``."""
    tails = np.array([0.5 - interval / 2, 0.5 + interval / 2])
    bounds = np.full((2, values.shape[1]), np.nan)
    for track, column in enumerate(values.T):
        known = column[~np.isnan(column)]
        if known.size:
            bounds[:, track] = np.quantile(known, tails)
    return bounds


def _counts(rows: int, resamples: int, seed: int) -> Iterator[Float64]:
    """Counts ``[r, rows]`` of the resamples, some at a time; each resample is one draw of rows."""
    rng = np.random.default_rng(seed)
    block = max(_COUNTS // rows, 1)
    for first in range(0, resamples, block):
        yield np.stack(
            [
                np.bincount(rng.integers(0, rows, rows), minlength=rows).astype(np.float64)
                for _ in range(min(block, resamples - first))
            ]
        )


def by_track(
    one: Callable[[NDArray[Any], NDArray[Any]], Resampled],
    labels: NDArray[Any],
    values: NDArray[Any],
) -> Resampled:
    """Metrics of each track over its labeled rows; rows are resampled for all tracks together.

    Parameters
    ----------
    one : callable
        Makes the metrics of one track of its labels and values, ``[n]`` both.
    labels, values : array, [rows, tracks]
        NaN labels are missing; a track whose known labels are all equal has NaN metrics.

    Returns
    -------
    callable
        Metrics ``[r, tracks + 1]``: of each track, then their mean over the tracks that have them.
    """
    known = ~np.isnan(labels)
    tracks = {
        track: (np.flatnonzero(rows), one(labels[rows, track], values[rows, track]))
        for track, rows in enumerate(known.T)
        if rows.any() and np.ptp(labels[rows, track]) > 0
    }

    def metrics(counts: Float64) -> dict[str, Float64]:
        tables: dict[str, Float64] = {}
        for track, (rows, of_track) in tracks.items():
            for name, value in of_track(np.ascontiguousarray(counts[:, rows])).items():
                empty = np.full((len(counts), labels.shape[1]), np.nan)
                tables.setdefault(name, empty)[:, track] = value
        return {name: np.column_stack([table, _mean(table)]) for name, table in tables.items()}

    return metrics


def _mean(table: Float64) -> Float64:
    """Mean of what is known of each row; NaN where nothing is."""
    known = ~np.isnan(table)
    number = known.sum(axis=1)
    return np.where(number, np.where(known, table, 0).sum(axis=1) / np.maximum(number, 1), np.nan)


def binary(labels: NDArray[Any], scores: NDArray[Any], threshold: float = 0.0) -> Resampled:
    """Metrics of a binary track, as :func:`genomepred.evaluation.metrics.binary_metrics` tells.

    Parameters
    ----------
    labels, scores : array, [n]
        0 or 1; higher is more positive.
    threshold : float, optional
        Scores above it are called positive.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, is_positive = scores[order], (labels[order] > 0.5).astype(np.float64)
    ends = _ends(ranked)
    called = int(np.count_nonzero(ranked > threshold))

    def metrics(counts: Float64) -> dict[str, Float64]:
        kept = counts[:, order]
        everything, true = _cumulative(kept), _cumulative(kept * is_positive)
        positives, negatives = true[:, -1], everything[:, -1] - true[:, -1]
        tp, all_called = true[:, called], everything[:, called]
        true, everything = true[:, ends + 1], everything[:, ends + 1]
        false = everything - true
        gained = np.diff(true, axis=1, prepend=0)
        middle = true - gained / 2  # trapezoids: half of the ties count as ranked right
        roc = (np.diff(false, axis=1, prepend=0) * middle).sum(axis=1)
        prc = (gained * true / np.maximum(everything, 1)).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            areas = {"auROC": roc / (positives * negatives), "auPRC": prc / positives}
        areas["auPRC"][negatives == 0] = np.nan
        return areas | _confusion(tp, all_called - tp, positives, negatives)

    return metrics


def _confusion(
    tp: Float64, fp: Float64, positives: Float64, negatives: Float64
) -> dict[str, Float64]:
    tn, fn = negatives - fp, positives - tp
    product = (tp + fp) * (tn + fn) * positives * negatives
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "MCC": np.where(product > 0, (tp * tn - fp * fn) / np.sqrt(product), 0.0),
            "accuracy": (tp + tn) / (positives + negatives),
            "sensitivity": tp / positives,
            "specificity": tn / negatives,
        }


def regression(labels: NDArray[Any], values: NDArray[Any]) -> Resampled:
    """MSE, MAE, R2, Pearson and Spearman of a track; arguments ``[n]``."""
    center = labels.mean(dtype=np.float64)
    y, p = labels.astype(np.float64) - center, values.astype(np.float64) - center
    residual = y - p
    moments = np.stack([np.ones_like(y), residual**2, np.abs(residual), y, y * y], axis=1)
    rank_y, rank_p = _ranks(labels), _ranks(values)

    def metrics(counts: Float64) -> dict[str, Float64]:
        n, squares, absolutes, sum_y, sum_yy = (counts @ moments).T
        total = sum_yy - sum_y**2 / np.maximum(n, 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return {
                "MSE": squares / n,
                "MAE": absolutes / n,
                "R2": np.where(total > _EQUAL * sum_yy, 1 - squares / total, np.nan),
                "Pearson": _correlation(counts, y, p),
                "Spearman": _correlation(counts, rank_y(counts), rank_p(counts)),
            }

    return metrics


def profile(shares: NDArray[Any], predicted: NDArray[Any]) -> Resampled:
    """Metrics of shares of one whole: see :func:`genomepred.evaluation.metrics.profile_metrics`.

    Parameters
    ----------
    shares, predicted : array, [n, tracks]
        Shares; the sum of each row is 1.
    """
    y, p = shares.astype(np.float64), predicted.astype(np.float64)
    own, entropy = (y * _log(y)).sum(axis=1), -(y * _log(p)).sum(axis=1)
    numbers = np.arange(y.shape[1])
    of_center = regression(y @ numbers, p @ numbers)

    def metrics(counts: Float64) -> dict[str, Float64]:
        n = counts.sum(axis=1)
        mean = counts @ y / n[:, None]
        spread = counts @ own / n - (mean * _log(mean)).sum(axis=1)
        cross_entropy = counts @ entropy / n
        divergence = cross_entropy + counts @ own / n
        center = of_center(counts)
        with np.errstate(divide="ignore", invalid="ignore"):
            explained = np.where(spread > _EQUAL, 1 - divergence / spread, np.nan)
        return {
            "cross_entropy": cross_entropy,
            "KL_divergence": divergence,
            "D2": explained,
            "mean_fraction_R2": center["R2"],
            "mean_fraction_Pearson": center["Pearson"],
        }

    return metrics


def _log(shares: Float64) -> Float64:
    """Natural logarithm; where a share is 0, that of the least positive number."""
    logarithms: Float64 = np.log(np.maximum(shares, np.finfo(np.float64).tiny))
    return logarithms


def _correlation(counts: Float64, a: Float64, b: Float64) -> Float64:
    """Pearson correlation ``[r]`` of ``a`` and ``b``, ``[n]`` or ``[r, n]``, by counts ``[r, n]``.

    NaN where one of them is constant.
    """
    n = counts.sum(axis=1)

    def sums(x: Float64) -> Float64:
        total: Float64 = np.einsum("rn,rn->r" if x.ndim == 2 else "rn,n->r", counts, x)
        return total

    sum_a, sum_b, aa, bb, ab = sums(a), sums(b), sums(a * a), sums(b * b), sums(a * b)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance_a, variance_b = aa - sum_a**2 / n, bb - sum_b**2 / n
        correlation = (ab - sum_a * sum_b / n) / np.sqrt(variance_a * variance_b)
    varies = (variance_a > _EQUAL * aa) & (variance_b > _EQUAL * bb)
    return np.where(varies, correlation, np.nan)


def _ranks(values: NDArray[Any]) -> Callable[[Float64], Float64]:
    """Midranks ``[r, n]`` of counted values, their mean subtracted."""
    order = np.argsort(values, kind="stable")
    ends = _ends(values[order])
    group = np.empty(len(values), np.int64)
    group[order] = np.searchsorted(ends, np.arange(len(values)))

    def ranks(counts: Float64) -> Float64:
        bounds = _cumulative(counts[:, order])[:, np.append(0, ends + 1)]
        middle: Float64 = (bounds[:, :-1] + bounds[:, 1:] - bounds[:, -1:]) / 2
        return middle[:, group]

    return ranks


def _ends(ranked: NDArray[Any]) -> NDArray[np.int64]:
    """Position of the last of each run of equal values."""
    return np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)


def _cumulative(counts: Float64) -> Float64:
    """Sums ``[r, n + 1]`` of the first 0, 1, ... n counts of each resample."""
    sums = np.zeros((len(counts), counts.shape[1] + 1))
    np.cumsum(counts, axis=1, out=sums[:, 1:])
    return sums
