"""Prediction files as bigWig, bedGraph and tables, in bounded memory.

bigWig and bedGraph hold one value a base, so rows are drawn as :meth:`Grid.drawn` says and missing
rows are absent. Tables keep every row that describes a base, with all of the bases it describes.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from genomepred.errors import OutputError, StoreError
from genomepred.files import publishing, refuse_inputs, require_space, stdout_error
from genomepred.sequences.grid import Region
from genomepred.store.bigwig import TOO_LONG, BigWigWriter
from genomepred.store.reader import Float32, Int64, PredictionStore
from genomepred.tsv import quoted, tab_separated

# Upper estimate of a bigWig's bytes a row, checked against the free space before writing: random
# values took 6.4 with their zoom levels, which lie on the disk twice at the end.
_BIGWIG_ROW = 12


class _Block(NamedTuple):
    """Drawn values of consecutive rows of one contig, sorted, none missing."""

    contig: str
    start: Int64
    end: Int64
    values: Float32


def export_bigwig(
    store: PredictionStore, path: Path, track: str | None = None, region: Region | None = None
) -> list[Path]:
    """Write bigWig files, one a track, sorted by contig name.

    Parameters
    ----------
    store : PredictionStore
    path : Path
        The file; without ``track``, each of several tracks puts its name before the suffix.
    track : str, optional
        The one track to write; all by default.
    region : Region, optional
        Only rows drawn on bases of the region; all by default.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    StoreError
        If the track is unknown, nothing is there to draw, or BED records overlap (``--center``).
    OutputError
        If the file cannot be written; nothing is left behind.
    """
    outputs = _outputs(store, path, track)
    _refuse_odd_contigs(store)
    for column, output in outputs:
        _write_bigwig(store, output, column, region)
    return [output for _, output in outputs]


def export_bedgraph(
    store: PredictionStore,
    path: Path | None,
    track: str | None = None,
    region: Region | None = None,
) -> list[Path]:
    """Write bedGraph files, one a track, sorted by contig name and start; gzip if named ``.gz``.

    Parameters and errors are those of :func:`export_bigwig`; without ``path`` the one track goes
    to standard output.
    """
    if path is None and track is None and len(store.tracks) > 1:
        raise StoreError(
            f"{store.path} has {len(store.tracks)} tracks, a bedGraph holds one; choose it with "
            f"--track ({', '.join(store.tracks)}) or name a file with -o to write all"
        )
    outputs = _outputs(store, path or Path("-"), track)
    _refuse_odd_contigs(store)
    for column, output in outputs:
        with text_output(path and output) as file:
            for block in _drawn(store, column, region):
                texts = texts_of(block.values).tolist()
                file.write(_lines(repeat(block.contig), block.start, block.end, texts))
    return [] if path is None else [output for _, output in outputs]


def export_tsv(
    store: PredictionStore,
    path: Path | None,
    tracks: Sequence[str] = (),
    region: Region | None = None,
) -> None:
    """Write a table: contig, start, end, name (where there are names), one column a track.

    Rows stand in the file's order with the bases they describe, 0-based half-open; a missing value
    is ``NaN``. Rows past the end of their contig are left out.

    Parameters
    ----------
    store : PredictionStore
    path : Path or None
        The file, gzip if named ``.gz``; None for standard output.
    tracks : sequence of str, optional
        Columns; all by default.
    region : Region, optional
        Only rows that intersect it; all by default.

    Raises
    ------
    StoreError
        If a track is unknown.
    OutputError
        If the file cannot be written; nothing is left behind.
    """
    if path is not None:
        refuse_inputs(path, [store.path])
    columns = store.columns(tracks)
    ranges = [(0, store.rows)] if region is None else store.ranges(region)
    names = ["name"] if store.grid.names is not None else []
    header = ["contig", "start", "end", *names, *(store.tracks[k] for k in columns)]
    with text_output(path) as file:
        file.write(f"{tab_separated(header)}\n".encode())
        for first, last in ranges:
            for row, values in store.blocks(first, last):
                rows = np.arange(row, row + len(values))
                file.write(_tsv_lines(store, rows, values[:, columns]))


def _outputs(store: PredictionStore, path: Path, track: str | None) -> list[tuple[int, Path]]:
    """Columns to write, each with its file."""
    if track is not None or len(store.tracks) == 1:
        outputs = [(store.columns([track] if track else [])[0], path)]
    else:
        suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
        outputs = list(enumerate(one_a_track(path, suffix, store.tracks)))
    for _, output in outputs:
        refuse_inputs(output, [store.path])
    return outputs


def one_a_track(path: Path, suffix: str, tracks: Sequence[str]) -> list[Path]:
    """A file for each track, whose name stands before the suffix.

    Raises
    ------
    OutputError
        If two of them would be one file.
    """
    safe = [track.replace("/", "_").replace("\0", "_") for track in tracks]
    if len(set(safe)) < len(safe):
        raise OutputError(f"{path}: track names collide as file names; choose one with --track")
    return [path.with_name(f"{path.name.removesuffix(suffix)}.{name}{suffix}") for name in safe]


def _drawn(store: PredictionStore, column: int, region: Region | None) -> Iterator[_Block]:
    """Values of a track on the bases they are drawn on, sorted, missing ones left out."""
    blocks = _centered if store.grid.names is not None else _tiled
    for contig, start, end, values in blocks(store, column, region):
        keep = ~np.isnan(values) & (start < end)
        if region is not None:
            keep &= (start < region.end) & (end > region.start)
        yield _Block(contig, start[keep], end[keep], values[keep])


def _tiled(store: PredictionStore, column: int, region: Region | None) -> Iterator[_Block]:
    """Blocks of a whole or regions grid: sorted contig by contig, streamed."""
    grid = store.grid
    ranges = store.ranges(region)
    first = np.array([first for first, _ in ranges], np.int64)
    contigs = grid.contigs[grid.interval_of(first)].tolist()
    for contig, (first_row, last_row) in sorted(zip(contigs, ranges, strict=True)):
        for row, values in store.blocks(first_row, last_row):
            start, end = grid.drawn(np.arange(row, row + len(values)))
            yield _Block(contig, start, end, values[:, column])


def _centered(store: PredictionStore, column: int, region: Region | None) -> Iterator[_Block]:
    """Blocks of a centered grid: one a contig, sorted in memory, for they stand in BED order."""
    grid, ranges = store.grid, store.ranges(region)
    rows = np.concatenate([np.arange(0), *(np.arange(*r) for r in ranges)])
    values = np.concatenate([np.empty(0, np.float32), *(store.read(*r)[:, column] for r in ranges)])
    start, end = grid.drawn(rows)
    names = sorted(set(grid.contigs.tolist()))
    number = {name: i for i, name in enumerate(names)}
    contigs = np.array([number[name] for name in grid.contigs], np.int64)[grid.interval_of(rows)]
    order = np.lexsort((start, contigs))
    contigs, start, end, values = contigs[order], start[order], end[order], values[order]
    clash = (contigs[1:] == contigs[:-1]) & (start[1:] < end[:-1])
    if clash.any():
        at = int(clash.argmax())
        raise StoreError(
            f"{store.path}: BED records overlap at {names[contigs[at]]}:{start[at + 1] + 1}, but "
            "bigWig and bedGraph hold one value a base; export tsv instead"
        )
    bounds = np.searchsorted(contigs, np.arange(len(names) + 1))
    for i, name in enumerate(names):
        one = slice(bounds[i], bounds[i + 1])
        yield _Block(name, start[one], end[one], values[one])


def _write_bigwig(store: PredictionStore, path: Path, column: int, region: Region | None) -> None:
    _refuse_long_contigs(store)
    blocks = (block for block in _drawn(store, column, region) if block.start.size)
    first = next(blocks, None)
    if first is None:
        raise StoreError(f"{store.path}: no value to draw; every row asked for is missing")
    with publishing(path, follow=True) as temporary, open(temporary, "xb") as file:
        rows = sum(last - first for first, last in store.ranges(region))
        require_space(path.parent, rows * _BIGWIG_ROW)
        width = min(store.grid.geometry.step, store.grid.geometry.bin_size)
        with BigWigWriter(file, path.parent, store.contigs, width) as bigwig:
            for block in chain([first], blocks):
                bigwig.add(*block)
            bigwig.finish()


def _refuse_odd_contigs(store: PredictionStore) -> None:
    """Neither format quotes names: blanks and control characters would end them."""
    for contig in store.contigs:
        if not contig or not contig.isprintable() or any(map(str.isspace, contig)):
            raise StoreError(
                f"{store.path}: contig {contig!r}: bedGraph and bigWig hold no names that are "
                "empty or have blanks or control characters; export tsv instead"
            )


def _refuse_long_contigs(store: PredictionStore) -> None:
    for contig, length in store.contigs.items():
        if length >= TOO_LONG:
            raise StoreError(
                f"{store.path}: contig {contig!r} has {length:,} bases, but bigWig numbers bases "
                f"up to {TOO_LONG - 1:,}; export bedgraph or tsv instead"
            )


@contextmanager
def text_output(path: Path | None) -> Iterator[BinaryIO]:
    """Binary file that is published when complete, or standard output."""
    if path is None:
        try:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise stdout_error(error) from error
        return
    with publishing(path, follow=True) as temporary, open(temporary, "xb") as raw:
        if path.suffix == ".gz":
            with gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
                yield file  # type: ignore[misc]  # a BinaryIO in all but its declared base
        else:
            yield raw


def texts_of(values: Float32) -> NDArray[np.str_]:
    """Shortest text of each value that reads back as the same float32; NaN for missing."""
    texts: NDArray[np.str_] = values.astype(np.str_)
    texts[np.isnan(values)] = "NaN"
    return texts


def _tsv_lines(store: PredictionStore, rows: Int64, values: Float32) -> bytes:
    start, end = store.grid.described(rows)
    kept = start < end
    interval, numbers = np.unique(store.grid.interval_of(rows[kept]), return_inverse=True)
    contigs = list(map(quoted, store.grid.contigs[interval].tolist()))
    texts = ["\t".join(row) for row in texts_of(values[kept]).tolist()]
    if store.grid.names is not None:
        names = list(map(quoted, store.grid.names[interval].tolist()))
        texts = [f"{names[k]}\t{text}" for k, text in zip(numbers.tolist(), texts, strict=True)]
    return _lines((contigs[k] for k in numbers.tolist()), start[kept], end[kept], texts)


def _lines(contigs: Iterable[str], start: Int64, end: Int64, texts: Iterable[str]) -> bytes:
    columns = zip(contigs, start.tolist(), end.tolist(), texts, strict=False)
    return "".join([f"{c}\t{s}\t{e}\t{text}\n" for c, s, e, text in columns]).encode()
