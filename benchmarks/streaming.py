"""FASTA on disk -> codes on one thread: against copies of the same bytes, and other readers.

Chromosome 20 of GRCh37 lies in the page cache as plain FASTA, bgzip and gzip. Codes are read in
blocks, as the pipeline reads them. Outputs are compared before anything is timed, and all
contestants take turns.

    python benchmarks/streaming.py --data FOLDER_OF_REAL_DATA [--json FILE]
"""

from __future__ import annotations

import gzip
import mmap
import os
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyfaidx
import pysam
from isal import igzip_lib
from numpy.typing import NDArray

from genomepred.benchmarks.measure import interleaved, median, ratios, script_options, write_json
from genomepred.sequences.byte_source import PIECE, inflate, walk_blocks
from genomepred.sequences.decode import Scan, decode
from genomepred.sequences.fasta import Genome

CONTIG = "20"
BLOCK = 1 << 20  # bases of one call
DICTIONARY_BASES = 1 << 20  # the dictionary loop is timed on these and scaled
MEMBERS = 32  # bgzip blocks read at once

Codes = NDArray[np.uint8]
TABLE = np.full(256, 4, np.uint8)
TABLE[list(b"ACGTacgt")] = [0, 1, 2, 3] * 2
DICTIONARY = {"A": 0, "C": 1, "G": 2, "T": 3}


def blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


# -- the same bytes, copied or inflated and nothing else ----------------------------------------


def read_copy(path: Path) -> Callable[[], None]:
    """Page cache -> one reused buffer: the copy that any reader of files makes."""
    fd, buffer = os.open(path, os.O_RDONLY), memoryview(mmap.mmap(-1, PIECE))
    places = range(0, path.stat().st_size, PIECE)

    def run() -> None:
        for place in places:
            os.preadv(fd, [buffer], place)

    return run


def inflate_gzip(path: Path) -> int:
    size, member = 0, igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    with path.open("rb", buffering=0) as file:
        while not member.eof:
            packed = file.read(PIECE) if member.needs_input else b""
            size += len(member.decompress(packed, PIECE))
    return size


def inflate_bgzip(path: Path, offsets: list[int]) -> int:
    size = 0
    with path.open("rb", buffering=0) as file:
        for first in range(0, len(offsets) - 1, MEMBERS):
            ends = offsets[first : first + MEMBERS + 1]
            packed = memoryview(file.read(ends[-1] - ends[0]))
            for a, b in pairwise(ends):
                member = packed[a - ends[0] : b - ends[0]]
                size += len(igzip_lib.decompress(member, igzip_lib.DECOMP_GZIP, bufsize=1 << 16))
    return size


# -- other readers, taken on to codes in the fastest way NumPy offers ---------------------------


def from_text(text: str) -> Codes:
    return TABLE[np.frombuffer(text.encode(), np.uint8)]


def by_dictionary(text: str) -> Codes:
    return np.array([DICTIONARY.get(base, 4) for base in text], np.uint8)


def each_block(read: Callable[[int, int], Any], length: int) -> Callable[[], None]:
    def run() -> None:
        for start, end in blocks(length):
            read(start, end)

    return run


def into_buffer(genome: Genome) -> Callable[[int, int], Codes]:
    buffer = np.empty(BLOCK, np.uint8)
    return lambda start, end: genome.codes(CONTIG, start, end, buffer[: end - start])


def compare(readers: dict[str, Callable[[int, int], Codes]], text: bytes, length: int) -> None:
    """Stop unless every reader gives the codes of a plain translation of the file's lines."""
    sequence = np.frombuffer(text, np.uint8)[text.index(b"\n") + 1 :]
    expected = TABLE[sequence[sequence != ord("\n")]]
    assert len(expected) == length
    for name, read in readers.items():
        for start, end in blocks(length)[:: 1 if "dictionary" not in name else 60]:
            if not np.array_equal(read(start, end), expected[start:end]):
                raise SystemExit(f"{name} reads {start}-{end} wrong; nothing was timed")


