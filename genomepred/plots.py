"""Pictures of predictions along a genome."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from genomepred.errors import OutputError, RegionError, StoreError, optional
from genomepred.files import publishing
from genomepred.sequences.grid import Region
from genomepred.store.reader import Float32, PredictionStore

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from genomepred.store.bins import Bins
    from genomepred.store.blocks import BlockSource

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
    _require_picture(path, region)
    columns = store.columns(tracks)
    start, end, values = _drawn_rows(store, region)
    edges = np.linspace(region.start, region.end, min(_PIXELS, region.end - region.start) + 1)
    summaries = {
        store.tracks[column]: summarize(start, end, values[:, column], edges) for column in columns
    }
    figure = _figure(region, edges, summaries, _title(store, region))
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> None:
    """Publish a picture in the format that its name says, PNG if it says none."""
    image = io.BytesIO()
    without_formulas(figure).savefig(image, format=path.suffix[1:].lower() or "png")
    publish_picture(path, image)


def without_formulas(figure: Figure) -> Figure:
    """The figure with texts as they are, but for those at ticks: names may hold dollar signs."""
    from matplotlib.axis import Tick
    from matplotlib.text import Text

    at_ticks = {id(text) for tick in figure.findobj(Tick) for text in tick.findobj(Text)}
    for text in figure.findobj(Text):
        if id(text) not in at_ticks:
            text.set_parse_math(False)
    return figure


def publish_picture(path: Path, image: io.BytesIO) -> None:
    """Publish a picture that is drawn: what draws it does not see the disk, nor hide its errors.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    with publishing(path, follow=True) as temporary, open(temporary, "xb") as file:
        file.write(image.getbuffer())


def _require_picture(path: Path, region: Region) -> None:
    """Refuse other formats, no bases, and to do without matplotlib, before the work."""
    if path.suffix.lower() not in _FORMATS:
        raise OutputError(f"{path}: name the picture {', '.join(f'*{s}' for s in _FORMATS)}")
    with optional("plot", "plot"):
        import matplotlib.figure  # noqa: F401
    if region.start >= region.end:
        raise RegionError(f"{region.contig} has no bases from {region.start + 1} to {region.end}")


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


# -- many lines -----------------------------------------------------------------------------------

_LEAST_NAMES = 60  # lines up to which each is named
_MOST_LINES = 900  # lines of pixels of the tallest panel
_GENE_COLOR, _NONE = "#31688E", "#C8C8C8"


class Feature(Protocol):
    """A gene as it is drawn."""

    @property
    def start(self) -> int:
        """First base."""
        ...

    @property
    def end(self) -> int:
        """Behind the last base."""
        ...

    @property
    def name(self) -> str:
        """Name that is written beside it."""
        ...

    @property
    def exons(self) -> Sequence[tuple[int, int]]:
        """Bases [start, end) of its exons."""
        ...


def plot_heat_map(
    source: BlockSource,
    region: Region,
    path: Path,
    tracks: Sequence[str] = (),
    lines: Sequence[str] = (),
    difference: str | None = None,
    genes: Sequence[Feature] = (),
) -> None:
    """Draw a region of many haplotypes or genomes, a line each, one panel a track.

    A column of pixels shows the mean of the rows behind it; missing is gray. All lines of a track
    have one scale, from the 1st to the 99th percentile of what is shown.

    Parameters
    ----------
    source : BlockSource
    region : Region
    path : Path
        The picture: ``.png``, ``.pdf`` or ``.svg``.
    tracks : sequence of str
        Panels from top to bottom; all tracks if empty.
    lines : sequence of str
        Lines from top to bottom; all, in the file's order, if empty. A sample is all its copies.
    difference : str, optional
        Draw differences to this line, or to the ``mean`` of the lines that are drawn.
    genes : sequence of Feature
        Genes of the region, drawn above.

    Raises
    ------
    DependencyError
        If matplotlib is not installed.
    RegionError
        If the region is empty, or there is no such line.
    StoreError
        If there is no such track, or a file is damaged.
    OutputError
        If the picture cannot be written or its suffix is none of these.
    """
    _require_picture(path, region)
    numbers = _lines_of(source, lines)
    columns = [_track_of(source, name) for name in tracks or source.tracks]
    from genomepred.store.bins import bins_within  # which compiles, unlike the rest

    bins = bins_within(source, region, _PIXELS)
    panels = {}
    for column in columns:
        values = bins.mean[numbers, :, column]
        if difference is not None:
            values = values - _base_of(source, bins, values, column, difference)
        panels[source.tracks[column]] = values
    names = [source.lines[number] for number in numbers]
    figure = _heat_figure(region, bins, panels, names, difference, genes)
    save_figure(figure, path)


def _lines_of(source: BlockSource, names: Sequence[str]) -> list[int]:
    """Numbers of lines by name, or by the sample whose copies they are."""
    found: list[int] = []
    for name in names:
        samples = [line.rpartition(".")[0] for line in source.lines]
        own = [k for k, line in enumerate(source.lines) if line == name]
        own = own or [k for k, sample in enumerate(samples) if sample == name]
        if not own:
            some = ", ".join(source.lines[:5])
            raise RegionError(
                f"no sample {name!r}; the {len(source.lines):,} lines begin with {some}"
            )
        found += own
    return found or list(range(len(source.lines)))


def _track_of(source: BlockSource, name: str) -> int:
    if name not in source.tracks:
        raise StoreError(f"no track {name!r}; there are {', '.join(source.tracks)}")
    return source.tracks.index(name)


