"""Accepted edits of a panel in a file: blocks of reference bases, haplotype by haplotype.

Any stretch of any haplotype can be read from it without the VCF and without an index of it. Blocks
carry their digest; what does not match is made anew.
"""

from __future__ import annotations

import hashlib
import os
import struct
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib
from numba import njit
from numpy.typing import NDArray

from genomepred.documents import COUNT, DocumentError, read_document, seal
from genomepred.errors import OutputError
from genomepred.files import Claim, publishing, write_whole
from genomepred.sequences.codes import Codes

Int64 = NDArray[np.int64]

# Reference bases of a block of the cache. For 3,000 haplotypes at 33 sites a kb a block is
# 120 kB, so that a shard of some 100 kb reads little that it does not need.
BLOCK = 1 << 16
VERSION = 3
_MOST_INDEX = 1 << 28
# In a step from event to event: the bit of a byte that says that more follow, and the most bytes.
_MORE, _MOST_BYTES = 0x80, 5
# Decoded blocks kept: a shard and its margins touch a few.
KEPT_BLOCKS = 4
_INDEX = {
    "version": range(VERSION, VERSION + 1),
    "samples": [str],
    "copies": [range(1, 256)],
    "ploidies": [[COUNT]],
    "contigs": {str: COUNT},
    "digest": str,
    "blocks": [[(str, COUNT)]],
    "counts": {
        "records": COUNT,
        "accepted": COUNT,
        "missing": COUNT,
        "unphased": COUNT,
        "filtered": COUNT,
        "skipped": [COUNT],
    },
}


@dataclass(frozen=True)
class BlockPlace:
    """Place of a block in the cache, and how far what it and those before hold reaches."""

    number: int
    offset: int
    size: int
    sha256: str
    reach: int


@dataclass(frozen=True, eq=False)
class Block:
    """Edits of one block: its events, and which of them each slot has.

    A slot is a sample times ``most`` plus a copy.
    """

    number: int
    most: int
    first: Int64  # [slots + 1]
    events: NDArray[np.int32]
    first_edit: NDArray[np.int32]  # [events + 1]
    edits: Int64  # [edits, 2]
    alt_first: NDArray[np.int32]  # [edits + 1]
    letters: Codes

    _HEAD = struct.Struct("<7q")

    def to_bytes(self) -> bytes:
        """The block, compressed."""
        head = self._HEAD.pack(
            self.number,
            self.most,
            len(self.first) - 1,
            len(self.events),
            len(self.first_edit) - 1,
            len(self.edits),
            len(self.letters),
        )
        counts = np.diff(self.first).astype(np.int32)
        start, size = self.edits[:, 0], self.edits[:, 1] - self.edits[:, 0]
        steps = (self.first_edit, self.alt_first, start)
        arrays = [
            counts,
            *(np.diff(values, prepend=values.dtype.type(0)) for values in steps),
            size,
        ]
        planes = [_planes(values).tobytes() for values in arrays]
        events = np.empty(_MOST_BYTES * len(self.events), np.uint8)
        events = events[: _pack(self.first, self.events, events)]
        parts = [head, *planes, self.letters.tobytes(), events.tobytes()]
        return bytes(isal_zlib.compress(b"".join(parts), 2))

    @classmethod
    def of_bytes(cls, data: bytes) -> Block:
        """The block of what :meth:`to_bytes` made."""
        raw = isal_zlib.decompress(data)
        number, most, slots, pairs, events, edits, letters = cls._HEAD.unpack_from(raw)
        at = cls._HEAD.size

        def array(count: int, kind: Any) -> NDArray[Any]:
            nonlocal at
            size = np.dtype(kind).itemsize
            planes = np.frombuffer(raw, np.uint8, size * count, at).reshape(size, count)
            at += size * count
            values: NDArray[Any] = np.ascontiguousarray(planes.T).view(kind)[:, 0]
            return values

        def added(count: int, kind: Any) -> NDArray[Any]:
            return np.cumsum(array(count, kind), dtype=kind)

        first = np.zeros(slots + 1, np.int64)
        np.cumsum(array(slots, np.int32), out=first[1:])
        first_edit, alt_first = added(events + 1, np.int32), added(edits + 1, np.int32)
        start = added(edits, np.int64)
        table = np.stack([start, start + array(edits, np.int64)], 1)
        who = np.empty(pairs, np.int32)
        _unpack(np.frombuffer(raw, np.uint8, offset=at + letters), first, who)
        bases = np.frombuffer(raw, np.uint8, letters, at)
        return cls(number, most, first, who, first_edit, table, alt_first, bases)