def measure(data: Path, folder: Path, rounds: int) -> dict[str, Any]:
    bgzip = folder / "chr20.fa.bgz"
    bgzip.write_bytes((data / "genomes" / "hs37_chr20.fa.gz").read_bytes())
    text = gzip.decompress(bgzip.read_bytes())
    plain, packed = folder / "chr20.fa", folder / "chr20.fa.gz"
    plain.write_bytes(text)
    packed.write_bytes(gzip.compress(text, 6))

    genome, from_bgzip = Genome(plain), Genome(bgzip)
    length = genome.contigs[CONTIG]
    faidx = pyfaidx.Faidx(str(plain))
    sam = pysam.FastaFile(str(plain))
    ours = {"codes": into_buffer(genome), "codes, bgzip": into_buffer(from_bgzip)}
    others: dict[str, Callable[[int, int], Codes]] = {
        "pyfaidx": lambda start, end: from_text(faidx.fetch(CONTIG, start + 1, end).seq),
        "pysam": lambda start, end: from_text(sam.fetch(CONTIG, start, end)),
        "dictionary loop": lambda start, end: by_dictionary(sam.fetch(CONTIG, start, end).upper()),
    }
    compare({**ours, **others}, text, length)
    digest = genome.digest()
    if scan_gzip(packed).digest != digest:
        raise SystemExit("codes of the gzip file differ; nothing was timed")

    resident = np.frombuffer(text, np.uint8)
    copy, codes = np.zeros(len(resident), np.uint8), np.zeros(length, np.uint8)
    first = text.index(b"\n") + 1
    offsets = walk_blocks(bgzip)[:, 0].tolist()
    scale = length / DICTIONARY_BASES
    half = length // 2

    def expand() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            Genome(packed, cache=cache).close()

    calls: dict[str, Callable[[], Any]] = {
        "copy of memory": lambda: np.copyto(copy, resident),
        "codes of memory": lambda: decode(resident[first:], 0, 60, 61, codes),
        "copy by read": read_copy(plain),
        "codes": each_block(ours["codes"], length),
        "pyfaidx": each_block(others["pyfaidx"], length),
        "pysam": each_block(others["pysam"], length),
        "dictionary loop": lambda: others["dictionary loop"](half, half + DICTIONARY_BASES),
        "inflate bgzip": lambda: inflate_bgzip(bgzip, offsets),
        "codes, bgzip": each_block(ours["codes, bgzip"], length),
        "inflate gzip": lambda: inflate_gzip(packed),
        "codes, gzip": lambda: scan_gzip(packed),
        "expand gzip to disk": expand,
    }
    interleaved(calls, 1)  # warms caches and compiles
    seconds = interleaved(calls, rounds)
    seconds["dictionary loop"] = [scale * second for second in seconds["dictionary loop"]]
    return report(seconds, len(text), length)


def scan_gzip(packed: Path) -> Scan:
    """A pass over the whole file."""
    scan = Scan(packed, inflate(packed, "gzip"))
    for _ in scan.codes():
        pass
    return scan


def report(seconds: dict[str, list[float]], size: int, length: int) -> dict[str, Any]:
    """Print medians and ratios; all that goes into the JSON."""
    print(f"\n{length:,} bases, {size:,} bytes, one thread, {len(seconds['codes'])} rounds")
    print(f"{'':22}{'median ms':>10}{'min':>9}{'max':>9}{'GB/s':>8}")
    rows = {}
    for name, times in seconds.items():
        middle = median(times)
        rows[name] = {
            "seconds": {"median": middle, "min": min(times), "max": max(times)},
            "bytes_per_second": size / middle,
            "bases_per_second": length / middle,
        }
        shown = "".join(
            f"{1e3 * t:>{w}.2f}" for t, w in ((middle, 10), (min(times), 9), (max(times), 9))
        )
        print(f"{name:22}{shown}{size / middle / 1e9:8.2f}")

    def rate(name: str, to: str) -> float:
        """Speed of one call in terms of another."""
        return ratios(seconds, name)[to]

    fastest = min(("pyfaidx", "pysam", "dictionary loop"), key=lambda name: median(seconds[name]))
    speeds = {
        "codes / copy by read": rate("codes", "copy by read"),
        "codes / copy of memory": rate("codes", "copy of memory"),
        "codes of memory / copy of memory": rate("codes of memory", "copy of memory"),
        f"codes / fastest other ({fastest})": rate("codes", fastest),
        "codes, bgzip / inflate bgzip": rate("codes, bgzip", "inflate bgzip"),
        "codes, gzip / inflate gzip": rate("codes, gzip", "inflate gzip"),
        "expand gzip to disk / inflate gzip": rate("expand gzip to disk", "inflate gzip"),
    }
    print("\nspeed as a multiple")
    for name, ratio in speeds.items():
        print(f"{name:40}{ratio:8.2f}")
    return {"bases": length, "bytes": size, "block": BLOCK, "rows": rows, "speed_ratios": speeds}


def main() -> None:
    arguments = script_options(__doc__, rounds=15).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(arguments.data, Path(folder), arguments.rounds)
    write_json(arguments.json, results)


if __name__ == "__main__":
    main()
