"""Sites against a search in plain Python, on real maps, and as files that other programs read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from genomepred.cli import cli
from genomepred.demo import MISMATCHES, SEQUENCE, best_match
from genomepred.errors import (
    GenomepredError,
    ModelError,
    OptionError,
    OutputError,
    RegionError,
    SequenceError,
    StoreError,
)
from genomepred.runs.run import predict
from genomepred.sequences.bed import bed_records
from genomepred.sequences.codes import reverse_complement
from genomepred.sequences.fasta import Genome
from genomepred.sequences.grid import Geometry, Grid, Region
from genomepred.store.reader import PredictionStore
from genomepred.tables import sites as module
from genomepred.tables.site_files import SiteOptions, scaled, site_lines, write_sites
from genomepred.tables.sites import Choice, Sites, find_sites, with_sequences
from tests.checkpoints import make_checkpoint
from tests.cohort_files import write_cohort
from tests.store_files import write_store

GEOMETRY = Geometry(window=100, stride=20)


def codes_of(text: str) -> np.ndarray:
    return np.array(["ACGTN".index(base) for base in text], np.uint8)


def plain(store: PredictionStore, column: int, within: int, least: float) -> list[tuple[Any, ...]]:
    """Contig, start, end, score of rows that are the highest nearby: one loop over all rows."""
    found = []
    for contig in sorted(store.contigs):
        rows = store[contig]
        scores = rows.values[:, column]
        for k, score in enumerate(scores):
            near = range(max(k - within, 0), min(k + within + 1, len(scores)))
            if not score >= least or np.isinf(score):
                continue
            higher = [j for j in near if scores[j] > score or (scores[j] == score and j < k)]
            if not higher:
                found.append((contig, rows.start[k], rows.end[k], score))
    return found


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("sites") / "genome.h5", tracks=("CTCF", "MRL"))


@pytest.mark.parametrize("block", [1 << 20, 7])
def test_sites_are_those_of_a_plain_search(
    file: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK_ROWS", block)
    with PredictionStore(file) as store:
        for column, track in enumerate(store.tracks):
            found = find_sites(store, track, Choice(threshold=0.3))
            of = zip(found.contig, found.start, found.end, found.score, strict=True)
            # No two maxima share bases: they lie more than a window apart.
            assert list(of) == plain(store, column, 5, 0.3)
            assert (store.read(0, store.rows)[found.row, column] == found.score).all()
            assert (found.summit == found.start + 50).all() or "ctg-é" in found.contig


def test_top_and_per_megabase(file: Path) -> None:
    with PredictionStore(file) as store:
        all_of_them = sorted(plain(store, 0, 5, -np.inf), key=lambda site: -site[3])
        found = find_sites(store, "CTCF", Choice(top=4))
        assert sorted(found.score.tolist()) == sorted(site[3] for site in all_of_them[:4])
        assert sorted(found.names) == ["CTCF_1", "CTCF_2", "CTCF_3", "CTCF_4"]
        assert found.names[int(found.score.argmax())] == "CTCF_1"
        bases = sum(store.contigs.values())
        found = find_sites(store, "CTCF", Choice(per_mb=3e6 / bases))
        assert len(found) == 3
        assert len(find_sites(store, "CTCF", Choice(top=10**6))) == len(all_of_them)
        assert len(find_sites(store, "CTCF", Choice(threshold=1e9))) == 0


def test_near_maxima_are_merged(tmp_path: Path) -> None:
    grid = Grid.whole({"c": 1_000, "d": 1_000}, GEOMETRY)
    values = np.zeros((grid.rows, 1), np.float32)
    values[[3, 5, 7, 20], 0] = 1, 3, 2, 5  # 60-160, 100-200, 140-240, and one apart
    values[grid.rows // 2 :] = np.nan
    with PredictionStore(write_store(tmp_path / "g.h5", grid, values)) as store:
        found = find_sites(store, None, Choice(threshold=0.5), within=20)
        of = zip(found.start, found.end, found.summit, found.score, strict=True)
        assert list(of) == [(60, 240, 150, 3), (400, 500, 450, 5)]
        runs = find_sites(store, None, Choice(threshold=0.5), within=0)
        assert runs.start.tolist() == found.start.tolist()
        assert find_sites(store, None, Choice(threshold=0.5)).start.tolist() == [100, 400]


def test_records_of_a_centered_grid_that_hold_one_another(tmp_path: Path) -> None:
    regions = [Region("c", 400, 500, "b"), Region("c", 100, 200, "a"), Region("c", 120, 220, "x")]
    grid = Grid.centered({"c": 1_000}, GEOMETRY, regions)
    values = np.array([[1], [2], [3]], np.float32)
    with PredictionStore(write_store(tmp_path / "g.h5", grid, values)) as store:
        found = find_sites(store, None, Choice(threshold=0))
        of = zip(found.start, found.end, found.summit, found.score, strict=True)
        assert list(of) == [(100, 220, 170, 3), (400, 500, 450, 1)]


def test_thresholds_of_cards(file: Path, tmp_path: Path) -> None:
    with PredictionStore(file) as store:
        with pytest.raises(OptionError, match="2 tracks; choose"):
            find_sites(store)
        with pytest.raises(ModelError, match="card is not known; give --model"):
            find_sites(store, "CTCF")
        with pytest.raises(OptionError, match="give one of"):
            find_sites(store, "CTCF", Choice(threshold=1, top=2))
        with pytest.raises(ModelError, match="was predicted with feed"):
            module.model_card(store, "ctcf")
    make_checkpoint(tmp_path / "model", window=40, stride=10)
    with pytest.raises(ModelError, match="has none; give --model"):
        module.card_threshold(module.read_card(tmp_path / "model"))


# -- a real map ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled megabase of human chr22, predicted with the bundled model."""
    out = tmp_path_factory.mktemp("real")
    predict(SEQUENCE, "ctcf", out, progress=False, jobs=1)
    return out


