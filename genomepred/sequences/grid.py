"""The grid: arithmetic between rows of a prediction file and coordinates on a genome.

A row is one (window, bin) of one genome. Window ``i`` of a contig of length ``L`` starts at
``i * stride - crop``; bin ``b`` of it describes ``[i * stride + b * bin_size, + bin_size)``. A
contig has ``ceil(max(L - bins * bin_size, 0) / stride) + 1`` windows, an empty contig none. All
coordinates are 0-based half-open; only region strings are 1-based inclusive, as in samtools.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from genomepred.errors import ModelError, RegionError
from genomepred.sequences.codes import Codes
from genomepred.sequences.names import MOST_NAME, absent_contig, shown

if TYPE_CHECKING:
    from genomepred.sequences.bed import BedRecord

Int64 = NDArray[np.int64]

#: What a geometry is made of, in the order in which files have it.
SIZES = ("window", "stride", "crop", "bins", "bin_size")

# Windows whose real bases are counted at once.
_TOGETHER = 256
_NUMBER = re.compile(r"[0-9]{1,18}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class Geometry:
    """Sizes of windows and bins, in bases.

    Parameters
    ----------
    window : int
        Bases a model sees.
    stride : int
        Distance between window starts. Models with more than one bin run at ``bins * bin_size``.
    crop : int
        Bases at each end of a window that give context but no output.
    bins : int
        Output positions of a window.
    bin_size : int, optional
        Bases described by one bin; by default the uncropped window divided by the bins.

    Attributes
    ----------
    span : int
        Bases described by one window: ``bins * bin_size``.
    step : int
        Distance in bases between the starts of consecutive rows of one interval.

    Raises
    ------
    ModelError
        If the sizes contradict each other.
    """

    window: int
    stride: int
    crop: int = 0
    bins: int = 1
    bin_size: int = 0
    span: int = field(init=False, repr=False, compare=False)
    step: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.bin_size == 0 and self.bins > 0:
            object.__setattr__(self, "bin_size", (self.window - 2 * self.crop) // self.bins)
        object.__setattr__(self, "span", self.bins * self.bin_size)
        object.__setattr__(self, "step", self.stride if self.bins == 1 else self.bin_size)
        if min(self.window, self.stride, self.bins, self.bin_size) < 1 or self.crop < 0:
            raise ModelError(f"window, stride, bins and bin size must be positive: {self}")
        if self.window != 2 * self.crop + self.span:
            raise ModelError(
                f"window {self.window} is not 2 x crop {self.crop} + {self.bins} bins of "
                f"{self.bin_size} bases; correct the model's card"
            )
        if self.bins > 1 and self.stride != self.span:
            raise ModelError(
                f"a model with {self.bins} bins runs at stride {self.span} (bins x bin size), not "
                f"{self.stride}; leave --stride out"
            )

    @property
    def samples(self) -> bool:
        """Whether the stride leaves bases that no row describes."""
        return self.stride > self.span

    def windows(self, length: int | Int64) -> Int64:
        """Number of windows of contigs of the given lengths."""
        lengths = np.asarray(length, np.int64)
        count = -(-np.maximum(lengths - self.span, 0) // self.stride) + 1
        return np.where(lengths > 0, count, 0).astype(np.int64)


class Span(NamedTuple):
    """Consecutive windows of one contig.

    ``start`` is the first base of the first window (negative where a window begins before its
    contig), ``windows`` their number, ``number`` the first window's place in the numbering that
    fixes a window's slot in a compute batch, and ``row`` the row of the first window's bin 0. Of
    all bins of these windows, only those in rows ``[first, last)`` are asked for.
    """

    contig: str
    start: int
    windows: int
    number: int
    row: int
    first: int
    last: int

    def cut(self, count: int, geometry: Geometry) -> tuple[Span, Span]:
        """The first ``count`` windows, and the others."""
        contig, start, windows, number, row, first, last = self
        begin, at = start + count * geometry.stride, row + count * geometry.bins
        return (
            Span(contig, start, count, number, row, first, last),
            Span(contig, begin, windows - count, number + count, at, first, last),
        )


class Region(NamedTuple):
    """A stretch of a contig, 0-based half-open."""

    contig: str
    start: int
    end: int
    name: str = ""

    @property
    def center(self) -> int:
        """The base in its middle."""
        return (self.start + self.end) // 2


#: A part of a grid; a record of a BED file has its own center.
Place: TypeAlias = "Region | BedRecord"


@dataclass(frozen=True, eq=False)
class Grid:
    """Rows of one genome, numbered from 0 over consecutive intervals.

    Use :meth:`whole`, :meth:`of_regions` or :meth:`centered` to make one.

    Parameters
    ----------
    geometry : Geometry
        Sizes of windows and bins.
    contigs : array of str objects, [intervals]
        Contig of each interval. (NumPy's own text takes four bytes a character of the longest one,
        for each.)
    start, first_row : int64 array, [intervals]
        Start of each interval's first row in bases, and that row's number.
    rows : int
        Number of rows of the grid.
    length : int64 array, [intervals]
        Length in bases of each interval's contig.
    first_window : int64 array, [intervals]
        Number of each interval's first window; fixes the slots of a compute batch.
    names : array of str objects, [intervals], optional
        Names of BED records (centered grids).

    Attributes
    ----------
    row_counts : int64 array, [intervals]
        Number of rows of each interval.
    end : int64 array, [intervals]
        End of each interval: where its last row ends, but not past its contig.
    """

    geometry: Geometry
    contigs: NDArray[np.object_]
    start: Int64
    first_row: Int64
    rows: int
    length: Int64
    first_window: Int64
    names: NDArray[np.object_] | None = None
    row_counts: Int64 = field(init=False, repr=False)
    end: Int64 = field(init=False, repr=False)

    def __post_init__(self) -> None:
        counts = np.empty_like(self.first_row)  # np.diff takes ten times as long for few
        counts[:-1] = self.first_row[1:] - self.first_row[:-1]
        counts[-1:] = self.rows - self.first_row[-1:]
        last = self.start + (counts - 1) * self.geometry.step + self.geometry.bin_size
        end = np.where(counts > 0, np.minimum(last, self.length), self.start)
        object.__setattr__(self, "row_counts", counts)
        object.__setattr__(self, "end", end)

    @classmethod
    def whole(cls, contigs: Mapping[str, int], geometry: Geometry) -> Grid:
        """All rows of a genome with the given contig lengths: one interval a contig."""
        lengths = np.fromiter(contigs.values(), np.int64, len(contigs))
        windows = geometry.windows(lengths)
        first = np.cumsum(windows) - windows
        return cls(
            geometry=geometry,
            contigs=np.array(list(contigs), object),
            start=np.zeros(len(contigs), np.int64),
            first_row=first * geometry.bins,
            rows=int(windows.sum()) * geometry.bins,
            length=lengths,
            first_window=first,
        )

    @classmethod
    def of_regions(
        cls, contigs: Mapping[str, int], geometry: Geometry, regions: Sequence[Place]
    ) -> Grid:
        """Rows of the whole grid that intersect any of the regions: one interval a merged region.

        Regions whose rows touch or overlap become one interval, so no row is computed twice.
        """
        whole = cls.whole(contigs, geometry)
        order = {name: i for i, name in enumerate(contigs)}
        pieces = []  # (contig, first, last) in rows of the whole grid
        for region in regions:
            k = order[region.contig]
            first, last = whole._rows_of(k, region.start, region.end)
            if first < last:
                pieces.append((k, first, last))
        merged: list[list[int]] = []
        for k, first, last in sorted(pieces):
            if merged and merged[-1][0] == k and first <= merged[-1][2]:
                merged[-1][2] = max(merged[-1][2], last)
            else:
                merged.append([k, first, last])
        table = np.array(merged, np.int64).reshape(-1, 3)
        contig, first_global, counts = table[:, 0], table[:, 1], table[:, 2] - table[:, 1]
        offset = first_global - whole.first_row[contig]
        return cls(
            geometry=geometry,
            contigs=whole.contigs[contig],
            start=offset * geometry.step,
            first_row=np.cumsum(counts) - counts,
            rows=int(counts.sum()),
            length=whole.length[contig],
            first_window=whole.first_window[contig] + offset // geometry.bins,
        )

    @classmethod
    def centered(
        cls, contigs: Mapping[str, int], geometry: Geometry, regions: Sequence[Place]
    ) -> Grid:
        """One window per region, around its center, in the given order with the regions' names.

        Raises
        ------
        RegionError
            If a name is longer than 1,000 bytes or has control characters.
        """
        count = np.arange(len(regions), dtype=np.int64)
        middle = np.array([r.center for r in regions], np.int64)
        return cls(
            geometry=geometry,
            contigs=np.array([r.contig for r in regions], object),
            start=middle - geometry.span // 2,
            first_row=count * geometry.bins,
            rows=len(regions) * geometry.bins,
            length=np.array([contigs[r.contig] for r in regions], np.int64),
            first_window=count,
            names=np.array(list(map(_checked_name, regions)), object),
        )

    @cached_property
    def _intervals_of(self) -> dict[str, Int64]:
        order = np.argsort(self.contigs, kind="stable")
        names = self.contigs[order].tolist()
        first = [i for i, name in enumerate(names) if i == 0 or name != names[i - 1]]
        return dict(zip((names[i] for i in first), np.split(order, first[1:]), strict=True))

    def _rows_of(self, interval: int, start: int, end: int) -> tuple[int, int]:
        """Range of the interval's rows that intersect ``[start, end)``."""
        g, origin = self.geometry, int(self.start[interval])
        count = int(self.row_counts[interval])
        first = min(max((start - g.bin_size - origin) // g.step + 1, 0), count)
        last = min(max(-((origin - end) // g.step), first), count)
        offset = int(self.first_row[interval])
        return offset + first, offset + last

    def query(self, contig: str, start: int, end: int) -> list[tuple[int, int]]:
        """Row ranges, one per interval, whose rows intersect ``[start, end)`` of a contig.

        Raises
        ------
        RegionError
            If no interval lies on the contig.
        """
        if contig not in self._intervals_of:
            raise RegionError(f"no predictions: {absent_contig(contig, self._intervals_of)}")
        ranges = (self._rows_of(int(k), start, end) for k in self._intervals_of[contig])
        return [(first, last) for first, last in ranges if first < last]

    def same_rows(self, other: Grid, *more: str) -> bool:
        """Whether the rows of another grid are the same places, and ``more`` columns equal."""
        columns = ("contigs", "start", "first_row", "length", *more)
        return (self.geometry, self.rows) == (other.geometry, other.rows) and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in columns
        )

    def interval_of(self, rows: Int64) -> Int64:
        """Interval of each row."""
        return np.searchsorted(self.first_row, rows, side="right") - 1

    def starts(self, rows: Int64) -> Int64:
        """First base that each row describes (negative or past the contig at its ends)."""
        k = self.interval_of(rows)
        return self.start[k] + (rows - self.first_row[k]) * self.geometry.step

    def described(self, rows: Int64) -> tuple[Int64, Int64]:
        """Bases that rows describe, ``[start, end)``, not past the ends of their contigs."""
        start, length = self.starts(rows), self.length[self.interval_of(rows)]
        return np.clip(start, 0, length), np.clip(start + self.geometry.bin_size, 0, length)

    def drawn(self, rows: Int64) -> tuple[Int64, Int64]:
        """Intervals on which rows are drawn, ``[start, end)``, never overlapping in one interval.

        A row of a scalar model is drawn on the ``stride`` bases centered on what it describes (all
        of it if the stride is larger), clipped to its contig; a bin is drawn as it is.
        """
        g = self.geometry
        width = min(g.step, g.bin_size)
        start = self.starts(rows) + (g.bin_size - width) // 2
        length = self.length[self.interval_of(rows)]
        return np.clip(start, 0, length), np.clip(start + width, 0, length)

    def spans(self, first: int, last: int) -> Iterator[Span]:
        """Windows needed for rows ``[first, last)``, as runs of consecutive windows."""
        g = self.geometry
        while (
            first < last
        ):  # of intervals without rows, none is the last to begin at a row or before
            k = int(self.first_row.searchsorted(first, side="right")) - 1  # one that has rows
            origin, start = int(self.first_row[k]), int(self.start[k])
            stop = min(last, origin + int(self.row_counts[k]))
            # Where an interval starts inside a window (a region, several bins), `skip` of that
            # window's bins precede it.
            skip = 0 if self.names is not None else (start // g.bin_size) % g.bins
            begin = (first - origin + skip) // g.bins
            finish = -(-(stop - origin + skip) // g.bins)
            yield Span(
                contig=str(self.contigs[k]),
                start=start - skip * g.bin_size + begin * g.stride - g.crop,
                windows=finish - begin,
                number=int(self.first_window[k]) + begin,
                row=origin - skip + begin * g.bins,
                first=first,
                last=stop,
            )
            first = stop


def real_counts(codes: Codes, starts: NDArray[np.int64], width: int) -> NDArray[np.int32]:
    """Number of codes 0-3 in each ``codes[start:start + width]``.

    Parameters
    ----------
    codes : uint8 array, [length]
    starts : int64 array, [windows]
        Ascending; every window lies inside ``codes``.
    width : int
        Bases of a window.

    Returns
    -------
    int32 array, [windows]

    Raises
    ------
    ValueError
        If starts do not ascend or a window reaches outside ``codes``.
    """
    out = np.empty(len(starts), np.int32)
    if len(starts) == 0:
        return out
    if starts[0] < 0 or starts[-1] + width > len(codes) or np.any(starts[1:] < starts[:-1]):
        raise ValueError(
            f"windows must ascend and lie in [0, {len(codes)}); found starts from {starts[0]} to "
            f"{starts[-1]} with width {width}"
        )
    for first in range(0, len(starts), _TOGETHER):
        begins = starts[first : first + _TOGETHER]
        piece = codes[begins[0] : begins[-1] + width]
        if width == 0 or piece.max() < 4:  # nearly everywhere, at the speed of memory
            out[first : first + _TOGETHER] = width
        else:
            before = np.concatenate([[0], np.cumsum(piece < 4, dtype=np.int32)])
            at = begins - begins[0]
            out[first : first + _TOGETHER] = before[at + width] - before[at]
    return out


def parse_region(text: str, contigs: Mapping[str, int]) -> Region:
    """Region of a string such as ``chr1:1,001-2,000`` (1-based, inclusive) or a contig's name.

    An exact contig name wins; otherwise the string splits at its last ``:``.

    Raises
    ------
    RegionError
        If the contig is unknown or the range is malformed, empty or outside it.
    """
    if text in contigs:
        return Region(text, 0, contigs[text], text)
    contig, colon, bounds = text.rpartition(":")
    if not colon or contig not in contigs:
        raise RegionError(f"region {shown(text)}: {absent_contig(contig or text, contigs)}")
    first, _, last = bounds.replace(",", "").partition("-")
    if not _NUMBER.fullmatch(first) or (last and not _NUMBER.fullmatch(last)):
        raise RegionError(f"region {shown(text)}: write CONTIG:START-END, 1-based and inclusive")
    start, end = int(first) - 1, int(last) if last else contigs[contig]
    if not 0 <= start < end or end > contigs[contig]:
        raise RegionError(
            f"region {shown(text)} is empty or outside {shown(contig)}, which has bases "
            f"1-{contigs[contig]}"
        )
    return Region(contig, start, end, text)


def _checked_name(region: Place) -> str:
    name, place = region.name, f"{shown(region.contig)} {region.start}-{region.end}"
    size = len(name.encode(errors="replace"))
    if size > MOST_NAME:
        raise RegionError(
            f"the region at {place} has a name of {size:,} bytes, {shown(name)}; shorten it to "
            f"{MOST_NAME:,}"
        )
    if _CONTROL.search(name):
        raise RegionError(f"the region at {place} has control characters in its name: {name!r}")
    return name
