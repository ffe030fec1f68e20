"""Differences among samples: variance or range of each row over all, or of two groups.

Results of a cohort are computed from its distinct predictions and how many haplotypes have each.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genomepred.errors import DataError, OptionError, optional
from genomepred.files import make_folder, read_small, write_whole
from genomepred.messages import counted
from genomepred.progress import Progress
from genomepred.sequences.names import shown, some
from genomepred.store.export import export_bedgraph, export_bigwig, text_output
from genomepred.store.reader import Float32
from genomepred.tables.figures import draw_heat_map, draw_samples
from genomepred.tables.ranks import Float64, Int64, adjusted, compare_ranks, moments
from genomepred.tables.site_files import scaled
from genomepred.tables.sites import Choice, find_sites
from genomepred.tables.stacked import RowStore, Samples, open_samples

STATISTICS = ("variance", "range")
SIGNALS = {"bigwig": ".bw", "bedgraph": ".bedgraph.gz"}
_MOST_TABLE = 1 << 26  # bytes of a table of samples
_BLOCK_ROWS = 1 << 16  # rows of a table that are text at a time
# Rows of tracks whose statistics are held at a time; more tracks are computed in turns.
_TRACK_VALUES = 1 << 23
_LIKELY = 0.05  # adjusted p-value below which rows are counted


@dataclass(frozen=True)
class Groups:
    """Two groups of samples: their names, and 0, 1 or -1 (neither) for each sample."""

    names: tuple[str, str]
    group: NDArray[np.int8]


@dataclass(frozen=True)
class Comparison:
    """Statistics of every row of one track.

    Attributes
    ----------
    track : str
    columns : dict of str to float64 array, [rows]
        ``variance`` or ``range``, ``mean``, ``samples``; of two groups ``difference`` (mean of the
        first less that of the second), ``u``, ``z``, ``log_p`` and ``log_q`` (-log10 of the p-value
        and of the adjusted one), ``first`` and ``second`` (samples of each with a value).
    rank : float64 array, [rows]
        Orders rows from the least to the most different; NaN where nothing is known.
    top : int64 array, [top]
        Rows of the regions that differ most, the most different first.
    """

    track: str
    columns: dict[str, Float64]
    rank: Float64
    top: Int64


def compare(
    out: str | Path,
    folder: str | Path,
    statistic: str = "variance",
    *,
    samples_table: str | Path | None = None,
    group: str | None = None,
    groups: Sequence[str] = (),
    tracks: Sequence[str] = (),
    top: int = 100,
    signal: str = "bigwig",
    progress: bool = False,
) -> dict[str, Any]:
    """Compare the samples of a run, and write all results into a folder.

    Parameters
    ----------
    out : path
        A cohort's file, or the folder of a run: of a cohort, or of genomes with the same contigs.
    folder : path
        For the results; made if absent.
    statistic : {"variance", "range"}, optional
        Over all samples, without groups.
    samples_table : path, optional
        TSV with a column ``sample`` (or ``name``) and one of groups. A cohort's sample stands for
        all of its haplotypes.
    group : str, optional
        The column of groups.
    groups : sequence of str, optional
        The two that are compared; by default those that the column has.
    tracks : sequence of str, optional
        All by default.
    top : int, optional
        Regions that are listed and drawn.
    signal : {"bigwig", "bedgraph"}, optional
        Format of the statistics along the genome.

    Returns
    -------
    dict
        The document of ``summary.json``.

    Raises
    ------
    OptionError
        If a table is given without its column, or the other way round.
    DataError
        If the table cannot be read, or does not make two groups.
    StoreError
        If predictions cannot be read, or genomes do not have the same rows.
    DependencyError
        If SciPy or matplotlib is not installed.
    OutputError
        If results cannot be written.
    """
    if (samples_table is None) != (group is None):
        raise OptionError("--samples-table and --group belong together; give both")
    if groups and (group is None or len(groups) != 2):
        raise OptionError("--groups names the two groups of --group to compare, as A,B")
    with optional("compare", "tables"):
        import scipy.cluster.hierarchy  # noqa: F401
    folder = Path(folder)
    make_folder(folder, "name a folder for the results")
    with open_samples(Path(out)) as samples:
        chosen = None
        if samples_table is not None and group is not None:
            chosen = read_groups(Path(samples_table), group, groups, samples)
        if len(samples.names) < 2:
            raise DataError(f"{out}: one sample, {samples.names[0]}; nothing to compare it with")
        found = compare_rows(samples, statistic, chosen, tracks, top, progress)
        return _write(samples, found, chosen, folder, signal)


def read_groups(path: Path, column: str, names: Sequence[str], samples: Samples) -> Groups:
    """Groups of samples from a table; samples that it does not name are in neither.

    Raises
    ------
    DataError
        If the table cannot be read, a column is missing, a sample stands in it twice with
        different groups, or there are not two groups with samples.
    """
    of = _column(path, column)
    known = set(samples.owners) | set(samples.names)
    strangers = [name for name in of if name not in known]
    found = {of[name] for name in of if name in known} - {""}
    if not names and len(found) != 2:
        raise DataError(
            f"{path}: column {column!r} has {len(found)} groups among the samples of "
            f"{samples.path}: {some(sorted(found))}; choose two with --groups A,B"
            if len(found) > 1
            else f"{path}: column {column!r} puts all samples of {samples.path} that it names in "
            f"one group, {shown(*found)}; two are compared"
            if found
            else f"{path}: names none of the samples of {samples.path}, which begin with "
            f"{some(samples.names)}"
        )
    first, second = names or sorted(found)
    missing = [name for name in (first, second) if name not in found]
    if missing or first == second:
        raise DataError(
            f"{path}: no sample of {samples.path} is in group {shown(missing[0])}; there are "
            f"{some(sorted(found))}"
            if missing
            else f"--groups names {shown(first)} twice; a group is compared with another"
        )
    number = {first: 0, second: 1}
    group = np.array(
        [
            number.get(of.get(name, of.get(owner, "")), -1)
            for name, owner in zip(samples.names, samples.owners, strict=True)
        ],
        np.int8,
    )
    left_out = int((group < 0).sum())
    if strangers or left_out:
        named = f"{counted(len(strangers), 'name')} of no sample"
        warnings.warn(
            f"{path}: {left_out:,} of {len(group):,} samples are in neither group; "
            f"{named}{': ' if strangers else ''}{some(strangers)}",
            stacklevel=2,
        )
    return Groups((first, second), group)


def _column(path: Path, column: str) -> dict[str, str]:
    """Group of each name of a table."""
    try:
        lines = read_small(path, _MOST_TABLE).decode("utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text: {error}") from error
    rows = [line.split("\t") for line in lines if line.strip() and not line.startswith("##")]
    header = [name.strip().lstrip("#") for name in rows[0]] if rows else []
    key = next((name for name in ("sample", "name") if name in header), None)
    if key is None or column not in header:
        raise DataError(
            f"{path}: expected columns sample and {column} between tabs; found "
            f"{some(header, 8) or 'an empty file'}"
        )
    places = header.index(key), header.index(column)
    found: dict[str, str] = {}
    for fields in rows[1:]:
        name, value = (fields[k].strip() if k < len(fields) else "" for k in places)
        if found.setdefault(name, value) != value:
            raise DataError(
                f"{path}: {shown(name)} is in {shown(found[name])} and in {shown(value)}; give "
                "each sample one group"
            )
    return found


def compare_rows(
    samples: Samples,
    statistic: str,
    groups: Groups | None,
    tracks: Sequence[str],
    top: int,
    progress: bool = False,
) -> Iterator[Comparison]:
    """Statistics of every row and the regions that differ most, track by track."""
    if statistic not in STATISTICS:
        raise OptionError(f"statistic {statistic!r} is unknown; use {', '.join(STATISTICS)}")
    there = {track: k for k, track in enumerate(samples.tracks)}
    for track in tracks:
        if track not in there:
            raise OptionError(f"no track {track!r}; there are {some(samples.tracks)}")
    chosen = [track for track in there if not tracks or track in tracks]
    size = max(_TRACK_VALUES // max(samples.grid.rows, 1), 1)
    with Progress(
        total=samples.grid.rows * len(chosen), desc="compare", unit=" rows", unit_scale=True,
        shown=progress,
    ) as bar:  # fmt: skip
        for first in range(0, len(chosen), size):
            some_tracks = chosen[first : first + size]
            columns = _columns(samples, groups, [there[track] for track in some_tracks], bar)
            if not groups:
                columns.pop("range" if statistic == "variance" else "variance")
            for k, track in enumerate(some_tracks):
                own = {name: column[:, k].copy() for name, column in columns.items()}
                yield _finished(samples, track, own, statistic, top)


def _columns(
    samples: Samples, groups: Groups | None, tracks: Sequence[int], bar: Progress
) -> dict[str, Float64]:
    """Statistics of every row, [rows, tracks] each."""
    group = groups.group if groups else np.zeros(len(samples.names), np.int8)
    names = (
        ("first", "second", "difference", "u", "z", "log_p")
        if groups
        else ("samples", "mean", "variance", "range")
    )
    columns = {name: np.empty((samples.grid.rows, len(tracks))) for name in names}
    for block in samples.blocks(group, 2 if groups else 1, tracks):
        row, of = block.row, compare_ranks if groups else moments
        found = of(block.starts, block.rows, block.counts, block.bins)
        last = row + len(found[0])
        for name, column in columns.items():
            column[row:last] = getattr(found, name)
        bar.update((last - row) * len(tracks))
    return columns


def _finished(
    samples: Samples, track: str, columns: dict[str, Float64], statistic: str, top: int
) -> Comparison:
    if "log_p" in columns:
        columns["log_q"] = adjusted(columns["log_p"])
        # Ranks alone put the smallest differences first wherever groups do not overlap.
        size = np.abs(columns["difference"])
        likely = np.where(columns["log_q"] > -np.log10(_LIKELY), size, -1.0)
        keys = [size, np.abs(columns["z"]), columns["log_p"], likely]
        differs = (size > 0) | (keys[1] > 0)
    else:
        keys = [columns[statistic]]
        differs = keys[0] > 0
    rank = np.full(samples.grid.rows, np.nan)
    order = np.lexsort(keys)
    rank[order] = np.arange(len(order))
    rank[~differs | np.isnan(columns["log_p"] if "log_p" in columns else keys[-1])] = np.nan
    # Whole numbers: as float32 they may tie beyond 2^24 rows, of which the first then counts.
    sites = find_sites(RowStore(samples, {"rank": rank}), None, Choice(top=top))
    order = np.argsort(-rank[sites.row], kind="stable")
    return Comparison(track, columns, rank, sites.row[order])


# -- results -------------------------------------------------------------------------------------


def _write(
    samples: Samples, found: Iterable[Comparison], groups: Groups | None, folder: Path, signal: str
) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "samples": len(samples.names),
        "rows": samples.grid.rows,
        "groups": None,
        "tracks": [],
    }
    if groups:
        sizes = [int((groups.group == k).sum()) for k in (0, 1)]
        summary["groups"] = dict(zip(groups.names, sizes, strict=True))
    for one in found:
        prefix = "" if len(samples.tracks) == 1 else f"{one.track.replace('/', '_')}."
        files = _write_track(samples, one, groups, folder, prefix, signal)
        told = {"track": one.track, "files": [path.name for path in files], "top": len(one.top)}
        if groups:
            log_q = one.columns["log_q"]
            told["rows_compared"] = int((~np.isnan(log_q)).sum())
            told[f"rows_q_below_{_LIKELY:g}"] = int((log_q > -np.log10(_LIKELY)).sum())
        summary["tracks"].append(told)
    write_whole(folder / "summary.json", (json.dumps(summary, indent=2) + "\n").encode())
    return summary


def _write_track(
    samples: Samples,
    one: Comparison,
    groups: Groups | None,
    folder: Path,
    prefix: str,
    signal: str,
) -> list[Path]:
    """Write all files of one track."""

    def place(name: str) -> Path:
        return folder / f"{prefix}{name}"

    files = [place("rows.tsv.gz"), place("top.tsv"), place("top.bed")]
    write_rows(samples, one, files[0])
    write_top(samples, one, groups, files[1], files[2])
    drawn = ("difference", "log_q") if groups else (next(iter({*STATISTICS} & {*one.columns})),)
    export = export_bigwig if signal == "bigwig" else export_bedgraph
    for name in drawn:
        store = RowStore(samples, {name: one.columns[name]})
        if not np.isnan(one.columns[name]).all():
            files += export(store, place(f"{name}{SIGNALS[signal]}"))
    if len(one.top):
        column = samples.tracks.index(one.track)
        values = samples.values(one.top.tolist())[:, :, column]
        files += _draw(samples, one, groups, values, place("heatmap.png"), place("samples.png"))
    return files


def _draw(
    samples: Samples,
    one: Comparison,
    groups: Groups | None,
    values: Float32,
    heat_map: Path,
    pca: Path,
) -> list[Path]:
    contigs, start, end = _places(samples, one.top)
    regions = [
        f"{c}:{a + 1:,}-{b:,}"
        for c, a, b in zip(contigs, start.tolist(), end.tolist(), strict=True)
    ]
    names = groups.names if groups else ()
    group = groups.group if groups else np.full(len(samples.names), -1, np.int8)
    title = f"{one.track}: the {len(regions)} regions that differ most"
    draw_heat_map(values, regions, samples.names, group, names, title, heat_map)
    draw_samples(values, samples.names, group, names, title, pca)
    return [heat_map, pca]


def _places(samples: Samples, rows: Int64) -> tuple[list[str], Int64, Int64]:
    """Contig, start and end of the bases that rows describe."""
    grid = samples.grid
    return grid.contigs[grid.interval_of(rows)].tolist(), *grid.described(rows)


def _readable(columns: dict[str, Float64]) -> dict[str, Float64]:
    """Columns of a table: p-values instead of their logarithms."""
    with np.errstate(under="ignore"):
        return {
            name.removeprefix("log_"): 10.0**-column if name.startswith("log_") else column
            for name, column in columns.items()
        }


def write_rows(samples: Samples, one: Comparison, path: Path) -> None:
    """Write the statistics of every row that describes a base as a table; NaN is unknown."""
    import pandas as pd

    columns = _readable(one.columns)
    with text_output(path) as file:
        for first in range(0, samples.grid.rows, _BLOCK_ROWS):
            rows = np.arange(first, min(first + _BLOCK_ROWS, samples.grid.rows))
            contigs, start, end = _places(samples, rows)
            places = {"contig": contigs, "start": start, "end": end}
            block = {name: column[rows] for name, column in columns.items()}
            frame = pd.DataFrame({**places, **block})[start < end]
            text = frame.to_csv(
                sep="\t", index=False, header=not first, float_format="%.9g", na_rep="NaN"
            )
            file.write(text.encode())


def write_top(
    samples: Samples, one: Comparison, groups: Groups | None, table: Path, bed: Path
) -> None:
    """Write the regions that differ most as a table and as BED, the most different first."""
    contigs, start, end = _places(samples, one.top)
    columns = {name: column[one.top] for name, column in one.columns.items()}
    if groups:
        columns["minus_log10_p"], columns["minus_log10_q"] = columns["log_p"], columns["log_q"]
        columns = _readable(columns)
        score = scaled(np.abs(one.columns["z"][one.top]).astype(np.float32))
    else:
        score = scaled(
            next(iter(columns[n] for n in STATISTICS if n in columns)).astype(np.float32)
        )
    names = [f"top_{k + 1}" for k in range(len(one.top))]
    places = list(zip(contigs, start.tolist(), end.tolist(), names, strict=True))
    with text_output(bed) as file:
        for place, value in zip(places, score.tolist(), strict=True):
            file.write("\t".join(map(str, [*place, value, "."])).encode() + b"\n")
    with text_output(table) as file:
        file.write("\t".join(["contig", "start", "end", "name", *columns]).encode() + b"\n")
        for k, place in enumerate(places):
            texts = (f"{column[k]:.6g}" for column in columns.values())
            file.write("\t".join([*map(str, place), *texts]).encode() + b"\n")