def _planes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """First bytes of all values, then second ones and so on: those of small values are zeros."""
    whole = np.ascontiguousarray(values)
    return np.ascontiguousarray(whole.view(np.uint8).reshape(-1, whole.itemsize).T)


@njit(nogil=True, cache=True)
def _pack(first: Any, events: Any, out: Any) -> int:
    """Write each slot's events as steps from one to the next; how many bytes they take.

    A byte has seven bits, the lowest first, and says by its eighth whether more follow.
    """
    at = 0
    for slot in range(len(first) - 1):
        before = 0
        for k in range(first[slot], first[slot + 1]):
            step = events[k] - before
            before = events[k]
            while step >= _MORE:
                out[at] = step & (_MORE - 1) | _MORE
                step >>= 7
                at += 1
            out[at] = step
            at += 1
    return at


@njit(nogil=True, cache=True)
def _unpack(data: Any, first: Any, events: Any) -> None:
    """Read what :func:`_pack` wrote."""
    at = 0
    for slot in range(len(first) - 1):
        event = np.int64(0)
        for k in range(first[slot], first[slot + 1]):
            byte, shift = np.int64(data[at]), 0
            at += 1
            while byte >= _MORE:
                event += (byte - _MORE) << shift
                shift += 7
                byte = np.int64(data[at])
                at += 1
            event += byte << shift
            events[k] = event


class PanelCache:
    """Blocks in one file and their sealed index beside it, made by one process at a time."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._index, self._data = folder / f"{name}.panel.json", folder / f"{name}.panel"
        self._fd = -1
        self._make: Any = None
        self._kept: dict[int, Block] = {}

    def open(self, make: Any) -> dict[str, Any]:
        """The index; made first if there is none that is whole."""
        self._make = make
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with Claim.take(self._folder / f"{self._name}.lock", wait=True) or nullcontext():
                document = self._read() or self._build()
                self._fd = os.open(self._data, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                return document
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(
                f"{self._folder}: the panel's edits cannot be kept: {error.strerror or error}"
            ) from None

    def _read(self) -> dict[str, Any] | None:
        try:
            document = read_document(self._index, _INDEX, sealed=True, limit=_MOST_INDEX)
            blocks = document["blocks"]
            ends = [row[2] + row[3] for row in blocks if len(row) == 6]
            whole = len(ends) == len(blocks) and self._data.stat().st_size == max(ends, default=0)
        except (OSError, DocumentError, TypeError):
            return None
        return document if whole else None

    def _build(self) -> dict[str, Any]:
        with publishing(self._data) as temporary, temporary.open("xb") as file:
            document: dict[str, Any] = self._make(file)
        write_whole(self._index, seal(document))
        return document

    def block(self, place: BlockPlace) -> Block:
        """A block, from the file or from memory; the cache is made anew if it is damaged.

        Raises
        ------
        OutputError
            If it is damaged again at once.
        """
        if place.offset in self._kept:
            return self._kept[place.offset]
        for _ in range(2):
            data = os.pread(self._fd, place.size, place.offset)
            if hashlib.sha256(data).hexdigest() == place.sha256:
                if len(self._kept) >= KEPT_BLOCKS:
                    del self._kept[next(iter(self._kept))]
                self._kept[place.offset] = Block.of_bytes(data)
                return self._kept[place.offset]
            self.close()
            self._index.unlink(missing_ok=True)
            self.open(self._make)
        raise OutputError(f"{self._data}: is damaged whenever it is written; check the disk")

    def close(self) -> None:
        """Close the file of blocks."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
