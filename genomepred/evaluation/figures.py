"""Pictures of training and evaluation: learning curves, parity, ROC and PR curves, sweeps."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from genomepred.errors import DataError, optional
from genomepred.plots import COLORS, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Float64 = NDArray[np.float64]
Values = NDArray[np.floating[Any]]

# Line styles and markers tell apart what comes after the colors.
_COLORS = (*COLORS, "#000000")
_STYLES = ("-", "--", ":", "-.")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # one more than colors: pairs differ
_GRAY = "#777777"
_DPI = 120
_FONT = 11  # points; 9 for legends and notes
_MOST = 16  # panels or curves that stay legible; more are left out, and the picture says so
# Points above which parity is drawn as a density: at this size dots hide one another.
_DENSE = 2000
_POINTS = 2000  # of a ROC or PR curve: more than the pixels it has


class Series(NamedTuple):
    """Labels and predictions of one panel or curve, and a note on them.

    Parameters
    ----------
    labels, predictions : float array, [n]
        NaN labels are left out.
    note : str, optional
        Metrics with their intervals, drawn beside the data; may have several lines.
    unit : str, optional
        Unit of both.
    """

    labels: Values
    predictions: Values
    note: str = ""
    unit: str = ""

    def known(self) -> tuple[Values, Values]:
        """Labels and predictions where the label is known."""
        rows = ~np.isnan(self.labels)
        return self.labels[rows], self.predictions[rows]


def read_history(path: Path) -> dict[str, Float64]:
    """Columns of a ``history.csv``, an empty field as NaN.

    Raises
    ------
    DataError
        If it cannot be read, holds no epoch, or a field is no number.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        columns = {name: [float(row[name] or "nan") for row in rows] for name in rows[0]}
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except IndexError:
        raise DataError(f"{path}: holds no epoch; train for at least one") from None
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: is not a history of epochs: {error}") from error
    return {name: np.array(values) for name, values in columns.items()}


def curves(histories: Mapping[str, Path], metric: str, path: Path) -> None:
    """Draw the losses, the metric that chooses the best epoch, and the learning rate.

    Parameters
    ----------
    histories : mapping of str to Path
        Name of each run and its ``history.csv``; the name is shown if there are several.
    metric : str
        Column; higher is better, and the first epoch with the highest value is marked.
    path : Path
        The picture.

    Raises
    ------
    DataError
        If a history cannot be read or has no such column.
    DependencyError
        If matplotlib is not installed.
    OutputError
        If the picture cannot be written.
    """
    runs = {name: read_history(file) for name, file in histories.items()}
    for name, file in histories.items():
        _require(runs[name], ("epoch", "loss", "validation_loss", metric, "learning_rate"), file)
    figure = new_figure(11, 3.6)
    losses, scores, rates = figure.subplots(1, 3)
    for i, (name, run) in enumerate(runs.items()):
        look = _line(i) | {"marker": "." if len(run["epoch"]) <= 40 else ""}
        color = look["color"] if len(runs) > 1 else _COLORS[1]
        losses.plot(run["epoch"], run["loss"], **look | {"linestyle": "-"})
        losses.plot(
            run["epoch"], run["validation_loss"], **look | {"linestyle": "--", "color": color}
        )
        scores.plot(run["epoch"], run[metric], **look, label=name if len(runs) > 1 else None)
        rates.plot(run["epoch"], run["learning_rate"], **look)
        _mark_best(scores, run["epoch"], run[metric], look["color"], tell=len(runs) == 1)
    _name_lines(losses, {"training": "-", "validation": "--"}, runs)
    if scores.get_legend_handles_labels()[1]:
        scores.legend(fontsize=9)
    for axes, title in (
        (losses, "loss"),
        (scores, f"validation {metric}"),
        (rates, "learning rate"),
    ):
        _finish(axes, "epoch", title)
        _whole_numbers(axes)
    rates.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    rates.set_ylim(bottom=0)
    save_figure(figure, path)


def _mark_best(axes: Axes, epochs: Float64, scores: Float64, color: str, *, tell: bool) -> None:
    """A star at the first of the highest scores, which the legend tells if asked."""
    if np.isnan(scores).all():
        return
    best = int(np.nanargmax(scores))
    label = f"best: {scores[best]:.4g}, epoch {epochs[best]:g}" if tell else None
    axes.plot(
        epochs[best],
        scores[best],
        "*",
        color=color,
        markersize=15,
        markeredgecolor="white",
        label=label,
    )


def _require(run: Mapping[str, Float64], columns: Iterable[str], path: Path) -> None:
    for column in columns:
        if column not in run:
            raise DataError(f"{path}: has no column {column!r}; it has {', '.join(run)}")


