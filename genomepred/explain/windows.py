"""Subjects of explanations: windows of sequence, and the one number whose causes are sought."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from genomepred.data.tables import (
    NAME_COLUMNS,
    SEQUENCE_COLUMNS,
    TABLE,
    Table,
    encode_rows,
)
from genomepred.errors import DataError, ModelError, SequenceError
from genomepred.messages import listed
from genomepred.models.card import Card
from genomepred.sequences.codes import Codes
from genomepred.sequences.fasta import Genome
from genomepred.sequences.grid import Region, parse_region
from genomepred.sequences.names import MOST_NAME, shown


@dataclass(frozen=True, eq=False)
class Window:
    """One window of a sequence.

    Parameters
    ----------
    name : str
        Name of the record or region, or ``CONTIG:START-END`` (1-based inclusive) of this window's
        share of it where it takes several.
    contig : str
    start : int
        Place of the window's first base in the contig, 0-based; negative before its start.
    codes : uint8 array, [window]
    asked : tuple of int
        Bases of the window that were asked for, 0-based half-open within it. The others are
        context: the genome around a region, unknown bases around a sequence.
    """

    name: str
    contig: str
    start: int
    codes: Codes
    asked: tuple[int, int]


class _Place(NamedTuple):
    """A file, and the region of it if one was named."""

    path: Path
    region: str | None


def read_windows(inputs: Sequence[str], card: Card, column: str | None = None) -> Iterator[Window]:
    """Windows of sequence files and regions, in the order given.

    Each record of a FASTA, row of a table or region takes as many windows, side by side and
    centered on it together, as it needs for each of its bases to lie in a window's uncropped part:
    one if it is not longer than that. What a window reaches beyond a region is the genome's own
    sequence; beyond a record it is unknown bases, on one side where the model was trained so.

    Parameters
    ----------
    inputs : sequence of str
        FASTA; table (.csv, .tsv, .xlsx, .parquet); or ``GENOME:CONTIG:START-END``, 1-based and
        inclusive, with the path of a FASTA as the genome. Paths and contigs may hold ``:``: the
        longest beginning that is a file is the genome.
    card : Card
        Sizes of the windows.
    column : str, optional
        Column of tables with the sequences; by default the first with a usual name.

    Raises
    ------
    SequenceError
        If a file is absent or no FASTA.
    DataError
        If a table has no such column or a sequence holds other letters.
    RegionError
        If a region is not in its genome.
    """
    places = [_split_place(text) for text in inputs]  # all are checked before the first is read
    with ExitStack() as stack:
        genomes: dict[Path, Genome] = {}
        for place in places:
            if TABLE.search(place.path.name):
                yield from _table_windows(place, card, column)
                continue
            if place.path not in genomes:
                genomes[place.path] = stack.enter_context(Genome(place.path))
            yield from _genome_windows(genomes[place.path], place.region, card)


def _split_place(text: str) -> _Place:
    cuts = [len(text), *(i for i in reversed(range(len(text))) if text[i] == ":")]
    for cut in cuts:
        if os.path.isfile(text[:cut]):
            return _Place(Path(text[:cut]), text[cut + 1 :] if cut < len(text) else None)
    raise SequenceError(
        f"no input {shown(text)}: it is no file, and no part of it before a ':' is one; give a "
        "FASTA, a table or GENOME.fa:CONTIG:START-END"
    )


def _genome_windows(genome: Genome, region: str | None, card: Card) -> Iterator[Window]:
    if region is not None:
        place = parse_region(region, genome.contigs)
        yield from _windows_of(place, card, partial(genome.codes, place.contig))
        return
    for contig, length in genome.contigs.items():
        whole = Region(contig, 0, length, contig)
        yield from _windows_of(whole, card, partial(genome.codes, contig), _padded_side(card))


def _table_windows(place: _Place, card: Card, column: str | None) -> Iterator[Window]:
    if place.region is not None:
        raise SequenceError(f"{place.path} is a table; regions are cut out of a FASTA")
    for name, codes in _table_sequences(Table(place.path), column):
        whole = Region(name, 0, len(codes), name)
        yield from _windows_of(whole, card, partial(_cut_out, codes), _padded_side(card))


def _windows_of(
    region: Region, card: Card, read: Callable[[int, int], Codes], pad: str | None = None
) -> Iterator[Window]:
    """Windows of a region, side by side and together centered on it, or to one side of padding."""
    span = card.bins * card.bin_size
    count = -(-(region.end - region.start) // span)
    beyond = count * span - (region.end - region.start)
    before = {"left": beyond, "right": 0, None: (beyond + 1) // 2}[pad]
    first = region.start - before  # where the first uncropped part begins
    for begin in range(first, first + count * span, span):
        start = begin - card.crop
        low, high = max(begin, region.start), min(begin + span, region.end)
        name = region.name if count == 1 else f"{region.contig}:{low + 1}-{high}"
        codes = read(start, start + card.window)
        yield Window(name, region.contig, start, codes, (low - start, high - start))


def _padded_side(card: Card) -> str | None:
    """Side on which the model's training data got unknown bases, if it did."""
    facts = card.training.get("data")
    return facts.get("pad") if isinstance(facts, dict) else None


