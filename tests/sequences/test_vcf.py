"""The decoder of VCF and BCF: forms, genotypes, refusals."""

from __future__ import annotations

import contextlib
import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from genomepred.errors import SequenceError
from genomepred.sequences.vcf import VariantFile
from tests.sequences.panels import RandomPanel, convert, random_panel

HEAD = "##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\t"
FIXED = "c1\t5\t.\tA\tC\t.\tPASS\t.\tGT\t"
Carriers = list[tuple[str, int, list[str], list[tuple[int, int, int, int]]]]


def carriers_of(path: Path, samples: list[str] | None = None, *, inbred: bool = False) -> Carriers:
    """Contig, position, alleles and carriers of all records."""
    found: Carriers = []
    for batch in VariantFile(path, samples, inbred=inbred).batches():
        ends = [*batch.records[1:, 4].tolist(), len(batch.carriers)]
        for r, row in enumerate(batch.records.tolist()):
            carriers = [tuple(c) for c in batch.carriers[row[4] : ends[r]].tolist()]
            found.append((batch.contig, row[0], batch.alleles(r), carriers))
    return found


def write(path: Path, *lines: str, samples: str = "s1\ts2", end: str = "\n") -> Path:
    path.write_bytes((HEAD + samples + "\n" + "\n".join(lines) + end).encode())
    return path


def genotypes(path: Path, *calls: str, form: str = "GT") -> list[tuple[int, int, int, int]]:
    """Carriers of one record of these samples, with three alternatives."""
    samples = "\t".join(f"s{i}" for i in range(len(calls)))
    line = "c1\t5\t.\tA\tC,G,T\t.\t.\t.\t" + "\t".join([form, *calls])
    return carriers_of(write(path, line, samples=samples))[0][3]


def test_carriers_are_what_is_not_reference(tmp_path: Path) -> None:
    found = genotypes(tmp_path / "p.vcf", "0|0", "1|0", "0/2", "3|3", "./1", "0|0")
    phased, unphased = 1, 3
    assert found == [
        (1, 0, 1, phased),
        (2, 0, 0, unphased),
        (2, 1, 2, unphased),
        (3, 0, 3, 0),
        (3, 1, 3, 0),
        (4, 0, -1, 0),
        (4, 1, 1, 0),
    ]


def test_a_single_dot_is_missing_on_all_copies(tmp_path: Path) -> None:
    assert genotypes(tmp_path / "p.vcf", "0|0", ".", "0|1") == [(1, 255, -1, 0), (2, 1, 1, 1)]


def test_other_ploidies(tmp_path: Path) -> None:
    assert genotypes(tmp_path / "p.vcf", "0", "1", "0") == [(1, 0, 1, 0)]
    found = genotypes(tmp_path / "p.vcf", "0|0|0|0", "0|1|2|3")
    assert [row[1:3] for row in found] == [(1, 1), (2, 2), (3, 3)]
    assert len(genotypes(tmp_path / "p.vcf", "0" + "|1" * 199)) == 199


def test_format_with_other_fields(tmp_path: Path) -> None:
    found = genotypes(tmp_path / "p.vcf", "5:0|1:x", "5:1|1", "5", form="DP:GT:AD")
    assert [row[:3] for row in found] == [(0, 1, 1), (1, 0, 1), (1, 1, 1), (2, 255, -1)]


def test_a_phase_before_the_first_allele(tmp_path: Path) -> None:
    assert genotypes(tmp_path / "p.vcf", "|0|1", "/0/1")[0] == (0, 1, 1, 1)


@pytest.mark.parametrize("end", ["\n", "", "\r\n"])
def test_line_ends(tmp_path: Path, end: str) -> None:
    lines = [FIXED + "0|1\t1|1", FIXED.replace("\t5\t", "\t9\t") + "0|0\t0|1"]
    expected = carriers_of(write(tmp_path / "a.vcf", *lines))
    text = (HEAD + "s1\ts2\n" + "\n".join(lines)).replace("\n", "\r\n" if "\r" in end else "\n")
    (tmp_path / "b.vcf").write_bytes((text + end).encode())
    assert carriers_of(tmp_path / "b.vcf") == expected
    assert [len(carriers) for *_, carriers in expected] == [3, 1]


