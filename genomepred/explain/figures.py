"""Pictures of explanations: effects along a window, filters with their motifs, attention maps."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from genomepred.errors import optional
from genomepred.explain.attention import Attention
from genomepred.explain.motifs import Filters, Match, Motif
from genomepred.explain.windows import Window
from genomepred.plots import publish_picture, without_formulas
from genomepred.sequences.codes import Codes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_LETTERS = "ACGT"
# Okabe and Ito's colors, told apart with any color vision.
_BASES = {"A": "#009E73", "C": "#0072B2", "G": "#E69F00", "T": "#D55E00"}
_LINE, _ASKED, _BOX, _MISSING = "#333333", "#FFF3C4", "#D55E00", "#E6E6E6"
_DPI = 100
_WIDTH = 14.0  # inches
# Letters that can be read side by side; of longer windows the most important part is drawn.
_READABLE = 120
_PIXELS = 1200  # columns of an overview
_FILTERS = 32  # filters in one picture


def require_plotting() -> None:
    """Check, before the work, that pictures can be drawn after it.

    Raises
    ------
    DependencyError
        If matplotlib or logomaker is not installed.
    """
    with optional("a picture", "plot", ", or use --pictures 0"):
        import logomaker  # noqa: F401
        import matplotlib.figure  # noqa: F401


class Profile(NamedTuple):
    """Values that are drawn along a window.

    ``values`` ``[window, 4]`` in the order A, C, G, T, NaN where missing, with the meaning
    ``legend``; ``heights`` ``[window]`` of the letters, with the meaning ``heights_label``;
    ``importance`` ``[window]``, with the meaning ``importance_label``.
    """

    values: Float32
    legend: str
    heights: Float64
    heights_label: str
    importance: Float64
    importance_label: str


def draw_profile(path: Path, window: Window, profile: Profile, title: str) -> None:
    """Draw letters, heatmap and importance along a window.

    A window of more bases than letters can be read shows all its importance and, of the rest, the
    stretch that holds most of it. Bases that were asked for lie on a yellow ground if others do
    not.

    Parameters
    ----------
    path : Path
        The PNG.
    window : Window
    profile : Profile
    title : str
    """
    length = len(window.codes)
    first, last = _legible_part(profile.importance, window.asked)
    overview = last - first < length
    ratios = [*([1.1] if overview else []), 1.5, 1.0, 1.0]
    with _published(path, (_WIDTH, 1.2 + 1.35 * sum(ratios))) as figure:
        axes = list(figure.subplots(len(ratios), 1, gridspec_kw={"height_ratios": ratios}))
        if overview:
            _draw_overview(axes.pop(0), window, profile, (first, last))
        for panel in axes[:-1]:
            panel.sharex(axes[-1])
            panel.tick_params(labelbottom=False)
        _draw_letters(axes[0], window, profile, (first, last))
        _draw_heatmap(figure, axes[1], window, profile, (first, last))
        _draw_importance(axes[2], window, profile, (first, last))
        figure.suptitle(title, fontsize=12)


def most_important(importance: Float64, width: int) -> tuple[int, int]:
    """The ``width`` neighbors, or all if there are not as many, with the largest sum."""
    if len(importance) <= width:
        return 0, len(importance)
    sums = np.cumsum(np.concatenate([[0.0], np.nan_to_num(importance)]))
    first = int(np.argmax(sums[width:] - sums[:-width]))
    return first, first + width


def _legible_part(importance: Float64, asked: tuple[int, int]) -> tuple[int, int]:
    """The most important part of what was asked for, with its surroundings if that is short."""
    missing = max(_READABLE - (asked[1] - asked[0]), 0)
    low = max(min(asked[0] - missing // 2, len(importance) - _READABLE), 0)
    high = min(max(asked[1] + missing - missing // 2, _READABLE), len(importance))
    first, last = most_important(importance[low:high], _READABLE)
    return low + first, low + last


@contextmanager
def _published(path: Path, size: tuple[float, float]) -> Iterator[Figure]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    yield figure
    canvas = FigureCanvasAgg(without_formulas(figure))
    canvas.draw()  # type: ignore[no-untyped-call]
    drawn = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    pixels = Image.fromarray(drawn).convert("RGB")
    image = io.BytesIO()
    # A palette makes the file of 32 logos 0.1 MB instead of 0.4.
    method, dither = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE
    pixels.quantize(256, method, 3, dither=dither).save(image, "PNG", optimize=True)
    publish_picture(path, image)


def _diverging() -> Colormap:
    """Blue, white, red in steps few enough for the picture's palette to hold them all."""
    from matplotlib import colormaps

    return colormaps["RdBu_r"].resampled(41)


