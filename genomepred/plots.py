"""Pictures of predictions along a genome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from genomepred.errors import DependencyError, OutputError, RegionError
from genomepred.files import publishing
from genomepred.sequences.grid import Region
from genomepred.store.reader import PredictionStore

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

# Okabe and Ito's colors, told apart with any color vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MISSING = "#E6E6E6"
_FORMATS = (".png", ".pdf", ".svg")
_DPI = 100
_WIDTH, _HEIGHT, _PANEL = 12.0, 4.0, 1.6  # inches: one track gives 1200 x 400 pixels
_PIXELS = 1100  # columns that values are summarized in: about the width of the axes


class Summary(NamedTuple):
    """Values of a track in each column of pixels; NaN where there are none."""

    low: Float64
    mean: Float64
    high: Float64


def plot_region(store: PredictionStore, region: Region, tracks: Sequence[str], path: Path) -> None:
    """Draw tracks over a region, one panel each, missing stretches shaded.

    Where a column of pixels holds several rows, the dark area is their mean and the light one
    reaches their extremes, so no peak vanishes however long the region is.

    Parameters
    ----------
    store : PredictionStore
    region : Region
        Bases to show.
    tracks : sequence of str
        Panels from top to bottom; all tracks if empty.
    path : Path
        The picture: ``.png``, ``.pdf`` or ``.svg``.

    Raises
    ------
    DependencyError
        If matplotlib is not installed.
    RegionError
        If the region is empty.
    OutputError
        If the picture cannot be written or its suffix is none of these.
    """
    if path.suffix.lower() not in _FORMATS:
        raise OutputError(f"{path}: name the picture {', '.join(f'*{s}' for s in _FORMATS)}")
    if region.start >= region.end:
        raise RegionError(f"{region.contig} has no bases from {region.start + 1} to {region.end}")
    try:
        import matplotlib.figure  # noqa: F401  (before the work, not after it)
    except ImportError as error:
        raise DependencyError("plot needs matplotlib: pip install 'genomepred[plot]'") from error
    columns = store.columns(tracks)
    start, end, values = _drawn_rows(store, region)
    edges = np.linspace(region.start, region.end, min(_PIXELS, region.end - region.start) + 1)
    summaries = {
        store.tracks[column]: summarize(start, end, values[:, column], edges) for column in columns
    }
    figure = _figure(region, edges, summaries, _title(store, region))
    with publishing(path, follow=True) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower())


def _figure(region: Region, edges: Float64, summaries: Mapping[str, Summary], title: str) -> Figure:
    from matplotlib.figure import Figure

    size = _WIDTH, max(_HEIGHT, 1.2 + _PANEL * len(summaries))
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    panels = figure.subplots(len(summaries), 1, sharex=True, squeeze=False)[:, 0]
    for axes, color, (name, summary) in zip(panels, cycle(COLORS), summaries.items()):
        _draw_panel(axes, edges, summary, color)
        axes.set_ylabel(name, parse_math=False)
    _number_bases(panels[-1], region)
    caption = _caption(region, list(summaries.values()))
    figure.supxlabel(caption, fontsize=9, parse_math=False)
    figure.suptitle(title, fontsize=13, parse_math=False)
    return figure


def summarize(
    start: Int64, end: Int64, values: NDArray[np.floating[Any]], edges: Float64
) -> Summary:
    """Lowest, mean and highest value of the intervals that touch each column of pixels.

    Parameters
    ----------
    start, end : int64 array, [rows]
        Intervals in bases, both ascending.
    values : float array, [rows]
        NaN where missing.
    edges : float64 array, [columns + 1]
        Bounds of the columns in bases.
    """
    present = ~np.isnan(values)
    start, end, kept = start[present], end[present], values[present].astype(np.float64)
    first = np.searchsorted(end, edges[:-1], side="right")
    last = np.searchsorted(start, edges[1:], side="left")
    filled = first < last
    # reduceat takes pairs (first, last) and needs every index inside, hence one more element.
    pairs = np.stack([first[filled], last[filled]], 1).ravel()
    padded = np.append(kept, 0.0)

    def over_columns(function: np.ufunc) -> Float64:
        result = np.full(filled.shape, np.nan)
        if pairs.size:
            result[filled] = function.reduceat(padded, pairs)[::2]
        return result

    return Summary(
        over_columns(np.minimum), over_columns(np.add) / (last - first), over_columns(np.maximum)
    )


def _drawn_rows(store: PredictionStore, region: Region) -> tuple[Int64, Int64, NDArray[np.float32]]:
    """Rows of a region with the bases they are drawn on, ascending."""
    ranges = store.ranges(region)
    rows = np.concatenate([np.arange(0), *(np.arange(*r) for r in ranges)])
    none = np.empty((0, len(store.tracks)), np.float32)
    values = np.concatenate([none, *(store.read(*r) for r in ranges)])
    start, end = store.grid.drawn(rows)
    order = np.argsort(start, kind="stable")  # the records of a centered grid are in BED order
    return start[order], end[order], values[order]


def _draw_panel(axes: Axes, edges: Float64, summary: Summary, color: str) -> None:
    """Fill from 0 to the mean if nothing is negative; otherwise draw the mean as a line alone."""
    low, mean, high = (_stepped(values) for values in summary)
    x = edges + 0.5  # the base numbered p reaches from p - 0.5 to p + 0.5
    signed = bool((summary.low < 0).any())
    axes.fill_between(
        x, low if signed else 0, high, step="post", color=color, alpha=0.4, linewidth=0
    )
    if not signed:
        axes.fill_between(x, 0, mean, step="post", color=color, linewidth=0)
    axes.plot(x, mean, drawstyle="steps-post", color=color, linewidth=0.8)
    for first, last in _runs(np.isnan(summary.mean)):
        axes.axvspan(x[first], x[last], color=_MISSING, linewidth=0, zorder=0)
    axes.set_xlim(x[0], x[-1])
    axes.margins(y=0.08)
    if not signed:
        axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)


def _stepped(values: Float64) -> Float64:
    """One value an edge for drawing in steps: the last column's value ends it."""
    return np.append(values, values[-1:])