def test_real_sites_hold_the_motif_and_read_as_their_strand(real: Path) -> None:
    with PredictionStore(next(real.glob("*.h5"))) as store, Genome(SEQUENCE) as genome:
        from genomepred.inference.predictor import Predictor

        found = find_sites(store)  # by the threshold that the bundled card holds
        assert (found.score >= np.float32(0.9924)).all()
        assert len(found) == len(plain(store, 0, 5, 0.9924))
        predictor = Predictor("ctcf", device="cpu")
        found = with_sequences(found, store, genome, predictor)
        assert found.sequence is not None
        codes = np.stack([codes_of(sequence) for sequence in found.sequence])
        hits = sum(best_match(row).mismatches <= MISMATCHES for row in codes)
        assert hits > 0.7 * len(found)
        back = np.stack([reverse_complement(row) for row in codes])
        ahead, behind = predictor.predict(codes).ravel(), predictor.predict(back).ravel()
        assert (ahead > behind)[found.strand != "."].all()
        assert (found.strand == "+").any()
        assert (found.strand == "-").any()
        start = int(found.start[0])
        codes = genome.codes(found.contig[0], start, start + 100)
        codes = reverse_complement(codes) if found.strand[0] == "-" else codes
        assert (codes_of(found.sequence[0]) == codes).all()
        some = found.take(np.arange(3))
        assert len(some.to_frame()) == 3  # sequences are another step's


def test_command_on_a_real_map(real: Path, tmp_path: Path) -> None:
    path = tmp_path / "ctcf.narrowPeak"
    told = json.loads(call("sites", real, "-o", path, "--json").stdout)["result"]["maps"]
    (store,) = real.glob("*.h5")
    with PredictionStore(store) as opened:
        found = find_sites(opened)
    assert told[0]["sites"] == len(found)
    records = list(bed_records(path))  # checks each summit
    assert [record.center for record in records] == found.summit.tolist()
    assert all(len(record.columns) == 10 for record in records)
    scores = [int(record.columns[4]) for record in records]
    assert max(scores) == 1000
    assert min(scores) >= 0
    frame = pd.read_csv(
        _text(call("sites", store, "--top", 5, "--format", "tsv", "--sequence", SEQUENCE)), sep="\t"
    )
    assert len(frame) == 5
    assert set(frame["strand"]) <= {"+", "-"}
    assert (frame["sequence"].str.len() == 100).all()


def _text(result: Any) -> Any:
    import io

    return io.StringIO(result.stdout)


def call(*words: object) -> Any:
    result = CliRunner().invoke(cli, [str(word) for word in words])
    if isinstance(result.exception, GenomepredError):
        raise result.exception
    return result


# -- files -----------------------------------------------------------------------------------------