def _base_of(
    source: BlockSource, bins: Bins, values: Float32, column: int, difference: str
) -> Float32:
    """Values that differences are taken to, [bins]."""
    if difference == "mean" and difference not in source.lines:
        present = ~np.isnan(values)
        with np.errstate(invalid="ignore"):
            mean: Float32 = np.where(present, values, 0).sum(axis=0) / present.sum(axis=0)
        return mean
    lines = _lines_of(source, [difference])
    if len(lines) > 1:
        raise RegionError(f"{difference} has {len(lines)} copies; say {source.lines[lines[0]]}")
    base: Float32 = bins.mean[lines[0], :, column]
    return base


def _heat_figure(
    region: Region,
    bins: Bins,
    panels: Mapping[str, Float32],
    names: Sequence[str],
    difference: str | None,
    genes: Sequence[Feature],
) -> Figure:
    from matplotlib.figure import Figure

    tall = min(max(0.16 * len(names), 2.5), 9.0)
    heights = [0.5] * bool(genes) + [tall] * len(panels)
    size = _WIDTH, sum(heights) + 1.4
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    axes = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    if genes:
        _draw_genes(axes[0], region, genes)
    for panel, (name, values) in zip(axes[-len(panels) :], panels.items(), strict=True):
        _draw_heat(panel, bins, values, difference is not None)
        panel.set_ylabel(name, parse_math=False)
        _name_lines(panel, names)
    axes[-1].set_xlim(region.start + 0.5, region.end + 0.5)
    _number_bases(axes[-1], region)
    told = f"{len(names):,} lines" if len(names) > _LEAST_NAMES else ""
    parts = [f"{region.contig} ({_unit(region)[1]})", told, "mean of the rows behind a pixel"]
    parts += [f"difference to {difference}"] if difference else []
    missing = any(np.isnan(values).any() for values in panels.values())
    parts += ["gray: no prediction"] if missing else []
    figure.supxlabel("; ".join(filter(None, parts)), fontsize=9, parse_math=False)
    place = f"{region.contig}:{region.start + 1:,}-{region.end:,}"
    figure.suptitle(place, fontsize=13, parse_math=False)
    return figure


def _draw_heat(axes: Axes, bins: Bins, values: Float32, signed: bool) -> None:
    """Values [lines, bins] as colors, with their scale."""
    from matplotlib import colormaps

    low, high = _scale_of(values, signed)
    count, values = len(values), _thinned(values)
    colors = colormaps["RdBu_r" if signed else "viridis"].with_extremes(bad=_NONE)
    axes.set_facecolor(_NONE)
    # Bins of two intervals may be apart, so each has both its edges; what lies between is missing.
    edges = np.stack([bins.start, bins.end], 1).ravel() + 0.5
    between = np.full((len(values), 2 * len(bins.start) - 1), np.nan, np.float32)
    between[:, ::2] = values
    mesh = axes.pcolormesh(
        edges,
        np.linspace(0, count, len(values) + 1),
        np.ma.masked_invalid(between),
        cmap=colors,
        vmin=low,
        vmax=high,
        rasterized=True,
    )
    axes.invert_yaxis()
    axes.figure.colorbar(mesh, ax=axes, fraction=0.03, pad=0.01, extend="both")


def _thinned(values: Float32) -> Float32:
    """Means of lines that share a line of pixels, [lines, bins]."""
    if len(values) <= _MOST_LINES:
        return values
    first = np.arange(_MOST_LINES) * len(values) // _MOST_LINES
    present = ~np.isnan(values)
    total = np.add.reduceat(np.where(present, values, 0), first, axis=0)
    with np.errstate(invalid="ignore"):
        return (total / np.add.reduceat(present, first, axis=0, dtype=np.int64)).astype(np.float32)


def _scale_of(values: Float32, signed: bool) -> tuple[float, float]:
    present = values[np.isfinite(values)]
    if not present.size:
        return (-1.0, 1.0) if signed else (0.0, 1.0)
    if signed:
        most = float(np.percentile(np.abs(present), 99)) or float(np.abs(present).max()) or 1.0
        return -most, most
    low, high = np.percentile(present, [1, 99]).tolist()
    return (low, high) if low < high else (low, max(float(present.max()), low + 1e-6))


def _name_lines(axes: Axes, names: Sequence[str]) -> None:
    if len(names) > _LEAST_NAMES:
        axes.set_yticks([])
        return
    axes.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=8, parse_math=False)
    axes.tick_params(axis="y", length=0)


def _draw_genes(axes: Axes, region: Region, genes: Sequence[Feature]) -> None:
    """Exons as boxes on a line; names where there is room for them."""
    free = float(region.start)
    letter = (region.end - region.start) / 180
    for gene in genes:
        axes.plot([gene.start + 0.5, gene.end + 0.5], [0, 0], color=_GENE_COLOR, linewidth=1)
        for start, end in gene.exons or [(gene.start, gene.end)]:
            axes.fill_between([start + 0.5, end + 0.5], -0.3, 0.3, color=_GENE_COLOR, linewidth=0)
        left = max(gene.start, region.start)
        if left >= free:
            axes.text(left, 0.45, gene.name, fontsize=7, clip_on=True, parse_math=False)
            free = left + letter * (len(gene.name) + 2)
    axes.set_ylim(-0.4, 1.3)
    axes.set_axis_off()