def _runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Ranges of consecutive true flags."""
    changes = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in changes.reshape(-1, 2)]


def _unit(region: Region) -> tuple[int, str]:
    """Unit of positions that suits the region's length, in bases and by name."""
    span = region.end - region.start
    return (10**6, "Mb") if span >= 5 * 10**6 else (10**3, "kb") if span >= 5000 else (1, "bp")


def _number_bases(axes: Axes, region: Region) -> None:
    """Label positions, counted from 1."""
    from matplotlib.ticker import MaxNLocator

    size, _ = _unit(region)
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks().tolist() if low <= tick <= high]
    axes.set_xticks(ticks, position_labels(ticks, size))


def position_labels(positions: Sequence[float], size: int) -> list[str]:
    """Positions in units of ``size`` bases, exact to the base, all with the same decimals."""
    decimals = next(
        d for d in range(10) if all(abs(round(p / size, d) * size - p) < 0.01 for p in positions)
    )
    return [f"{position / size:,.{decimals}f}" for position in positions]


def _caption(region: Region, summaries: Sequence[Summary]) -> str:
    """Axis title, with what the shades mean where they occur."""
    parts = [f"{region.contig} ({_unit(region)[1]})"]
    if any((summary.low < summary.high).any() for summary in summaries):
        parts.append("strong: mean of the rows behind a pixel, light: their extremes")
    if any(np.isnan(summary.mean).any() for summary in summaries):
        parts.append("gray: no prediction")
    return "; ".join(parts)


def _title(store: PredictionStore, region: Region) -> str:
    place = f"{region.contig}:{region.start + 1:,}-{region.end:,}"
    facts = [store.attributes[name] for name in ("genome", "model") if name in store.attributes]
    return " · ".join([*map(str, facts), place])
