from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genomepred.data.contigs import match_names
from genomepred.data.examples import TEST, TRAIN, VALIDATION, Codes
from genomepred.data.peaks import Peaks, Split, read_bed, read_peaks
from genomepred.errors import DataError, RegionError, SequenceError
from genomepred.sequences.fasta import Genome
from genomepred.sequences.grid import Region
from tests.data.contigs import contigs_of, load_contigs
from tests.helpers import examples

W = 20


def text_of(codes: Codes) -> str:
    return "".join("ACGTN"[code] for code in codes)


def make_world(folder: Path, genome_name: str = "chr1", peaks: int = 30) -> tuple[Path, Path]:
    """A genome of one contig of 6 kb and peaks on it (W apart) and on another contig."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, 6000, dtype=np.uint8)
    lines = []
    for i in range(peaks):
        start = 50 + i * 190
        lines.append(f">chr1:{start}-{start + W}\n{text_of(codes[start : start + W])}\n")
        lines.append(f">chr2:{start}-{start + W}\n{text_of(rng.integers(0, 4, W))}\n")
    positives, genome = folder / "peaks.fa", folder / "genome.fa"
    positives.write_text("".join(lines))
    genome.write_text(f">{genome_name}\n{text_of(codes)}\n")
    return positives, genome


# Peaks


def write(folder: Path, text: str) -> Path:
    path = folder / "peaks.fa"
    path.write_text(text)
    return path


def test_peaks_are_read_with_their_places(tmp_path: Path) -> None:
    peaks = read_peaks(write(tmp_path, ">chr1:5-9\nacgt\n>a:b:0-4\nNNTT\n"))
    assert [tuple(region)[:3] for region in peaks.regions] == [("chr1", 5, 9), ("a:b", 0, 4)]
    assert peaks.codes.tolist() == [[0, 1, 2, 3], [4, 4, 3, 3]]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (">peak_1\nACGT\n", DataError, "header 'peak_1' is not CONTIG:START-END"),
        (">chr1:5\nACGT\n", DataError, "header 'chr1:5' is not"),
        (">chr1:6-9\nACGT\n", DataError, "'chr1:6-9' spans 3 bases, but its sequence has 4"),
        (">chr1:5-9\nACGT\n>chr1:20-25\nACGTA\n", DataError, "mixed lengths.*4.*5"),
        (">chr1:5-9\nAC!T\n", SequenceError, "chr1:5-9"),
        (">chr1:5-9\nACGT\n>chr1:5-9\nACGT\n", SequenceError, "chr1:5-9"),
        ("contig,start,end\nchr1,5,9\n", SequenceError, "peaks.fa"),
        ("", SequenceError, "peaks.fa"),
    ],
)
def test_malformed_peaks_are_refused_in_one_line(
    tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        read_peaks(write(tmp_path, text))
    assert "\n" not in str(caught.value)


# Names


@pytest.mark.parametrize(
    ("label", "genome"),
    [("chr20", "20"), ("20", "chr20"), ("chr1", "Chr01"), ("chrX", "X"), ("chr1", "chromosome_1")],
)
def test_names_that_differ_by_prefix_or_zeros_are_the_same(label: str, genome: str) -> None:
    assert match_names([label, "other"], [genome, "scaffold7"], "x") == {label: genome}


def test_an_exact_name_wins() -> None:
    assert match_names(["1"], ["chr1", "1"], "x") == {"1": "1"}


def test_names_without_a_partner_show_both_sides() -> None:
    with pytest.raises(DataError, match=r"peaks\.fa has 'chr1', 'chr2', .*genome has 'NC_1'"):
        match_names([f"chr{i}" for i in range(1, 9)], ["NC_1"], "peaks.fa")


def test_a_name_with_two_partners_is_refused() -> None:
    with pytest.raises(DataError, match=r"'chr1' could be any of '1', 'Chr01' in"):
        match_names(["chr1"], ["1", "Chr01"], "x")


def test_peaks_meet_their_genome_under_another_name(tmp_path: Path) -> None:
    positives, genome = make_world(tmp_path, genome_name="1")
    with Genome(genome) as opened:
        assert list(load_contigs(opened, read_peaks(positives))) == ["chr1"]


def test_peaks_that_differ_from_the_genome_are_refused(tmp_path: Path) -> None:
    positives, genome = make_world(tmp_path)
    peaks = read_peaks(positives)
    shifted = [r._replace(start=r.start + 1, end=r.end + 1) for r in peaks.regions]
    with (
        Genome(genome) as opened,
        pytest.raises(DataError, match=r"30 of 30 peaks .*first 'chr1:50-70'.*0-based"),
    ):
        load_contigs(opened, Peaks(shifted, peaks.codes, peaks.source))


def test_a_peak_beyond_the_end_of_its_contig_differs_from_the_genome(tmp_path: Path) -> None:
    positives, genome = make_world(tmp_path)
    positives.write_text(f">chr1:5990-{5990 + W}\n{'A' * W}\n")
    with Genome(genome) as opened, pytest.raises(DataError, match="1 of 1 peaks"):
        load_contigs(opened, read_peaks(positives))


# Splits


region = st.builds(
    lambda contig, start, size: Region(contig, start, start + size),
    st.sampled_from("ab"),
    st.integers(0, 80),
    st.integers(1, 40),
)


@given(validation=st.lists(region, max_size=3), test=st.lists(region, max_size=3))
@settings(max_examples=examples(150), deadline=None)
def test_regions_of_the_parts_never_overlap_and_cover_the_genome(
    validation: list[Region], test: list[Region]
) -> None:
    split = Split(tuple(validation), tuple(test))
    owner: dict[tuple[str, int], set[int]] = {}
    for part, regions in enumerate(split.regions({"a": 100, "b": 50})):
        for contig, start, end, _ in regions:
            assert 0 <= start < end <= {"a": 100, "b": 50}[contig]
            for base in range(start, end):
                owner.setdefault((contig, base), set()).add(part)
    assert len(owner) == 150
    for (contig, base), parts in owner.items():
        assert parts == set(split.parts([Region(contig, base, base + 1)]).tolist())


def test_a_peak_that_touches_the_test_region_is_a_test_peak() -> None:
    split = Split.parse(["chr1:1-100"], ["chr1:101-200", "chr2"], {"chr1": 500, "chr2": 0})
    regions = [
        Region("chr1", 80, 101),
        Region("chr1", 80, 100),
        Region("chr1", 200, 220),
        Region("chr2", 10**8, 10**8 + 20),
    ]
    assert split.parts(regions).tolist() == [TEST, VALIDATION, TRAIN, TEST]


def test_a_held_out_contig_without_peaks_is_refused() -> None:
    with pytest.raises(RegionError, match="chr3"):
        Split.parse(["chr3"], ["chr1"], {"chr1": 500})


LENGTHS = {"a:chr1": 500, "a:chr2": 100, "b:chr1": 400, "b:scaffold": 50}


def held_out(text: str) -> list[tuple[str, int, int]]:
    return [region[:3] for region in Split.parse([], [text], LENGTHS, ["a", "b"]).test]


def test_a_region_is_held_out_in_every_genome_that_has_its_contig() -> None:
    assert [contig for contig, _, _ in held_out("chr1")] == ["a:chr1", "b:chr1"]
    # Its end lies beyond the contig of b: what there is of it is held out there, too.
    assert held_out("chr1:301-450") == [("a:chr1", 300, 450), ("b:chr1", 300, 450)]
    split = Split.parse([], ["chr1:301-450"], LENGTHS, ["a", "b"])
    assert split.regions(LENGTHS)[TEST][1] == Region("b:chr1", 300, 400)


def test_a_region_of_one_genome_is_named_with_it() -> None:
    assert held_out("b:chr1:11-20") == [("b:chr1", 10, 20)]
    assert held_out("a:chr1") == [("a:chr1", 0, 500)]
    with pytest.raises(RegionError, match="chr3"):
        held_out("chr3")


CULTIVARS = {"a:Chr3": 500, "a:Chr1": 900, "b:chr03": 400, "b:chr01": 900, "c:3": 450, "c:1": 900}


@given(st.permutations(list("abc")), st.sampled_from(["Chr3", "chr03", "3", "chromosome_3"]))
def test_a_contig_is_held_out_whatever_the_genomes_call_it(genomes: list[str], text: str) -> None:
    found = Split.parse([], [text], CULTIVARS, genomes).test
    assert sorted(found) == [
        ("a:Chr3", 0, 500, ""), ("b:chr03", 0, 400, ""), ("c:3", 0, 450, ""),
    ]  # fmt: skip
    assert Split.parse([], ["b:Chr3:11-20"], CULTIVARS, genomes).test == (
        Region("b:chr03", 10, 20),
    )
    assert Split.parse([], ["chr03"], {"Chr3": 50}).test == (Region("Chr3", 0, 50),)


def test_coordinates_in_several_genomes_and_contigs_that_one_lacks_are_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Split.parse(["a:Chr1:1-9", "c:1:1-9"], ["Chr3"], CULTIVARS, ["a", "b", "c"])
    assert capsys.readouterr().err == ""
    Split.parse([], ["Chr3:1-9"], CULTIVARS, ["a", "b", "c"])
    assert "--test Chr3:1-9: the same coordinates are held out in 3 ge" in capsys.readouterr().err
    Split.parse([], ["Chr3"], CULTIVARS | {"d:x": 5}, ["a", "d", "b", "c"])
    assert "--test Chr3: no such contig in 'd'; write NAME:CONTIG" in capsys.readouterr().err


def test_a_name_that_may_mean_two_contigs_is_refused() -> None:
    with pytest.raises(RegionError, match=r"contig 'chr3' could be any of 'Chr3', '03'"):
        Split.parse([], ["chr3"], {"Chr3": 5, "03": 5})
    with pytest.raises(RegionError, match="1-based"):
        Split.parse([], ["3:x-9"], CULTIVARS, ["a", "b", "c"])


# BED


def bed(folder: Path, text: str, name: str = "peaks.bed") -> Path:
    path = folder / name
    path.write_text(text)
    return path


TEN = "chr1\t100\t200\tp\t0\t.\t1.5\t2\t3\t7\nchr1\t100\t200\tp\t0\t.\t1.5\t2\t3\t-1\n"


def centers(path: Path, peak_format: str = "auto") -> list[int]:
    return [record.center for record in read_bed(path, peak_format)]


def test_summits_are_read_where_name_header_or_user_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = "\n".join(f"{line}\t1\t2\t3" for line in TEN.splitlines())  # as idr writes it
    assert centers(bed(tmp_path, TEN, "a.narrowPeak")) == [107, 150]
    assert centers(bed(tmp_path, more, "a.narrowPeak")) == [107, 150]
    assert centers(bed(tmp_path, f"track type=narrowPeak\n{TEN}")) == [107, 150]
    assert centers(bed(tmp_path, TEN), "narrowPeak") == [107, 150]
    assert centers(bed(tmp_path, TEN, "a.narrowPeak"), "bed") == [150, 150]
    assert capsys.readouterr().err == ""
    assert centers(bed(tmp_path, TEN)) == [150, 150]
    assert "peaks.bed: has the ten columns of a narrowPeak" in capsys.readouterr().err
    assert centers(bed(tmp_path, "chr1\t1\t9\tn\t0\t+\tchr1\t5\t9\t4\n")) == [5]  # intersect -wo
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chr1\t5\n", "line 1: expected contig, start and end"),
        ("chr1\t5\t9\nchr1\tx\t9\n", "line 2: expected contig"),
        ("chr1\t9\t9\n", "line 1: .* is empty"),
        ("# nothing\n", "no peaks"),
    ],
)
def test_malformed_bed_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_bed(bed(tmp_path, text))
    assert "peaks.bed" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_no_bed(tmp_path: Path) -> None:
    path = tmp_path / "peaks.bed"
    path.write_bytes(b"\x1f\x8bnonsense")
    with pytest.raises(DataError, match="cannot be read as BED"):
        read_bed(path)


# Contigs


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    margin=st.integers(0, 5),
    data=st.data(),
)
def test_places_among_joined_contigs_and_back(
    lengths: list[int], margin: int, data: st.DataObject
) -> None:
    codes = {f"c{i}": np.full(n, i % 4, np.uint8) for i, n in enumerate(lengths)}
    contigs = contigs_of(codes, margin)
    name = data.draw(st.sampled_from(list(codes)))
    window = data.draw(st.integers(1, len(codes[name]) + margin))
    # A window of a contig overlaps it, and reaches no further out than the margin.
    start = data.draw(
        st.integers(max(-margin, 1 - window), len(codes[name]) - max(window - margin, 1))
    )
    region = Region(name, start, start + window)
    place = contigs.place(region)
    if start + window > 0:
        assert contigs.regions(np.array([place]), window) == [region]
    found = contigs.joined[place : place + window]
    inside = (np.arange(window) + start >= 0) & (np.arange(window) + start < len(codes[name]))
    assert found.tolist() == np.where(inside, codes[name][0], 4).tolist()
    assert {name: array.tolist() for name, array in contigs.items()} == {
        name: array.tolist() for name, array in codes.items()
    }


def test_two_names_of_one_contig_are_refused() -> None:
    with pytest.raises(DataError, match=r"contigs 'chr1' and '1' both mean 'Chr01'"):
        match_names(["chr1", "1"], ["Chr01"], "x")
