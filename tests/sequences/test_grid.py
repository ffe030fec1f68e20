from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from genomepred.errors import ModelError, RegionError
from genomepred.sequences.bed import BedRecord
from genomepred.sequences.codes import Codes
from genomepred.sequences.grid import Geometry, Grid, Region, parse_region, real_counts


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    bins = draw(st.integers(1, 6))
    bin_size, crop = draw(st.integers(1, 40)), draw(st.integers(0, 30))
    span = bins * bin_size
    stride = span if bins > 1 else draw(st.integers(1, 2 * span))
    return Geometry(span + 2 * crop, stride, crop, bins, bin_size)


contig_lengths = st.lists(st.integers(0, 300), min_size=1, max_size=5).map(
    lambda lengths: {f"c{i}": length for i, length in enumerate(lengths)}
)


@st.composite
def regions_on(draw: st.DrawFn, contigs: dict[str, int]) -> list[Region]:
    usable = [name for name, length in contigs.items() if length]
    found = []
    for _ in range(draw(st.integers(1, 5)) if usable else 0):
        contig = draw(st.sampled_from(usable))
        start = draw(st.integers(0, contigs[contig] - 1))
        end = draw(st.integers(start + 1, contigs[contig]))
        found.append(Region(contig, start, end, f"r{len(found)}"))
    return found


def coordinates(grid: Grid) -> list[tuple[str, int]]:
    rows = np.arange(grid.rows)
    return list(zip(grid.contigs[grid.interval_of(rows)], grid.starts(rows).tolist(), strict=True))


def test_window_count_golden_values():
    g = Geometry(window=100, stride=20)
    assert g.windows(np.array([0, 1, 99, 100, 101, 120, 121, 1000])).tolist() == [
        *[0, 1, 1, 1, 2, 2, 3, 46]
    ]
    cropped = Geometry(window=10_400, stride=400, crop=5_000, bins=400)
    assert cropped.windows(1_000_000) == 2500
    assert cropped.bin_size == 1


def test_rows_follow_the_definition_of_the_grid():
    grid = Grid.whole({"a": 30, "none": 0, "b": 5}, Geometry(20, 12, 4, 2, 6))
    # spans of 12 bases at stride 12: contig a has ceil((30 - 12) / 12) + 1 = 3 windows, b one.
    assert coordinates(grid) == [
        *[("a", 0), ("a", 6), ("a", 12), ("a", 18), ("a", 24), ("a", 30), ("b", 0), ("b", 6)]
    ]
    spans = list(grid.spans(0, grid.rows))
    assert spans == [("a", -4, 3, 0, 0, 0, 6), ("b", -4, 1, 3, 6, 6, 8)]


@given(contig_lengths, geometries())
def test_every_base_is_covered_unless_the_grid_samples(contigs, geometry):
    grid = Grid.whole(contigs, geometry)
    rows = np.arange(grid.rows)
    starts, intervals = grid.starts(rows), grid.interval_of(rows)
    for k, length in enumerate(contigs.values()):
        covered = np.zeros(length, bool)
        for start in starts[intervals == k]:
            covered[max(start, 0) : start + geometry.bin_size] = True
        if not geometry.samples:
            assert covered.all()
        assert (length == 0) == (not (intervals == k).any())


@given(contig_lengths, geometries())
def test_row_to_interval_to_row(contigs, geometry):
    grid = Grid.whole(contigs, geometry)
    for row in range(grid.rows):
        k = int(grid.interval_of(np.array([row]))[0])
        start = int(grid.starts(np.array([row]))[0])
        assert row == grid.first_row[k] + start // geometry.step
        length = int(grid.length[k])
        if start < length:  # bins past the end of a short contig cannot be asked for
            found = grid.query(str(grid.contigs[k]), start, start + 1)
            assert any(first <= row < last for first, last in found)


@given(st.data(), contig_lengths, geometries())
def test_query_is_what_a_scan_of_all_rows_finds(data, contigs, geometry):
    grid = Grid.whole(contigs, geometry)
    contig = data.draw(st.sampled_from(list(contigs)))
    start = data.draw(st.integers(-10, 320))
    end = data.draw(st.integers(start + 1, 340))
    rows = np.arange(grid.rows)
    starts = grid.starts(rows)
    on = grid.contigs[grid.interval_of(rows)] == contig
    meets = on & (starts < end) & (starts + geometry.bin_size > start)
    found = [row for first, last in grid.query(contig, start, end) for row in range(first, last)]
    assert found == np.flatnonzero(meets).tolist()


