"""bigWig files for tests, written and taken apart without the package's own code."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from struct import Struct, unpack_from

import numpy as np
import pyBigWig

Line = tuple[str, int, int, float]


def write_bigwig(path: Path, contigs: Mapping[str, int], lines: Iterable[Line]) -> None:
    """Lines of (contig, start, end, value), written by another program."""
    with pyBigWig.open(str(path), "w") as file:
        file.addHeader(list(contigs.items()))
        for contig, start, end, value in lines:
            file.addEntries([contig], [start], ends=[end], values=[float(value)])


def read_bigwig(path: Path) -> list[Line]:
    """All values as another program reads them, contigs in the file's order."""
    with pyBigWig.open(str(path)) as file:
        return [
            (contig, *record) for contig in file.chroms() for record in file.intervals(contig) or []
        ]


@dataclass(frozen=True)
class Zoom:
    """A zoom level: its size in bases and its records."""

    size: int
    records: np.ndarray


_RECORD = np.dtype(
    [(name, "<u4") for name in ("contig", "start", "end", "count")]
    + [(name, "<f4") for name in ("low", "high", "sum", "squares")]
)


def read_zooms(path: Path) -> list[Zoom]:
    """Every zoom level, by walking the index of each from its root."""
    data = path.read_bytes()
    magic, _, levels = unpack_from("<IHH", data)
    assert magic == 0x888FFC26
    assert data[-4:] == data[:4]
    zooms = []
    for i in range(levels):
        size, _, start, index = unpack_from("<IIQQ", data, 64 + 24 * i)
        blocks = [
            np.frombuffer(zlib.decompress(data[offset : offset + length]), _RECORD)
            for offset, length in _blocks(data, index + 48)
        ]
        records = np.concatenate([np.empty(0, _RECORD), *blocks])
        assert unpack_from("<I", data, start)[0] == len(records)
        zooms.append(Zoom(size, records))
    return zooms


def _blocks(data: bytes, node: int) -> list[tuple[int, int]]:
    is_leaf, _, count = unpack_from("<BBH", data, node)
    item = Struct("<4I2Q" if is_leaf else "<4IQ")
    entries = [item.unpack_from(data, node + 4 + k * item.size)[4:] for k in range(count)]
    if is_leaf:
        return entries
    return [block for (child,) in entries for block in _blocks(data, child)]
