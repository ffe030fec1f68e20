from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genomepred.errors import DataError, RegionError, SequenceError
from genomepred.sequences.codes import reverse_complement
from genomepred.sequences.fasta import Genome
from genomepred.sequences.grid import Region
from genomepred.training.data import (
    TEST,
    TRAIN,
    VALIDATION,
    Codes,
    Mix,
    PeakData,
    Peaks,
    Split,
    labelled,
    load_contigs,
    match_names,
    read_peaks,
)
from genomepred.training.negatives import gc_counts

W = 20
MIX = Mix(shuffled=1, matched=1, random=2)


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


def make_data(folder: Path, mix: Mix = MIX, seed: int = 0) -> PeakData:
    positives, genome = make_world(folder)
    peaks = read_peaks(positives)
    with Genome(genome) as opened:
        contigs = load_contigs(opened, peaks)
    split = Split.parse(
        ["chr1:2001-3000", "chr2:1-800"],
        ["chr1:4001-6000", "chr2:3001-6000"],
        {"chr1": 6000, "chr2": 0},
    )
    return PeakData(peaks, contigs, split, mix, seed)


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
    with pytest.raises(DataError, match=r"peaks\.fa has chr1, chr2, .*genome has NC_1"):
        match_names([f"chr{i}" for i in range(1, 9)], ["NC_1"], "peaks.fa")


def test_a_name_with_two_partners_is_refused() -> None:
    with pytest.raises(DataError, match=r"'chr1' could be any of \['1', 'Chr01'\]"):
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
@settings(max_examples=150, deadline=None)
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
        assert parts == {split.part(Region(contig, base, base + 1))}


def test_a_peak_that_touches_the_test_region_is_a_test_peak() -> None:
    split = Split.parse(["chr1:1-100"], ["chr1:101-200", "chr2"], {"chr1": 500, "chr2": 0})
    assert split.part(Region("chr1", 80, 101)) == TEST
    assert split.part(Region("chr1", 80, 100)) == VALIDATION
    assert split.part(Region("chr1", 200, 220)) == TRAIN
    assert split.part(Region("chr2", 10**8, 10**8 + 20)) == TEST


def test_a_held_out_contig_without_peaks_is_refused() -> None:
    with pytest.raises(RegionError, match="chr3"):
        Split.parse(["chr3"], ["chr1"], {"chr1": 500})


def places(data: PeakData, windows: Codes) -> list[int]:
    """Start of each real window in the genome."""
    view = np.lib.stride_tricks.sliding_window_view(data.background.codes, W)
    index = {row.tobytes(): i for i, row in enumerate(view)}
    return [index[row.tobytes()] for row in np.ascontiguousarray(windows)]


def test_nothing_held_out_is_ever_trained_on(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    # chr1 0-2000 and 3000-4000 are for training; windows lie inside wholly.
    allowed = set(range(2000 - W + 1)) | set(range(3000, 4000 - W + 1))
    held_out = {row.tobytes() for part in (VALIDATION, TEST) for row in data.positives[part]}
    for number in range(5):
        examples = data.epoch(number)
        both = np.concatenate([examples.codes, reverse_complement(examples.codes)])
        assert not held_out & {row.tobytes() for row in both}
        n = len(data.positives[TRAIN])
        rng = np.random.default_rng((0, number))
        plain = data._examples(TRAIN, data.mix, rng)  # the same, before strands and order
        assert set(places(data, plain.codes[2 * n :])) <= allowed
        assert sorted(map(bytes, canonical(plain.codes))) == sorted(
            map(bytes, canonical(examples.codes))
        )


def canonical(codes: Codes) -> Codes:
    """The lesser of each sequence and its reverse complement."""
    opposite = reverse_complement(codes)
    lesser = np.array([a.tobytes() < b.tobytes() for a, b in zip(codes, opposite, strict=True)])
    return np.where(lesser[:, None], codes, opposite)


def test_validation_and_test_stay_in_their_regions(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    validation, n = data.validation(), len(data.positives[VALIDATION])
    assert set(places(data, validation.codes[2 * n :])) <= set(range(2000, 3000 - W + 1))
    for kind in ("GC-matched", "random"):
        examples = data.held_out()[kind]
        n = len(data.positives[TEST])
        assert np.array_equal(examples.codes[:n], data.positives[TEST])
        assert set(places(data, examples.codes[n:])) <= set(range(4000, 6000 - W + 1))


def test_examples_come_in_the_proportions_asked_for(tmp_path: Path) -> None:
    data = make_data(tmp_path, Mix(2, 1, 3))
    n = len(data.positives[TRAIN])
    examples = data.epoch(0)
    assert (len(examples), examples.labels.sum()) == (n * 7, n)
    assert [len(e) for e in data.held_out().values()] == [2 * len(data.positives[TEST])] * 3
    matched = data.held_out()["GC-matched"]
    half = len(matched) // 2
    off = np.abs(gc_counts(matched.codes[:half]) - gc_counts(matched.codes[half:]))
    assert off.max() <= 2


def test_labels_follow_their_sequences_into_the_epoch(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    examples = data.epoch(3)
    peaks = {row.tobytes() for row in data.positives[TRAIN]}
    is_peak = [
        row.tobytes() in peaks or flipped.tobytes() in peaks
        for row, flipped in zip(examples.codes, reverse_complement(examples.codes), strict=True)
    ]
    assert examples.labels[:, 0].astype(bool).tolist() == is_peak


def test_epochs_differ_and_are_reproducible(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    assert np.array_equal(data.epoch(1).codes, make_data(tmp_path).epoch(1).codes)
    assert not np.array_equal(data.epoch(1).codes, data.epoch(2).codes)
    assert not np.array_equal(data.epoch(1).codes, make_data(tmp_path, seed=1).epoch(1).codes)
    assert np.array_equal(data.validation().codes, data.validation().codes)


def test_a_part_without_peaks_is_refused(tmp_path: Path) -> None:
    positives, genome = make_world(tmp_path)
    peaks = read_peaks(positives)
    with Genome(genome) as opened:
        contigs = load_contigs(opened, peaks)
    split = Split((Region("chr1", 0, 10),), (Region("chr2", 0, 6000),))
    with pytest.raises(DataError, match=r"no peaks for validation.*chr1, chr2"):
        PeakData(peaks, contigs, split, Mix(), 0)


def test_constant_labels_are_refused(tmp_path: Path) -> None:
    data = make_data(tmp_path, Mix(0, 0, 0))
    with pytest.raises(DataError, match="constant labels: .* and 0 negatives"):
        data.epoch(0)
    with pytest.raises(DataError, match="constant labels: 0 positives"):
        labelled(np.empty((0, 4), np.uint8), np.zeros((3, 4), np.uint8))


def test_the_real_peaks_agree_with_the_real_genome(shared_data: Path) -> None:
    peaks = read_peaks(shared_data / "labels" / "ctcf_peaks_100bp.fa.gz")
    assert len(peaks.regions) == 39_184
    with Genome(shared_data / "genomes" / "hs37_chr20.fa.gz") as genome:
        contigs = load_contigs(genome, peaks)
    assert {name: len(codes) for name, codes in contigs.items()} == {"chr20": 63_025_520}