@given(st.data(), contig_lengths, geometries())
def test_regions_select_rows_of_the_whole_grid(data, contigs, geometry):
    """Coordinates, windows and slots of selected rows are those of the whole-genome grid."""
    regions = data.draw(regions_on(contigs))
    whole, part = Grid.whole(contigs, geometry), Grid.of_regions(contigs, geometry, regions)
    wanted = sorted(
        {
            row
            for region in regions
            for first, last in whole.query(region.contig, region.start, region.end)
            for row in range(first, last)
        }
    )
    everything = coordinates(whole)
    assert coordinates(part) == [everything[row] for row in wanted]
    assert (part.end <= part.length).all()
    assert windows_of(part, 0, part.rows) == [windows_of(whole, r, r + 1)[0] for r in wanted]


def windows_of(grid: Grid, first: int, last: int) -> list[tuple[str, int, int, int]]:
    """Contig, window start, slot number and bin of each row, by way of spans."""
    g, found = grid.geometry, {}
    for span in grid.spans(first, last):
        for w in range(span.windows):
            for b in range(g.bins):
                row = span.row + w * g.bins + b
                if span.first <= row < span.last:
                    found[row] = (span.contig, span.start + w * g.stride, span.number + w, b)
    return [found[row] for row in range(first, last)]


@given(st.data(), contig_lengths, geometries())
def test_spans_of_any_sharding_name_the_same_windows(data, contigs, geometry):
    grid = Grid.whole(contigs, geometry)
    cuts = data.draw(st.lists(st.integers(0, grid.rows), max_size=4))
    edges = sorted({0, grid.rows, *cuts})
    pieces = [window for first, last in pairwise(edges) for window in windows_of(grid, first, last)]
    assert pieces == windows_of(grid, 0, grid.rows)
    for row, (contig, start, index, b) in enumerate(pieces):
        output = int(grid.starts(np.array([row]))[0])
        assert output == start + geometry.crop + b * geometry.bin_size
        assert (contig, output) == coordinates(grid)[row]
        assert row == index * geometry.bins + b


@given(st.data(), contig_lengths, geometries())
def test_drawn_intervals_never_overlap(data, contigs, geometry):
    grid = Grid.whole(contigs, geometry)
    rows = np.arange(grid.rows)
    start, end = grid.drawn(rows)
    intervals = grid.interval_of(rows)
    same = intervals[1:] == intervals[:-1]
    assert (end[:-1][same] <= start[1:][same]).all()
    assert (start >= 0).all()
    assert (end <= grid.length[intervals]).all()


@given(st.data(), contig_lengths, geometries())
def test_centered_windows_keep_order_and_names(data, contigs, geometry):
    regions = data.draw(regions_on(contigs))
    grid = Grid.centered(contigs, geometry, regions)
    assert grid.rows == len(regions) * geometry.bins
    assert grid.names.tolist() == [region.name for region in regions]
    for k, (span, region) in enumerate(zip(grid.spans(0, grid.rows), regions, strict=True)):
        middle = span.start + geometry.crop + geometry.span // 2
        assert middle == (region.start + region.end) // 2
        assert (span.contig, span.windows, span.number) == (region.contig, 1, k)
    inner = windows_of(grid, 1, grid.rows) if grid.rows > 1 else []
    assert inner == windows_of(grid, 0, grid.rows)[1:]


def test_contradicting_sizes_are_refused():
    with pytest.raises(ModelError, match="is not 2 x crop"):
        Geometry(window=100, stride=10, crop=10, bins=3, bin_size=20)
    with pytest.raises(ModelError, match="leave --stride out"):
        Geometry(window=60, stride=10, bins=3, bin_size=20)
    with pytest.raises(ModelError, match="must be positive"):
        Geometry(window=60, stride=0)


def test_query_of_an_unknown_contig_names_known_ones():
    grid = Grid.whole({"chr1": 10, "chr2": 10}, Geometry(4, 2))
    with pytest.raises(RegionError, match="'x'.*'chr1', 'chr2'"):
        grid.query("x", 0, 5)
    with pytest.raises(RegionError, match="'1'.*named 'chr1'"):
        grid.query("1", 0, 5)


