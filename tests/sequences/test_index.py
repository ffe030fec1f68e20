from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import numpy as np
import pysam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genomepred.errors import SequenceError
from genomepred.sequences.fasta import Genome
from tests.helpers import examples
from tests.sequences.fasta_files import (
    assert_reads_as,
    fasta_text,
    naive_codes,
    records,
    write_fasta,
)


@settings(deadline=None, max_examples=examples(30))
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


GZI = {
    "missing": lambda words: None,
    "short": lambda words: words.tobytes()[:-5],
    "without a block": lambda words: np.delete(words, [5, 6]) - np.eye(1, len(words) - 2)[0],
    "without the last blocks": lambda words: np.append(words[0] - 2, words[1:-4]),
    "of no block but the first": lambda words: words[:1] * 0,
    "of wrong data": lambda words: words + np.eye(1, len(words), 4)[0],
    "of wrong places": lambda words: words + np.eye(1, len(words), 3)[0],
    "of huge offsets": lambda words: words | np.where(np.arange(len(words)) == 4, 1 << 62, 0),
    "of a huge count": lambda words: words | np.where(np.arange(len(words)) == 0, 1 << 62, 0),
    "empty": lambda words: words[:0],
}


@pytest.mark.parametrize("damage", GZI)
def test_a_wrong_gzi_is_made_anew(damage: str, tmp_path: Path) -> None:
    text = b">a\n" + b"ACGTTGCA\n" * 100
    path = write_fasta(tmp_path / "g.fa.gz", text, "bgzip", block=100)
    Genome(path).close()
    index = path.with_name("g.fa.gz.gzi")
    right = index.read_bytes()
    wrong = GZI[damage](np.frombuffer(right, "<u8").astype(np.int64))
    index.unlink()
    if wrong is not None:
        index.write_bytes(wrong if isinstance(wrong, bytes) else wrong.astype("<u8").tobytes())
        assert index.read_bytes() != right
    with Genome(path) as genome:
        assert_reads_as(genome, naive_codes(text))
    assert index.read_bytes() == right


@settings(deadline=None, max_examples=examples(100))
@given(
    st.sampled_from([b"\n", b"\r\n"]),
    st.sampled_from(["plain", "bgzip"]),
    st.sampled_from([1, 5, 64]),
    st.data(),
)
def test_bytes_that_changed_behind_an_index_are_seen(
    tmp_path_factory: pytest.TempPathFactory,
    end: bytes,
    kind: str,
    step: int,
    data: st.DataObject,
) -> None:
    """Any byte, anywhere: the codes of the file as it is now, or a refusal."""
    text = fasta_text({"a": b"ACGTN" * 12 + b"AC", "b": b"GATTACA"}, 5, end, True)
    changed = bytearray(text)
    place = data.draw(st.integers(0, len(text) - 1))
    changed[place] = data.draw(st.sampled_from(list(b"AN\0>L \n\r")))
    path = write_fasta(tmp_path_factory.mktemp("changed") / "g.fa", text, kind)
    Genome(path).close()
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    write_fasta(path, bytes(changed), kind)
    os.utime(path, ns=times)
    try:
        with Genome(path) as genome:
            found = {
                name: [
                    code
                    for start in range(0, length, step)
                    for code in genome.codes(name, start, min(start + step, length)).tolist()
                ]
                for name, length in genome.contigs.items()
            }
    except SequenceError:
        return
    expected = naive_codes(bytes(changed))
    assert found == {name: codes.tolist() for name, codes in expected.items()}


@pytest.mark.parametrize("suffix", [".fai", ".gzi"])
@pytest.mark.parametrize("what", ["pipe", "folder", "device", "endless", "number"])
def test_what_is_no_index_is_not_read(what: str, suffix: str, tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "g.fa.gz", BODY, "bgzip")
    index = path.with_name(path.name + suffix)
    if what == "pipe":
        os.mkfifo(index)
    elif what == "folder":
        index.mkdir()
    elif what == "device":
        index.symlink_to("/dev/zero")
    elif what == "endless":
        with index.open("wb") as file:
            file.truncate(1 << 42)
    else:
        index.write_text(f"a\t{'9' * 5000}\t7\t5\t6\nb\t{'9' * 40}\t26\t{'9' * 40}\t6\n")
    with Genome(path) as genome:
        assert_reads_as(genome, naive_codes(BODY))


def test_leftovers_of_killed_processes_go_from_beside_the_file(tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "g.fa", BODY)
    script = """
        import os, sys
        os.fsync = lambda descriptor: os._exit(9)
        from genomepred import Genome
        Genome("g.fa")
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 9
    assert len(list(tmp_path.glob("*.tmp"))) == 1
    Genome(path).close()
    assert sorted(os.listdir(tmp_path)) == ["g.fa", "g.fa.fai"]


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
