from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genomepred.data import examples as examples_module
from genomepred.data import peak_data as peak_data_module
from genomepred.data import storage
from genomepred.data.examples import TEST, TRAIN, VALIDATION, Codes
from genomepred.data.negatives import gc_counts, rows_of, unknown_counts
from genomepred.data.peak_data import Augmentation, Mix, PeakData
from genomepred.data.peaks import Split, read_peaks
from genomepred.data.read import open_data
from genomepred.data.source import Source
from genomepred.errors import DataError, RegionError
from genomepred.sequences.codes import reverse_complement
from genomepred.sequences.fasta import Genome
from genomepred.sequences.grid import Region
from tests.data.contigs import load_contigs
from tests.data.small import (
    GENOME,
    STARTS,
    digest,
    open_peak_data,
    peak_source,
    whole,
    write_bed,
    write_genome,
)
from tests.data.test_peaks import W, make_world

MIX = Mix(shuffled=1, matched=1, random=2)


VALIDATION_REGIONS = ("chr1:2001-3000", "chr2:1-800")


TEST_REGIONS = ("chr1:4001-6000", "chr2:3001-6000")


def make_data(folder: Path, mix: Mix = MIX, seed: int = 0, **options: Any) -> PeakData:
    positives, genome = make_world(folder)
    peaks = read_peaks(positives)
    with Genome(genome) as opened:
        contigs = load_contigs(opened, peaks)
    split = Split.parse(VALIDATION_REGIONS, TEST_REGIONS, {"chr1": 6000, "chr2": 0})
    return PeakData(peaks, contigs, split, mix, seed, **options)


def test_examples_are_bit_for_bit_those_of_the_first_version(tmp_path: Path) -> None:
    # The bundled model's command must go on giving its weights.
    data = make_data(tmp_path)
    assert [digest(whole(data.epoch(number))) for number in (0, 1)] == [
        "79dd94ea2ff285d5",
        "4cc66c2658ce6e44",
    ]
    assert digest(data.validation()) == "9e1a3ad23e37f9d0"
    assert list(map(digest, data.test().values())) == [
        "e4bc70b27fd2f2be",
        "4fe6bd96e7c0d0ea",
        "89e32058d1f54cdf",
    ]


@pytest.mark.slow  # the test above is its small form
def test_the_first_epoch_of_the_bundled_model_is_bit_for_bit_the_same(shared_data: Path) -> None:
    source = Source(
        shared_data / "labels" / "ctcf_peaks_100bp.fa.gz",
        genome=shared_data / "genomes" / "hs37_chr20.fa.gz",
        validation=("chr9", "chr21", "chr20:20000001-31500000"),
        test=("chr22", "chr20:31500001-63025520"),
        random=10,
    )
    data = open_data(source, Path())
    assert digest(whole(data.epoch(0), 4096)) == "16feab29febf544f"
    assert data.facts()["peaks"] == {"training": 35507, "validation": 2163, "test": 1514}


def places(data: PeakData, windows: Codes) -> list[int]:
    """Start of each real window in the genome."""
    first = data.contigs.offset["chr1"]
    index = {row.tobytes(): i - first for i, row in enumerate(data.background.windows)}
    return [index[row.tobytes()] for row in np.ascontiguousarray(windows)]