def _draw_overview(axes: Axes, window: Window, profile: Profile, part: tuple[int, int]) -> None:
    """Importance of the whole window, the highest of each column of pixels, and the part below."""
    bases = np.nan_to_num(profile.importance)
    edges = np.unique(np.linspace(0, len(bases), min(_PIXELS, len(bases)) + 1).astype(int))
    highest = np.maximum.reduceat(bases, edges[:-1])
    x = window.start + edges + 0.5
    axes.fill_between(x, np.append(highest, highest[-1]), step="post", color=_LINE, linewidth=0)
    first, last = (window.start + base + 0.5 for base in part)
    axes.axvspan(first, last, facecolor="none", edgecolor=_BOX, linewidth=1.5)
    _mark_asked(axes, window)
    axes.set_xlim(x[0], x[-1])
    axes.set_ylim(bottom=0)
    axes.set_ylabel("whole\nwindow")
    _number_bases(axes)


def _draw_letters(axes: Axes, window: Window, profile: Profile, part: tuple[int, int]) -> None:
    _mark_asked(axes, window)
    heights = np.zeros((part[1] - part[0], 4))
    codes = window.codes[slice(*part)]
    known = np.flatnonzero(codes < 4)
    heights[known, codes[known]] = np.nan_to_num(profile.heights[slice(*part)])[known]
    _logo(axes, heights, window.start + part[0] + 1)
    axes.set_ylabel(profile.heights_label)
    axes.axhline(0, color=_LINE, linewidth=0.6)


def _logo(axes: Axes, heights: Float64, first: int) -> None:
    """Letters of the given heights ``[positions, 4]``, their centers from ``first`` on."""
    import pandas as pd
    from logomaker import Logo

    places = range(first, first + len(heights))
    table = pd.DataFrame(heights, columns=list(_LETTERS), index=places)
    Logo(table, ax=axes, color_scheme=_BASES, shade_below=0, fade_below=0, baseline_width=0)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_heatmap(
    figure: Figure, axes: Axes, window: Window, profile: Profile, part: tuple[int, int]
) -> None:
    values = profile.values[slice(*part)]
    limit = float(np.nanmax(np.abs(values), initial=1e-12))
    place = (window.start + part[0] + 0.5, window.start + part[1] + 0.5, 3.5, -0.5)
    axes.set_facecolor(_MISSING)
    image = axes.imshow(
        values.T,
        aspect="auto",
        cmap=_diverging(),
        vmin=-limit,
        vmax=limit,
        extent=place,
        interpolation="nearest",
    )
    codes = window.codes[slice(*part)]
    known = np.flatnonzero(codes < 4)
    axes.plot(window.start + part[0] + 1 + known, codes[known], ".", color=_LINE, markersize=3)
    axes.set_yticks(range(4), list(_LETTERS))
    figure.colorbar(image, ax=axes, pad=0.01, fraction=0.02).set_label(profile.legend, fontsize=8)


def _draw_importance(axes: Axes, window: Window, profile: Profile, part: tuple[int, int]) -> None:
    _mark_asked(axes, window)
    x = window.start + np.arange(*part) + 1
    importance = profile.importance[slice(*part)]
    axes.fill_between(x, np.nan_to_num(importance), step="mid", color="#56B4E9", linewidth=0)
    axes.plot(x, importance, drawstyle="steps-mid", color=_LINE, linewidth=1)
    axes.set_xlim(x[0] - 0.5, x[-1] + 0.5)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(profile.importance_label)
    axes.set_xlabel(f"{window.contig} (bp)")
    axes.spines[["top", "right"]].set_visible(False)
    _number_bases(axes)


def _mark_asked(axes: Axes, window: Window) -> None:
    first, last = window.asked
    if last - first < len(window.codes):
        place = window.start + first + 0.5, window.start + last + 0.5
        axes.axvspan(*place, color=_ASKED, linewidth=0, zorder=-2)


def _number_bases(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))


