"""Comparisons of samples against NumPy, pandas and SciPy on the values of every sample."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyBigWig
import pytest
from click.testing import CliRunner
from scipy.stats import false_discovery_control, mannwhitneyu

from genomepred.cli import cli
from genomepred.errors import DataError, GenomepredError, OptionError, OutputError, StoreError
from genomepred.sequences.grid import Geometry, Grid
from genomepred.store import cohort_file
from genomepred.store.cohort import CohortStore
from genomepred.store.reader import PredictionStore
from genomepred.tables import stacked
from genomepred.tables.compare import compare
from genomepred.tables.figures import cluster_order, principal_components
from tests.cohort_files import write_cohort
from tests.store_files import write_store

CONTIGS = {"chr1": 9_000, "empty": 0, "chr2": 641, "short": 3}
GRID = Grid.whole(CONTIGS, Geometry(window=40, stride=20))
HAPLOTYPES = [(f"s{k // 2}", k % 2 + 1) for k in range(22)]


def values_of(samples: int, tracks: int, seed: int = 0) -> np.ndarray:
    """[samples, rows, tracks]; every second sample differs in a stretch."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(samples, GRID.rows, tracks)).astype(np.float32)
    values[rng.random(values.shape) < 0.05] = np.nan
    values[::2, 100:104] += 6
    values[:, 300] = np.nan
    return values


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    for k, values in enumerate(values_of(7, 2)):
        write_store(folder / f"g{k}.h5", GRID, values, ("one", "two"))
    return folder


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("c") / "p.h5", GRID, HAPLOTYPES, ("t",), seed=3)


def expanded(path: Path) -> np.ndarray:
    """[samples, rows, tracks] of a folder or a cohort's file."""
    if path.is_dir():
        found = []
        for file in sorted(path.glob("*.h5")):
            with PredictionStore(file) as store:
                found.append(store.read(0, store.rows))
        return np.stack(found)
    with CohortStore(path) as store:
        return np.stack([store.haplotype(*pair).read(0, GRID.rows) for pair in HAPLOTYPES])


def table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t")