def _table_sequences(table: Table, column: str | None) -> Iterator[tuple[str, Codes]]:
    """Name and codes of each row; without a column of names the row's number."""
    column = table.need(column, SEQUENCE_COLUMNS, "sequences", "--sequence")
    named = table.find(None, NAME_COLUMNS)
    texts, names = table.batches(column), table.batches(named or column)
    rows = zip(chain.from_iterable(texts), chain.from_iterable(names), strict=True)
    for row, (text, name) in enumerate(rows, 1):
        where = f"{table.path}: row {row}, column {shown(column)}"
        if len(name.encode()) > MOST_NAME:
            raise DataError(
                f"{table.path}: row {row}: the name {shown(name)} is too long; give names of at "
                f"most {MOST_NAME:,} bytes"
            )
        codes = np.empty((1, len(text)), np.uint8)
        encode_rows([text], codes, None, lambda _, where=where: where)  # type: ignore[misc]
        yield name if named and name else f"row{row}", codes[0]


def _cut_out(codes: Codes, start: int, end: int) -> Codes:
    """``codes[start:end]`` with unknown bases outside."""
    out = np.full(end - start, 4, np.uint8)
    first, last = max(start, 0), min(end, len(codes))
    out[first - start : last - start] = codes[first:last]
    return out


class Output:
    """The number of a model that is explained: one track's raw value, summed over bins.

    Raw values are explained because effects add up there: a logit where the card's activation is
    a sigmoid. Of a softmax, whose logits mean nothing one by one, it is the log probability.

    Parameters
    ----------
    card : Card
    track : str, optional
        Name of the track; needed where there are several.
    bin : int, optional
        Number of the output bin, from 0; by default all bins that touch the bases asked for.

    Raises
    ------
    ModelError
        If there is no such track or bin, or no track was chosen of several.
    """

    def __init__(self, card: Card, track: str | None = None, bin: int | None = None) -> None:
        names = [known.name for known in card.tracks]
        shown = listed(names, 10)
        if track is None and len(names) > 1:
            raise ModelError(f"model {card.name!r} has {len(names)} tracks; use --track: {shown}")
        if track is not None and track not in names:
            raise ModelError(f"model {card.name!r} has no track {track!r}; it has {shown}")
        if bin is not None and not 0 <= bin < card.bins:
            raise ModelError(f"model {card.name!r} has bins 0-{card.bins - 1}, no bin {bin}")
        self.card, self.bin = card, bin
        self.track = names.index(track) if track else 0
        self.name = names[self.track]
        self.unit = {"none": card.tracks[self.track].unit, "softmax": "log probability"}.get(
            card.activation, "logit" if card.activation == "sigmoid" else "raw value"
        )

    def bins(self, window: Window) -> slice:
        """Bins of a window whose values are summed."""
        if self.bin is not None:
            return slice(self.bin, self.bin + 1)
        first, last = (place - self.card.crop for place in window.asked)
        return slice(first // self.card.bin_size, -(-last // self.card.bin_size))

    def of(self, raw: Tensor, bins: slice) -> Tensor:
        """Raw values ``[batch, bins, tracks]`` -> the number explained, ``[batch]``."""
        if self.card.activation == "softmax":
            raw = torch.log_softmax(raw, dim=2)
        return raw[:, bins, self.track].sum(1)
