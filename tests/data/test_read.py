from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from genomepred.data import examples as examples_module
from genomepred.data import peak_data as peak_data_module
from genomepred.data import storage
from genomepred.data.examples import Batches
from genomepred.data.negatives import gc_counts, rows_of, unknown_counts
from genomepred.data.peak_data import Augmentation, SignalData
from genomepred.data.read import (
    TEST,
    TRAIN,
    VALIDATION,
    Codes,
    Examples,
    LabeledData,
    Mix,
    PeakData,
    Source,
    Split,
    load_contigs,
    open_data,
    read_peaks,
)
from genomepred.errors import DataError, GenomepredError, RegionError
from genomepred.sequences.codes import reverse_complement
from genomepred.sequences.fasta import Genome
from genomepred.sequences.grid import Region
from tests.bigwig_files import write_bigwig as write_records
from tests.data.test_peaks import W, make_world, text_of

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


def whole(epoch: Batches, batch: int = 7) -> Examples:
    """All examples of an epoch, gathered in batches."""
    found = [epoch.take(slice(i, i + batch)) for i in range(0, len(epoch), batch)]
    return Examples(
        np.concatenate([part.codes for part in found]),
        np.concatenate([part.labels for part in found]),
    )


def digest(examples: Examples) -> str:
    sha = hashlib.sha256(np.ascontiguousarray(examples.codes).tobytes())
    sha.update(np.ascontiguousarray(examples.labels).tobytes())
    return sha.hexdigest()[:16]


# Peaks against negatives


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


# Augmentation of peaks


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


# BED and narrowPeak on a genome

GENOME = np.random.default_rng(5).integers(0, 4, 20_000, dtype=np.uint8)
STARTS = range(100, 19_000, 150)
HELD_OUT = {"validation": ("chr1:8001-12000",), "test": ("chr1:15001-20000",)}


def write_genome(path: Path, codes: Codes = GENOME, name: str = "chr1") -> Path:
    path.write_text(f">{name}\n{text_of(codes)}\n")
    return path


def write_bed(path: Path, name: str = "chr1", extra: str = "") -> Path:
    """Peaks of 30 bases with the summit at their 8th."""
    rows = [f"{name}\t{s}\t{s + 30}\tp\t0\t.\t1\t2\t3\t7\n" for s in STARTS]
    path.write_text("".join(rows) + extra)
    return path


def peak_source(folder: Path, **options: Any) -> Source:
    options = {"window": 20, "random": 2, **HELD_OUT, **options}
    genome = write_genome(folder / "genome.fa")
    return Source(write_bed(folder / "peaks.narrowPeak"), genome=genome, **options)


def open_peak_data(source: Source, scratch: Path) -> PeakData:
    data = open_data(source, scratch)
    assert isinstance(data, PeakData)
    return data


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


# Several genomes


def write_cohort(folder: Path, **columns: list[str]) -> Path:
    """Two cultivars with peaks in different places, in folders of their own, and their manifest."""
    rows = {"name": ["a", "b"], "genome": [], "peaks": []}
    for i, name in enumerate(rows["name"]):
        (folder / name).mkdir(exist_ok=True)
        write_genome(folder / name / "g.fa", np.roll(GENOME, 1000 * i), name=f"Chr{i}1")
        write_bed(folder / name / "p.narrowPeak", name=f"Chr{i}1")
        rows["genome"].append(f"{name}/g.fa")
        rows["peaks"].append(f"{name}/p.narrowPeak")
    path = folder / "cohort.tsv"
    pd.DataFrame({**rows, **columns}).to_csv(path, sep="\t", index=False)
    return path


def test_every_genome_has_its_own_peaks_and_as_many_negatives(tmp_path: Path) -> None:
    source = Source(
        write_cohort(tmp_path),
        window=20,
        validation=("a:Chr01:8001-12000", "b:Chr11:8001-12000"),
        test=("Chr01:15001-20000", "Chr11:15001-20000"),
    )
    data = open_peak_data(source, tmp_path)
    assert list(data.contigs) == ["a:Chr01", "b:Chr11"]
    assert data.contigs["b:Chr11"].tolist() == np.roll(GENOME, 1000).tolist()
    for part in (VALIDATION, TEST):
        counts = [sum(r.contig == c for r in data.peaks.regions) for c in data.contigs]
        assert counts == [len(STARTS)] * 2
        for kind in data.test().values():
            assert kind.names is not None
            genomes = [name.removeprefix("shuffled ")[0] for name in kind.names]
            assert genomes.count("a") == genomes.count("b") == len(kind) // 2
        assert {r.contig for r in data.regions[part]} == {"a:Chr01", "b:Chr11"}
    assert len(data.facts()["data"]) == 4


