"""Metrics: of labeled examples, and of the map a model draws of a genome.

Scores are raw values: any increasing function of them gives the same metrics but for the
thresholds, and unlike probabilities they have no ties near 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from genomepred.data.examples import Codes
from genomepred.errors import DataError
from genomepred.evaluation.intervals import Resampled, binary, profile, regression
from genomepred.sequences.grid import Region, real_counts

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

# Windows that are predicted together, so that many small regions cost no more than one large one.
_SCANNED = 4096


def binary_metrics(
    labels: NDArray[Any], scores: NDArray[Any], threshold: float = 0.0
) -> dict[str, float]:
    """Metrics of one binary track.

    Parameters
    ----------
    labels : array, [n] or [n, 1]
        0 or 1.
    scores : array, [n] or [n, 1]
        Higher is more positive.
    threshold : float, optional
        Scores above it are called positive; 0 is probability 0.5 of a logit.

    Returns
    -------
    dict
        auROC, auPRC, MCC, accuracy, sensitivity, specificity.

    Raises
    ------
    DataError
        If all labels are equal.
    """
    labels, scores = labels.reshape(-1), scores.reshape(-1)
    _check_labels(labels)
    return _once(binary(labels, scores, threshold), len(labels))


def regression_metrics(labels: NDArray[Any], predictions: NDArray[Any]) -> dict[str, float]:
    """Metrics of one track of measured values.

    Parameters
    ----------
    labels, predictions : array, [n]
        In the same unit.

    Returns
    -------
    dict
        MSE, MAE, R2 (1 - squared error / variance), Pearson, Spearman; a correlation is NaN if the
        predictions are constant.

    Raises
    ------
    DataError
        If all labels are equal.
    """
    _check_labels(labels)
    return _once(regression(labels, predictions), len(labels))


def profile_metrics(labels: NDArray[Any], values: NDArray[Any]) -> dict[str, float]:
    """Metrics of shares of one whole, such as the fractions of a polysome profile.

    Parameters
    ----------
    labels : array, [n, tracks]
        Shares; the sum of each row is 1.
    values : array, [n, tracks]
        Logits.

    Returns
    -------
    dict
        cross_entropy and KL_divergence (nats a row), D2 (share of the divergence from the mean
        profile that the predictions explain), and mean_fraction_R2 and mean_fraction_Pearson, of
        the mean track number weighted by the shares: the mean ribosome load of a polysome profile,
        up to its scale.

    Raises
    ------
    DataError
        If all rows are equal.
    """
    if not np.ptp(labels, axis=0).any():
        raise DataError(f"constant labels: all {len(labels)} profiles are equal")
    return _once(profile(labels, softmax(values)), len(labels))


def _once(metrics: Resampled, rows: int) -> dict[str, float]:
    """Metrics of all rows, each counted once."""
    return {name: float(value[0]) for name, value in metrics(np.ones((1, rows))).items()}


def _check_labels(labels: NDArray[Any]) -> None:
    if len(np.unique(labels)) < 2:
        raise DataError(f"constant labels: all {labels.size} are {float(labels.flat[0]):g}")


def softmax(values: NDArray[Any]) -> Float64:
    """Shares ``[n, tracks]`` of logits ``[n, tracks]``."""
    exponentials = np.exp(values.astype(np.float64) - values.max(axis=1, keepdims=True))
    shares: Float64 = exponentials / exponentials.sum(axis=1, keepdims=True)
    return shares


@dataclass(frozen=True)
class Sites:
    """Predicted sites of some regions, best first.

    Parameters
    ----------
    scores : float32 array, [sites]
        Raw value at the site.
    found : int64 array, [sites]
        Known peaks that the site's center lies in; none of them holds another site's.
    peaks : int
        Known peaks that lie inside the regions.
    megabases : float
        Known bases of the regions, in millions.
    """

    scores: Float32
    found: Int64
    peaks: int
    megabases: float

    @property
    def is_known(self) -> NDArray[np.bool_]:
        """Whether each site's center lies in a known peak."""
        return self.found > 0

    @property
    def recall(self) -> Float64:
        """Share of the peaks that the best 1, 2, ... sites find."""
        return np.cumsum(self.found) / self.peaks

    @property
    def precision(self) -> Float64:
        """Share of the best 1, 2, ... sites that lie in a peak."""
        return np.cumsum(self.is_known) / np.arange(1, len(self.scores) + 1)

    def best_threshold(self) -> float:
        """Score that maximizes F1, the harmonic mean of precision and recall."""
        if not len(self.scores):
            return float("inf")
        precision, recall = self.precision, self.recall
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        return float(self.scores[np.argmax(f1)])

    def at(self, threshold: float) -> dict[str, float]:
        """Number, precision and recall of the sites that score at least ``threshold``."""
        count = int(np.count_nonzero(self.scores >= threshold))
        return {
            "sites": count,
            "precision": float(self.precision[count - 1]) if count else 0.0,
            "recall": float(self.recall[count - 1]) if count else 0.0,
        }

    def recall_at(self, false_per_megabase: float) -> float:
        """Recall of as many best sites as bring at most so many false ones a megabase."""
        allowed = false_per_megabase * self.megabases
        kept = np.cumsum(~self.is_known) <= allowed
        return float(self.found[kept].sum()) / self.peaks