@pytest.mark.usefixtures("blank_pictures")
@pytest.mark.parametrize(
    ("statistic", "small"),
    [
        *[("variance", True), ("range", False)],
        pytest.param("variance", False, marks=pytest.mark.slow),
        pytest.param("range", True, marks=pytest.mark.slow),
    ],
)
def test_all_samples(
    run: Path,
    cohort: Path,
    tmp_path: Path,
    statistic: str,
    small: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if small:
        monkeypatch.setattr(cohort_file, "_ENTRIES", 1)
        monkeypatch.setattr(stacked, "_BLOCK_VALUES", 7 * 2 * 33)
        monkeypatch.setattr(stacked, "_MOST_OPEN", 2)
    of = {"variance": np.nanvar, "range": lambda v, axis: np.nanmax(v, axis) - np.nanmin(v, axis)}
    for out, names in ((run, ("one.", "two.")), (cohort, ("",))):
        folder = tmp_path / out.name
        compare(out, folder, statistic, top=12)
        values = expanded(out).astype(np.float64)
        for t, name in enumerate(names):
            frame = table(folder / f"{name}rows.tsv.gz")
            kept = (
                GRID.starts(np.arange(GRID.rows))
                < GRID.length[GRID.interval_of(np.arange(GRID.rows))]
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = of[statistic](values[:, :, t], axis=0)[kept]
                mean = np.nanmean(values[:, :, t], axis=0)[kept]
            np.testing.assert_allclose(frame[statistic], expected, 1e-6, 1e-9)
            np.testing.assert_allclose(frame["mean"], mean, 1e-6, 1e-8)
            known = (~np.isnan(values[:, :, t])).sum(axis=0)[kept]
            assert frame["samples"].tolist() == known.tolist()
            best = table(folder / f"{name}top.tsv")
            assert best[statistic].is_monotonic_decreasing
            assert best[statistic][0] == pytest.approx(np.nanmax(expected), rel=1e-5)
            assert len(best) == 12
            with pyBigWig.open(str(folder / f"{name}{statistic}.bw")) as bigwig:
                start, end = int(best["start"][0]), int(best["end"][0])
                middle = (start + end) // 2
                value = bigwig.values(str(best["contig"][0]), middle, middle + 1)[0]
            assert value == pytest.approx(best[statistic][0], rel=1e-5)


def groups(path: Path, names: list[str], every: int = 2) -> Path:
    rows = [f"{name}\t{'ab'[k % every > 0]}\t{k}" for k, name in enumerate(names)]
    path.write_text("\n".join(["sample\tkind\tnumber", *rows]) + "\n")
    return path


def check_groups(frame: pd.DataFrame, values: np.ndarray, first: np.ndarray) -> None:
    """Every row against SciPy on the values of all samples."""
    p = np.full(len(frame), np.nan)
    for k in range(len(frame)):
        a, b = (v[~np.isnan(v)].astype(np.float64) for v in (values[first, k], values[~first, k]))
        if len(a) and len(b):
            u, p[k] = mannwhitneyu(a, b)
            assert frame["u"][k] == u
            assert frame["difference"][k] == pytest.approx(a.mean() - b.mean(), rel=1e-6, abs=1e-8)
            assert (frame["first"][k], frame["second"][k]) == (len(a), len(b))
    np.testing.assert_allclose(frame["p"], p, 1e-7)
    known = ~np.isnan(p)
    np.testing.assert_allclose(frame["q"][known], false_discovery_control(p[known]), 1e-7)
    assert frame["q"][~known].isna().all()


@pytest.mark.usefixtures("blank_pictures")
def test_two_groups_of_genomes(run: Path, tmp_path: Path) -> None:
    names = [f"g{k}" for k in range(7)]
    found = compare(
        run, tmp_path / "o", samples_table=groups(tmp_path / "t.tsv", names), group="kind", top=9
    )
    assert found["groups"] == {"a": 4, "b": 3}
    frame = table(tmp_path / "o" / "two.rows.tsv.gz")
    values = expanded(run)[:, : len(frame), 1]
    check_groups(frame, values, np.arange(7) % 2 == 0)
    best = table(tmp_path / "o" / "two.top.tsv")
    assert best["start"][0] in range(99 * 20, 105 * 20)  # where they differ
    assert best["q"].min() == pytest.approx(frame["q"].min())
    assert (tmp_path / "o" / "one.log_q.bw").stat().st_size > 300


@pytest.mark.usefixtures("blank_pictures")
def test_of_likely_regions_the_largest_difference_is_first(tmp_path: Path) -> None:
    """Ranks are the same for all of these: groups do not overlap."""
    grid = Grid.whole({"c": 2_000}, Geometry(window=20, stride=20))
    size = np.zeros(grid.rows, np.float32)
    size[[10, 40, 70]] = 1e-5, 0.5, 0.02
    noise = np.random.default_rng(0).permutation(16).astype(np.float32)
    (tmp_path / "run").mkdir()
    for k in range(16):
        values = size * (k % 2) + 1e-6 * noise[k] * (size > 0)
        write_store(tmp_path / "run" / f"g{k}.h5", grid, values[:, None], ("one",))
    path = groups(tmp_path / "t.tsv", [f"g{k}" for k in range(16)])
    compare(tmp_path / "run", tmp_path / "o", samples_table=path, group="kind", top=3)
    best = table(tmp_path / "o" / "top.tsv")
    assert best["start"].tolist() == [800, 1400, 200]
    assert (best["q"] < 0.05).all()


def test_two_groups_of_a_cohort(cohort: Path, tmp_path: Path) -> None:
    path = groups(tmp_path / "t.tsv", [f"s{k}" for k in range(10)], every=3)
    with pytest.warns(UserWarning, match="2 of 22 samples are in neither group"):
        compare(cohort, tmp_path / "o", samples_table=path, group="kind", signal="bedgraph")
    frame = table(tmp_path / "o" / "rows.tsv.gz")
    owner = np.array([int(sample[1:]) for sample, _ in HAPLOTYPES])
    values = expanded(cohort)[owner < 10][:, : len(frame), 0]
    check_groups(frame, values, owner[owner < 10] % 3 == 0)
    assert (tmp_path / "o" / "difference.bedgraph.gz").exists()


@pytest.mark.usefixtures("blank_pictures")
def test_groups_that_are_none(run: Path, tmp_path: Path) -> None:
    path = groups(tmp_path / "t.tsv", [f"g{k}" for k in range(7)])
    of: dict[str, Any] = {"samples_table": path}
    for more, error, message in (
        ({"group": None}, OptionError, "belong together"),
        ({"group": "color"}, DataError, "expected columns sample and color"),
        ({"group": "number"}, DataError, "has 7 groups .* choose two with --groups"),
        ({"group": "number", "groups": ("1", "9")}, DataError, "is in group '9'"),
        ({"group": "kind", "groups": ("a", "a")}, DataError, "names 'a' twice"),
        ({"group": "kind", "groups": ("a",)}, OptionError, "names the two groups"),
        ({"group": "kind", "tracks": ["three"]}, OptionError, "no track 'three'"),
    ):
        with pytest.raises(error, match=message):
            compare(run, tmp_path / "o", **(of | more))
    path.write_text("sample\tkind\nx\ta\ny\tb\n")
    with pytest.raises(DataError, match="names none of the samples"):
        compare(run, tmp_path / "o", group="kind", **of)
    path.write_text("sample\tkind\ng1\ta\ng2\ta\n")
    with pytest.raises(DataError, match="in one group, 'a'; two are compared"):
        compare(run, tmp_path / "o", group="kind", **of)
    path.write_text("sample\tkind\ng1\ta\ng1\tb\n")
    with pytest.raises(DataError, match="'g1' is in 'a' and in 'b'"):
        compare(run, tmp_path / "o", group="kind", **of)
    path.write_text("")
    with pytest.raises(DataError, match="an empty file"):
        compare(run, tmp_path / "o", group="kind", **of)
    path.write_text("name\tnumber\n" + "".join(f"g{k}\t{k % 3}\n" for k in range(6)))
    with pytest.warns(UserWarning, match="3 of 7"):
        found = compare(run, tmp_path / "o", group="number", groups=("2", "0"), top=3, **of)
    assert found["groups"] == {"2": 2, "0": 2}


def test_samples_that_cannot_be_compared(run: Path, tmp_path: Path) -> None:
    values = values_of(1, 2)[0]
    write_store(tmp_path / "g0.h5", GRID, values, ("one", "two"))
    with pytest.raises(DataError, match="one sample, g0"):
        compare(tmp_path, tmp_path / "o")
    other = Grid.whole(CONTIGS | {"chr2": 741}, Geometry(window=40, stride=20))
    write_store(tmp_path / "g1.h5", other, tracks=("one", "two"))
    with pytest.raises(StoreError, match="other contigs, lengths or regions, unlike"):
        compare(tmp_path, tmp_path / "o")
    write_store(tmp_path / "g1.h5", GRID, values[:, :1], ("one",))
    with pytest.raises(StoreError, match="has the tracks one, unlike"):
        compare(tmp_path, tmp_path / "o")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        compare(run, tmp_path / "file")
    with pytest.raises(OptionError, match="unknown"):
        compare(run, tmp_path / "o", "median")


@pytest.mark.usefixtures("blank_pictures")
def test_nothing_known_and_all_equal(tmp_path: Path) -> None:
    values = np.full((GRID.rows, 1), np.nan, np.float32)
    for name in ("a", "b"):
        write_store(tmp_path / f"{name}.h5", GRID, values)
    found = compare(tmp_path, tmp_path / "o")
    assert found["tracks"][0]["files"] == ["rows.tsv.gz", "top.tsv", "top.bed"]
    for name in ("a", "b", "c"):
        write_store(tmp_path / f"{name}.h5", GRID, np.ones_like(values))
    found = compare(tmp_path, tmp_path / "o", top=5)
    assert (table(tmp_path / "o" / "rows.tsv.gz")["variance"] == 0).all()
    assert len(table(tmp_path / "o" / "top.tsv")) == 0
    names = ["rows.tsv.gz", "top.tsv", "top.bed", "variance.bw"]
    assert found["tracks"][0]["files"] == names


def test_clusters_stand_together() -> None:
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(3, 8)) * 10
    number = rng.integers(0, 3, 60)
    values = (centers[number] + rng.normal(size=(60, 8)) * 0.1).astype(np.float32)
    values[5, 3] = np.nan
    order = cluster_order(values)
    assert sorted(order.tolist()) == list(range(60))
    assert (np.diff(number[order]) != 0).sum() == 2
    assert cluster_order(values[:1]).tolist() == [0]
    assert sorted(cluster_order(np.zeros((4, 2), np.float32)).tolist()) == [0, 1, 2, 3]


def test_principal_components() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(30, 6)).astype(np.float32) * [5, 3, 1, 1, 1, 1]
    points, shares = principal_components(values)
    covariance = np.cov(values.T.astype(np.float64))
    spread = np.sort(np.linalg.eigvalsh(covariance))[::-1]
    np.testing.assert_allclose(shares, spread[:2] / spread.sum(), 1e-5)
    np.testing.assert_allclose(points.var(axis=0, ddof=1), spread[:2], 1e-5)
    points, shares = principal_components(np.ones((4, 1), np.float32))
    assert not points.any()
    assert not shares.any()


@pytest.mark.usefixtures("blank_pictures")
def test_command(run: Path, tmp_path: Path) -> None:
    path = groups(tmp_path / "t.tsv", [f"g{k}" for k in range(7)])
    words = ["compare", run, "-o", tmp_path / "o", "--samples-table", path, "--group", "kind"]
    words += ["--track", "one", "--top", 5]
    result = CliRunner().invoke(cli, [*map(str, words), "--json"])
    told = json.loads(result.stdout)["result"]
    assert told["tracks"][0]["top"] == 5
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert told == {"folder": str(tmp_path / "o"), **summary}
    for name in told["tracks"][0]["files"]:
        assert (tmp_path / "o" / name).stat().st_size
    result = CliRunner().invoke(cli, list(map(str, words)))
    assert "one: 5 regions listed" in result.stderr
    result = CliRunner().invoke(
        cli, ["compare", str(run), "-o", str(tmp_path / "o"), "--group", "x"]
    )
    assert isinstance(result.exception, GenomepredError)
    assert result.exception.exit_code == 2