def test_nothing_held_out_is_ever_trained_on(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    # chr1 0-2000 and 3000-4000 are for training; windows lie inside wholly.
    allowed = set(range(2000 - W + 1)) | set(range(3000, 4000 - W + 1))
    held_out = {row.tobytes() for part in (VALIDATION, TEST) for row in data.positives(part)}
    for number in range(5):
        examples = whole(data.epoch(number))
        both = np.concatenate([examples.codes, reverse_complement(examples.codes)])
        assert not held_out & {row.tobytes() for row in both}
        n = len(data.positives(TRAIN))
        rng = np.random.default_rng((0, number))
        plain = data._examples(TRAIN, data.mix, rng, "")  # the same, before strands and order
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
    validation, n = data.validation(), len(data.positives(VALIDATION))
    assert set(places(data, validation.codes[2 * n :])) <= set(range(2000, 3000 - W + 1))
    for kind in ("GC-matched", "random"):
        examples = data.test()[kind]
        n = len(data.positives(TEST))
        assert np.array_equal(examples.codes[:n], data.positives(TEST))
        assert set(places(data, examples.codes[n:])) <= set(range(4000, 6000 - W + 1))


def test_examples_come_in_the_proportions_asked_for(tmp_path: Path) -> None:
    data = make_data(tmp_path, Mix(2, 1, 3))
    n = len(data.positives(TRAIN))
    examples = whole(data.epoch(0))
    assert (len(examples), examples.labels.sum()) == (n * 7, n)
    assert [len(e) for e in data.test().values()] == [2 * len(data.positives(TEST))] * 3
    matched = data.test()["GC-matched"]
    half = len(matched) // 2
    wanted, found = (gc_counts(*rows_of(part)) for part in np.split(matched.codes, [half]))
    off = np.abs(wanted - found)
    assert off.max() <= 2


def test_labels_follow_their_sequences_into_the_epoch(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    examples = whole(data.epoch(3))
    peaks = {row.tobytes() for row in data.positives(TRAIN)}
    is_peak = [
        row.tobytes() in peaks or flipped.tobytes() in peaks
        for row, flipped in zip(examples.codes, reverse_complement(examples.codes), strict=True)
    ]
    assert examples.labels[:, 0].astype(bool).tolist() == is_peak


def test_epochs_differ_and_are_reproducible(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    first = digest(whole(data.epoch(1)))
    assert digest(whole(make_data(tmp_path).epoch(1), batch=1000)) == first
    assert digest(whole(data.epoch(2))) != first
    assert digest(whole(make_data(tmp_path, seed=1).epoch(1))) != first
    assert np.array_equal(data.validation().codes, data.validation().codes)


def test_a_part_without_peaks_is_refused(tmp_path: Path) -> None:
    positives, genome = make_world(tmp_path)
    peaks = read_peaks(positives)
    with Genome(genome) as opened:
        contigs = load_contigs(opened, peaks)
    split = Split((Region("chr1", 0, 10),), (Region("chr2", 0, 6000),))
    with pytest.raises(DataError, match=r"no peaks for validation.*'chr1', 'chr2'"):
        PeakData(peaks, contigs, split, Mix(), 0)


def test_constant_labels_are_refused(tmp_path: Path) -> None:
    data = make_data(tmp_path, Mix(0, 0, 0))
    with pytest.raises(DataError, match="constant labels: .* and 0 negatives"):
        data.epoch(0)


def test_the_real_peaks_agree_with_the_real_genome(shared_data: Path) -> None:
    peaks = read_peaks(shared_data / "labels" / "ctcf_peaks_100bp.fa.gz")
    assert len(peaks.regions) == 39_184
    with Genome(shared_data / "genomes" / "hs37_chr20.fa.gz") as genome:
        contigs = load_contigs(genome, peaks)
    assert {name: len(codes) for name, codes in contigs.items()} == {"chr20": 63_025_520}


def test_peaks_move_along_the_genome_inside_their_part(tmp_path: Path) -> None:
    most = 60
    data = make_data(tmp_path, augmentation=Augmentation(True, most))
    positives = data.positives(TRAIN)
    regions = [data.peaks.regions[row] for row in data._rows[TRAIN]]
    offsets = []
    for number in range(20):
        epoch = data.epoch(number)
        plain = replace(epoch, reverse=np.zeros(len(epoch), bool))
        examples = whole(plain)
        found = examples.codes[examples.labels[:, 0] == 1]
        stayed = {row.tobytes() for row in positives}
        index = {row.tobytes(): i for i, row in enumerate(data.background.windows)}
        moved = [row.tobytes() for row in found]
        starts = {r.start: r for r in regions if r.contig == "chr1"}
        for row in moved:
            if row not in index:  # peaks off the genome stay where they are
                assert row in stayed
                continue
            start = index[row] - data.contigs.offset["chr1"]
            assert 0 <= start <= 2000 - W or 3000 <= start <= 4000 - W
            offsets.append(min((start - peak for peak in starts), key=abs))
    assert (min(offsets), max(offsets)) == (-most, most)
    assert digest(whole(data.epoch(3))) == digest(whole(data.epoch(3), batch=50))


def test_strands_are_left_alone_when_asked(tmp_path: Path) -> None:
    data = make_data(tmp_path, augmentation=Augmentation(reverse_complement=False))
    examples = whole(data.epoch(0))
    found = {row.tobytes() for row in examples.codes[examples.labels[:, 0] == 1]}
    assert found == {row.tobytes() for row in data.positives(TRAIN)}
    both = whole(make_data(tmp_path).epoch(0))
    found = {row.tobytes() for row in both.codes[both.labels[:, 0] == 1]}
    assert 0 < len(found & {row.tobytes() for row in data.positives(TRAIN)}) < len(found)


def test_windows_of_peaks_are_centered_on_their_summits(tmp_path: Path) -> None:
    data = open_peak_data(peak_source(tmp_path), tmp_path)
    assert (data.window, data.task, data.tracks) == (20, "binary", ("peak",))
    expected = {GENOME[s + 7 - 10 : s + 7 + 10].tobytes() for s in STARTS}
    assert {row.tobytes() for part in range(3) for row in data.positives(part)} == expected
    examples = data.test()["random"]
    names = examples.names
    assert names is not None
    assert names[0] == "chr1:15098-15117"
    codes = [GENOME[int(a) - 1 : int(b)] for a, b in (n[5:].split("-") for n in names)]
    assert np.array_equal(codes, examples.codes)


def test_no_negative_touches_a_peak_even_where_its_window_does_not_reach(tmp_path: Path) -> None:
    data = open_peak_data(peak_source(tmp_path, window=10), tmp_path)
    names = data.test()["random"].names
    assert names is not None
    negatives = [tuple(map(int, name[5:].split("-"))) for name in names[len(names) // 2 :]]
    for first, last in negatives:
        assert not any(first - 1 < s + 30 and s < last for s in STARTS)


def test_names_of_contigs_may_differ(tmp_path: Path) -> None:
    source = peak_source(tmp_path)
    plain = open_peak_data(source, tmp_path)
    genome = write_genome(tmp_path / "other.fa", name="Chr01")
    renamed = open_peak_data(replace(source, genome=genome), tmp_path)
    assert digest(whole(renamed.epoch(0))) == digest(whole(plain.epoch(0)))


def test_peaks_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    codes = GENOME.copy()
    codes[4000:4010] = 4  # near a peak at 4000
    source = peak_source(tmp_path)
    write_genome(tmp_path / "genome.fa", codes)
    extra = "chrUn\t5\t35\tp\t0\t.\t1\t2\t3\t7\n"  # not in the genome
    extra += "chr1\t95\t135\tp\t0\t.\t1\t2\t3\t12\n"  # the first peak's window
    extra += "chr1\t0\t8\tp\t0\t.\t1\t2\t3\t1\n"  # half of its window before the contig
    write_bed(source.data, extra=extra)
    data = open_peak_data(source, tmp_path)
    assert data.facts()["left_out"] == {
        "contig not in the genome": 1,
        "more than 10% unknown bases": 2,
        "window of another peak": 1,
    }
    assert sum(len(data.positives(part)) for part in range(3)) == len(STARTS) - 1
    for part in range(3):
        assert unknown_counts(*rows_of(data.positives(part))).max() <= 2


def test_a_window_may_reach_out_of_its_contig(tmp_path: Path) -> None:
    source = peak_source(tmp_path, window=40)
    end = "chr1\t19970\t20000\tp\t0\t.\t1\t2\t3\t13\n"  # [19963, 20003)
    write_bed(source.data, extra=end)
    last = open_peak_data(source, tmp_path).positives(TEST)[-1]
    assert last.tolist() == [*GENOME[19963:].tolist(), 4, 4, 4]


@pytest.mark.parametrize(
    ("options", "extra", "error", "message"),
    [
        ({"window": None}, "", DataError, "peaks.narrowPeak: give --window"),
        (
            {"peak_format": "bed"},
            "chr1\t20000\t20001\n",
            DataError,
            r"line 127: 'chr1' 20000-20001 lies beyond.* 20000 bases",
        ),
        ({}, "chr1\t9\t20\n", DataError, r"line 127: column 10 of a narrowPeak .* in 3 columns"),
        ({"genome": None}, "", DataError, "give --labels, .* or --genome"),
        ({"validation": ("chr7",)}, "", RegionError, "chr7"),
        ({"validation": ("chr1:1-50",)}, "", DataError, "no peaks for validation.*chr1"),
        ({"task": "regression"}, "", DataError, "task regression .* without a bigWig are binary"),
        ({"transform": "log1p"}, "", DataError, "take no --transform"),
        ({"targets": ("a",)}, "", DataError, "take no --target;"),
        ({"pad": "left"}, "", DataError, "take no --pad"),
        ({"shuffled": 0, "matched": 0, "random": 0}, "", DataError, "constant labels"),
    ],
)
def test_bad_peak_files_and_options_are_refused_in_one_line(
    tmp_path: Path, options: dict[str, Any], extra: str, error: type[Exception], message: str
) -> None:
    source = peak_source(tmp_path, **{k: v for k, v in options.items() if k != "genome"})
    if "genome" in options:
        source = replace(source, genome=None)
    write_bed(source.data, extra=extra)
    with pytest.raises(error, match=message) as caught:
        open_data(source, tmp_path).epoch(0)
    assert "\n" not in str(caught.value)


REST = "\tp\t0\t.\t1\t2\t3\t-1\n"  # of a narrowPeak without a summit


def test_peaks_that_end_past_their_contig_are_cut_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = peak_source(tmp_path)
    write_bed(source.data, extra=f"chr1\t19960\t20002{REST}")
    data = open_peak_data(source, tmp_path)
    assert "1 of 127 peaks end past their contig and are cut there" in capsys.readouterr().err
    assert data.peaks.regions[-1] == Region("chr1", 19971, 19991)
    assert Region("chr1", 19960, 20000) in data.peaks.spans


def test_peaks_on_contigs_of_another_name_are_told_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = peak_source(tmp_path)
    strange = [f"scaffold{i}\t5\t35{REST}" for i in range(len(STARTS))]
    write_bed(source.data, extra="".join(strange))
    data = open_peak_data(source, tmp_path)  # half of them, not more
    assert data.facts()["left_out"]["contig not in the genome"] == len(STARTS)
    told = capsys.readouterr().err
    assert f"{len(STARTS)} of {2 * len(STARTS)} peaks are left out" in told
    assert "genome.fa has no 'scaffold0', 'scaffold1', 'scaffold2', 'scaffold3'," in told
    assert told.endswith("it has 'chr1'\n")
    write_bed(source.data, extra="".join(strange) + f"scaffold0\t50\t80{REST}")
    with pytest.raises(DataError, match=r"127 of 253 peaks lie on .*: 'scaffold0'.*has 'chr1';"):
        open_data(source, tmp_path)


def test_peaks_with_sequences_of_their_own_need_no_contig(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    positives, genome = make_world(tmp_path)  # peaks on chr2, too, which the genome has not
    source = Source(positives, genome=genome, validation=VALIDATION_REGIONS, test=TEST_REGIONS)
    data = open_peak_data(source, tmp_path)
    assert "chr2" not in data.contigs
    assert any(region.contig == "chr2" for region in data.peaks.regions)
    assert "left out" not in capsys.readouterr().err


def test_training_peaks_that_are_held_out_ones_too_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = peak_source(tmp_path)
    plain = open_peak_data(source, tmp_path)
    assert plain.facts()["training_also_held_out"] == 0
    assert "flatter" not in capsys.readouterr().err
    codes = GENOME.copy()
    codes[15_097:15_117] = codes[97:117]  # a test peak's window is a training peak's
    start = next(s for s in STARTS if s > 8_000)
    window = slice(start - 3, start + 17)
    codes[window] = reverse_complement(codes[247:267][None])[0]  # on the other strand
    write_genome(source.genome or Path(), codes)
    data = open_peak_data(source, tmp_path)
    assert data.facts()["training_also_held_out"] == 2
    training = data.facts()["peaks"]["training"]
    assert f"2 of {training} training sequences are, on either strand" in capsys.readouterr().err


def test_held_out_examples_are_made_once_and_mapped_where_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = peak_source(tmp_path)
    write_bed(source.data, extra="chr1\t95\t135\tp\t0\t.\t1\t2\t3\t12\n")  # the first's window
    in_memory = open_peak_data(source, tmp_path / "a")
    monkeypatch.setattr(storage, "MOST_IN_MEMORY", 1000)
    monkeypatch.setattr(examples_module, "_BLOCK", 7)
    monkeypatch.setattr(peak_data_module, "_BLOCK", 5)
    mapped = open_peak_data(source, tmp_path / "b")
    assert mapped.validation() is mapped.validation()
    for name, examples in mapped.test().items():
        assert mapped.test()[name] is examples
        assert digest(examples) == digest(in_memory.test()[name])
    assert digest(mapped.validation()) == digest(in_memory.validation())
    assert digest(whole(mapped.epoch(1))) == digest(whole(in_memory.epoch(1)))
    assert {"validation.h5", "test-random.h5", "shuffled-0.h5"} <= {
        path.name for path in (tmp_path / "b").iterdir()
    }


def test_no_contig_in_common_shows_both_sides(tmp_path: Path) -> None:
    source = peak_source(tmp_path)
    write_bed(source.data, name="NC_000001.1")
    with pytest.raises(DataError, match=r"narrowPeak has 'NC_000001\.1', .*genome\.fa has 'chr1'"):
        open_data(source, tmp_path)


def test_a_fasta_of_peaks_has_a_window_of_its_own(tmp_path: Path) -> None:
    positives, genome = make_world(tmp_path)
    source = Source(
        positives, genome=genome, window=W, validation=VALIDATION_REGIONS, test=TEST_REGIONS
    )
    assert open_data(source, tmp_path).window == W
    with pytest.raises(DataError, match="--window 50 asked for, but the sequences have 20"):
        open_data(replace(source, window=50), tmp_path)


def test_codes_that_outgrow_memory_give_the_same_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = peak_source(tmp_path, shift=3)
    in_memory = open_peak_data(source, tmp_path / "a")
    monkeypatch.setattr(storage, "MOST_IN_MEMORY", 1000)
    mapped = open_peak_data(source, tmp_path / "b")
    assert not (tmp_path / "a").exists()
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["contigs.h5", "peaks.h5"]
    for number in range(2):
        assert digest(whole(mapped.epoch(number))) == digest(whole(in_memory.epoch(number)))
    assert digest(mapped.validation()) == digest(in_memory.validation())
