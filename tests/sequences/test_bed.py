from __future__ import annotations

import gzip
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genomepred.errors import DataError, RegionError
from genomepred.sequences.bed import (
    BedRecord,
    bed_records,
    described_sha256,
    read_bed,
    self_described,
)

CONTIGS = {"chr1": 1000, "HLA:A*01:01": 50, "track": 90, "browser": 50, "track1": 100}


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def places(path: Path) -> list[tuple[str, int, int, str]]:
    return [record[:4] for record in read_bed(path, CONTIGS)]


def test_plain_and_gzip(tmp_path: Path) -> None:
    text = (
        "# c\ntrack name=x\nbrowser position chr1:1-9\nchr1\t0\t10\tpeak 1\t5\t-\r\n\n"
        "HLA:A*01:01\t3\t4\n"
    )
    wanted = [
        BedRecord("chr1", 0, 10, "peak 1", "-", 5, 4),
        BedRecord("HLA:A*01:01", 3, 4, "", ".", 3, 6),
    ]
    packed = gzip.compress(text.encode())
    for path in (write(tmp_path / "a.bed", text), write(tmp_path / "a.of.any.name", packed)):
        assert read_bed(path, CONTIGS) == wanted
        assert [record.columns[1] for record in bed_records(path)] == ["0", "3"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("1\t0\t10", "line 2: no contig '1'; there it is named 'chr1': use the same name in both"),
        ("x" * 70_000 + "\t0\t10", r"line 2: no contig 'xxx.*70,000 long"),
        ("chr1\t5\t5", "line 2: 'chr1' 5-5 is empty"),
        ("chr1\t9\t5", "line 2: 'chr1' 9-5 is empty"),
        ("chr1\t1000\t1001", "line 2: 'chr1' 1000-1001 .* 1000 bases"),
        ("chr1\tx\t10", "line 2: expected contig, start and end"),
        ("chr1\t-1\t10", "line 2: expected contig, start and end"),
        ("chr1\t1.5\t10", "line 2: expected contig, start and end"),
        ("chr1\t1\t1e2", "line 2: expected contig, start and end"),
        ("chr1\t0\t" + "9" * 5000, "line 2: expected contig, start and end"),
        ("chr1\t\u0663\t\u0664", "line 2: expected contig, start and end"),
        ("chr1 only", "line 2: expected contig, start and end"),
        ("track\tx\t10", "line 2: expected contig, start and end"),
        ("browser\t5", "line 2: expected contig, start and end"),
        ("chr1\t0\t5\t" + "n" * (1 << 20), "line 2: longer than 1,048,576 characters"),
    ],
)
def test_bad_records_are_named_in_one_short_line(tmp_path: Path, record: str, message: str) -> None:
    path = write(tmp_path / "bad.bed", f"chr1\t0\t5\n{record}\n")
    with pytest.raises(RegionError, match=message) as caught:
        read_bed(path, CONTIGS)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


def test_contigs_called_like_header_words(tmp_path: Path) -> None:
    text = (
        "\ufefftrack name=x\ntrack type=bedGraph\ntrack\nbrowser hide all\n  # note\n"
        "track1\t0\t9\ntrack\t5\t6\ttype=wiggle\nbrowser\t1\t2\nbrowser 3 4\n"
    )
    path = write(tmp_path / "odd.bed", gzip.compress(text.encode()))
    assert [record[:3] for record in places(path)] == [
        ("track1", 0, 9),
        ("track", 5, 6),
        ("browser", 1, 2),
        ("browser", 3, 4),
    ]


def test_what_ends_past_its_contig_is_cut_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.bed", "chr1\t990\t1100\nchr1\t0\t1000\n")
    with pytest.warns(UserWarning, match=r"a\.bed: 1 of 2 records end past their contig"):
        (first, _) = read_bed(path, CONTIGS)
    assert (first.start, first.end) == (990, 1000)
    assert first.center == 999  # no window lies past the contig


NARROW = "chr1\t100\t200\tn\t0\t-\t5.1\t-1\t3.2\t20"
MORE = "\t4.5\t3.9\t1\t2\t5.0\t3\t4\t5\t5.2\t6"