def test_a_column_keeps_whole_genomes_for_the_test(tmp_path: Path) -> None:
    manifest = write_cohort(tmp_path, dataset=["train", "test"])
    source = Source(manifest, window=20, validation=("Chr01:8001-12000",))
    data = open_peak_data(source, tmp_path)
    assert len(data.positives(TEST)) == len(STARTS)
    names = data.test()["GC-matched"].names
    assert names is not None
    assert all(name.startswith("b:Chr11:") for name in names)
    assert {region.contig for region in data.regions[TRAIN]} == {"a:Chr01"}


def write_cultivars(folder: Path, names: list[str], contigs: list[str]) -> Path:
    """Copies of one genome, whose contig has a name of its own in each."""
    lines = ["name\tgenome\tpeaks"]
    for name, contig in zip(names, contigs, strict=True):
        (folder / name).mkdir(exist_ok=True)
        write_genome(folder / name / "g.fa", GENOME, name=contig)
        write_bed(folder / name / "p.narrowPeak", name=contig)
        lines.append(f"{name}\t{name}/g.fa\t{name}/p.narrowPeak")
    (folder / "all.tsv").write_text("\n".join(lines) + "\n")
    return folder / "all.tsv"


def test_the_same_region_is_held_out_of_all_cultivars_in_any_order(tmp_path: Path) -> None:
    digests = set()
    for order in ("abc", "cab"):
        contigs = {"a": "Chr1", "b": "chr01", "c": "1"}
        manifest = write_cultivars(tmp_path, list(order), [contigs[name] for name in order])
        held_out = {"validation": ("Chr1:8001-12000",), "test": ("Chr1:15001-20000",)}
        data = open_peak_data(Source(manifest, window=20, **held_out), tmp_path)
        assert [r.contig for r in data.regions[TEST]] == ["a:Chr1", "b:chr01", "c:1"]
        facts = data.facts()
        assert facts["held_out"]["test"] == [
            ["Chr1:15001-20000"], ["chr01:15001-20000"], ["1:15001-20000"]
        ]  # fmt: skip
        assert facts["genomes"] == ["a", "b", "c"]
        # Of three equal genomes nothing of the test is trained on.
        assert data.repeats == 0
        digests.add(digest(whole(data.epoch(1))))
    assert len(digests) == 1


def test_a_genome_of_which_nothing_is_held_out_is_refused(tmp_path: Path) -> None:
    manifest = write_cultivars(tmp_path, ["a", "b"], ["Chr1", "scaffold_7"])
    regions = {"validation": ("Chr1:8001-12000",), "test": ("Chr1:15001-20000",)}
    with pytest.raises(
        DataError, match=r"genome 'b' has nothing for validation by --validation Chr1:8001-12000"
    ):
        open_data(Source(manifest, window=20, **regions), tmp_path)
    regions["validation"] = (*regions["validation"], "b:scaffold_7:8001-12000")
    with pytest.raises(
        DataError, match=r"genome 'b' has nothing for test by --test Chr1:15001-20000"
    ):
        open_data(Source(manifest, window=20, **regions), tmp_path)
    regions["test"] = (*regions["test"], "b:scaffold_7:15001-20000")
    assert open_peak_data(Source(manifest, window=20, **regions), tmp_path).repeats == 0


def with_regions(manifest: Path, beds: dict[str, str]) -> Path:
    """The manifest with a column of BEDs; a genome without one has an empty field."""
    header, *rows = manifest.read_text().splitlines()
    lines = [f"{header}\tregions"]
    for row in rows:
        name = row.split("\t")[0]
        if name in beds:
            (manifest.parent / name / "held_out.bed").write_text(beds[name])
        lines.append(f"{row}\t{f'{name}/held_out.bed' if name in beds else ''}")
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


OWN_BED = "{0}\t8000\t12000\tvalidation\n{0}\t15000\t20000\ttest\n"


