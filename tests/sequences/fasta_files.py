"""The slow obvious FASTA parser that tests compare with, and FASTA files of every compression."""

from __future__ import annotations

import gzip
import lzma
import struct
import zlib
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from genomepred.sequences.fasta import Genome

CODE = {"A": 0, "C": 1, "G": 2, "T": 3, "U": 3}
AS_CODES = bytes(CODE.get(chr(byte).upper(), 4) for byte in range(256))
KINDS = ("plain", "bgzip", "gzip", "xz")
_EMPTY_BLOCK = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


def naive_codes(text: bytes) -> dict[str, NDArray[np.uint8]]:
    """Codes of every contig, line by line."""
    contigs: dict[str, list[bytes]] = {}
    name = ""
    for line in text.decode().splitlines():
        if line.startswith(">"):
            name = line[1:].split()[0]
            contigs[name] = []
        elif line.strip():
            letters = "".join(line.split()).encode("ascii", "replace")
            contigs[name].append(letters.translate(AS_CODES))
    return {name: np.frombuffer(b"".join(codes), np.uint8) for name, codes in contigs.items()}


def naive_slice(codes: NDArray[np.uint8], start: int, end: int) -> NDArray[np.uint8]:
    """Codes of ``[start, end)``, 4 outside."""
    inside = [codes[i] if 0 <= i < len(codes) else 4 for i in range(start, end)]
    return np.array(inside, np.uint8)


def bgzip(text: bytes, block: int = 0xFF00) -> bytes:
    """The text as bgzip writes it, in blocks of the given size."""
    packed = b""
    for start in range(0, len(text), block):
        data = text[start : start + block]
        deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
        body = deflate.compress(data) + deflate.flush()
        size = struct.pack("<H", len(body) + 25)
        tail = struct.pack("<II", zlib.crc32(data), len(data))
        packed += _EMPTY_BLOCK[:16] + size + body + tail
    return packed + _EMPTY_BLOCK


def pack(text: bytes, kind: str, block: int = 0xFF00) -> bytes:
    """The text compressed; gzip in two members."""
    if kind == "bgzip":
        return bgzip(text, block)
    if kind == "gzip":
        half = len(text) // 2
        return gzip.compress(text[:half]) + gzip.compress(text[half:])
    return lzma.compress(text) if kind == "xz" else text


def write_fasta(path: Path, text: bytes, kind: str = "plain", block: int = 0xFF00) -> Path:
    """Write the text to the path, compressed as asked."""
    path.write_bytes(pack(text, kind, block))
    return path


LETTERS = b"ACGTacgtNnRYryUu-*.X"


@st.composite
def records(draw: st.DrawFn) -> dict[str, bytes]:
    """Contigs of random letters; some empty, some many lines long."""
    names = draw(st.lists(st.text("ab:-|.é1", min_size=1, max_size=5), unique=True, min_size=1))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = [draw(st.sampled_from([0, 1, 7, 60, 61, 300, 2500])) for _ in names]
    letters = list(LETTERS) if draw(st.booleans()) else list(b"ACGT")
    return {
        name: bytes(rng.choice(letters, size).astype(np.uint8))
        for name, size in zip(names, sizes, strict=True)
    }


def fasta_text(contigs: dict[str, bytes], width: int, end: bytes, last: bool) -> bytes:
    """The contigs wrapped; ``last`` ends the last line too."""
    lines: list[bytes] = []
    for i, (name, sequence) in enumerate(contigs.items()):
        lines.append(f">{name}{' described >as this' * (i % 2)}".encode())
        lines += [sequence[a : a + width] for a in range(0, len(sequence), width)]
    return end.join(lines) + (end if last else b"")


def assert_reads_as(genome: Genome, expected: dict[str, NDArray[np.uint8]]) -> None:
    assert genome.contigs == {name: len(codes) for name, codes in expected.items()}
    assert list(genome.contigs) == list(expected)
    for name, codes in expected.items():
        margins = np.full(3, 4)
        read = genome.codes(name, -3, len(codes) + 3)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, np.concatenate([margins, codes, margins]))
