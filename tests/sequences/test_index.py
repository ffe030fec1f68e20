from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pysam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genomepred.errors import SequenceError
from genomepred.sequences.fasta import Genome
from tests.sequences.fasta_files import (
    assert_reads_as,
    fasta_text,
    naive_codes,
    records,
    write_fasta,
)


@settings(deadline=None, max_examples=30)
@given(
    records(), st.sampled_from([1, 60, 64, 3000]), st.sampled_from([b"\n", b"\r\n"]), st.booleans()
)
def test_indexes_are_those_of_samtools(
    tmp_path_factory: pytest.TempPathFactory,
    contigs: dict[str, bytes],
    width: int,
    end: bytes,
    last: bool,
) -> None:
    folder = tmp_path_factory.mktemp("fai")
    text = fasta_text(contigs, width, end, last)
    for kind in ("plain", "bgzip"):
        path = write_fasta(folder / f"{kind}.fa.gz", text, kind, block=997)
        fai, gzi = (path.with_name(path.name + suffix) for suffix in (".fai", ".gzi"))
        Genome(path).close()
        ours = {index: index.read_bytes() for index in (fai, gzi) if index.exists()}
        assert list(ours) == ([fai] if kind == "plain" else [fai, gzi])
        if list(contigs.values())[-1]:  # samtools refuses a last contig without bases
            for index in ours:
                index.unlink()
            pysam.faidx(str(path))
            assert fai.read_bytes() == ours[fai]
            if kind == "bgzip":  # bgzip lists the empty block at the end too, samtools does not
                assert gzi.read_bytes()[8:] == ours[gzi][8:-16]
        with Genome(path) as genome:  # contigs without bases, which are in no .fai, are found
            assert list(genome.contigs) == list(contigs)


BODY = b">a one\nACGTA\nACGTA\nACG\n>b\nGATTA\nCA\n"
FAI = "a\t13\t7\t5\t6\nb\t7\t26\t5\t6\n"
WRONG = {
    "another name": FAI.replace("b\t", "c\t"),
    "a shifted offset": FAI.replace("\t7\t5", "\t8\t5"),
    "too few bases": FAI.replace("a\t13", "a\t12"),
    "too many bases": FAI.replace("b\t7", "b\t8"),
    "other lines": FAI.replace("13\t7\t5\t6", "13\t7\t6\t7"),
    "other line ends": FAI.replace("13\t7\t5\t6", "13\t7\t4\t6"),
    "a contig missing": FAI.partition("\n")[0] + "\n",
    "a contig too many": FAI + "c\t7\t38\t5\t6\n",
    "no lines": FAI.replace("5\t6", "0\t0"),
    "negative numbers": FAI.replace("b\t7", "b\t-7"),
    "words": FAI.replace("13", "many"),
    "too few columns": "a\t13\t7\n",
    "nothing": "",
    "not text": "\0\udcff",
}


@pytest.mark.parametrize("kind", ["plain", "bgzip"])
@pytest.mark.parametrize("case", WRONG)
def test_an_index_that_does_not_fit_is_made_anew(case: str, kind: str, tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "g.fa", BODY, kind, block=10)
    index = path.with_name("g.fa.fai")
    index.write_text(WRONG[case], "utf-8", "surrogateescape")
    with Genome(path) as genome:
        assert_reads_as(genome, naive_codes(BODY))
    assert index.read_text() == FAI


@pytest.mark.parametrize(
    ("text", "fai"),
    [
        # Twice as many lines as there are, every second of which ends where a line ends.
        (b">a\nACGTACGTACG\nACGT\n", "a\t14\t3\t5\t6\n"),
        # First line and size are right, the lines between are not.
        (b">a\nACGTA\nAC\nGTACGT\n", "a\t13\t3\t5\t6\n"),
        (b">a\nACGTA\nACG A\nACGTA\nAC\n>b\nA A\n", "a\t17\t3\t5\t6\nb\t3\t27\t3\t4\n"),
    ],
)
def test_an_index_of_other_lines_is_not_believed(text: bytes, fai: str, tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "g.fa", text)
    path.with_name("g.fa.fai").write_text(fai)
    with Genome(path, cache=tmp_path / "cache") as genome:
        assert_reads_as(genome, naive_codes(text))


def test_a_protein_is_refused_although_samtools_indexed_it(tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "g.fa", b">prot\nMKVLAAGI\n")
    pysam.faidx(str(path))
    with pytest.raises(SequenceError, match="byte b'L' in contig 'prot'"):
        Genome(path)


