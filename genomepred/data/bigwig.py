"""Reading bigWig, with every place and size checked before it is used.

The format is that of Kent et al. 2010, "BigWig and BigBed", Bioinformatics 26(17), in either order
of bytes. Zoom levels are not read.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from struct import Struct
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray

#: A value on ``[start, end)``.
RECORD = np.dtype([("start", "i8"), ("end", "i8"), ("value", "f8")])

_MAGIC, _BIGBED, _TREE, _INDEX = 0x888FFC26, 0x8789F2EB, 0x78CA8C91, 0x2468ACE0
_MOST_KEY = 1 << 16  # bytes of a contig's name
_MOST_SECTION = 1 << 26  # bytes of a section, decompressed; today's writers make 12 to 24 KB
_BEDGRAPH, _VARIABLE_STEP, _FIXED_STEP = 1, 2, 3


class BigWigError(ValueError):
    """A file that is no bigWig, or a damaged one."""


class BigWig:
    """A bigWig, opened for reading.

    Parameters
    ----------
    file : binary file
        Seekable; stays open as long as this is used.

    Attributes
    ----------
    contigs : dict of str to int
        Lengths by name.

    Raises
    ------
    BigWigError
        If the file is no bigWig, or its header or list of contigs is damaged.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._size = file, os.fstat(file.fileno()).st_size
        self._order = "<" if self._read(0, 4)[:1] in (b"\x26", b"\xeb") else ">"
        (magic,) = self._unpack("I", 0)
        if magic == _BIGBED:
            raise BigWigError("is a bigBed, whose records have no signal; give a bigWig")
        if magic != _MAGIC:
            raise BigWigError("cannot be read as bigWig: it does not begin like one")
        _, _, tree, _, self._index = self._unpack("HHQQQ", 4)
        (buffer,) = self._unpack("I", 52)
        self._compressed = buffer > 0
        self._numbers: dict[str, int] = {}
        self.contigs: dict[str, int] = {}
        for name, number, length in self._listed(tree):
            self._numbers[name], self.contigs[name] = number, length

    def records(self, contig: str) -> NDArray[Any]:
        """Records of a contig, ascending and apart.

        Raises
        ------
        BigWigError
            If the file is damaged there.
        """
        number = self._numbers[contig]
        sections = [self._section(number, *place) for place in self._sections(number)]
        records = np.concatenate([np.empty(0, RECORD), *sections])
        start, end = records["start"], records["end"]
        if (start >= end).any() or (start[1:] < end[:-1]).any():
            _damaged(f"records of {contig!r} overlap or are not sorted")
        return records

    def _read(self, offset: int, size: int) -> bytes:
        if offset + size > self._size:
            _damaged(f"{size:,} bytes asked for at {offset:,} of {self._size:,}")
        self._file.seek(offset)
        return self._file.read(size)

    def _unpack(self, layout: str, offset: int) -> tuple[Any, ...]:
        form = Struct(self._order + layout)
        return form.unpack(self._read(offset, form.size))

    def _leaves(self, root: int, kind: np.dtype[Any], contig: int | None) -> Iterator[NDArray[Any]]:
        """Entries of a tree's leaves in order; of those that a contig may be in, if one is given.

        ``kind`` is that of a leaf's entry; an inner one has a child's place after the same key.
        """
        key = kind.names[:-2] if kind.names else ()
        inner = np.dtype([*((k, kind[k]) for k in key), ("child", self._order + "u8")])
        waiting, seen = [root], set()
        while waiting:
            offset = waiting.pop()
            if offset in seen:
                _damaged("a tree leads back to itself")
            seen.add(offset)
            is_leaf, _, count = self._unpack("BBH", offset)
            entry = kind if is_leaf else inner
            entries = np.frombuffer(self._read(offset + 4, count * entry.itemsize), entry)
            if contig is not None:
                entries = entries[(entries["first"] <= contig) & (entries["last"] >= contig)]
            if is_leaf:
                yield entries
            else:
                waiting += entries["child"][::-1].tolist()

    def _listed(self, tree: int) -> Iterator[tuple[str, int, int]]:
        """Name, number and length of each contig."""
        magic, _, key, value, count = self._unpack("IIIIQ", tree)
        if magic != _TREE or not 0 < key <= _MOST_KEY or value != 8:
            _damaged("there is no list of contigs")
        number = self._order + "u4"
        kind = np.dtype([("name", f"S{key}"), ("number", number), ("length", number)])
        found = 0
        for entries in self._leaves(tree + 32, kind, None):
            found += len(entries)
            for name, place, length in entries.tolist():
                try:
                    yield name.decode(), place, length
                except UnicodeDecodeError:
                    _damaged(f"{name!r} is no name of a contig")
        if found != count:
            _damaged(f"{found:,} of {count:,} contigs are listed")

    def _sections(self, number: int) -> Iterator[tuple[int, int]]:
        """Place and size of the sections that a contig may be in."""
        if self._unpack("I", self._index) != (_INDEX,):
            _damaged("there is no index")
        bounds = [(k, self._order + "u4") for k in ("first", "start", "last", "end")]
        places = [(k, self._order + "u8") for k in ("offset", "size")]
        for entries in self._leaves(self._index + 48, np.dtype([*bounds, *places]), number):
            yield from zip(entries["offset"].tolist(), entries["size"].tolist(), strict=True)

    def _section(self, number: int, offset: int, size: int) -> NDArray[Any]:
        """Records of a section, which must be the contig's."""
        data = self._decompressed(self._read(offset, min(size, _MOST_SECTION + 1)))
        head = Struct(self._order + "5IBBH")
        if len(data) < head.size:
            _damaged(f"a section of {len(data)} bytes")
        contig, start, _, step, span, kind, _, count = head.unpack_from(data)
        if contig != number:
            _damaged(f"the index says contig {number} of a section of contig {contig}")
        names = {_BEDGRAPH: ("start", "end"), _VARIABLE_STEP: ("start",), _FIXED_STEP: ()}
        if kind not in names:
            _damaged(f"a section of type {kind}")
        columns = [(name, self._order + "u4") for name in names[kind]]
        item = np.dtype([*columns, ("value", self._order + "f4")])
        if len(data) < head.size + count * item.itemsize:
            _damaged(f"a section of {len(data)} bytes for {count} values")
        items = np.frombuffer(data, item, count, head.size)
        records = np.empty(len(items), RECORD)
        records["value"] = items["value"]
        records["start"] = start + step * np.arange(len(items)) if not columns else items["start"]
        records["end"] = items["end"] if kind == _BEDGRAPH else records["start"] + span
        return records

    def _decompressed(self, data: bytes) -> bytes:
        if not self._compressed:
            return data
        try:
            stream = zlib.decompressobj()
            plain = stream.decompress(data, _MOST_SECTION)
        except zlib.error as error:
            raise BigWigError(f"cannot be read as bigWig: damaged ({error})") from None
        if not stream.eof:
            _damaged("a section that does not end")
        return plain


def _damaged(what: str) -> NoReturn:
    raise BigWigError(f"cannot be read as bigWig: damaged ({what})")
