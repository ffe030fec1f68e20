from __future__ import annotations

import errno
import fcntl
import gzip
import subprocess
import sys
import tempfile
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from genomepred.errors import OutputError
from genomepred.sequences import expanded
from genomepred.sequences.fasta import Genome
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
    assert [file.suffix for file in sorted(cache.iterdir())] == [".tmp", ".lock"]
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
    others = codes.with_name(f"{codes.name}.another_process.tmp")
    others.touch()
    monkeypatch.setattr(fcntl, "flock", refuse)
    with Genome(gzipped, cache=cache) as genome, Genome(gzipped, write=False) as again:
        assert genome.digest() == again.digest()
    assert codes.exists()
    assert others.exists()


def test_a_lock_whose_file_was_removed_meanwhile_locks_nothing(tmp_path: Path) -> None:
    target, seen = tmp_path / "codes", []

    def wait() -> None:
        with expanded._locked(target):
            seen.append((tmp_path / "codes.lock").exists())

    with expanded._locked(target):
        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(0.2)
        assert seen == []
        (tmp_path / "codes.lock").unlink()
    waiting.join()
    assert seen == [True]


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


def test_damaged_expanded_codes_are_made_anew(gzipped: Path) -> None:
    cache = gzipped.parent / "cache"
    Genome(gzipped, cache=cache).close()
    (codes,) = cache.glob("*.codes")
    whole = codes.read_bytes()
    for damaged in (whole[:-1], whole[:1000], b""):
        codes.write_bytes(damaged)
        Genome(gzipped, cache=cache).close()
        assert codes.read_bytes() == whole


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
    with pytest.raises(OutputError, match="No space left on device; free space"):
        Genome(gzipped, cache=small_disk / "cache")
    assert not [file for file in (small_disk / "cache").iterdir() if file.suffix != ".lock"]