def test_a_fitting_index_is_used_and_an_older_one_is_not(tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "g.fa", BODY)
    index = path.with_name("g.fa.fai")
    index.write_text(FAI)
    written = index.stat().st_ino
    Genome(path).close()
    assert index.stat().st_ino == written
    os.utime(index, ns=(0, path.stat().st_mtime_ns - 1))
    Genome(path).close()
    assert index.stat().st_ino != written


def test_a_truncated_fasta_is_noticed_behind_its_index(tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "g.fa", BODY)
    index = path.with_name("g.fa.fai")
    for size in (len(BODY) - 2, len(BODY) - 4, 20):
        path.write_bytes(BODY[:size])
        index.write_text(FAI)
        with Genome(path) as genome:
            assert_reads_as(genome, naive_codes(BODY[:size]))


def test_a_file_truncated_while_it_is_open_gives_one_line(tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "g.fa", BODY)
    with Genome(path) as genome:
        path.write_bytes(BODY[:12])
        with pytest.raises(SequenceError, match=r"g\.fa: ends at byte 12"):
            genome.codes("a", 0, 13)


def test_bytes_that_changed_behind_the_index_are_noticed(tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "g.fa", BODY)
    with Genome(path) as genome:
        path.write_bytes(BODY.replace(b"A\nACG\n", b"\nAACG\n"))
        with pytest.raises(SequenceError, match=r"byte offset 17, contig 'a': no nucleotide"):
            genome.codes("a", 0, 13)


@pytest.mark.parametrize("damage", ["missing", "short", "shifted", "of another file"])
def test_a_wrong_gzi_is_made_anew(damage: str, tmp_path: Path) -> None:
    text = b">a\n" + b"ACGTTGCA\n" * 100
    path = write_fasta(tmp_path / "g.fa.gz", text, "bgzip", block=100)
    Genome(path).close()
    index = path.with_name("g.fa.gz.gzi")
    right = index.read_bytes()
    if damage == "missing":
        index.unlink()
    else:
        index.write_bytes(
            {"short": right[:-5], "shifted": right[:16] + right[8:]}.get(damage, bytes(8))
        )
    with Genome(path) as genome:
        assert_reads_as(genome, naive_codes(text))
    if damage != "of another file":  # eight zeros are a valid index of no block but the first
        assert index.read_bytes() == right


def test_a_gzi_with_a_wrong_offset_gives_one_line_and_no_wrong_codes(tmp_path: Path) -> None:
    text = b">a\n" + b"ACGTTGCA\n" * 100
    path = write_fasta(tmp_path / "g.fa.gz", text, "bgzip", block=100)
    Genome(path).close()
    index = path.with_name("g.fa.gz.gzi")
    words = np.frombuffer(index.read_bytes(), "<u8").copy()
    words[4] += 1  # the second listed block's data
    index.write_bytes(words.tobytes())
    with pytest.raises(SequenceError, match=r"its \.gzi is wrong"), Genome(path) as genome:
        genome.codes("a", 0, 800)


@pytest.mark.parametrize("obstacle", ["a read-only folder", "folders of the indexes' names"])
def test_an_index_goes_to_the_cache_where_it_cannot_lie_beside_the_file(
    obstacle: str, tmp_path: Path
) -> None:
    folder, cache = tmp_path / "genomes", tmp_path / "cache"
    folder.mkdir()
    path = write_fasta(folder / "g.fa.gz", BODY, "bgzip")
    if obstacle == "a read-only folder":
        folder.chmod(0o555)
    else:
        for suffix in (".fai", ".gzi"):
            path.with_name(path.name + suffix).mkdir()
    here = sorted(folder.iterdir())
    for _ in range(2):
        with Genome(path, cache=cache) as genome:
            assert_reads_as(genome, naive_codes(BODY))
    assert sorted(folder.iterdir()) == here
    assert sorted(file.suffix for file in cache.iterdir()) == [".fai", ".gzi"]
    before = {file: file.stat().st_ino for file in cache.iterdir()}
    Genome(path, cache=cache).close()
    assert {file: file.stat().st_ino for file in cache.iterdir()} == before


def test_a_full_disk_only_costs_the_index(small_disk: Path) -> None:
    path = write_fasta(small_disk / "g.fa", BODY)
    with (small_disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    with Genome(path) as genome:
        assert_reads_as(genome, naive_codes(BODY))
    assert sorted(os.listdir(small_disk)) == ["filler", "g.fa"]