def find_sites(
    predict: Callable[[Codes], Float32],
    contigs: dict[str, Codes],
    regions: Sequence[Region],
    peaks: Sequence[Region],
    *,
    window: int,
    stride: int,
    min_bases: int,
) -> Sites:
    """Scan regions and compare the local maxima of the scores with known peaks.

    A site is a window that scores highest of all within ``window`` bases on either side. It is
    true if its center lies in a known peak, else false: peaks missing from the labels count
    against the model. Peaks lie in the regions wholly or do not count.

    Parameters
    ----------
    predict : callable
        Codes ``uint8 [n, window]``, which may be a view, to raw values ``float32 [n, 1, 1]``.
    contigs : dict of str to uint8 array
        Codes.
    regions : sequence of Region
        Where to scan; windows lie inside them.
    peaks : sequence of Region
        Known peaks, each one window long.
    window, stride, min_bases : int
        Of the model's card.

    Returns
    -------
    Sites
        Of all regions together.
    """
    inside = peaks_inside(regions, peaks)
    total = sum(map(len, inside))
    if not total:
        raise DataError("no known peaks in the regions to map; name regions with peaks")
    parts = [contigs[region.contig][region.start : region.end] for region in regions]
    scores, found, bases = [], [], 0
    for region, codes, known, values in zip(
        regions, parts, inside, _scan(predict, parts, window, stride), strict=True
    ):
        starts = np.arange(len(values)) * stride
        values[real_counts(codes, starts, window) < min_bases] = np.nan
        is_site = local_maxima(values, window // stride)
        centers = starts[is_site] + window // 2
        scores.append(values[is_site])
        found.append(_count_around(centers + region.start, known))
        bases += int(np.count_nonzero(codes < 4))
    all_scores, all_found = np.concatenate(scores), np.concatenate(found)
    order = np.argsort(-all_scores, kind="stable")
    return Sites(all_scores[order], all_found[order], total, bases / 1e6)


def peaks_inside(regions: Iterable[Region], peaks: Sequence[Region]) -> list[Int64]:
    """Starts and ends ``[peaks, 2]`` of the peaks that lie wholly in each of the regions."""
    by_contig: dict[str, list[tuple[int, int]]] = {}
    for peak in peaks:
        by_contig.setdefault(peak.contig, []).append((peak.start, peak.end))
    bounds = {contig: np.array(pairs, np.int64) for contig, pairs in by_contig.items()}
    none = np.empty((0, 2), np.int64)
    inside = []
    for region in regions:
        here = bounds.get(region.contig, none)
        inside.append(here[(here[:, 0] >= region.start) & (here[:, 1] <= region.end)])
    return inside


def _scan(
    predict: Callable[[Codes], Float32], parts: Iterable[Codes], window: int, stride: int
) -> Iterator[Float32]:
    """Scores of each part's windows; those of small parts are predicted together."""
    waiting: list[Codes] = []
    for codes in parts:
        short = len(codes) < window
        windows = codes[:0].reshape(0, window) if short else sliding_window_view(codes, window)
        waiting.append(windows[::stride])
        if sum(map(len, waiting)) >= _SCANNED:
            yield from _scores(predict, waiting)
            waiting = []
    yield from _scores(predict, waiting)


def _scores(predict: Callable[[Codes], Float32], groups: list[Codes]) -> list[Float32]:
    """Scores of each group of windows, all predicted at once."""
    if not sum(map(len, groups)):
        return [np.empty(0, np.float32) for _ in groups]
    # One group stays the view that it is.
    windows = groups[0] if len(groups) == 1 else np.concatenate(groups)
    ends = np.cumsum([len(group) for group in groups])
    return np.split(predict(windows).reshape(-1), ends[:-1])


def local_maxima(scores: Float32, reach: int) -> NDArray[np.bool_]:
    """Whether each score is the highest within ``reach`` neighbors on either side.

    Of equal neighbors the first is the highest; a missing score (NaN) is neither a site nor in
    the way of one.
    """
    if not len(scores):
        return np.zeros(0, np.bool_)
    reach = min(reach, len(scores))
    known = np.where(np.isnan(scores), np.float32(-np.inf), scores)
    padded = np.pad(known, reach, constant_values=-np.inf)
    neighbors = sliding_window_view(padded, 2 * reach + 1)
    highest: NDArray[np.bool_] = (known >= neighbors.max(axis=1)) & np.isfinite(known)
    if reach:
        highest &= known > neighbors[:, :reach].max(axis=1)
    return highest


def _count_around(positions: Int64, peaks: Int64) -> Int64:
    """Number of peaks, starts and ends ``[peaks, 2]`` on one contig, that hold each position."""
    starts, ends = np.sort(peaks, axis=0).T
    begun = np.searchsorted(starts, positions, side="right")
    count: Int64 = begun - np.searchsorted(ends, positions, side="right")
    return count
