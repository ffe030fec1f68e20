"""The slow obvious FASTA parser that tests compare with, and FASTA files of every compression."""

from __future__ import annotations

import gzip
import lzma
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CODE = {"A": 0, "C": 1, "G": 2, "T": 3, "U": 3}
KINDS = ("plain", "bgzip", "gzip", "xz")
_EMPTY_BLOCK = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


def naive_codes(text: bytes) -> dict[str, NDArray[np.uint8]]:
    """Codes of every contig, line by line and letter by letter."""
    contigs: dict[str, list[int]] = {}
    name = ""
    for line in text.decode().splitlines():
        if line.startswith(">"):
            name = line[1:].split()[0]
            contigs[name] = []
        elif line.strip():
            letters = "".join(line.split()).upper()
            contigs[name] += [CODE.get(letter, 4) for letter in letters]
    return {name: np.array(codes, np.uint8) for name, codes in contigs.items()}


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