def _name_lines(axes: Axes, styles: Mapping[str, Any], runs: Mapping[str, Any]) -> None:
    """Legend of line styles, in gray where colors stand for runs."""
    from matplotlib.lines import Line2D

    colors = _COLORS if len(runs) == 1 else (_GRAY,) * len(styles)
    lines = [
        Line2D([], [], color=color, linestyle=style)
        for style, color in zip(styles.values(), colors, strict=False)
    ]
    axes.legend(lines, list(styles), fontsize=9)


def parity(panels: Mapping[str, Series], path: Path) -> None:
    """Draw predictions against measurements, one square panel a track.

    Up to 2,000 points are drawn as dots, more as counts in hexagons.

    Parameters
    ----------
    panels : mapping of str to Series
        By title; the first 16 with a known label are drawn.
    path : Path
        The picture.

    Raises
    ------
    DependencyError
        If matplotlib is not installed.
    OutputError
        If the picture cannot be written.
    """
    drawn = {name: series for name, series in panels.items() if len(series.known()[0])}
    shown = dict(islice(drawn.items(), _MOST))
    columns = ceil(len(shown) ** 0.5)
    rows = ceil(len(shown) / columns)
    size = 5.0 if len(shown) == 1 else 3.6
    figure = new_figure(size * columns + 0.6, size * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    for axes, (name, series) in zip(grid.flat, shown.items(), strict=False):
        _draw_parity(figure, axes, series)
        axes.set_title(name, fontsize=_FONT)
    _tell_omitted(figure, len(drawn) - len(shown), "tracks")
    save_figure(figure, path)


def _draw_parity(figure: Figure, axes: Axes, series: Series) -> None:
    labels, predictions = series.known()
    low = float(min(labels.min(), predictions.min()))
    high = float(max(labels.max(), predictions.max()))
    margin = 0.04 * (high - low) or 0.5
    low, high = low - margin, high + margin
    axes.axline((low, low), slope=1, color=_GRAY, linewidth=1, linestyle="--", zorder=3)
    if len(labels) > _DENSE:
        drawn = axes.hexbin(
            labels,
            predictions,
            gridsize=50,
            bins="log",
            cmap="viridis_r",
            extent=(low, high, low, high),
            mincnt=1,
            linewidths=0.1,
        )
        figure.colorbar(drawn, ax=axes, label="sequences", shrink=0.8)
    else:
        size = float(np.clip(6000 / len(labels), 8, 40))
        axes.scatter(labels, predictions, s=size, color=_COLORS[0], alpha=0.5, linewidths=0)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    unit = f" ({series.unit})" if series.unit else ""
    _finish(axes, f"measured{unit}", f"predicted{unit}")
    _note(axes, series.note)


def _note(axes: Axes, text: str) -> None:
    axes.text(
        0.03,
        0.97,
        text,
        transform=axes.transAxes,
        fontsize=9,
        va="top",
        bbox={"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 2},
        zorder=4,
    )


def roc_pr(series: Mapping[str, Series], path: Path) -> None:
    """Draw ROC and precision-recall curves, one pair a track or test set.

    Parameters
    ----------
    series : mapping of str to Series
        By name in the legend, with its note; labels are 0 or 1, predictions any score that is
        higher for positives. The first 16 with both labels are drawn.
    path : Path
        The picture.

    Raises
    ------
    DependencyError
        If matplotlib is not installed.
    OutputError
        If the picture cannot be written.
    """
    both = {name: one for name, one in series.items() if len(np.unique(one.known()[0])) == 2}
    shown = dict(islice(both.items(), _MOST))
    below = 0.35 + 0.22 * len(shown)
    figure = new_figure(10, 5.2 + below)
    roc, pr = figure.subplots(1, 2)
    roc.axline((0, 0), slope=1, color=_GRAY, linewidth=1, linestyle=":")
    lines = []
    for i, one in enumerate(shown.values()):
        false_rate, recall, precision = _rates(*one.known())
        look = _line(i)
        lines += roc.plot(np.append(0, false_rate), np.append(0, recall), **look)
        pr.plot(recall, precision, drawstyle="steps-pre", **look)
        pr.axhline(precision[-1], color=look["color"], linewidth=1, linestyle=":")
    for axes in (roc, pr):
        axes.set_xlim(-0.01, 1.01)
        axes.set_ylim(-0.01, 1.01)
        axes.set_aspect("equal")
    _finish(roc, "false positive rate (1 - specificity)", "true positive rate (sensitivity)")
    _finish(pr, "recall (sensitivity)", "precision")
    names = [f"{name}: {one.note}" if one.note else name for name, one in shown.items()]
    figure.legend(lines, names, loc="outside lower center", fontsize=9, frameon=False)
    _tell_omitted(figure, len(both) - len(shown), "curves")
    roc.set_title("ROC (dotted: chance)", fontsize=_FONT)
    pr.set_title("precision-recall (dotted: share of positives)", fontsize=_FONT)
    save_figure(figure, path)


def _rates(labels: Values, scores: Values) -> tuple[Float64, Float64, Float64]:
    """False positive rate, recall and precision at falling thresholds, thinned for drawing."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    true = np.cumsum(labels[order] > 0.5, dtype=np.float64)[ends]
    called = ends + 1.0
    recall, false_rate = true / true[-1], (called - true) / (called[-1] - true[-1])
    # Points spread evenly along both curves: by the sum of what each step moves.
    course = np.cumsum(np.diff(false_rate + recall, prepend=0))
    kept = np.unique(np.searchsorted(course, np.linspace(0, course[-1], _POINTS) - 1e-12))
    return false_rate[kept], recall[kept], (true / called)[kept]


class Run(NamedTuple):
    """A run of a sweep, seed by seed.

    Parameters
    ----------
    courses : sequence of float64 array
        Validation metric of each epoch.
    finals : mapping of str to float64 array, [seeds]
        Metric of the best epoch's weights, by part ("validation", "test").
    """

    courses: Sequence[Float64]
    finals: Mapping[str, Float64]


def comparison(runs: Mapping[str, Run], metric: str, path: Path) -> None:
    """Draw the learning curves of a sweep's runs, and their final metrics seed by seed.

    Parameters
    ----------
    runs : mapping of str to Run
        By name, from top to bottom; parts that all of them have are drawn. Thin lines and dots are
        seeds, strong lines and markers their mean; whiskers reach one standard deviation.
    metric : str
        Name of the metric.
    path : Path
        The picture.

    Raises
    ------
    DependencyError
        If matplotlib is not installed.
    OutputError
        If the picture cannot be written.
    """
    first, *others = (run.finals for run in runs.values())
    parts = [part for part in first if all(part in finals for finals in others)]
    figure = new_figure(6.5 + 2.5 * len(parts), max(3.4, 1.4 + 0.38 * len(runs)))
    axes, *finals = figure.subplots(
        1, 1 + len(parts), squeeze=False, width_ratios=[1.7, *[1] * len(parts)]
    )[0]
    for i, (name, run) in enumerate(runs.items()):
        look = _line(i)
        for course in run.courses:
            axes.plot(np.arange(len(course)), course, linewidth=0.6, alpha=0.4, **look)
        mean = _mean_course(run.courses)
        axes.plot(
            np.arange(len(mean)),
            mean,
            linewidth=2,
            marker=_MARKERS[i % len(_MARKERS)],
            markevery=max(len(mean) // 8, 1),
            label=name,
            **look,
        )
        for panel, part in zip(finals, parts, strict=True):
            _draw_seeds(panel, i, run.finals[part])
    _finish(axes, "epoch", f"validation {metric}")
    _whole_numbers(axes)
    axes.set_title("learning curves; right: best epochs", fontsize=_FONT)
    for panel, part in zip(finals, parts, strict=True):
        panel.set_yticks(range(len(runs)), list(runs) if panel is finals[0] else [])
        panel.set_ylim(len(runs) - 0.5, -0.5)
        _finish(panel, f"{metric}, mean ± sd", "")
        panel.grid(axis="x", color="#E6E6E6")
        panel.set_axisbelow(True)
        panel.locator_params(axis="x", nbins=4)
        panel.set_title(part, fontsize=_FONT)
    save_figure(figure, path)


def _mean_course(courses: Sequence[Float64]) -> Float64:
    """Mean of the seeds at each epoch that all of them reached."""
    reached = min(map(len, courses))
    mean: Float64 = np.mean([course[:reached] for course in courses], axis=0)
    return mean


def _draw_seeds(axes: Axes, row: int, values: Float64) -> None:
    color, known = _COLORS[row % len(_COLORS)], values[~np.isnan(values)]
    if not known.size:
        return
    axes.plot(known, np.full(len(known), row + 0.25), ".", color=color, markersize=5)
    axes.errorbar(
        known.mean(),
        row,
        xerr=known.std(ddof=1) if len(known) > 1 else None,
        fmt=_MARKERS[row % len(_MARKERS)],
        color=color,
        capsize=4,
        markersize=7,
    )


def _line(number: int) -> dict[str, Any]:
    """Color and style of a line among several."""
    return {
        "color": _COLORS[number % len(_COLORS)],
        "linestyle": _STYLES[number // len(_COLORS) % len(_STYLES)],
    }


def new_figure(width: float, height: float) -> Figure:
    """Empty figure of a size in inches.

    Raises
    ------
    DependencyError
        If matplotlib is not installed.
    """
    with optional("a picture", "train"):
        from matplotlib.figure import Figure
    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def _finish(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=_FONT)
    axes.set_ylabel(y, fontsize=_FONT)
    axes.tick_params(labelsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _tell_omitted(figure: Figure, count: int, what: str) -> None:
    if count:
        figure.suptitle(f"the first {_MOST}; {count} more {what} are not drawn", fontsize=_FONT)
