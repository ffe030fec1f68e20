from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from genomepred.errors import DataError
from genomepred.evaluation.metrics import (
    Sites,
    binary_metrics,
    find_sites,
    peaks_inside,
    profile_metrics,
    regression_metrics,
    softmax,
)
from genomepred.inference.predictor import Predictor
from genomepred.models.layers import SequenceModel
from genomepred.sequences.grid import Region

LABELS = np.array([1, 1, 1, 0, 0, 0, 0], np.float32)
SCORES = np.array([3.0, 1.0, -1.0, 2.0, -2.0, -3.0, -4.0], np.float32)


def test_binary_metrics_by_hand() -> None:
    found = binary_metrics(LABELS, SCORES)
    # Called: 2 of 3 positives, 1 of 4 negatives.
    assert found["sensitivity"] == pytest.approx(2 / 3)
    assert found["specificity"] == pytest.approx(3 / 4)
    assert found["accuracy"] == pytest.approx(5 / 7)
    assert found["MCC"] == pytest.approx((2 * 3 - 1 * 1) / math.sqrt(3 * 3 * 4 * 4))
    # Pairs in order: 3 > all 4; 1 and -1 > 3 each.
    assert found["auROC"] == pytest.approx(10 / 12)
    # Precision at each positive: 1/1, 2/3, 3/4.
    assert found["auPRC"] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_columns_and_rows_are_the_same() -> None:
    assert binary_metrics(LABELS[:, None], SCORES[:, None]) == binary_metrics(LABELS, SCORES)


@pytest.mark.parametrize("value", [0, 1])
def test_constant_labels_have_no_metric(value: int) -> None:
    with pytest.raises(DataError, match="constant labels"):
        binary_metrics(np.full(5, value), np.arange(5))
    with pytest.raises(DataError, match=f"constant labels: all 5 are {value}"):
        regression_metrics(np.full(5, value), np.arange(5))


def test_regression_metrics_by_hand() -> None:
    labels, predictions = np.array([1.0, 2, 3, 6]), np.array([2.0, 2, 4, 5])
    found = regression_metrics(labels, predictions)
    assert found["MSE"] == pytest.approx(3 / 4)
    assert found["MAE"] == pytest.approx(3 / 4)
    # Labels about their mean 3: -2, -1, 0, 3; predictions about 3.25: -1.25, -1.25, 0.75, 1.75.
    assert found["R2"] == pytest.approx(1 - 3 / 14)
    assert found["Pearson"] == pytest.approx(9 / math.sqrt(14 * 6.75))
    # Ranks 1, 2, 3, 4 and 1.5, 1.5, 3, 4.
    assert found["Spearman"] == pytest.approx(4.5 / math.sqrt(5 * 4.5))


def test_constant_predictions_have_no_correlation() -> None:
    found = regression_metrics(np.array([1.0, 2, 3]), np.full(3, 0.1, np.float32))
    assert math.isnan(found["Pearson"])
    assert math.isnan(found["Spearman"])
    assert found["R2"] < 0


def test_correlations_are_scipy_s() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 20, 300).astype(np.float32)
    predictions = (labels + rng.integers(0, 20, 300)).astype(np.float32)
    found = regression_metrics(labels, predictions)
    assert found["Pearson"] == pytest.approx(stats.pearsonr(labels, predictions)[0])
    assert found["Spearman"] == pytest.approx(stats.spearmanr(labels, predictions)[0])


def test_profile_metrics_by_hand() -> None:
    labels = np.array([[0.5, 0.5, 0], [0.25, 0.25, 0.5]])
    values = np.log(np.array([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]])) + np.array([[3], [-7]])
    found = profile_metrics(labels, values)
    assert found["KL_divergence"] == pytest.approx(0.5 * math.log(2) / 2)
    entropy = (math.log(2) + 1.5 * math.log(2)) / 2
    assert found["cross_entropy"] == pytest.approx(entropy + found["KL_divergence"])
    # From the mean profile 3/8, 3/8, 1/4: ln(4/3) for the first, half ln(2/3) + half ln 2.
    spread = (math.log(4 / 3) + 0.5 * math.log(2 / 3) + 0.5 * math.log(2)) / 2
    assert found["D2"] == pytest.approx(1 - found["KL_divergence"] / spread)
    # Mean fraction: 0.5 and 1.25, predicted as 0.75 and 1.25.
    assert found["mean_fraction_R2"] == pytest.approx(1 - 0.25**2 / (2 * 0.375**2))
    assert found["mean_fraction_Pearson"] == pytest.approx(1)


def test_a_profile_predicted_as_impossible_has_a_finite_divergence() -> None:
    values = np.array([[-2000.0, 0, 0], [0, 0, -2000]])
    found = profile_metrics(np.array([[1.0, 0, 0], [0, 0, 1]]), values)
    assert all(math.isfinite(figure) for figure in found.values())
    assert found["KL_divergence"] > 100
    assert softmax(values).sum(axis=1).tolist() == [1, 1]


def test_equal_profiles_have_no_metric() -> None:
    with pytest.raises(DataError, match="constant labels: all 3 profiles are equal"):
        profile_metrics(np.full((3, 2), 0.5), np.zeros((3, 2)))


# Maps


class _CountA(SequenceModel):
    """Score: the number of A in the window."""

    def __init__(self, window: int) -> None:
        super().__init__(window, 1)
        self.scale = torch.nn.Parameter(torch.ones(1))

    def body(self, x: torch.Tensor) -> torch.Tensor:
        return (self.scale * x[:, 0].sum(1)).view(-1, 1, 1)


def genome(
    *islands: tuple[int, int], length: int = 400
) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    codes = np.full(length, 3, np.uint8)
    for start, end in islands:
        codes[start:end] = 0
    return codes