def test_each_genome_may_have_its_own_bed_of_what_is_held_out(tmp_path: Path) -> None:
    digests = set()
    for order in ("abc", "cab"):
        contigs = {"a": "Chr1", "b": "chr01", "c": "1"}
        manifest = write_cultivars(tmp_path, list(order), [contigs[name] for name in order])
        beds = {"a": OWN_BED.format("chr1"), "b": OWN_BED.format("chr01")}
        beds["c"] = "1\t8000\t12000\tval\nchr1\t15500\t20000\ttest\n"  # its own coordinates
        data = open_peak_data(Source(with_regions(manifest, beds), window=20), tmp_path)
        assert data.facts()["held_out"]["test"] == [
            ["Chr1:15001-20000"], ["chr01:15001-20000"], ["1:15501-20000"]
        ]  # fmt: skip
        digests.add(digest(whole(data.epoch(1))))
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("bed", "message"),
    [
        ("Chr9\t1\t5\ttest\n", r"held_out.bed line 1: no contig 'Chr9'; there are 'chr01'"),
        ("chr1\t1\t99999999\ttest\n", r"held_out.bed line 1: region .* outside 'chr01'"),
        ("chr1\t1\t5\n", r"held_out.bed, column 'name': '' is none of train, valid, test"),
        ("# nothing\n", r"held_out.bed: no BED records"),
        (None, r"genome 'b' has nothing for validation by a BED in the column regions"),
    ],
)
def test_beds_of_held_out_regions_that_do_not_fit_are_refused(
    tmp_path: Path, bed: str | None, message: str
) -> None:
    manifest = write_cultivars(tmp_path, ["a", "b"], ["Chr1", "chr01"])
    beds = {"a": OWN_BED.format("Chr1")} | ({"b": bed} if bed is not None else {})
    with pytest.raises(GenomepredError, match=message):
        open_data(Source(with_regions(manifest, beds), window=20), tmp_path)


