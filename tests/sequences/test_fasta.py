from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyfaidx
import pysam
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from genomepred.errors import RegionError, SequenceError
from genomepred.sequences.fasta import Genome
from tests.helpers import examples
from tests.sequences.fasta_files import (
    AS_CODES,
    KINDS,
    assert_reads_as,
    bgzip,
    fasta_text,
    naive_codes,
    naive_slice,
    pack,
    records,
    write_fasta,
)
from tests.sequences.source_suite import check_source

BODY = b">a one\nACGTA\nACGTA\nACG\n>b\nGATTA\nCA\n"


@settings(deadline=None, max_examples=examples(60))
@given(
    contigs=records(),
    width=st.sampled_from([1, 7, 60, 61, 64, 70, 128, 3000]),
    end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
    last=st.booleans(),
    kind=st.sampled_from(KINDS),
    data=st.data(),
)
def test_any_records_wrapped_and_packed_in_any_way(
    tmp_path_factory: pytest.TempPathFactory,
    contigs: dict[str, bytes],
    width: int,
    end: bytes,
    last: bool,
    kind: str,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("fasta")
    text = fasta_text(contigs, width, end, last)
    path = write_fasta(folder / "g.fa", text, kind, block=data.draw(st.sampled_from([97, 65280])))
    expected = {name: np.frombuffer(s.translate(AS_CODES), np.uint8) for name, s in contigs.items()}
    plainest = write_fasta(
        folder / "plainest.fa",
        fasta_text({n: s.upper() for n, s in contigs.items()}, 60, b"\n", True),
    )
    with Genome(plainest, write=False) as genome:
        digest = genome.digest()
    for _ in range(2):  # without and with the index or expanded codes of the first time
        with Genome(path, cache=folder / "cache") as genome:
            assert_reads_as(genome, expected)
            assert genome.digest() == digest
            name = data.draw(st.sampled_from(list(contigs)))
            start = data.draw(st.integers(-100, len(contigs[name]) + 100))
            stop = data.draw(st.integers(start, start + 400))
            out = np.full(stop - start, 77, np.uint8)
            assert genome.codes(name, start, stop, out) is out
            np.testing.assert_array_equal(out, naive_slice(expected[name], start, stop))
    with Genome(path, write=False) as genome:
        assert genome.contigs == {name: len(s) for name, s in contigs.items()}
        assert genome.digest() == digest


@pytest.mark.parametrize("kind", KINDS)
def test_a_genome_is_a_sequence_source(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sequence = bytes(rng.choice(list(b"ACGTN"), 700_000).astype(np.uint8))
    contigs = {"a": sequence, "empty": b"", "b": sequence[::-7]}
    path = write_fasta(tmp_path / "g.fa", fasta_text(contigs, 60, b"\n", True), kind)
    expected = {name: np.frombuffer(s.translate(AS_CODES), np.uint8) for name, s in contigs.items()}
    check_source(lambda: Genome(path, cache=tmp_path / "cache"), expected)


# Real files ---------------------------------------------------------------------------------

PYFAIDX_READS = [
    "awkward/chr17.hg19.part.fa",  # one line of 40,000 letters, soft-masked
    "awkward/genes.fasta",
    "awkward/genes.fasta.gz",  # bgzip
    "awkward/genes.fasta.lower",
    "awkward/issue_141.fasta",  # CRLF
    "genomes/MG1655-K12.fasta.gz",
    "genomes/O1_biovar.fasta.gz",  # IUPAC letters
    "genomes/hs37_chr22_20-21M.fa.gz",  # ":" and "-" in the header
    "genomes/lambda_virus.fa.gz",
    "genomes/rice_chr2_1M.fa.gz",  # one line of 1,000,000 letters
]
CODE_OF_LETTER = np.frombuffer(AS_CODES, np.uint8)


def codes_of(text: str) -> NDArray[np.uint8]:
    return CODE_OF_LETTER[np.frombuffer(text.encode(), np.uint8)]


def unpacked(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data


@pytest.mark.parametrize("file", PYFAIDX_READS)
def test_real_files_read_as_pyfaidx_reads_them(
    file: str, shared_data: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copy(shared_data / file, tmp_path))
    plain = write_fasta(tmp_path / "plain.fa", unpacked(path))
    oracle = pyfaidx.Fasta(str(plain), indexname=str(tmp_path / "of_pyfaidx"))
    expected = {record.name: codes_of(str(record)) for record in oracle}
    with Genome(path, cache=tmp_path / "cache") as genome, Genome(plain) as twin:
        assert_reads_as(genome, expected)
        assert_reads_as(twin, expected)
        assert genome.digest() == twin.digest()
    with Genome(plain) as indexed:
        assert_reads_as(indexed, expected)


def test_many_tiny_rna_records(shared_data: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(shared_data / "awkward" / "hairpin.fa.gz", tmp_path))
    text = unpacked(path)
    expected = naive_codes(text)
    assert len(expected) == 28_645
    plain = write_fasta(tmp_path / "plain.fa", text)
    with Genome(path) as genome, Genome(plain) as scanned, Genome(plain) as indexed:
        assert scanned.contigs == indexed.contigs == genome.contigs
        for number, (name, codes) in enumerate(expected.items()):
            if number % 3 == 0:
                assert np.array_equal(genome.codes(name, 0, len(codes)), codes)
            if number % 10 == 0:  # which reads the file record by record
                assert np.array_equal(indexed.codes(name, 0, len(codes)), codes)


def test_yeast_and_chromosome_20_at_random_places_as_pysam_reads_them(
    shared_data: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    yeast = write_fasta(tmp_path / "y.fa", unpacked(shared_data / "genomes" / "sacCer3.fa.gz"))
    human = tmp_path / "hs37_chr20.fa.gz"
    human.symlink_to(shared_data / "genomes" / human.name)
    for path in (yeast, human):
        with Genome(path) as genome, pysam.FastaFile(str(path)) as oracle:
            assert genome.contigs == dict(zip(oracle.references, oracle.lengths, strict=True))
            for _ in range(100):
                name = str(rng.choice(oracle.references))
                start = int(rng.integers(0, genome.contigs[name]))
                end = min(start + int(10 ** rng.uniform(0, 5.5)), genome.contigs[name])
                expected = codes_of(oracle.fetch(name, start, end))
                np.testing.assert_array_equal(genome.codes(name, start, end), expected)
    for suffix in (".fai", ".gzi"):
        ours = human.with_name(human.name + suffix)
        assert ours.read_bytes() == (shared_data / "genomes" / ours.name).read_bytes()


# Files that samtools cannot index or silently misreads ----------------------------------------

TENS = b">a\n" + b"ACGTACGTAC GTACGTACGT ACGT\n" * 3 + b"ACGTACGTAC GT\n>b\nAC\n"
UNEVEN = {
    "blanks in tens": TENS,
    "blanks at line ends": b">a\nACGT \nACGT \nA \n",
    "tabs and leading blanks": b">a\n\tACGT\n  AC\n",
    "a shorter line inside": b">a\nACGTA\nACG\nACGTA\n>b\nACGT\n",
    "a longer last line": b">a\nACGT\nACGTACG\n",
    "an empty line inside": b">a\nACGT\n\nACGT\n",
    "an empty line first": b">a\n\nACGT\nACGT\n",
    "mixed line ends": b">a\nACGT\r\nACGT\nACGT\r\n",
    "a shorter line of the same width": b">a\nACGTA\nACGT\r\nACGTA\n",
    "a header that ends in CR": b">a\rACGT\nAC\n",
    "carriage returns only": b">a x\rACGT\rAC\r>b\rAC\r",
    "long uneven lines": b">a\n" + b"ACGTN" * 2000 + b"\n" + b"GATTACA" * 3000 + b"\nAC\nACG\n",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", UNEVEN)
def test_uneven_files_are_read_right_and_get_no_index(case: str, kind: str, tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "g.fa", UNEVEN[case], kind, block=11)
    expected = naive_codes(UNEVEN[case])
    for _ in range(2):
        with Genome(path, cache=tmp_path / "cache") as genome:
            assert_reads_as(genome, expected)
    assert not path.with_name("g.fa.fai").exists()


def test_blanks_in_tens_are_misread_through_the_index_of_samtools_but_not_here(
    tmp_path: Path,
) -> None:
    path = write_fasta(tmp_path / "g.fa", TENS)
    with pysam.FastaFile(str(path)) as oracle:
        misread = oracle.fetch("a", 0, 30)
    assert path.with_name("g.fa.fai").exists()
    assert " " in misread
    with Genome(path) as genome:
        assert_reads_as(genome, naive_codes(TENS))


EVEN = {
    "empty lines between records": b"\n>a\nACGT\nAC\n\n\n>b\nAC\n\n",
    "contigs without bases": b">a\n>b\n\n>c\nACG\n>d x\n",
    "a header alone": b">a",
    "CRLF at the end of the file missing": b">a\r\nACGT\r\nAC",
}


@pytest.mark.parametrize("case", EVEN)
def test_odd_but_even_files_are_read_through_an_index(case: str, tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "g.fa", EVEN[case])
    for _ in range(2):
        with Genome(path, cache=tmp_path / "cache") as genome:
            assert_reads_as(genome, naive_codes(EVEN[case]))
    assert path.with_name("g.fa.fai").exists()
    assert not (tmp_path / "cache").exists()


# Refusals -------------------------------------------------------------------------------------

REFUSED = {
    "": "is empty",
    "\n\n": "no header in its 2 bytes",
    "ACGT\n>a\nACGT\n": r"line 1, byte offset 0: found b'A'",
    "\n\nACGT\n": r"line 3, byte offset 2: found b'A'",
    ">a\nACGT\n>b\nAC\n>a x\nACGT\n": "line 5, byte offset 14: contig 'a' a second time after "
    "line 1, byte offset 0",
    ">a\nACGT\n> b\nACGT\n": "line 3, byte offset 9: a header without a name",
    ">a\nACGT\n>": "line 3, byte offset 9: a header without a name",
    ">a\nAC\nAC\0T\n": r"line 3, byte offset 8: byte b'\x00' in contig 'a'",
    ">a\nACGT\n>prot x\nMKVLAAGI\n": "line 4, byte offset 19: byte b'L' in contig 'prot'",
    ">a\nACGT>b\nACGT\n": "line 2, byte offset 7: byte b'>' in contig 'a'",
    ">a\nACGT1\n": "line 2, byte offset 7: byte b'1' in contig 'a'",
    ">a\x01b\nACGT\n": r"line 1, byte offset 2: byte b'\x01' in a contig's name",
    ">\u00e4\u0080\nACGT\n": "is not UTF-8",
    "\x89PNG\r\n\x1a\n": "a PNG image",
    "\xff\xfe>\0a\0\n\0A\0": "UTF-16 text",
    "\0>\0a\0\n\0A": r"line 1, byte offset 0: found b'\x00'",
    ">\0a\0\n\0A\0": r"line 1, byte offset 1: byte b'\x00' in a contig's name",
    "@read\nACGT\n+\nIIII\n": "FASTQ",
    "BZh91AY": "bunzip2",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_fasta_is_refused_in_one_line(text: str, kind: str, tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "g.fa", text.encode("latin-1"), kind)
    with pytest.raises(SequenceError) as caught:
        Genome(path, cache=tmp_path / "cache")
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    # A packed file is known by its packing; what is inside is found wrong where it is wrong.
    foreign = any(word in REFUSED[text] for word in ("PNG", "UTF-16", "FASTQ", "bunzip2"))
    if kind == "plain" or not (foreign or text == ""):
        assert REFUSED[text] in message
    assert not list((tmp_path / "cache").glob("*.codes*[!k]"))


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_bounded(kind: str, tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "g.fa", b">a\nAC\n>" + b"x" * 1000 + b" y\nAC\n", kind)
    for _ in range(2):
        with Genome(path, cache=tmp_path / "cache") as genome:
            assert [len(name) for name in genome.contigs] == [1, 1000]
    path = write_fasta(tmp_path / "h.fa", b">a\nAC\n>" + b"x" * 5_000_000 + b"\nAC\n", kind)
    path.with_name("h.fa.fai").write_text(f"a\t2\t3\t2\t3\n{'x' * 5_000_000}\t2\t5000008\t2\t3\n")
    with pytest.raises(SequenceError, match=r"line 3, .*'xxx.* more than 1,000 bytes") as caught:
        Genome(path, cache=tmp_path / "cache")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("kind", KINDS)
def test_paths_need_not_be_utf_8(kind: str, tmp_path: Path) -> None:
    path = write_fasta(tmp_path / os.fsdecode(b"caf\xe9.fa"), BODY, kind)
    for _ in range(2):
        with Genome(path, cache=tmp_path / os.fsdecode(b"cach\xe9")) as genome:
            assert genome.name == os.fsdecode(b"caf\xe9")
            assert_reads_as(genome, naive_codes(BODY))
            genome.discard_cache()


def test_letters_that_no_fast_path_may_let_through(tmp_path: Path) -> None:
    sequence = bytearray(b"ACGT" * 4000)
    for place, width in ((9_000, 60), (15_999, 60), (0, 60), (9_000, 16_000)):
        wrong = bytearray(sequence)
        wrong[place] = ord("L")
        text = fasta_text({"ok": bytes(sequence), "bad": bytes(wrong)}, width, b"\n", True)
        path = write_fasta(tmp_path / "g.fa", text)
        offset = text.index(b"L")
        line = text[:offset].count(b"\n") + 1
        with pytest.raises(SequenceError, match=f"line {line}, byte offset {offset}: byte b'L'"):
            Genome(path)


@pytest.mark.parametrize("kind", ["bgzip", "gzip", "xz"])
def test_any_truncation_of_a_packed_file_is_refused(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    text = b">a\n" + bytes(rng.choice(list(b"ACGT"), 3000).astype(np.uint8)) + b"\n"
    packed = pack(text, kind, block=400)
    path = tmp_path / "g.fa.gz"
    for size in [*range(1, len(packed), 7), len(packed) - 1]:
        path.write_bytes(packed[:size])
        with pytest.raises(SequenceError) as caught:
            Genome(path, write=False)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", ["bgzip", "gzip", "xz"])
def test_garbage_behind_a_packed_file_is_refused_but_zeros_are_not(
    kind: str, tmp_path: Path
) -> None:
    path = write_fasta(tmp_path / "g.fa.gz", b">a\nACGT\n", kind)
    packed = path.read_bytes()
    path.write_bytes(packed + b"garbage")
    with pytest.raises(SequenceError, match=f"byte offset {len(packed)}"):
        Genome(path, write=False)
    path.write_bytes(packed + bytes(300_000))
    with Genome(path, write=False) as genome:
        assert genome.contigs == {"a": 4}
    path.write_bytes(packed + bytes(512) + b"garbage")
    with pytest.raises(SequenceError, match="byte offset"):
        Genome(path, write=False)


@pytest.mark.parametrize("end", [b"", bytes(99)])
def test_gzip_members_behind_bgzip_blocks_are_read(end: bytes, tmp_path: Path) -> None:
    first, second = b">a\nACGT\nACGT\n", b"AC\n>b\nGATTACA\n"
    packed = bgzip(first, 9) + gzip.compress(second, mtime=0) + bgzip(b">c\nTT\n") + end
    path = tmp_path / "g.fa.gz"
    path.write_bytes(packed)
    with Genome(path, cache=tmp_path / "cache") as genome:
        assert_reads_as(genome, naive_codes(first + second + b">c\nTT\n"))
    damaged = bytearray(packed)
    damaged[packed.index(gzip.compress(second, mtime=0)) + 15] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(SequenceError):
        Genome(path, cache=tmp_path / "cache")
    assert sorted(f.suffix for f in (tmp_path / "cache").iterdir()) == [".codes", ".lock", ".lock"]


@pytest.mark.parametrize("kind", ["bgzip", "gzip", "xz"])
def test_a_flipped_bit_in_a_packed_file_is_refused_or_changes_nothing(
    kind: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    text = b">a\n" + bytes(rng.choice(list(b"ACGT"), 1500).astype(np.uint8)) + b"\n"
    packed = pack(text, kind, block=400)
    path = write_fasta(tmp_path / "g.fa", text)
    with Genome(path) as genome:
        digest = genome.digest()
    path = tmp_path / "g.fa.gz"
    bits = 8 * len(packed)
    refused = 0
    # Somewhere, and everywhere in the first header, the last trailer and bgzip's empty block.
    for bit in {*rng.integers(0, bits, 300).tolist(), *range(8 * 18), *range(bits - 8 * 40, bits)}:
        damaged = bytearray(packed)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            with Genome(path, write=False) as genome:
                assert genome.digest() == digest, bit
        except SequenceError:
            refused += 1
    assert refused > 400


def test_sizes_of_bgzip_blocks_that_hide_bases_are_refused(tmp_path: Path) -> None:
    line = b"ACGTTGCA\n" * 10
    blocks = [bgzip(text)[:-28] for text in (b">a\n" + line, line, line)]
    end = bgzip(b"")[-28:]

    def resized(block: bytes, size: int) -> bytes:  # ISIZE
        return block[:-4] + size.to_bytes(4, "little")

    def swallowing(block: bytes, more: bytes) -> bytes:  # BSIZE of both
        return block[:16] + (len(block) + len(more) - 1).to_bytes(2, "little") + block[18:] + more

    path = tmp_path / "g.fa.gz"
    for wrong in (
        [blocks[0], blocks[1], resized(blocks[2], 0)],
        [blocks[0], resized(blocks[1], 0), blocks[2]],
        [blocks[0], resized(blocks[1], 9), blocks[2]],
        [blocks[0], blocks[1], resized(blocks[2], len(line) + 9)],
        [blocks[0], blocks[1], resized(blocks[2], 1 << 31)],
        [blocks[0], swallowing(blocks[1], blocks[2])],
        [blocks[0], blocks[1], swallowing(blocks[2], end)],
        [blocks[0], blocks[1], blocks[2], resized(end, 9)],
        [blocks[0], blocks[1], blocks[2], end[:-8] + b"\1" + end[-7:]],
    ):
        path.write_bytes(b"".join(wrong) + end)
        with pytest.raises(SequenceError, match="byte offset"), Genome(path, write=False) as genome:
            genome.digest()


def test_what_is_no_file_is_refused_in_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(SequenceError, match="is not a regular file"):
            Genome(path)
    with pytest.raises(SequenceError, match="not a regular file"):
        Genome(tmp_path)
    with pytest.raises(SequenceError, match=r"missing\.fa: cannot be read: No such file"):
        Genome(tmp_path / "missing.fa")
    with pytest.raises(SequenceError, match="cannot be read: Not a directory"):
        Genome(write_fasta(tmp_path / "g.fa", b">a\nAC\n") / "x.fa")


def test_an_unreadable_file_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_fasta(tmp_path / "g.fa", b">a\nACGT\n")

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", deny)  # root, as which tests may run, reads everything
    with pytest.raises(SequenceError, match=r"g\.fa: cannot be read: Permission denied"):
        Genome(path)


# The rest of the contract ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_write_false_writes_nothing(kind: str, tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "g.fa", TENS if kind == "plain" else BODY, kind)
    with Genome(path, cache=tmp_path / "cache", write=False) as genome:
        expected = naive_codes(TENS if kind == "plain" else BODY)
        assert genome.contigs == {name: len(codes) for name, codes in expected.items()}
        if kind == "bgzip":
            assert_reads_as(genome, expected)
        else:
            with pytest.raises(SequenceError, match="opened not to write"):
                genome.codes("a", 0, 2)
    assert os.listdir(tmp_path) == ["g.fa"]


def test_names_of_genomes(tmp_path: Path) -> None:
    for file, name in {
        "rice.fa": "rice",
        "IR64.v2.FASTA.gz": "IR64.v2",
        "a.b.fna.bgz": "a.b",
        "x.fas.xz": "x",
        "x.gz": "x",
        "genes.fasta.lower": "genes.fasta.lower",
    }.items():
        assert Genome(write_fasta(tmp_path / file, b">a\nA\n"), write=False).name == name
    assert Genome(tmp_path / "rice.fa", name="mine", write=False).name == "mine"


def test_requests_that_make_no_sense(tmp_path: Path) -> None:
    with Genome(write_fasta(tmp_path / "g.fa", BODY)) as genome:
        with pytest.raises(RegionError, match="no contig 'c'"):
            genome.codes("c", 0, 1)
        with pytest.raises(RegionError, match="ends before it starts"):
            genome.codes("a", 2, 1)
        assert genome.codes("a", 5, 5).size == 0
        assert genome.codes("a", 100, 103).tolist() == [4, 4, 4]
        assert genome.codes("a", -9, -7).tolist() == [4, 4]
        for out in (np.empty(2, np.uint8), np.empty(3, np.int64), np.empty(6, np.uint8)[::2]):
            with pytest.raises(ValueError, match="contiguous uint8 array of 3"):
                genome.codes("a", 0, 3, out)
    with pytest.raises(ValueError, match="closed"):
        genome.codes("a", 0, 1)
    genome.close()


def test_stamp_changes_with_the_file(tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "g.fa", BODY)
    with Genome(path) as before:
        assert before.stamp == (len(BODY), path.stat().st_mtime_ns)
    path.write_bytes(BODY + b"\n")
    with Genome(path) as after:
        assert after.stamp != before.stamp
        assert after.digest() == before.digest()


def test_digest_is_of_names_lengths_and_codes(tmp_path: Path) -> None:
    texts = [b">a\nACGT\n>b\nA\n", b">a\nACG\n>b\nTA\n", b">b\nACGT\n>a\nA\n", b">a\nACGN\n>b\nA\n"]
    digests = [Genome(write_fasta(tmp_path / f"{i}.fa", t)).digest() for i, t in enumerate(texts)]
    assert len(set(digests)) == 4
    assert digests[0] == xxhash.xxh3_128_hexdigest(bytes([0, 1, 2, 3, 0]) + b"a\t4\nb\t1\n")
    # Golden: a changed digest would make finished runs look like runs on other genomes.
    assert digests[0] == "e05c12144d09eabaf05e56adefad2721"


@pytest.mark.parametrize("kind", ["plain", "bgzip"])
def test_threads_share_a_genome(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    sequence = bytes(rng.choice(list(b"ACGTN"), 300_000).astype(np.uint8))
    expected = np.frombuffer(sequence.translate(AS_CODES), np.uint8)
    text = fasta_text({"a": sequence}, 60, b"\n", True)
    with Genome(write_fasta(tmp_path / "g.fa", text, kind, block=5000)) as genome:

        def right(start: int) -> bool:
            read = genome.codes("a", start, start + 100_000)
            return np.array_equal(read, expected[start : start + 100_000])

        with ThreadPoolExecutor(4) as threads:
            assert all(threads.map(right, rng.integers(0, 200_000, 400).tolist()))


def test_offsets_past_4_gib(tmp_path: Path) -> None:
    """A sparse file: only the lines that are looked at are really there."""
    path, length = tmp_path / "big.fa", 5_000_000_000
    lines, rest = divmod(length, 60)
    end = 5 + lines * 61 + rest
    with path.open("wb") as file:
        file.write(b">big\n" + b"A" * 60 + b"\n")
        file.seek(5 + (lines - 3) * 61 - 1)
        file.write(b"\n" + (b"ACGTT" * 12 + b"\n") * 3 + b"C" * rest + b"\n")
    assert path.stat().st_size == end + 1
    path.with_name("big.fa.fai").write_text(f"big\t{length}\t5\t60\t61\n")
    with Genome(path) as genome:
        assert genome.contigs == {"big": length}
        tail = genome.codes("big", length - rest - 120, length + 2)
        assert tail.tolist() == [0, 1, 2, 3, 3] * 24 + [1] * rest + [4, 4]
        with pytest.raises(SequenceError, match=r"byte offset 4270000004, contig 'big'"):
            genome.codes("big", 4_200_000_000, 4_200_000_060)


def test_reading_leaves_resident_memory_alone(tmp_path: Path) -> None:
    """Peak memory after reading 100 MB is that after reading little; in a process of its own."""
    line = b"ACGTTGCAAC" * 6 + b"\n"
    big = write_fasta(tmp_path / "big.fa", b">a\n" + line * 1_700_000)
    (tmp_path / "big.fa.gz").write_bytes(gzip.compress(big.read_bytes(), 1))
    write_fasta(tmp_path / "small.fa", b">a\n" + line)
    script = """
        import resource, sys
        from genomepred.sequences.fasta import Genome

        def read(path):
            with Genome(path) as genome:
                for start in range(0, genome.contigs["a"], 1 << 20):
                    genome.codes("a", start, start + (1 << 20))
                genome._digest = None
                genome.digest()
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        before = read("small.fa")
        print(max(read("big.fa"), read("big.fa.gz")) - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 16_000  # KiB