@pytest.mark.parametrize("more", ["", MORE])
@pytest.mark.parametrize(
    ("file", "header", "center"),
    [
        ("p.narrowPeak", "", 120),
        ("p.NARROWPEAK.gz", "", 120),
        ("p.bed", "track name=x type=narrowPeak\n", 120),
        ("p.bed", 'track type="narrowPeak" name=x\n', 120),
        ("p.bed", "", 150),
        ("p.bed", "track name=narrowPeak\n", 150),
        ("p.broadPeak", "", 150),
        ("narrowPeak.bed", "", 150),
    ],
)
def test_the_summit_is_the_center_where_the_format_is_stated(
    file: str, header: str, center: int, more: str, tmp_path: Path
) -> None:
    text = f"{header}{NARROW}{more}\n{NARROW[:-2]}-1{more}\n".encode()
    path = write(tmp_path / file, gzip.compress(text) if file.endswith("gz") else text)
    found = read_bed(path, CONTIGS)
    assert [record.center for record in found] == [center, 150]
    assert [record.strand for record in found] == ["-", "-"]
    for narrow in (False, True):
        first, _ = bed_records(path, narrow_peak=narrow or bool(header and center == 120))
        assert first.center == (120 if narrow or (header and center == 120) else 150)


def test_copies_of_any_name_mean_the_same(tmp_path: Path) -> None:
    seen = set()
    for file in ("p.narrowPeak", "p.bed", "p.narrowPeak.gz", "p.bed.gz"):
        text = f"# first\n{NARROW}\n".encode()
        path = write(tmp_path / file, gzip.compress(text) if file.endswith("gz") else text)
        copy = write(tmp_path / "copy", b"".join(self_described(path)))
        assert read_bed(copy, CONTIGS) == read_bed(path, CONTIGS)  # their lines too
        assert described_sha256(path) == described_sha256(copy)
        seen.add(described_sha256(path))
    assert len(seen) == 4


def test_what_cannot_be_read_is_no_bed(tmp_path: Path) -> None:
    with pytest.raises(RegionError, match=r"absent: cannot be read as BED: No such file"):
        described_sha256(tmp_path / "absent")


@pytest.mark.parametrize("summit", ["100", "-2", "x", "", "9" * 5000, "1.0"])
def test_bad_summits_are_named(summit: str, tmp_path: Path) -> None:
    path = write(tmp_path / "p.narrowPeak", f"{NARROW}\n{NARROW[:-2]}{summit}\n")
    with pytest.raises(RegionError, match=r"line 2: column 10 of a narrowPeak .* in 10 columns"):
        read_bed(path, CONTIGS)
    write(path, "chr1\t1\t2\n")
    with pytest.raises(RegionError, match=r"line 1: column 10 .* in 3 columns"):
        read_bed(path, CONTIGS)


def test_what_is_no_bed(tmp_path: Path) -> None:
    with pytest.raises(RegionError, match="no BED records"):
        read_bed(write(tmp_path / "empty.bed", "# nothing\n"), CONTIGS)
    os.mkfifo(tmp_path / "pipe.bed")
    packed = gzip.compress(b"chr1\t1\t2\n" * 1000)
    write(tmp_path / "image.bed", b"\x89PNG\r\n\x1a\n\xff\xfe")
    write(tmp_path / "cut.bed", packed[:-12])
    write(tmp_path / "damaged.bed", packed[:15] + b"\xff" + packed[16:])
    for name in ("image.bed", "cut.bed", "damaged.bed", "pipe.bed", "absent.bed", "."):
        with pytest.raises(RegionError, match="cannot be read as BED"):
            read_bed(tmp_path / name, CONTIGS)
        with pytest.raises(DataError, match="called so: cannot be read as BED"):
            list(bed_records(tmp_path / name, called="called so", error=DataError))


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text("chr1\t0123 \n-track=", max_size=200))
def test_any_bytes_give_records_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes | str
) -> None:
    path = write(tmp_path_factory.mktemp("bed") / "x.bed", content)
    records = []
    with suppress(RegionError):
        records = list(bed_records(path))
    assert all(0 <= record.start <= record.center < record.end for record in records)