def draw_filters(path: Path, filters: Filters, matches: Sequence[Match] | None, title: str) -> None:
    """Draw a logo of each filter's motif above a heatmap of its weights.

    Of many filters the first are drawn: by their match, or else by their motif's information.

    Parameters
    ----------
    path : Path
        The PNG.
    filters : Filters
    matches : sequence of Match or None
        The best match of each filter.
    title : str
    """
    bits = [motif.information(filters.background) for motif in filters.motifs]
    if matches is None:
        order = np.argsort([-float(b.sum()) for b in bits], kind="stable")[:_FILTERS]
    else:
        order = np.argsort([match.p_value for match in matches], kind="stable")[:_FILTERS]
    across = min(4, len(order))
    rows = math.ceil(len(order) / across)
    limit = float(np.abs(filters.weights[order]).max()) or 1.0
    most = -math.log2(filters.background.min())  # bits of a column that is always the rarest base
    with _published(path, (3.4 * across, 0.9 + 1.75 * rows)) as figure:
        cells = figure.subplots(
            2 * rows, across, squeeze=False, gridspec_kw={"height_ratios": [1.6, 1] * rows}
        )
        for cell in cells.ravel():
            cell.set_axis_off()
        for place, k in enumerate(order):
            row, column = divmod(place, across)
            logo, weights = cells[2 * row, column], cells[2 * row + 1, column]
            match = matches[k] if matches else None
            _draw_motif(logo, filters.motifs[k], bits[k], most, match)
            weights.set_axis_on()
            weights.imshow(
                filters.weights[k], aspect="auto", cmap=_diverging(), vmin=-limit, vmax=limit
            )
            weights.set_yticks(range(4), list(_LETTERS), fontsize=6)
            weights.set_xticks([])
        figure.suptitle(title, fontsize=12)


def _draw_motif(axes: Axes, motif: Motif, bits: Float64, most: float, match: Match | None) -> None:
    axes.set_axis_on()
    _logo(axes, motif.probabilities * bits[:, None], 0)
    axes.set_ylim(0, most)
    axes.set_xticks([])
    axes.set_yticks([0, 1, 2], ["0", "1", "2"], fontsize=6)
    text = f"{motif.name}: {motif.sites:,} sites, {bits.sum():.1f} bits"
    if match is not None:
        text += f"\n{match.name} {match.strand}, p = {match.p_value:.1g}"
    axes.set_title(text, fontsize=7, pad=2)


def draw_attention(path: Path, window: Window, attention: Attention, title: str) -> None:
    """Draw each layer's map, the mean over its heads, and what each base receives.

    Parameters
    ----------
    path : Path
        The PNG.
    window : Window
    attention : Attention
    title : str
    """
    layers = len(attention.maps)
    across = min(layers, 6)
    rows = math.ceil(layers / across)
    height = (2.4 if across > 3 else 3.6) * rows
    with _published(path, (_WIDTH, height + 2.9)) as figure:
        parts = figure.subfigures(2, 1, squeeze=False, height_ratios=[height, 2.4])
        above, below = parts[0, 0], parts[1, 0]
        cells = above.subplots(rows, across, squeeze=False).ravel()
        for cell in cells[layers:]:
            cell.set_axis_off()
        for number, (axes, of_layer) in enumerate(zip(cells, attention.maps, strict=False), 1):
            image = _draw_map(axes, of_layer.mean(0), number)
            above.colorbar(image, ax=axes, pad=0.02, shrink=0.8).ax.tick_params(labelsize=6)
        _draw_received(below.subplots(), window, attention)
        figure.suptitle(title, fontsize=12)


def _draw_map(axes: Axes, weights: Float32, number: int) -> AxesImage:
    # A few strong weights would leave the rest of the map in the dark.
    most = float(np.quantile(weights, 0.995))
    image = axes.imshow(weights, cmap="viridis", vmin=0, vmax=most or 1.0, interpolation="nearest")
    axes.set_aspect("equal" if len(weights) > 1 else "auto")
    axes.set_title(f"layer {number}", fontsize=9)
    axes.tick_params(labelsize=7)
    if number == 1:
        axes.set_ylabel("query position", fontsize=8)
        axes.set_xlabel("position attended to", fontsize=8)
    return image


def _draw_received(axes: Axes, window: Window, attention: Attention) -> None:
    """Attention to each base, averaged over the layers, in multiples of an even share."""
    mean = attention.received.mean(0, dtype=np.float64) / np.maximum(attention.even, 1e-12)
    x = window.start + np.arange(len(mean)) + 1
    axes.axhline(1, color=_MISSING, linewidth=1)
    axes.plot(x, mean, drawstyle="steps-mid", color=_LINE, linewidth=1)
    _mark_asked(axes, window)
    if len(mean) <= _READABLE:
        _write_bases(axes, window.codes, window.start + 1)
    axes.set_xlim(x[0] - 0.5, x[-1] + 0.5)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("attention received,\nmean of layers (1 = even)")
    axes.set_xlabel(f"{window.contig} (bp)")
    axes.spines[["top", "right"]].set_visible(False)
    _number_bases(axes)


def _write_bases(axes: Axes, codes: Codes, first: int) -> None:
    """The sequence along the lower edge of a panel."""
    for place, code in enumerate(codes):
        letter = _LETTERS[code] if code < 4 else "n"
        axes.annotate(
            letter,
            (first + place, 0),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            fontsize=7,
            color=_BASES.get(letter, _LINE),
            annotation_clip=True,
        )