def test_all_peaks_may_be_for_the_test(tmp_path: Path) -> None:
    manifest = write_cultivars(tmp_path, ["a", "b"], ["Chr1", "Chr1"])
    data = open_data(Source(manifest, window=20), tmp_path, needed=())
    assert isinstance(data, PeakData)
    assert data.facts()["peaks"] == {"training": 0, "validation": 0, "test": 2 * len(STARTS)}
    assert {len(kind) for kind in data.test().values()} == {4 * len(STARTS)}
    signal = write_bigwig(tmp_path / "x.bw", name="Chr1")
    signals = open_data(
        Source(manifest.parent / "a/p.narrowPeak", genome=tmp_path / "a/g.fa", window=20,
               bigwig=(signal,)),
        tmp_path, needed=(),
    )  # fmt: skip
    assert len(signals.test()["test"]) == 2 * len(STARTS)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"name": ["a", "a"]}, "row 2: the name 'a' is used twice"),
        ({"name": ["a", "b:c"]}, "row 2: the name 'b:c' is empty or has a ':'"),
        ({"peaks": ["a/p.narrowPeak", "b/q.bed"]}, "row 2: no file .*q.bed"),
        ({"dataset": ["train", "tset"]}, "row 2, column 'dataset': 'tset' is none of train"),
    ],
)
def test_bad_manifests_are_refused(
    tmp_path: Path, columns: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_data(Source(write_cohort(tmp_path, **columns), window=20), tmp_path)


# Signals


def write_bigwig(path: Path, name: str = "chr1", gap: tuple[int, int] = (0, 0)) -> Path:
    """The value at base b is b // 10, but for a gap without values."""
    records = [(name, b, b + 10, b / 10) for b in range(0, 20_000, 10)]
    kept = [r for r in records if not gap[0] <= r[1] < gap[1]]
    write_records(path, {name: 20_000}, kept)
    return path


def open_signal_data(source: Source, scratch: Path) -> SignalData:
    data = open_data(source, scratch)
    assert isinstance(data, SignalData)
    return data


def test_labels_are_means_of_signals_at_peaks_and_at_matched_background(tmp_path: Path) -> None:
    signals = (write_bigwig(tmp_path / "x.bw"), write_bigwig(tmp_path / "y.bw", name="1"))
    source = peak_source(tmp_path, bigwig=signals, matched=2)
    data = open_signal_data(source, tmp_path)
    assert (data.task, data.tracks, data.window) == ("regression", ("x", "y"), 20)
    assert isinstance(data, LabeledData)
    assert len(data.parts[TRAIN]) == 3 * len(data.peaks.positives(TRAIN))
    for examples in data.parts:
        assert examples.names is not None
        for row, name in enumerate(examples.names):
            start, end = (int(text) for text in name[5:].split("-"))
            assert examples.codes[row].tolist() == GENOME[start - 1 : end].tolist()
            mean = np.mean(np.arange(start - 1, end) // 10)
            assert examples.labels[row] == pytest.approx([mean, mean])
    assert data.facts()["examples"]["training"] == len(data.parts[TRAIN])


def test_windows_without_a_signal_are_left_out(tmp_path: Path) -> None:
    signal = write_bigwig(tmp_path / "x.bw", gap=(0, 3000))
    data = open_signal_data(peak_source(tmp_path, bigwig=(signal,)), tmp_path)
    names = data.parts[TRAIN].names
    assert names is not None
    assert min(int(name[5:].split("-")[1]) for name in names) > 3000
    assert data.facts()["left_out"]["windows without a signal"] > 0
    gone = write_bigwig(tmp_path / "y.bw", gap=(7000, 13_000))
    with pytest.raises(DataError, match="no value in any of the .* windows for validation"):
        open_data(peak_source(tmp_path, bigwig=(gone,)), tmp_path)


def test_signals_are_transformed_and_windows_move_along_the_genome(tmp_path: Path) -> None:
    signal = write_bigwig(tmp_path / "x.bw")
    source = peak_source(tmp_path, bigwig=(signal,), transform="log2p1", shift=4)
    data = open_signal_data(source, tmp_path)
    plain = open_signal_data(replace(source, transform="none"), tmp_path)
    assert data.parts[TEST].labels == pytest.approx(np.log2(1 + plain.parts[TEST].labels))
    index = {row.tobytes(): i for i, row in enumerate(data.peaks.background.windows)}
    epoch = data.epoch(0)
    examples = whole(replace(epoch, reverse=np.zeros(len(epoch), bool)))
    offsets = []
    order = np.random.default_rng((0, 0)).permutation(len(epoch))
    for codes, label, row in zip(examples.codes, examples.labels, order, strict=True):
        offsets.append(index[codes.tobytes()] - data.places[row])
        assert label == data.parts[TRAIN].labels[row]
    assert (min(offsets), max(offsets)) == (-4, 4)


def test_constant_signals_and_files_that_are_none_are_refused(tmp_path: Path) -> None:
    flat = tmp_path / "flat.bw"
    write_records(flat, {"chr1": 20_000}, [("chr1", 0, 20_000, 3.0)])
    with pytest.raises(DataError, match="flat.bw: constant labels: all of 'flat'.* are 3"):
        open_data(peak_source(tmp_path, bigwig=(flat,)), tmp_path)
    other = write_bigwig(tmp_path / "x.bw", name="NC_7")
    with pytest.raises(DataError, match=r"no contig in common: .* has 'chr1', .*x\.bw has 'NC_7'"):
        open_data(peak_source(tmp_path, bigwig=(other,)), tmp_path)
    text = tmp_path / "z.bw"
    text.write_text("no bigWig")
    with pytest.raises(DataError, match=r"z\.bw: cannot be read as bigWig"):
        open_data(peak_source(tmp_path, bigwig=(text,)), tmp_path)


def test_a_manifest_has_a_signal_for_each_genome(tmp_path: Path) -> None:
    for i, name in enumerate("ab"):
        write_bigwig(tmp_path / f"{name}.bw", name=f"Chr{i}1")
    manifest = write_cohort(tmp_path, bigwig=["a.bw", "b.bw"])
    held_out = {
        "validation": ("Chr01:8001-12000", "Chr11:8001-12000"),
        "test": ("Chr01:15001-20000", "Chr11:15001-20000"),
    }
    data = open_signal_data(Source(manifest, window=20, **held_out), tmp_path)
    names = data.parts[TEST].names
    assert data.tracks == ("signal",)
    assert names is not None
    assert {name[:8] for name in names} == {"a:Chr01:", "b:Chr11:"}
    starts = np.array([int(name[8:].split("-")[0]) - 1 for name in names])
    means = [np.mean(np.arange(start, start + 20) // 10) for start in starts]
    assert data.parts[TEST].labels[:, 0] == pytest.approx(means)