CONTIGS = {"chr1": 1000, "HLA:A*01:01": 50, "chr1:1-10": 7}


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("chr1", ("chr1", 0, 1000)),
        ("chr1:1-1,000", ("chr1", 0, 1000)),
        ("chr1:11-20", ("chr1", 10, 20)),
        ("chr1:990-", ("chr1", 989, 1000)),
        ("HLA:A*01:01", ("HLA:A*01:01", 0, 50)),
        ("HLA:A*01:01:2-3", ("HLA:A*01:01", 1, 3)),
        ("chr1:1-10", ("chr1:1-10", 0, 7)),  # an exact contig name wins
    ],
)
def test_region_strings(text, region):
    assert parse_region(text, CONTIGS)[:3] == region


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chr7:1-5", "no contig 'chr7'"),
        ("chrX", "no contig 'chrX'"),
        ("chr1:0-5", "bases 1-1000"),
        ("chr1:10-5", "empty or outside"),
        ("chr1:990-1001", "bases 1-1000"),
        ("chr1:a-b", "write CONTIG:START-END"),
        ("chr1:1-" + "9" * 5000, "write CONTIG:START-END"),
        ("x" * 5000, "no contig 'xxx"),
    ],
)
def test_bad_region_strings(text, message):
    with pytest.raises(RegionError, match=message):
        parse_region(text, CONTIGS)


def test_names_take_as_much_memory_as_they_have_letters():
    contigs = {**{f"c{i}": 100 for i in range(30_000)}, "x" * 1000: 100}
    grid = Grid.whole(contigs, Geometry(10, 10))
    part = Grid.of_regions(contigs, Geometry(10, 10), [Region(name, 0, 10) for name in contigs])
    centered = Grid.centered(contigs, Geometry(10, 10), [Region("c1", 0, 9, n) for n in contigs])
    for array in (grid.contigs, part.contigs, centered.contigs, centered.names):
        assert array.itemsize == 8
        assert len(array) == 30_001
    assert grid.query("x" * 1000, 0, 1) == [(300_000, 300_001)]


def test_names_of_regions_are_bounded():
    for name, message in {"x" * 1001: "1,001 bytes", "é" * 600: "1,200", "a\0b": "control"}.items():
        with pytest.raises(RegionError, match=message) as caught:
            Grid.centered({"c": 10}, Geometry(4, 2), [Region("c", 0, 5, name)])
        assert len(str(caught.value)) < 300


def test_centered_windows_use_the_center_that_a_record_has():
    records = [BedRecord("c", 100, 200, "n", "-", 120), Region("c", 100, 200)]
    grid = Grid.centered({"c": 1000}, Geometry(20, 10), records)
    assert grid.start.tolist() == [110, 140]


@st.composite
def windows(draw: st.DrawFn) -> tuple[Codes, NDArray[np.int64], int]:
    """Codes with runs of N, ascending starts (equal ones too) and a width that fits."""
    runs = draw(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 90)), min_size=1))
    codes = np.repeat(*np.array(runs).T).astype(np.uint8)
    width = draw(st.integers(0, len(codes)))
    some = st.lists(st.integers(0, len(codes) - width), max_size=600)
    return codes, np.array(sorted(draw(some)), np.int64), width


@given(windows())
def test_real_counts_of_any_windows(case: tuple[Codes, NDArray[np.int64], int]) -> None:
    codes, starts, width = case
    expected = [int((codes[start : start + width] < 4).sum()) for start in starts]
    counts = real_counts(codes, starts, width)
    assert counts.dtype == np.int32
    assert counts.tolist() == expected


@pytest.mark.parametrize(("stride", "width"), [(1, 50), (20, 1000), (1000, 200), (64, 64)])
def test_real_counts_of_overlapping_and_distant_windows(stride: int, width: int) -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 5, 50_000).astype(np.uint8)
    codes[10_000:30_000] %= 4  # blocks of windows without any N take a shorter path
    starts = np.arange(0, len(codes) - width + 1, stride)
    total = np.concatenate([[0], np.cumsum(codes < 4)])
    np.testing.assert_array_equal(
        real_counts(codes, starts, width), total[starts + width] - total[starts]
    )


@pytest.mark.parametrize("starts", [[-1, 3], [0, 6], [3, 2]])
def test_real_counts_refuses_windows_outside_or_out_of_order(starts: list[int]) -> None:
    with pytest.raises(ValueError, match="ascend and lie in"):
        real_counts(np.zeros(10, np.uint8), np.array(starts), 5)