def test_several_maps(file: Path, tmp_path: Path) -> None:
    grid = Grid.whole({"c": 5_000}, GEOMETRY)
    cohort = write_cohort(tmp_path / "panel.h5", grid, [("a", 1), ("b", 1)], ("CTCF", "MRL"))
    options = SiteOptions(Choice(top=3))
    written = write_sites([file], tmp_path / "peaks", options=options)
    assert [path.name for _, _, path in written if path] == [
        "genome.CTCF.narrowPeak", "genome.MRL.narrowPeak",
    ]  # fmt: skip
    written = write_sites([cohort], tmp_path / "p", "bed", samples=["b", "a.1"], options=options)
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == [
        "panel.a.1.CTCF.bed", "panel.a.1.MRL.bed", "panel.b.CTCF.bed", "panel.b.MRL.bed",
    ]  # fmt: skip
    write_sites([cohort], tmp_path / "all.tsv.gz", samples=["a", "b"], options=options)
    frame = pd.read_csv(tmp_path / "all.tsv.gz", sep="\t")
    assert frame.columns[0] == "genome"
    assert frame.groupby(["genome", "track"]).size().tolist() == [3, 3, 3, 3]
    with pytest.raises(OptionError, match="2 maps do not fit into one narrowPeak"):
        write_sites([file], None, options=options)
    with pytest.raises(OptionError, match="is named bed, but --format says tsv"):
        write_sites([file], tmp_path / "x.bed", "tsv", options=options)
    with pytest.raises(OptionError, match="no column for sequences"):
        write_sites([file], None, options=SiteOptions(Choice(top=3), genome=SEQUENCE))
    with pytest.raises(StoreError, match="two maps have the name"):
        write_sites([file, file], tmp_path / "twice", options=options)
    with pytest.raises(StoreError, match="say which haplotype"):
        write_sites([cohort], None, options=options)
    (tmp_path / "blocked").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        write_sites([file], tmp_path / "blocked", options=options)


def test_sequences_of_another_genome_or_of_a_haplotype(tmp_path: Path) -> None:
    grid = Grid.whole({"c": 5_000}, GEOMETRY)
    write_cohort(tmp_path / "panel.h5", grid, [("a", 1)], ("CTCF",))
    one = SiteOptions(Choice(top=3), genome=SEQUENCE)
    with pytest.raises(RegionError, match="sites of a haplotype"):
        write_sites([tmp_path / "panel.h5"], tmp_path / "x.tsv", samples=["a"], options=one)
    write_store(tmp_path / "genome.h5")
    with pytest.raises(SequenceError, match="is not the sequence"):
        write_sites([tmp_path / "genome.h5"], tmp_path / "x.tsv", options=one)
    assert not (tmp_path / "x.tsv").exists()


def test_choices_of_the_command(file: Path) -> None:
    result = call("sites", file, "--top", 3, "--per-mb", 2)
    assert result.exit_code == 2
    assert "--top and --per-mb contradict" in result.stderr
    assert call("sites", file, "--top", 3, "--json").exit_code == 2
    assert call("sites", file, "--top", 0).exit_code == 2
    result = call("sites", file, "--top", 3, "--track", "MRL")
    assert result.stdout.count("\n") == 3
    assert "genome.MRL: 3 sites" in result.stderr


def test_scores_of_a_narrow_peak() -> None:
    def scores(*values: float) -> list[int]:
        return scaled(np.array(values, np.float32)).tolist()

    assert scores(0.5, 1.0, 0.0) == [500, 1000, 0]
    assert scores(0.25, 0.5) == [500, 1000]
    assert scores(-1, 1) == [0, 1000]
    assert scores(-3, -2) == [0, 1000]
    assert scores(-3, -2, -2.5) == [0, 1000, 500]
    assert scores(0.0) == [1000]
    assert scores() == []


def test_lines() -> None:
    strands = np.array(["+", "."], object)
    places = np.array([10, 50]), np.array([20, 70]), np.array([12, 69])
    scores = np.array([0.5, 0.25], np.float32)
    contigs = np.array(["c", "d"], object)
    found = Sites(contigs, *places, scores, np.array([3, 4]), strands, "T")
    assert site_lines(found, "narrowPeak").splitlines() == [
        "c\t10\t20\tT_1\t1000\t+\t0.5\t-1\t-1\t2",
        "d\t50\t70\tT_2\t500\t.\t0.25\t-1\t-1\t19",
    ]
    assert site_lines(found, "bed").splitlines()[1] == "d\t50\t70\tT_2\t500\t."
    assert site_lines(found, "tsv", first="g").startswith("genome\tcontig\tstart\tend\tname\tscore")


def test_numbers_without_end_choose_all_sites_or_the_highest(file: Path) -> None:
    with PredictionStore(file) as store:
        every = find_sites(store, "CTCF", Choice(threshold=-np.inf))
        assert len(find_sites(store, "CTCF", Choice(per_mb=np.inf))) == len(every)
        wide = find_sites(store, "CTCF", Choice(threshold=-np.inf), within=1 << 62)
        assert 0 < len(wide) <= len(store.grid.contigs)
        for choice in (Choice(threshold=np.nan), Choice(per_mb=np.nan)):
            with pytest.raises(OptionError, match="NaN"):
                find_sites(store, "CTCF", choice)


def test_sites_take_no_inputs_place(file: Path, tmp_path: Path) -> None:
    genome = tmp_path / "genome.tsv"
    genome.write_text(">c\nACGT\n")
    with pytest.raises(OutputError, match="is an input of this command"):
        write_sites([file], genome, options=SiteOptions(Choice(top=1), genome=genome))
    assert genome.read_text() == ">c\nACGT\n"
