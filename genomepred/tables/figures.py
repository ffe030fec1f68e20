"""Pictures of comparisons: a clustered heat map; samples by components and as a tree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genomepred.evaluation.figures import new_figure
from genomepred.plots import COLORS, save_figure
from genomepred.store.reader import Float32

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

_GRAY = "#777777"
_MISSING = "#E6E6E6"
# Names that can be read beside a picture.
_MOST_REGIONS, _MOST_SAMPLES, _MOST_POINTS = 60, 60, 30
# Distinct samples of a tree: its distances take 8 bytes a pair.
_MOST_DISTINCT = 4000


def draw_heat_map(
    values: Float32,
    regions: Sequence[str],
    samples: Sequence[str],
    group: NDArray[np.int8],
    groups: Sequence[str],
    title: str,
    path: Path,
) -> None:
    """Draw how far samples are from each region's mean, both in the order of their clusters.

    Parameters
    ----------
    values : float32 array, [samples, regions]
        NaN is drawn gray.
    regions, samples : sequence of str
    group : int8 array, [samples]
        Number of each sample's group, or -1.
    groups : sequence of str
        Names of the groups; none draws no band for them.
    title : str
    path : Path
    """
    from matplotlib import colormaps

    values = values - _filled(values).mean(axis=0).astype(np.float32)
    columns, rows = cluster_order(values), cluster_order(values.T)
    reach = float(np.nanpercentile(np.abs(values), 99)) or 1.0
    height = min(3 + 0.13 * len(regions), 14)
    figure = new_figure(9, height)
    band = [0.03] if groups else []
    axes = figure.subplots(1 + len(band), 1, height_ratios=[*band, 1], squeeze=False)[:, 0]
    if groups:
        _draw_band(axes[0], group[columns], groups)
    main = axes[-1]
    shown = np.ma.masked_invalid(values[np.ix_(columns, rows)].T)
    colors = colormaps["RdBu_r"].with_extremes(bad=_MISSING)
    image = main.imshow(
        shown, aspect="auto", cmap=colors, vmin=-reach, vmax=reach, interpolation="nearest"
    )
    _name(main, "y", [regions[k] for k in rows], _MOST_REGIONS, "regions")
    _name(main, "x", [samples[k] for k in columns], _MOST_SAMPLES, "samples")
    figure.colorbar(
        image, ax=main, label="prediction less the region's mean", shrink=0.6, extend="both"
    )
    figure.suptitle(title, fontsize=12)
    save_figure(figure, path)


def draw_samples(
    values: Float32,
    samples: Sequence[str],
    group: NDArray[np.int8],
    groups: Sequence[str],
    title: str,
    path: Path,
) -> None:
    """Draw samples by their first two principal components and as a tree; arguments as above."""
    points, shares = principal_components(values)
    figure = new_figure(12, 5)
    left, right = figure.subplots(1, 2)
    for number in [-1, *range(len(groups))]:
        here = group == number
        if here.any():
            color = COLORS[number] if number >= 0 else (_GRAY if groups else COLORS[0])
            label = (
                f"{groups[number]} ({here.sum():,})" if number >= 0 else f"other ({here.sum():,})"
            )
            left.scatter(*points[here].T, s=14, color=color, alpha=0.7, linewidths=0, label=label)
    if groups:
        left.legend(frameon=False, fontsize=9)
    if len(samples) <= _MOST_POINTS:
        for name, (x, y) in zip(samples, points.tolist(), strict=True):
            left.annotate(name, (x, y), (3, 3), textcoords="offset points", fontsize=7)
    left.set_xlabel(f"component 1 ({shares[0]:.0%} of the variance)")
    left.set_ylabel(f"component 2 ({shares[1]:.0%})")
    left.locator_params(nbins=5)
    left.spines[["top", "right"]].set_visible(False)
    _draw_tree(right, values, samples)
    figure.suptitle(title, fontsize=12)
    save_figure(figure, path)


def principal_components(values: Float32) -> tuple[Float64, Float64]:
    """First two components of samples, [samples, 2], and their shares of the variance, [2].

    Columns are centered; a missing value is its column's mean.
    """
    filled = _filled(values)
    centered = filled - filled.mean(axis=0)
    left, spread, _ = np.linalg.svd(centered, full_matrices=False)
    points, shares = np.zeros((len(values), 2)), np.zeros(2)
    k = min(2, len(spread))
    points[:, :k] = left[:, :k] * spread[:k]
    if (spread > 0).any():
        shares[:k] = (spread**2 / (spread**2).sum())[:k]
    return points, shares


def cluster_order(values: Float32) -> Int64:
    """Order of rows [n, values] in which those of a cluster stand together.

    Average linkage of Euclidean distances between distinct rows; of too many for a tree, the order
    is that of the first principal component.
    """
    filled = _filled(values)
    distinct, first = np.unique(filled, axis=0, return_inverse=True)
    number = first.reshape(-1)
    if len(distinct) > _MOST_DISTINCT:
        place = np.argsort(np.argsort(principal_components(distinct.astype(np.float32))[0][:, 0]))
    else:
        place = np.argsort(_leaves(distinct))
    return np.argsort(place[number], kind="stable")


def _leaves(distinct: Float64) -> Int64:
    from scipy.cluster.hierarchy import leaves_list

    if len(distinct) < 2:
        return np.arange(len(distinct))
    return np.asarray(leaves_list(_linkage(distinct)), np.int64)


def _linkage(distinct: Float64) -> Any:
    from scipy.cluster.hierarchy import linkage

    return linkage(distinct, "average", optimal_ordering=len(distinct) <= 200)


def _filled(values: Float32) -> Float64:
    """Values with the mean of their column instead of what is missing or infinite."""
    known = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
    count = (~np.isnan(known)).sum(axis=0)
    means = np.nansum(known, axis=0) / np.maximum(count, 1)
    return np.where(np.isnan(known), means, known)


def _draw_tree(axes: Axes, values: Float32, samples: Sequence[str]) -> None:
    from scipy.cluster.hierarchy import dendrogram

    distinct, first, number = np.unique(
        _filled(values), axis=0, return_index=True, return_inverse=True
    )
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    if not 2 <= len(distinct) <= _MOST_DISTINCT:
        axes.text(0.5, 0.5, f"no tree of {len(distinct):,} distinct samples", ha="center")
        axes.set_axis_off()
        return
    sizes = np.bincount(number.reshape(-1))
    names = [
        samples[k] + (f" and {size - 1:,} equal" if size > 1 else "")
        for k, size in zip(first.tolist(), sizes.tolist(), strict=True)
    ]
    few = len(distinct) <= _MOST_SAMPLES
    dendrogram(
        _linkage(distinct),
        ax=axes,
        p=_MOST_SAMPLES,
        truncate_mode=None if few else "lastp",
        labels=names,
        leaf_rotation=90,
        leaf_font_size=7,
        color_threshold=0,
        above_threshold_color=COLORS[0],
    )
    axes.set_ylabel("distance (average linkage)")
    if not few:
        counted = f"{len(distinct):,} distinct of {len(samples):,} samples"
        axes.set_xlabel(f"{counted}; in brackets: distinct ones of a branch")


def _draw_band(axes: Axes, group: NDArray[np.int8], groups: Sequence[str]) -> None:
    """Draw the group of each column above the heat map."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    colors = [_MISSING, *COLORS[: len(groups)]]
    axes.imshow(
        group[None, :] + 1,
        aspect="auto",
        cmap=ListedColormap(colors),
        vmin=0,
        vmax=len(groups),
        interpolation="nearest",
    )
    axes.set_axis_off()
    keys = [Patch(color=color, label=name) for color, name in zip(colors[1:], groups, strict=True)]
    axes.legend(
        handles=keys, ncol=len(keys), loc="lower left", bbox_to_anchor=(0, 1), frameon=False
    )


def _name(axes: Axes, which: str, names: Sequence[str], most: int, what: str) -> None:
    axis = axes.yaxis if which == "y" else axes.xaxis
    if len(names) > most:
        axis.set_ticks([])
        (axes.set_ylabel if which == "y" else axes.set_xlabel)(f"{len(names):,} {what}, clustered")
        return
    axis.set_ticks(range(len(names)), list(names), fontsize=6, rotation=0 if which == "y" else 90)
