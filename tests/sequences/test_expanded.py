from __future__ import annotations

import errno
import fcntl
import gzip
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pytest

from genomepred.documents import seal
from genomepred.errors import OutputError, SequenceError
from genomepred.files import Claim
from genomepred.sequences.fasta import BLOCK, Genome
from tests.sequences.fasta_files import (
    assert_reads_as,
    fasta_text,
    naive_codes,
)

PAUSED = """
    import sys
    from genomepred.sequences import fasta

    inflate = fasta.inflate

    def paused(path, kind):
        for i, piece in enumerate(inflate(path, kind)):
            yield piece
            if i == 1:
                print("expanding", flush=True)
                sys.stdin.readline()

    fasta.inflate = paused
    genome = fasta.Genome("g.fa.gz", cache="cache")
    print(genome.digest(), flush=True)
"""
MUST_NOT_EXPAND = """
    from genomepred.sequences import fasta

    def refuse(path, kind):
        raise AssertionError("a second process expands the same genome")
        yield

    fasta.inflate = refuse
    print("opening", flush=True)
    genome = fasta.Genome("g.fa.gz", cache="cache")
    print(genome.digest(), flush=True)
"""


def start(script: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.Popen(
        command, cwd=folder, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def gzipped(tmp_path: Path) -> Path:
    """A gzip file that is inflated in several pieces."""
    rng = np.random.default_rng(5)
    sequence = bytes(rng.choice(list(b"ACGT"), 1_500_000).astype(np.uint8))
    text = fasta_text({"a": sequence, "empty": b"", "b": sequence[::-1]}, 60, b"\n", True)
    path = tmp_path / "g.fa.gz"
    path.write_bytes(gzip.compress(text, 1))
    return path


def test_a_killed_expansion_leaves_nothing_that_looks_finished(gzipped: Path) -> None:
    cache = gzipped.parent / "cache"
    process = start(PAUSED, gzipped.parent)
    assert line_of(process) == "expanding"
    process.kill()
    process.wait()
    assert sorted(file.suffix for file in cache.iterdir()) == [".lock", ".tmp"]
    with Genome(gzipped, cache=cache) as genome, Genome(gzipped, write=False) as other:
        assert genome.digest() == other.digest()
        assert_reads_as(genome, naive_codes(gzip.decompress(gzipped.read_bytes())))
    assert sorted(file.suffix for file in cache.iterdir()) == [".codes", ".lock"]


def test_one_process_expands_while_the_others_wait(gzipped: Path) -> None:
    first = start(PAUSED, gzipped.parent)
    assert line_of(first) == "expanding"
    second = start(MUST_NOT_EXPAND, gzipped.parent)
    assert line_of(second) == "opening"
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(0.3)
    first.communicate("go on\n")
    digest = line_of(second)
    assert second.wait() == first.returncode == 0
    with Genome(gzipped, write=False) as genome:
        assert genome.digest() == digest


def test_codes_are_expanded_where_files_cannot_be_locked(
    gzipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    cache = gzipped.parent / "cache"
    Genome(gzipped, cache=cache).close()
    (codes,) = cache.glob("*.codes")
    codes.unlink()
    others = codes.with_name(f"{codes.stem}.another_host.1.0.tmp")
    others.touch()
    monkeypatch.setattr(fcntl, "flock", refuse)
    with Genome(gzipped, cache=cache) as genome, Genome(gzipped, write=False) as again:
        assert genome.digest() == again.digest()
    assert codes.exists()
    assert others.exists()


def test_discarded_codes_can_still_be_read_and_are_made_anew(gzipped: Path) -> None:
    cache = gzipped.parent / "cache"
    with Genome(gzipped, cache=cache) as reader, Genome(gzipped, cache=cache) as other:
        other.discard_cache()
        other.discard_cache()
        assert list(cache.iterdir()) == []
        reader._digest = None
        assert reader.digest() == other.digest()
    with Genome(gzipped, cache=cache) as again:
        assert again.digest() == reader.digest()


@pytest.fixture
def expanded_codes(gzipped: Path) -> Path:
    """The codes file of that genome."""
    Genome(gzipped, cache=gzipped.parent / "cache").close()
    (codes,) = (gzipped.parent / "cache").glob("*.codes")
    return codes


def test_incomplete_codes_are_made_anew(gzipped: Path, expanded_codes: Path) -> None:
    whole = expanded_codes.read_bytes()
    for damaged in (whole[:-1], whole[:1000], b"", whole[1:], whole + whole[-16:]):
        expanded_codes.write_bytes(damaged)
        Genome(gzipped, cache=expanded_codes.parent).close()
        assert expanded_codes.read_bytes() == whole


def test_any_damaged_byte_of_the_codes_is_never_used(gzipped: Path, expanded_codes: Path) -> None:
    """In the first, the last and a block between, the digests, the trailer and its size."""
    whole = expanded_codes.read_bytes()
    expected = naive_codes(gzip.decompress(gzipped.read_bytes()))
    rng = np.random.default_rng(0)
    bases = sum(map(len, expected.values()))
    places = [0, BLOCK - 1, BLOCK, bases - 1, bases, bases + 16, len(whole) - 1, len(whole) - 16]
    for place in [*places, *rng.integers(0, len(whole), 10).tolist()]:
        damaged = bytearray(whole)
        damaged[place] ^= 1
        expanded_codes.write_bytes(damaged)
        with Genome(gzipped, cache=expanded_codes.parent) as genome:
            digest = genome.digest()
            start = int(rng.integers(0, 1_000_000))
            end = start + int(rng.integers(0, 500_000))
            assert np.array_equal(genome.codes("b", start, end), expected["b"][start:end])
            assert_reads_as(genome, expected)
            assert genome.digest() == digest
        assert expanded_codes.read_bytes() == whole


def test_one_damaged_codes_file_is_made_anew_once(
    gzipped: Path, expanded_codes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = bytearray(expanded_codes.read_bytes())
    damaged[10] ^= 1
    expanded_codes.write_bytes(damaged)
    cache = expanded_codes.parent
    with Genome(gzipped, cache=cache) as first, Genome(gzipped, cache=cache) as second:
        assert first.codes("a", 0, 20).max() < 4
        mended = expanded_codes.stat().st_ino
        assert second.codes("a", 0, 20).tolist() == first.codes("a", 0, 20).tolist()
    assert expanded_codes.stat().st_ino == mended


def test_damaged_codes_that_cannot_be_replaced_are_told_in_one_line(
    gzipped: Path, expanded_codes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    damaged = bytearray(expanded_codes.read_bytes())
    damaged[10] ^= 1
    expanded_codes.write_bytes(damaged)
    with Genome(gzipped, cache=expanded_codes.parent) as genome:
        monkeypatch.setattr(Claim, "take", refuse)
        with pytest.raises(OutputError, match="cannot write expanded codes: Permission denied"):
            genome.codes("a", 0, 20)


def test_a_file_that_changed_is_not_expanded_into_an_open_genome(
    gzipped: Path, expanded_codes: Path
) -> None:
    damaged = bytearray(expanded_codes.read_bytes())
    damaged[10] ^= 1
    expanded_codes.write_bytes(damaged)
    with Genome(gzipped, cache=expanded_codes.parent) as genome:
        gzipped.write_bytes(gzip.compress(b">a\nACGT\n"))
        with pytest.raises(SequenceError, match="changed while it was open"):
            genome.codes("a", 0, 20)


def hostile_trailers(whole: bytes) -> dict[str, bytes]:
    """Files that say of themselves what cannot be."""
    size = int.from_bytes(whole[-16:-8], "little")
    body, trailer = whole[: -16 - size], json.loads(whole[-16 - size : -16])
    trailer.pop("record_sha256")

    def told(data: bytes, length: int | None = None) -> bytes:
        size = len(data) if length is None else length
        return body + data + size.to_bytes(8, "little") + whole[-8:]

    changes = {
        "other lengths": {"lengths": [1, 2, 3]},
        "huge lengths": {"lengths": [(1 << 63) - 1] * 3},
        "negative lengths": {"lengths": [-1, 0, 1]},
        "too few lengths": {"lengths": [3_000_000]},
        "wrong types": {"contigs": {"a": 1}, "lengths": "many"},
        "one name twice": {"contigs": ["a", "a", "b"]},
        "another genome's": {"identity": {**trailer["identity"], "size": 1}},
        "other digests": {"blocks_sha256": "0" * 64},
    }
    return {
        **{name: told(seal({**trailer, **change})) for name, change in changes.items()},
        "no seal": told(json.dumps(trailer).encode()),
        "nested": told(b"[" * 100_000),
        "nested object": told(b'{"a":' * 100_000),
        "no JSON": told(b"\xff\xfe"),
        "no object": told(b"[1]"),
        "huge": told(seal(trailer), 1 << 62),
        "huge number": told(b'{"lengths": [' + b"9" * 5000 + b"]}"),
        "nothing": told(b"", 0),
    }


def test_hostile_trailers_count_as_absent(gzipped: Path, expanded_codes: Path) -> None:
    whole = expanded_codes.read_bytes()
    for name, hostile in hostile_trailers(whole).items():
        expanded_codes.write_bytes(hostile)
        with Genome(gzipped, cache=expanded_codes.parent) as genome:
            assert genome.contigs == {"a": 1_500_000, "empty": 0, "b": 1_500_000}, name
        assert expanded_codes.read_bytes() == whole, name


def test_links_in_the_cache_are_not_followed(gzipped: Path, expanded_codes: Path) -> None:
    cache, elsewhere = expanded_codes.parent, gzipped.parent / "elsewhere"
    expanded_codes.rename(elsewhere)
    expanded_codes.symlink_to(elsewhere)
    whole = elsewhere.read_bytes()
    elsewhere.write_bytes(b"the user's own")
    with Genome(gzipped, cache=cache) as genome:
        assert genome.codes("a", 0, 20).max() < 4
    assert elsewhere.read_bytes() == b"the user's own"
    assert not expanded_codes.is_symlink()
    assert expanded_codes.read_bytes() == whole
    lock = expanded_codes.with_name(expanded_codes.name + ".lock")
    lock.unlink()
    lock.symlink_to(elsewhere)
    with pytest.raises(OutputError, match="cannot write expanded codes"):
        Genome(gzipped, cache=cache)
    assert elsewhere.read_bytes() == b"the user's own"
    link = gzipped.parent / "link"
    link.symlink_to(cache)
    with pytest.raises(OutputError, match="is a link"):
        Genome(gzipped, cache=link)


def test_a_pipe_in_place_of_the_codes_is_refused(gzipped: Path, expanded_codes: Path) -> None:
    expanded_codes.unlink()
    os.mkfifo(expanded_codes)
    with pytest.raises(OutputError, match="not a regular file"):
        Genome(gzipped, cache=expanded_codes.parent)


def test_expanded_codes_belong_to_one_version_of_the_file(gzipped: Path) -> None:
    cache = gzipped.parent / "cache"
    Genome(gzipped, cache=cache).close()
    gzipped.write_bytes(gzip.compress(b">new\nACGT\n"))
    with Genome(gzipped, cache=cache) as genome:
        assert genome.contigs == {"new": 4}


def test_without_a_cache_a_temporary_folder_goes_with_the_genome(
    gzipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = gzipped.parent / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with Genome(gzipped) as genome:
        assert len(list(scratch.glob("*/*.codes"))) == 1
        assert genome.codes("a", 0, 10).max() < 4
    assert list(scratch.iterdir()) == []


def test_a_full_disk_gives_one_line_and_leaves_nothing(gzipped: Path, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(2_000_000))
    with pytest.raises(OutputError, match="is full; free some space"):
        Genome(gzipped, cache=small_disk / "cache")
    assert not [file for file in (small_disk / "cache").iterdir() if file.suffix != ".lock"]
