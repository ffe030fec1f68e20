from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyBigWig
import pytest
from hypothesis import given
from hypothesis import strategies as st

from genomepred.data.bigwig import RECORD
from genomepred.data.signals import _means, window_means
from genomepred.errors import DataError
from genomepred.sequences.grid import Region
from tests.bigwig_files import write_bigwig


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
    found = _means(np.array(records, RECORD), starts, ends)
    for mean, start, stop in zip(found, starts, ends, strict=True):
        known = values[max(start, 0) : max(stop, 0)]
        known = known[~np.isnan(known)]
        assert mean == pytest.approx(known.mean() if len(known) else np.nan, nan_ok=True)


def test_contigs_under_other_names_and_windows_out_of_their_contig(tmp_path: Path) -> None:
    path = tmp_path / "x.bw"
    write_bigwig(path, {"1": 100, "2": 50}, [("1", 10, 20, 4.0)])
    regions = [Region("chr1", -5, 12), Region("chr2", 0, 9), Region("chr9", 0, 9)]
    regions += [Region("chr1", 15, 500), Region("chr1", 20, 30)]
    means = window_means(path, regions)
    assert np.array_equal(means, [4, np.nan, np.nan, 4, np.nan], equal_nan=True)


def test_a_file_without_any_of_the_contigs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.bw"
    write_bigwig(path, {"1": 100}, [("1", 10, 20, 4.0)])
    with pytest.raises(DataError, match=r"has 'scaffold_3', .*x\.bw has '1';"):
        window_means(path, [Region("scaffold_3", 0, 5)])


def test_a_real_bigwig_agrees_with_its_own_values(shared_data: Path) -> None:
    path = shared_data / "labels" / "hg38_real.bigWig"
    with pyBigWig.open(str(path)) as file:
        first = file.intervals("chr7")[0][0]
        regions = [Region("7", first - 100 + shift, first + shift) for shift in range(0, 4000, 37)]
        expected = []
        for region in regions:
            values = np.full(100, np.nan)
            for start, end, value in file.intervals("chr7", region.start, region.end) or []:
                values[max(start - region.start, 0) : end - region.start] = value
            expected.append(np.nanmean(values) if not np.isnan(values).all() else np.nan)
    found = window_means(path, regions)
    assert np.isnan(found).any()
    assert not np.isnan(found).all()
    assert found == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("spoilt", [np.nan, np.inf, -np.inf, -3.4e38, 3e38])
def test_a_record_has_no_influence_on_windows_it_does_not_touch(
    tmp_path: Path, spoilt: float
) -> None:
    lines = [("c", b, b + 10, 0.1 + b % 70) for b in range(0, 3000, 10)]
    write_bigwig(tmp_path / "good.bw", {"c": 3000}, [x for x in lines if x[1] != 500])
    write_bigwig(
        tmp_path / "bad.bw",
        {"c": 3000},
        [(*x[:3], spoilt if x[1] == 500 else x[3]) for x in lines],
    )
    regions = [Region("c", s, s + 25) for s in range(0, 2975, 5) if s + 25 <= 500 or s >= 510]
    good, bad = (window_means(tmp_path / name, regions) for name in ("good.bw", "bad.bw"))
    assert np.array_equal(good, bad)
    touching = window_means(tmp_path / "bad.bw", [Region("c", 495, 515)])[0]
    if not np.isfinite(spoilt):
        assert touching == pytest.approx((lines[49][3] + lines[51][3]) / 2)


def test_long_records_weigh_as_many_bases_as_they_have(tmp_path: Path) -> None:
    path = tmp_path / "x.bw"
    lines = [("c", 5, 600_000, 2.0), ("c", 600_000, 600_010, 6.0), ("c", 700_000, 700_001, 1.0)]
    write_bigwig(path, {"c": 800_000}, lines)
    means = window_means(path, [Region("c", 599_990, 600_010), Region("c", 0, 800_000)])
    assert means == pytest.approx([4, (2 * 599_995 + 60 + 1) / (599_995 + 11)])


def test_what_is_no_bigwig_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.bw")
    (tmp_path / "text.bw").write_text("no bigWig")
    (tmp_path / "empty.bw").touch()
    for name in ("pipe.bw", "text.bw", "empty.bw", "absent.bw", "."):
        with pytest.raises(DataError, match="cannot be read as bigWig"):
            window_means(tmp_path / name, [Region("c", 0, 5)])
