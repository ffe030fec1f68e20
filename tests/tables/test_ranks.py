"""Statistics of rows against NumPy and SciPy on values of every sample."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, mannwhitneyu

from genomepred.tables.ranks import adjusted, compare_ranks, moments
from tests.helpers import examples


def expanded(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Values of single samples."""
    return np.repeat(values, counts).astype(np.float64)


def make(seed: int, windows: int = 6, bins: int = 2, most: int = 40, ties: bool = True):
    rng = np.random.default_rng(seed)
    starts = np.concatenate([[0], np.cumsum(rng.integers(0, 12, windows))])
    rows = rng.normal(size=(starts[-1] * bins, 2)).astype(np.float32)
    if ties:
        rows = np.round(rows, 1)
    rows[rng.random(rows.shape) < 0.1] = np.nan
    return starts, rows, rng.integers(0, most, (starts[-1], 2)), bins


def of_row(starts, rows, counts, bins, row, track):
    """Values and counts [distinct, groups] of one row."""
    d = np.arange(starts[row // bins], starts[row // bins + 1])
    values = rows[d * bins + row % bins, track]
    return values[~np.isnan(values)], counts[d][~np.isnan(values)]


@settings(max_examples=examples(30))
@given(st.integers(0, 1 << 20))
def test_moments(seed: int) -> None:
    starts, rows, counts, bins = make(seed)
    counts = counts[:, :1]
    found = moments(starts, rows, counts, bins)
    for row in range(found.mean.shape[0]):
        for t in range(2):
            values, own = of_row(starts, rows, counts, bins, row, t)
            of = expanded(values, own[:, 0])
            assert found.samples[row, t] == len(of)
            if not len(of):
                assert np.isnan(found.variance[row, t])
                continue
            got = [column[row, t] for column in found[1:]]
            np.testing.assert_allclose(got, [of.mean(), of.var(), np.ptp(of)], 1e-9, 1e-12)


@settings(max_examples=examples(30))
@given(st.integers(0, 1 << 20), st.sampled_from([(40, True), (2, True), (2, False)]))
def test_ranks_are_those_of_scipy(seed: int, how: tuple[int, bool]) -> None:
    """Many equal values; small groups with and without: exact and normal p-values."""
    starts, rows, counts, bins = make(seed, most=how[0], ties=how[1])
    found = compare_ranks(starts, rows, counts, bins)
    for row in range(found.u.shape[0]):
        for t in range(2):
            values, own = of_row(starts, rows, counts, bins, row, t)
            a, b = expanded(values, own[:, 0]), expanded(values, own[:, 1])
            assert (found.first[row, t], found.second[row, t]) == (len(a), len(b))
            if not (len(a) and len(b)):
                assert np.isnan(found.log_p[row, t])
                continue
            u, p = mannwhitneyu(a, b)
            assert found.u[row, t] == u
            np.testing.assert_allclose(10 ** -found.log_p[row, t], p, 1e-9)
            np.testing.assert_allclose(found.difference[row, t], a.mean() - b.mean(), 1e-9, 1e-12)
            assert np.sign(found.z[row, t]) in (0, np.sign(u - len(a) * len(b) / 2))


@pytest.mark.parametrize("sizes", [(1, 1), (1, 7), (3, 3), (8, 5), (8, 40), (2, 300)])
def test_exact_p_values(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    values = rng.permutation(sum(sizes)).astype(np.float32)[:, None]
    counts = np.zeros((sum(sizes), 2), np.int64)
    counts[: sizes[0], 0] = counts[sizes[0] :, 1] = 1
    found = compare_ranks(np.array([0, sum(sizes)]), values, counts, 1)
    whole = values[:, 0].astype(np.float64)
    u, p = mannwhitneyu(whole[: sizes[0]], whole[sizes[0] :], method="exact")
    assert found.u[0, 0] == u
    np.testing.assert_allclose(10 ** -found.log_p[0, 0], p, 1e-9)


def test_p_values_that_no_float_holds() -> None:
    values = np.array([[0.0], [1.0]], np.float32)
    counts = np.array([[4_000, 0], [0, 4_000]])
    found = compare_ranks(np.array([0, 2]), values, counts, 1)
    assert found.log_p[0, 0] > 1_000
    assert found.z[0, 0] < -80


def test_all_equal_or_infinite() -> None:
    counts = np.array([[5, 3], [0, 2]])
    starts = np.array([0, 2])
    found = compare_ranks(starts, np.array([[1.0], [1.0]], np.float32), counts, 1)
    assert (found.log_p[0, 0], found.z[0, 0], found.difference[0, 0]) == (0, 0, 0)
    found = compare_ranks(starts, np.array([[1.0], [np.inf]], np.float32), counts, 1)
    np.testing.assert_allclose(
        10 ** -found.log_p[0, 0], mannwhitneyu([1] * 5, [1] * 3 + [np.inf] * 2).pvalue
    )


def test_shorter_counts_are_repeated() -> None:
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(12, 1)).astype(np.float32)
    starts, counts = np.arange(0, 13, 4), np.array([[1, 0], [0, 1], [1, 0], [0, 1]])
    short = compare_ranks(starts, rows, counts, 1)
    whole = compare_ranks(starts, rows, np.tile(counts, (3, 1)), 1)
    for a, b in zip(short, whole, strict=True):
        np.testing.assert_array_equal(a, b)


@given(st.lists(st.one_of(st.none(), st.floats(1e-300, 1))))
def test_adjusted_p_values_are_those_of_scipy(values: list[float | None]) -> None:
    p = np.array([np.nan if value is None else value for value in values])
    found = adjusted(-np.log10(p))
    known = ~np.isnan(p)
    assert (np.isnan(found) == ~known).all()
    if known.any():
        np.testing.assert_allclose(10 ** -found[known], false_discovery_control(p[known]), 1e-9)
