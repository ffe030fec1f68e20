"""Windows of files and regions: what is asked for is covered, the rest is real where it can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genomepred.errors import DataError, GenomepredError, ModelError, RegionError, SequenceError
from genomepred.explain.windows import Output, Window, read_windows
from genomepred.models.card import Card, Track

RECORDS = {
    "chr1": "ACGTTGCAAC" * 7,
    "HLA:01:02": "GGGGGCCCCCAAAAATTTTT",
    "short": "ACGTNACG",
}


def card(window: int = 10, crop: int = 0, bins: int = 1, **changes: Any) -> Card:
    size = (window - 2 * crop) // bins
    fields: dict[str, Any] = {
        "name": "some",
        "architecture": "linear",
        "config": {},
        "window": window,
        "crop": crop,
        "bins": bins,
        "bin_size": size,
        "stride": size * bins,
        "tracks": (Track("a"),),
        "activation": "none",
    }
    return Card(**{**fields, **changes})


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "a:b.fa"
    path.write_text("".join(f">{name}\n{bases}\n" for name, bases in RECORDS.items()))
    return path


def letters(window: Window) -> str:
    return "".join("ACGTN"[code] for code in window.codes)


def test_a_short_region_is_centered_with_the_genome_around_it(fasta: Path) -> None:
    (window,) = read_windows([f"{fasta}:chr1:31-34"], card())
    assert (window.name, window.contig, window.start) == ("chr1:31-34", "chr1", 27)
    assert letters(window) == RECORDS["chr1"][27:37]
    assert window.asked == (3, 7)


def test_the_genome_ends_in_unknown_bases(fasta: Path) -> None:
    (window,) = read_windows([f"{fasta}:chr1:1-2"], card())
    assert letters(window) == "NNNN" + RECORDS["chr1"][:6]
    assert (window.start, window.asked) == (-4, (4, 6))


def test_contigs_and_paths_may_hold_colons(fasta: Path, tmp_path: Path) -> None:
    (window,) = read_windows([f"{fasta}:HLA:01:02:6-15"], card())
    assert (window.contig, letters(window)) == ("HLA:01:02", "CCCCCAAAAA")
    whole = list(read_windows([f"{fasta}:HLA:01:02"], card()))
    assert "".join(map(letters, whole)) == RECORDS["HLA:01:02"]
    other = tmp_path / "a"  # a beginning that is a file as well: the longest wins
    other.write_text(">b.fa\nAAAAAAAAAA\n")
    (window,) = read_windows([f"{fasta}:chr1:1-10"], card())
    assert letters(window) == RECORDS["chr1"][:10]


def test_records_are_read_whole_in_the_order_given(fasta: Path) -> None:
    windows = list(read_windows([f"{fasta}:short", str(fasta)], card(window=20)))
    names = ["short", *(f"chr1:{a}-{b}" for a, b in [(1, 15), (16, 35), (36, 55), (56, 70)])]
    assert [w.name for w in windows] == [*names, "HLA:01:02", "short"]
    assert letters(windows[0]) == letters(windows[-1]) == "N" * 6 + RECORDS["short"] + "N" * 6
    assert windows[0].asked == (6, 14)


@pytest.mark.parametrize(("pad", "expected"), [("left", 2), ("right", 0)])
def test_records_are_padded_as_in_training_but_regions_are_not(
    fasta: Path, pad: str, expected: int
) -> None:
    trained = card(window=10, training={"data": {"pad": pad}})
    windows = {w.name: w for w in read_windows([str(fasta), f"{fasta}:chr1:31-34"], trained)}
    assert windows["short"].asked == (expected, expected + 8)
    assert windows["chr1:31-34"].asked == (3, 7)


@given(
    start=st.integers(0, 69),
    length=st.integers(1, 70),
    crop=st.integers(0, 4),
    bins=st.integers(1, 3),
    bin_size=st.integers(1, 9),
)
def test_every_base_asked_for_lies_in_one_uncropped_part(
    tmp_path_factory: pytest.TempPathFactory,
    start: int,
    length: int,
    crop: int,
    bins: int,
    bin_size: int,
) -> None:
    path = tmp_path_factory.mktemp("genome") / "g.fa"
    bases = RECORDS["chr1"]
    path.write_text(f">chr1\n{bases}\n")
    end = min(start + length, len(bases))
    sizes = card(bins * bin_size + 2 * crop, crop, bins)
    asked = []
    for window in read_windows([f"{path}:chr1:{start + 1}-{end}"], sizes):
        low, high = window.asked
        assert crop <= low < high <= sizes.window - crop
        asked += range(window.start + low, window.start + high)
        padded = "N" * 100 + bases + "N" * 100
        assert letters(window) == padded[100 + window.start :][: sizes.window]
        bins_asked = Output(sizes).bins(window)
        assert bins_asked.start * bin_size <= low - crop
        assert high - crop <= bins_asked.stop * bin_size <= bins * bin_size
    assert asked == list(range(start, end))


def test_rows_of_a_table_are_sequences(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("name,utr,other\nx,ACGUACGUAC,1\n,acgt,2\n")
    windows = list(read_windows([str(path)], card()))
    assert [(w.name, letters(w)) for w in windows] == [("x", "ACGTACGTAC"), ("row2", "NNNACGTNNN")]
    (first, _) = read_windows([str(path)], card(), "utr")
    assert letters(first) == "ACGTACGTAC"


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (["absent.fa"], SequenceError, "no input 'absent.fa': it is no file, and no part of it"),
        (["{fasta}:chr9:1-2"], RegionError, "no contig 'chr9'"),
        (["{fasta}:chr1:60-80"], RegionError, "which has bases 1-70"),
        (["{table}:x"], SequenceError, "is a table; regions are cut out of a FASTA"),
        (["{table}"], DataError, "row 1, column 'seq': 'J' at position 3 is no nucleotide"),
        (["{gap}"], DataError, "row 1, column 'seq': no sequence; fill it in or remove it"),
        (["{fasta}:chr1:1-2", "gone"], SequenceError, "no input 'gone'"),
    ],
)
def test_what_cannot_be_read_is_named(
    fasta: Path, tmp_path: Path, inputs: list[str], error: type[GenomepredError], message: str
) -> None:
    table = tmp_path / "t.tsv"
    table.write_text("seq\nACJT\n")
    gap = tmp_path / "gap.tsv"
    gap.write_text("seq\tother\n\t1\n")
    places = {"fasta": fasta, "table": table, "gap": gap}
    with pytest.raises(error, match=message):
        next(read_windows([text.format(**places) for text in inputs], card()))


def test_the_output_is_one_track_summed_over_the_bins_asked_for() -> None:
    tracks = (Track("a"), Track("b"), Track("c"))
    sizes = card(20, 4, 3, tracks=tracks)
    raw = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0))
    window = Window("w", "c", 0, np.zeros(20, np.uint8), (8, 16))
    output = Output(sizes, "b")
    assert output.bins(window) == slice(1, 3)
    torch.testing.assert_close(output.of(raw, slice(1, 3)), raw[:, 1, 1] + raw[:, 2, 1])
    assert Output(sizes, "b", 0).bins(window) == slice(0, 1)
    softmax = Output(card(20, 4, 3, tracks=tracks, activation="softmax"), "c")
    expected = raw.softmax(2)[:, 0, 2].log()
    torch.testing.assert_close(softmax.of(raw, slice(0, 1)), expected)
    assert (softmax.name, softmax.unit) == ("c", "log probability")


@pytest.mark.parametrize(
    ("track", "bin_", "message"),
    [
        (None, None, "has 2 tracks; use --track: a, b"),
        ("z", None, "no track 'z'; it has a, b"),
        ("a", 1, "has bins 0-0, no bin 1"),
    ],
)
def test_tracks_and_bins_that_are_not_there(
    track: str | None, bin_: int | None, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        Output(card(tracks=(Track("a"), Track("b"))), track, bin_)