def sites_of(
    codes: np.ndarray[tuple[int], np.dtype[np.uint8]], *peaks: int, start: int = 0
) -> Sites:
    return find_sites(
        Predictor(_CountA(10), min_bases=0).predict,
        {"c": codes},
        [Region("c", start, len(codes))],
        [Region("c", peak, peak + 10) for peak in peaks],
        window=10,
        stride=5,
        min_bases=5,
    )


def test_sites_are_local_maxima_and_true_if_their_center_is_in_a_peak() -> None:
    # Windows at 50 and 200 see whole islands of 10 and 8; the peak at 46 holds the center 55,
    # the peak at 206 does not hold the center 205, the peak at 300 has no site.
    sites = sites_of(genome((50, 60), (201, 209)), 46, 206, 300)
    assert sites.scores[:2].tolist() == [10, 8]
    assert sites.is_known[:2].tolist() == [True, False]
    assert sites.peaks == 3
    assert sites.megabases == pytest.approx(400e-6)
    assert sites.at(9)["precision"] == 1
    assert sites.at(9)["recall"] == pytest.approx(1 / 3)
    assert sites.at(8) == {"sites": 2, "precision": 0.5, "recall": pytest.approx(1 / 3)}
    assert sites.at(99) == {"sites": 0, "precision": 0.0, "recall": 0.0}


def test_of_equal_neighbors_the_first_is_the_site() -> None:
    sites = sites_of(genome((100, 125)), 0)
    # Windows at 100, 105, 110 and 115 all score 10 and lie within 10 bases of one another.
    assert np.count_nonzero(sites.scores == 10) == 1


def test_a_window_with_too_few_known_bases_is_no_site() -> None:
    codes = genome((50, 54))
    codes[40:50] = codes[54:70] = 4
    assert sites_of(codes, 46).scores.max() == 0


def test_peaks_that_reach_out_of_the_region_do_not_count() -> None:
    assert sites_of(genome((150, 160)), 95, 150, start=100).peaks == 1
    with pytest.raises(DataError, match="no known peaks"):
        sites_of(genome(), 95, start=100)


def test_peaks_of_regions_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(0)

    def drawn(count: int, longest: int) -> list[Region]:
        starts, lengths = rng.integers(0, 200, count), rng.integers(1, longest, count)
        contigs = rng.integers(0, 5, count)
        return [
            Region(f"c{c}", s, s + n)
            for c, s, n in zip(contigs.tolist(), starts.tolist(), lengths.tolist(), strict=True)
        ]

    peaks = drawn(200, 20)
    regions = [*drawn(30, 100), Region("no peaks here", 0, 100)]
    for region, found in zip(regions, peaks_inside(regions, peaks), strict=True):
        assert found.tolist() == [
            [p.start, p.end]
            for p in peaks
            if p.contig == region.contig and region.start <= p.start and p.end <= region.end
        ]


class _Walked(list[Region]):
    """Peaks that know how often they were walked through."""

    times = 0

    def __iter__(self) -> Iterator[Region]:
        self.times += 1
        return super().__iter__()


def test_peaks_are_walked_through_once_for_however_many_regions() -> None:
    regions = [Region(f"s{i}", 0, 1000) for i in range(3000)]
    peaks = _Walked(Region(f"s{3 * i}", 10, 40) for i in range(1000))
    assert sum(map(len, peaks_inside(regions, peaks))) == 1000
    assert peaks.times == 1


def test_a_region_shorter_than_a_window_has_no_sites() -> None:
    predict, codes = Predictor(_CountA(10), min_bases=0).predict, genome((50, 60))
    regions = [Region("c", 0, 5), Region("c", 5, 400)]
    sites = find_sites(
        predict, {"c": codes}, regions, [Region("c", 50, 60)], window=10, stride=5, min_bases=5
    )
    assert (sites.peaks, sites.scores[0]) == (1, 10)


def test_a_site_finds_every_peak_around_its_center() -> None:
    # The site at 45-55 has its center 50 in peaks that overlap: 46-56 and 50-60, not 52-62.
    sites = sites_of(genome((45, 55)), 46, 50, 52, 200)
    assert (sites.found[0], sites.peaks) == (2, 4)
    assert sites.at(10) == {"sites": 1, "precision": 1.0, "recall": 0.5}


def test_a_map_without_sites_has_a_threshold_that_calls_none() -> None:
    codes = np.full(100, 4, np.uint8)
    sites = sites_of(codes, 20)
    assert len(sites.scores) == 0
    assert sites.at(sites.best_threshold()) == {"sites": 0, "precision": 0.0, "recall": 0.0}
    assert sites.recall_at(1) == 0


def ranked(*is_known: int, peaks: int, megabases: float) -> Sites:
    scores = np.arange(len(is_known), 0, -1).astype(np.float32)
    return Sites(scores, np.array(is_known), peaks, megabases)


def test_recall_at_a_false_rate_counts_all_true_sites_before_one_false_too_many() -> None:
    sites = ranked(1, 0, 1, 0, 1, 1, 0, 1, peaks=10, megabases=2)
    assert sites.recall_at(0) == pytest.approx(0.1)
    assert sites.recall_at(0.5) == pytest.approx(0.2)
    assert sites.recall_at(1) == pytest.approx(0.4)
    assert sites.recall_at(1.5) == pytest.approx(0.5)


def test_the_best_threshold_has_the_highest_f1() -> None:
    sites = ranked(1, 1, 0, 1, 0, 0, 0, 0, peaks=4, megabases=1)
    threshold = sites.best_threshold()
    assert sites.at(threshold) == {"sites": 4, "precision": 0.75, "recall": 0.75}
