from __future__ import annotations

from pathlib import Path

import numpy as np
import pybigtools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genomepred.errors import DataError
from genomepred.sequences.grid import Region
from genomepred.training.signals import _RECORD, _means, window_means


@given(
    pieces=st.lists(
        st.tuples(st.integers(0, 4), st.integers(1, 6), st.integers(-9, 9)), max_size=8
    ),
    windows=st.lists(st.tuples(st.integers(-5, 60), st.integers(1, 30)), min_size=1, max_size=8),
)
def test_means_are_those_of_the_bases_that_have_a_value(
    pieces: list[tuple[int, int, int]], windows: list[tuple[int, int]]
) -> None:
    values, records, end = np.full(2000, np.nan), [], 0
    for gap, size, value in pieces:
        start = end + gap
        end = start + size
        records.append((start, end, value))
        values[start:end] = value
    starts = np.array([start for start, _ in windows], np.int64)
    ends = starts + np.array([size for _, size in windows])
    found = _means(np.array(records, _RECORD), starts, ends)
    for mean, start, stop in zip(found, starts, ends, strict=True):
        known = values[max(start, 0) : max(stop, 0)]
        known = known[~np.isnan(known)]
        assert mean == pytest.approx(known.mean() if len(known) else np.nan, nan_ok=True)


def test_contigs_under_other_names_and_windows_out_of_their_contig(tmp_path: Path) -> None:
    path = tmp_path / "x.bw"
    pybigtools.open(str(path), "w").write({"1": 100, "2": 50}, [("1", 10, 20, 4.0)])
    regions = [Region("chr1", -5, 12), Region("chr2", 0, 9), Region("chr9", 0, 9)]
    regions += [Region("chr1", 15, 500), Region("chr1", 20, 30)]
    means = window_means(path, regions)
    assert np.array_equal(means, [4, np.nan, np.nan, 4, np.nan], equal_nan=True)


def test_a_file_without_any_of_the_contigs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.bw"
    pybigtools.open(str(path), "w").write({"1": 100}, [("1", 10, 20, 4.0)])
    with pytest.raises(DataError, match=r"has scaffold_3, .*x\.bw has 1;"):
        window_means(path, [Region("scaffold_3", 0, 5)])


def test_a_real_bigwig_agrees_with_its_own_values(shared_data: Path) -> None:
    path = shared_data / "labels" / "hg38_real.bigWig"
    with pybigtools.open(str(path)) as file:
        first = next(iter(file.records("chr7")))[0]
        regions = [Region("7", first - 100 + shift, first + shift) for shift in range(0, 4000, 37)]
        expected = []
        for region in regions:
            values = np.full(100, np.nan)
            for start, end, value in file.records("chr7", region.start, region.end):
                values[max(start - region.start, 0) : end - region.start] = value
            expected.append(np.nanmean(values) if not np.isnan(values).all() else np.nan)
    found = window_means(path, regions)
    assert np.isnan(found).any()
    assert not np.isnan(found).all()
    assert found == pytest.approx(expected, nan_ok=True)
