"""Plots: what each column of pixels shows, and pictures that come out as promised."""

from __future__ import annotations

import struct
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genomepred import plots
from genomepred.errors import DependencyError, OutputError, RegionError, StoreError
from genomepred.plots import plot_heat_map, plot_region, position_labels, summarize
from genomepred.sequences.grid import Geometry, Grid, Region
from genomepred.store.bins import bins_within
from genomepred.store.blocks import open_blocks
from genomepred.store.reader import PredictionStore
from tests.founders import write_cohort
from tests.store_files import CONTIGS, write_store

plt = pytest.importorskip("matplotlib.image")


@settings(deadline=None)
@given(
    rows=st.integers(0, 60),
    stride=st.integers(1, 9),
    gap=st.integers(0, 3),
    columns=st.integers(1, 40),
    bounds=st.tuples(st.integers(0, 200), st.integers(1, 300)),
    seed=st.integers(0, 9),
)
def test_columns_summarise_the_rows_that_touch_them(
    rows: int, stride: int, gap: int, columns: int, bounds: tuple[int, int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    start = np.arange(rows) * (stride + gap)
    values = rng.normal(size=rows).astype(np.float32)
    values[rng.random(rows) < 0.3] = np.nan
    edges = np.linspace(bounds[0], bounds[0] + bounds[1], columns + 1)
    summary = summarize(start, start + stride, values, edges)
    for i in range(columns):
        touching = values[(start < edges[i + 1]) & (start + stride > edges[i])]
        touching = touching[~np.isnan(touching)].astype(np.float64)
        shown = [part[i] for part in summary]
        if touching.size:
            assert shown == pytest.approx([touching.min(), touching.mean(), touching.max()])
        else:
            assert np.isnan(shown).all()


def test_one_peak_among_a_million_rows_is_shown() -> None:
    start = np.arange(1_000_000) * 20
    values = np.zeros(1_000_000, np.float32)
    values[777_777] = 1
    summary = summarize(start, start + 20, values, np.linspace(0, 20_000_000, 1101))
    assert np.count_nonzero(summary.high == 1) == 1
    assert summary.mean.max() < 0.01


@pytest.fixture
def store(tmp_path: Path) -> PredictionStore:
    grid = Grid.whole(CONTIGS, Geometry(window=100, stride=20))
    values = np.tile(np.array([0.8, -2.0], np.float32), (grid.rows, 1))
    values[20:25] = np.nan  # drawn on chr2:441-540
    with PredictionStore(write_store(tmp_path / "g.h5", grid, values, ("CTCF", "logit"))) as opened:
        yield opened


def colors_along(path: Path, height: float) -> np.ndarray:
    """RGB of each pixel of the row at a share of the picture's height."""
    image = plt.imread(path)[..., :3]
    return (image[int(height * len(image))] * 255).round().astype(int)


def test_one_track_is_1200_by_400_with_the_missing_stretch_shaded(
    store: PredictionStore, tmp_path: Path
) -> None:
    path = tmp_path / "x.png"
    plot_region(store, Region("chr2", 240, 740), ["CTCF"], path)
    assert struct.unpack(">II", path.read_bytes()[16:24]) == (1200, 400)
    pixels = colors_along(path, 0.5)
    filled = (pixels == [0, 114, 178]).all(axis=1)
    missing = (pixels == [230, 230, 230]).all(axis=1)
    assert filled.sum() / missing.sum() == pytest.approx(4, abs=0.05)  # 400 bases to 100
    shaded = np.flatnonzero(missing)
    assert np.array_equal(shaded, np.arange(shaded[0], shaded[-1] + 1))
    left, right = np.flatnonzero(filled)[[0, -1]]
    assert (shaded[0] - left) / (right - left) == pytest.approx(200 / 500, abs=0.01)


def test_panels_stand_in_the_order_asked(store: PredictionStore, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    plot_region(store, Region("chr2", 0, 1003), [], path)
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    assert (width, height) == (1200, 440)
    assert (colors_along(path, 0.3) == [0, 114, 178]).all(axis=1).any()


@pytest.mark.parametrize("suffix", ["png", "PDF", "svg"])
def test_formats(store: PredictionStore, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    plot_region(store, Region("chr2", 0, 1003), ["logit"], path)
    magic = {"png": b"\x89PNG", "PDF": b"%PDF", "svg": b"<?xml"}[suffix]
    assert path.read_bytes().startswith(magic)


def test_text_names_genome_model_region_and_unit(store: PredictionStore, tmp_path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot_region(store, Region("chr10:1-9", 99, 500), ["CTCF"], tmp_path / "x.svg")
        text = (tmp_path / "x.svg").read_text()
        assert "Nipponbare é · ctcf · chr10:1-9:100-500" in text
        assert "chr10:1-9 (bp)" in text
        assert ">CTCF<" in text
        assert "gray" not in text  # nothing is missing there
        long = Grid.whole({"c": 30_000_000}, Geometry(window=10_000, stride=10_000))
        path = write_store(tmp_path / "l.h5", long, np.ones((long.rows, 1), np.float32))
        for region, ticks, unit in [
            (Region("c", 0, 30_000_000), ">25<", "Mb"),
            (Region("c", 1_000_000, 1_040_000), ">1,010<", "kb"),
            (Region("c", 1_000_000, 1_004_000), ">1,001,000<", "bp"),
            (Region("c", 1_000_000, 1_009_000), ">1,004<", "kb"),
        ]:
            with PredictionStore(path) as other:
                plot_region(other, region, [], tmp_path / "x.svg")
            text = (tmp_path / "x.svg").read_text()
            assert ticks in text, region
            assert f"c ({unit})" in text


@given(
    first=st.integers(0, 10**9),
    step=st.sampled_from([1, 2, 5, 25, 500, 2500, 12_500, 250_000, 10**7]),
    size=st.sampled_from([1, 1000, 10**6]),
)
def test_labels_of_positions_are_exact(first: int, step: int, size: int) -> None:
    positions = [first // step * step + i * step for i in range(8)]
    labels = position_labels(positions, size)
    assert [round(float(text.replace(",", "")) * size, 3) for text in labels] == positions
    assert len(set(labels)) == 8


@pytest.mark.parametrize(
    "region",
    [
        Region("chr", 159_000, 176_000),  # ticks of 2.5 kb
        Region("chr", 1_000_000, 1_009_000),
        Region("chr", 3_000_000, 16_000_000),
        Region("chr", 500, 900),
        Region("chr", 56, 57),
        Region("chr", 20_000_000, 20_000_003),
    ],
)
def test_a_picture_shows_the_numbers_of_the_file(tmp_path: Path, region: Region) -> None:
    """Line, areas, shades and tick labels, each against the rows themselves."""
    grid = Grid.whole({"chr": 30_000_000}, Geometry(window=5000, stride=5000))
    if region.end - region.start < 100_000:
        grid = Grid.of_regions({"chr": 30_000_000}, Geometry(window=100, stride=20), [region])
    values = np.random.default_rng(0).random((grid.rows, 1), np.float32)
    values[grid.rows // 2 : grid.rows // 2 + max(grid.rows // 9, grid.rows > 9)] = np.nan
    with PredictionStore(write_store(tmp_path / "g.h5", grid, values, ("a$b$",))) as store:
        start, end, drawn = plots._drawn_rows(store, region)
        edges = np.linspace(region.start, region.end, min(1100, region.end - region.start) + 1)
        summary = summarize(start, end, drawn[:, 0], edges)
        figure = plots._figure(region, edges, {"a$b$": summary}, "title")
    (axes,) = figure.axes
    figure.draw_without_rendering()
    (line,) = axes.lines
    assert np.array_equal(line.get_xdata(), edges + 0.5)
    assert np.array_equal(line.get_ydata()[:-1], summary.mean, equal_nan=True)
    row, start, end = np.arange(grid.rows), *grid.drawn(np.arange(grid.rows))
    for x0, x1, mean, low, high in zip(
        edges[:-1], edges[1:], *np.array(summary)[[1, 0, 2]], strict=True
    ):
        here = values[row[(start < x1) & (end > x0)], 0].astype(np.float64)
        here = here[~np.isnan(here)]
        found = [here.mean(), here.min(), here.max()] if here.size else [np.nan] * 3
        assert [mean, low, high] == pytest.approx(found, nan_ok=True)
    shown = [tick for tick in axes.xaxis.get_major_ticks() if tick.label1.get_text()]
    size = {"bp": 1, "kb": 1000, "Mb": 10**6}[figure.get_supxlabel().split("(")[1][:2]]
    assert shown
    for tick in shown:
        told = float(tick.label1.get_text().replace(",", "")) * size
        assert told == pytest.approx(tick.get_loc(), abs=0.01)
        assert region.start + 1 <= round(told) <= region.end
    shaded = sum(patch.get_width() for patch in axes.patches)
    missing = np.isnan(summary.mean).sum() * (edges[1] - edges[0])
    assert shaded == pytest.approx(missing)
    assert axes.get_ylabel() == "a$b$"


def test_one_base_is_drawn_and_none_is_refused(store: PredictionStore, tmp_path: Path) -> None:
    plot_region(store, Region("ctg-é", 56, 57), [], tmp_path / "x.png")
    assert (tmp_path / "x.png").exists()
    with pytest.raises(RegionError, match="empty has no bases"):
        plot_region(store, Region("empty", 0, 0), [], tmp_path / "x.png")


def test_what_cannot_be_drawn(
    store: PredictionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = Region("chr2", 0, 100)
    with pytest.raises(OutputError, match=r"\*.png, \*.pdf, \*.svg"):
        plot_region(store, region, [], tmp_path / "x.jpg")
    with pytest.raises(StoreError, match="no track 'H3'"):
        plot_region(store, region, ["H3"], tmp_path / "x.png")
    with pytest.raises(OutputError, match="there is no folder"):
        plot_region(store, region, [], tmp_path / "absent" / "x.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(DependencyError, match=r"pip install 'genomepred\[plot\]'"):
        plot_region(store, region, [], tmp_path / "x.png")
    assert not list(tmp_path.glob("x.*"))


# -- heat maps ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    path = tmp_path_factory.mktemp("heat") / "panel.h5"
    haplotypes = [(f"s{k // 2}", k % 2 + 1) for k in range(12)]
    contigs = {"chr1": 60_000, "chr2": 700}
    values = write_cohort(path, contigs, Geometry(window=40, stride=20), haplotypes, 3, ("a", "b"))
    return path, values


@pytest.mark.parametrize(
    ("start", "end", "most"), [(0, 60_000, 1000), (0, 60_000, 7), (4000, 4100, 50), (31, 59_000, 3)]
)
def test_bins_of_a_region(cohort, start: int, end: int, most: int) -> None:
    path, values = cohort
    with closing(open_blocks([path])) as source:
        found = bins_within(source, Region("chr1", start, end), most)
    rows = values[:, :2999]
    grid = Grid.whole({"chr1": 60_000}, Geometry(window=40, stride=20))
    ((first, last),) = grid.query("chr1", start, end)
    size = 1 << max(int(np.ceil(np.log2((last - first) / most))), 0)
    bins = range(first // size, -(-last // size))
    assert found.mean.shape == (12, len(bins), 2)
    assert found.start.tolist() == [max(k * size * 20 + 10, 0) for k in bins]
    for k, number in enumerate(bins):
        part = rows[:, number * size : (number + 1) * size].astype(np.float64)
        missing = np.isnan(part)
        with np.errstate(invalid="ignore"):
            mean = np.where(missing, 0, part).sum(1) / (~missing).sum(1)
        np.testing.assert_allclose(found.mean[:, k], mean, rtol=1e-6)
        high = np.where(missing.all(1), np.nan, np.where(missing, -np.inf, part).max(1))
        np.testing.assert_array_equal(found.high[:, k], high)


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_heat_maps_are_drawn(cohort, tmp_path: Path, suffix: str) -> None:
    genes = [SimpleNamespace(start=4000, end=4900, name="g", exons=[(4000, 4100)])]
    with closing(open_blocks([cohort[0]])) as source:
        picture = tmp_path / f"x.{suffix}"
        region = Region("chr1", 3000, 9000)
        plot_heat_map(source, region, picture, ["b"], ["s3", "s1.2"], "mean", genes)
    assert picture.stat().st_size > 3000
    if suffix == "svg":
        text = picture.read_text()
        assert all(name in text for name in ("s3.1", "s3.2", "s1.2", "difference to mean"))
        assert "s4" not in text


@pytest.mark.parametrize("suffix", [".png", ".pdf", ".svg"])
def test_a_full_disk_is_one_line(cohort, small_disk: Path, suffix: str) -> None:
    (small_disk / "other").write_bytes(bytes(4_190_000))  # of 4 MiB
    with (
        closing(open_blocks([cohort[0]])) as source,
        pytest.raises(OutputError, match="is full"),
    ):
        plot_heat_map(source, Region("chr1", 0, 60_000), small_disk / f"p{suffix}")
    assert [path.name for path in small_disk.iterdir()] == ["other"]


def test_heat_maps_of_what_is_not_there(cohort, tmp_path: Path) -> None:
    region, path = Region("chr1", 0, 100), tmp_path / "x.png"
    with closing(open_blocks([cohort[0]])) as source:
        for error, message, more in (
            (RegionError, "no sample 'x'", {"lines": ["x"]}),
            (RegionError, "s1 has 2 copies; say s1.1", {"difference": "s1"}),
            (StoreError, "no track 'c'; there are a, b", {"tracks": ["c"]}),
        ):
            with pytest.raises(error, match=message):
                plot_heat_map(source, region, path, **more)
        with pytest.raises(OutputError, match="name the picture"):
            plot_heat_map(source, region, tmp_path / "x.gif")
        with pytest.raises(RegionError, match="has no bases"):
            plot_heat_map(source, Region("chr1", 9, 9), path)
    assert not path.exists()


def test_lines_that_share_pixels_are_means() -> None:
    values = np.arange(2000, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    values[5, 1] = np.nan
    found = plots._thinned(values)
    assert found.shape == (900, 3)
    assert found.mean() == pytest.approx(np.nanmean(values), rel=1e-3)
    assert (np.diff(found, axis=0) > 0).all()