@pytest.mark.parametrize("seed", range(4))
def test_all_forms_hold_the_same(tmp_path: Path, seed: int) -> None:
    panel = random_panel(seed, samples=7, phased=seed % 2 == 0)
    plain = panel.vcf(tmp_path / "p.vcf")
    expected = carriers_of(plain)
    (tmp_path / "p.vcf.gz").write_bytes(gzip.compress(plain.read_bytes()))
    assert carriers_of(tmp_path / "p.vcf.gz") == expected
    for form in "zbu":
        assert carriers_of(convert(plain, tmp_path / f"p.{form}", form)) == expected


def test_genotypes_of_two_and_four_bytes(tmp_path: Path) -> None:
    alts = ["A" + "C" * k for k in range(1, 300)]
    line = f"c1\t5\t.\tA\t{','.join(alts)}\t.\t.\t.\tGT\t0|299\t128|0\t.|127\n"
    panel = RandomPanel({"c1": "A" * 500}, ["s1", "s2", "s3"], [line.strip()])
    plain = panel.vcf(tmp_path / "p.vcf")
    expected = carriers_of(plain)
    assert [row[2] for row in expected[0][3]] == [299, 128, -1, 127]
    assert carriers_of(convert(plain, tmp_path / "p.bcf", "b")) == expected


def test_header_of_bcf_without_numbers(tmp_path: Path) -> None:
    panel = random_panel(1, samples=4)
    plain = panel.vcf(tmp_path / "p.vcf")
    raw = convert(plain, tmp_path / "p.bcf", "u").read_bytes()
    raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    size = struct.unpack_from("<I", raw, 5)[0]
    lines = raw[9 : 9 + size].split(b"\n")
    header = b"\n".join(
        line.split(b",IDX=")[0] + b">" if b",IDX=" in line else line for line in lines
    )
    assert header != raw[9 : 9 + size]
    stripped = raw[:5] + struct.pack("<I", len(header)) + header + raw[9 + size :]
    (tmp_path / "stripped.bcf").write_bytes(stripped)
    assert carriers_of(tmp_path / "stripped.bcf") == carriers_of(plain)


def test_samples_are_selected_in_order(tmp_path: Path) -> None:
    path = write(tmp_path / "p.vcf", FIXED + "0|1\t1|1")
    assert carriers_of(path, ["s2"])[0][3] == [(0, 0, 1, 0), (0, 1, 1, 0)]
    assert sorted(carriers_of(path, ["s2", "s1"])[0][3])[-1] == (1, 1, 1, 1)
    with pytest.raises(SequenceError, match="no sample 's9'"):
        VariantFile(path, ["s9"])
    with pytest.raises(SequenceError, match="twice"):
        VariantFile(path, ["s1", "s1"])


def test_many_records_and_long_lines_cross_the_buffer(tmp_path: Path) -> None:
    lines = [
        f"c1\t{i + 1}\t.\tA\tC\t.\t.\t.\tGT\t" + "\t".join(["0|0"] * 999 + [f"{i % 2}|1"])
        for i in range(700)
    ]
    samples = "\t".join(f"s{i}" for i in range(1000))
    found = carriers_of(write(tmp_path / "p.vcf", *lines, samples=samples))
    assert [pos for _, pos, *_ in found] == list(range(700))
    assert all(len(carriers) == 1 + i % 2 for i, (*_, carriers) in enumerate(found))


@pytest.mark.parametrize("count", [1, 31, 32, 33, 64, 97])
def test_bcf_of_many_samples_is_as_text(tmp_path: Path, count: int) -> None:
    rng = np.random.default_rng(count)
    usual = ["0|0", "0|0", "0|0", "1|1", "0|1", "2/0", "1|2"]
    calls = [rng.choice(usual, (20, count)), rng.choice([*usual, ".|1", "./.", "."], (20, count))]
    calls[1][:, 0] = "1|0"  # somebody has two copies before a dot says how many
    lines = [
        f"c1\t{i + 1}\t.\tA\tC,G\t.\t.\t.\tGT\t" + "\t".join(row)
        for i, row in enumerate(np.concatenate(calls))
    ]
    samples = [f"s{i}" for i in range(count)]
    path = write(tmp_path / "p.vcf", *lines, samples="\t".join(samples))
    told = '##contig=<ID=c1>\n##FORMAT=<ID=GT,Number=1,Type=String,Description="">\n#CHROM'
    path.write_text(path.read_text().replace("#CHROM", told))
    binary = convert(path, tmp_path / "p.bcf", "b")
    for some in (None, samples[::-2]):
        for inbred in (False, True):
            expected = carriers_of(path, some, inbred=inbred)
            assert carriers_of(binary, some, inbred=inbred) == expected
            assert sum(len(carriers) for *_, carriers in expected) > 0


def test_one_record_larger_than_the_arrays(tmp_path: Path) -> None:
    alts = ",".join("A" + "C" * (k % 50) + "GT"[k % 2] * (k // 50 + 1) for k in range(40_000))
    samples = [f"s{i}" for i in range(40_000)]
    calls = "\t".join(f"{i}|{i % 7}" for i in range(1, 40_001))
    lines = [f"c1\t5\t.\tA\t{alts}\t.\t.\t.\tGT\t{calls}", FIXED + "\t".join(["0|1"] * 40_000)]
    found = carriers_of(write(tmp_path / "p.vcf", *lines, samples="\t".join(samples)))
    assert [len(carriers) for *_, carriers in found] == [80_000 - 40_000 // 7, 40_000]
    assert len(found[0][2]) == 40_001
    assert found[0][3][-2][2] == 40_000


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (FIXED + "0|1", "record 1 .c1:5., sample 's2': fewer than 11 columns"),
        (FIXED + "0|1\t0|0\t1|1", "record 1 .c1:5.: more than 11 columns"),
        (FIXED + "0|1\t0|x", "record 1 .c1:5., sample 's2': no genotype"),
        (FIXED + "0|1\t", "sample 's2': no genotype"),
        (FIXED + "0|2\t0|0", "sample 's1': allele 2, but"),
        (FIXED + "0|99999999999\t0|0", "sample 's1': allele"),
        (FIXED.replace("\t5\t", "\tx\t") + "0|1\t0|0", "POS is no number"),
        (FIXED.replace("GT", "DP") + "1\t1", "no GT in FORMAT"),
        (FIXED.replace("\tA\t", "\t\t") + "0|1\t0|0", "no REF"),
        ("c1 5 . A C", "no tab where a record belongs"),
        ("c1\t5", "fewer than 11 columns"),
        (FIXED.replace("\tC\t", "\t<DEL>\t").replace("PASS\t.", "PASS\tEND=2") + "0|1\t0|0", "END"),
        ("#CHROM\tPOS", "a header line among the records"),
        ("", "an empty line where a record belongs"),
        ("c1\x1b[2J" + FIXED[2:] + "0|1\t0|0", r"record 1: 'c1\\x1b.2J' where a contig's name"),
        (
            "c" * 2000 + FIXED[2:] + "0|1\t0|0",
            r"'ccc[c]*\.\.\.' \(2,000 long\) where a contig's name",
        ),
    ],
)
def test_bad_lines_are_refused(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "p.vcf", line, FIXED + "0|0\t0|0")
    with pytest.raises(SequenceError, match=message) as caught:
        carriers_of(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mixed_ploidy_is_refused_within_a_contig(tmp_path: Path) -> None:
    second = FIXED.replace("\t5\t", "\t9\t")
    for calls in (("0|0", "0"), ("0|1", "1"), ("0|0|0", "0|0"), ("0", "0|0")):
        path = write(tmp_path / "p.vcf", FIXED + f"0|0\t{calls[0]}", second + f"0|0\t{calls[1]}")
        with pytest.raises(SequenceError, match=r"record 2 .*another number of copies"):
            carriers_of(path)
    carriers_of(write(tmp_path / "p.vcf", FIXED + "0|0\t1", second + "1|0\t0"))
    carriers_of(write(tmp_path / "p.vcf", FIXED + "0|0\t.", second + "1|0\t0"))
    other = second.replace("c1", "c2")
    file = VariantFile(write(tmp_path / "p.vcf", FIXED + "0|0\t1", other + "1|0\t0|0"))
    assert [file.ploidy.tolist() for _ in file.batches()] == [[2, 1], [2, 2]]


def test_files_that_are_no_panel(tmp_path: Path) -> None:
    cases = {
        "empty": (b"", "is empty"),
        "fasta": (b">c1\nACGT\n", "no VCF"),
        "header": (b"##fileformat=VCFv4.2\n", "before its #CHROM"),
        "samples": (HEAD.strip().removesuffix("\tFORMAT").encode() + b"\n", "no samples"),
        "twice": ((HEAD + "s1\ts1\n").encode(), "'s1' twice"),
        "columns": (b"#CHROM\tPOS\tREF\n", "columns of VCF"),
        "version": (b"BCF\x01\x00aaaaaaa", "BCF version"),
        "short": (b"BCF\x02\x02\xff\x00\x00\x00abc", "ends within its header"),
        "huge": (b"BCF\x02\x02\xff\xff\xff\xffabc", "a header of"),
    }
    for name, (data, message) in cases.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(SequenceError, match=message):
            carriers_of(path)
    with pytest.raises(SequenceError, match="cannot be read"):
        VariantFile(tmp_path / "absent")
    with pytest.raises(SequenceError, match="not a regular file"):
        VariantFile(tmp_path)


def test_truncated_files_are_refused_at_every_length(tmp_path: Path) -> None:
    panel = random_panel(3, samples=3, length=60)
    raw = convert(panel.vcf(tmp_path / "p.vcf"), tmp_path / "p.bcf", "u").read_bytes()
    raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    (tmp_path / "whole").write_bytes(raw)
    whole = carriers_of(tmp_path / "whole")
    for cut in range(9, len(raw), 7):
        (tmp_path / "cut").write_bytes(raw[:cut])
        try:
            found = carriers_of(tmp_path / "cut")
        except SequenceError:
            continue
        assert found == whole[: len(found)]
        assert len(found) < len(whole)
    packed = convert(tmp_path / "p.vcf", tmp_path / "p.vcf.gz", "z").read_bytes()
    (tmp_path / "cut").write_bytes(packed[:-28])
    with pytest.raises(SequenceError, match="end-of-file block is missing"):
        carriers_of(tmp_path / "cut")


def test_flipped_bytes_never_crash(tmp_path: Path) -> None:
    panel = random_panel(5, samples=3, length=60)
    raw = convert(panel.vcf(tmp_path / "p.vcf"), tmp_path / "p.bcf", "u").read_bytes()
    raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    rng = np.random.default_rng(0)
    path = tmp_path / "flipped"
    for _ in range(400):
        data = bytearray(raw)
        for place in rng.integers(0, len(raw), 3):
            data[place] = rng.integers(0, 256)
        path.write_bytes(data)
        with contextlib.suppress(SequenceError):
            carriers_of(path)


def test_genotypes_match_another_reader(tmp_path: Path, shared_data: Path) -> None:
    pysam = pytest.importorskip("pysam")
    path = shared_data / "variants" / "unphased.bcf"
    ours = carriers_of(path)
    with pysam.VariantFile(str(path)) as theirs:
        for k, record in enumerate(theirs):
            if k % 97:
                continue
            contig, pos, alleles, carriers = ours[k]
            assert (contig, pos, alleles) == (record.contig, record.pos - 1, list(record.alleles))
            calls = [(s, c, number) for s, c, number, _ in carriers if number]
            expected = [
                (s, c, number)
                for s, call in enumerate(record.samples.values())
                for c, number in enumerate(call["GT"])
                if number
            ]
            assert calls == expected


def test_sites_are_read_without_genotypes(tmp_path: Path):
    panel = random_panel(3)
    path = panel.vcf(tmp_path / "panel.vcf")
    lines = [line.split("\t") for line in panel.lines]

    def read(path: Path) -> list[tuple[str, int, str, list[str]]]:
        found = []
        for batch in VariantFile(path, sites=True).batches():
            assert len(batch.carriers) == 0
            for r, name in enumerate(batch.ids(0, len(batch.records))):
                position = int(batch.records[r, 0]) + 1
                found.append((batch.contig, position, name, batch.alleles(r)))
        return found

    wanted = [
        (f[0], int(f[1]), f[2], [f[3], *(alt for alt in f[4].split(",") if alt != ".")])
        for f in lines
    ]
    assert read(path) == wanted
    few = tmp_path / "few.vcf"
    for end in ("\n", "\r\n"):
        few.write_bytes(end.join("\t".join(fields[:5]) for fields in lines).encode())
        assert read(few) == wanted
    few.write_text("c1\t5\tx\tA")
    with pytest.raises(SequenceError, match="fewer than 5 columns"):
        read(few)
    few.write_text("##fileformat=VCFv4.2\n")
    assert read(few) == []
