"""Evaluation of a model on labeled sequences: metrics with intervals, pictures, worst predictions.

What is written lies in one folder: ``metrics.json`` and ``metrics.tsv``, ``predictions.tsv``,
``worst.tsv``, and ``roc_pr.png`` (binary labels) or ``parity.png``.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from genomepred.data.examples import Codes, Data, Examples, known_bases
from genomepred.data.labels import LabeledData
from genomepred.data.peak_files import is_manifest
from genomepred.data.read import open_data
from genomepred.data.source import Source
from genomepred.data.tables import TABLE, Table
from genomepred.errors import DataError, ModelError
from genomepred.evaluation import figures
from genomepred.evaluation import intervals as bootstrap
from genomepred.evaluation.provenance import as_trained, check_held_out
from genomepred.files import discard_abandoned, make_folder, output_error, publishing, write_whole
from genomepred.inference.engine import ACTIVATION_FUNCTIONS
from genomepred.inference.predictor import Predictor
from genomepred.messages import listed
from genomepred.models.card import Card, Track
from genomepred.models.layers import SequenceModel

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Values = NDArray[np.floating[Any]]

TASKS = ("regression", "binary", "profile")
PARTS = ("test", "validation", "training", "all")
_FILES = (
    *("metrics.json", "metrics.tsv", "predictions.tsv", "worst.tsv", "genomes.tsv"),
    *("roc_pr.png", "parity.png"),
)
_SCRATCH = ".data"
_OVERALL = "-"  # stands for all tracks together in the column of tracks
_LETTERS = np.array(list("ACGTN"))


class Judged(NamedTuple):
    """A set of examples and what a model says of them.

    Parameters
    ----------
    name, task : str
        Of the set; what its labels are.
    tracks : tuple of Track
        The model's, in the order of the labels.
    parts : sequence of Examples
        Where the sequences lie.
    rows : int64 array, [n]
        Which of them, all parts together, have a prediction.
    names : array of str, [n]
    labels : float32 array, [n, tracks]
        NaN where missing.
    predictions : float32 array, [n, tracks]
        As the model's card defines them.
    scores : float array, [n, tracks]
        What is measured: raw values where these have fewer ties; shares of a profile.
    threshold : float
        Binary: scores above it are called positive.
    """

    name: str
    task: str
    tracks: tuple[Track, ...]
    parts: Sequence[Examples]
    rows: Int64
    names: NDArray[np.str_]
    labels: Float32
    predictions: Float32
    scores: Values
    threshold: float

    @property
    def left_out(self) -> int:
        """Examples with too few known bases for a prediction."""
        return sum(map(len, self.parts)) - len(self.rows)

    def sequence(self, index: int) -> str:
        """Nucleotides of an example with a prediction."""
        row = int(self.rows[index])
        for part in self.parts:
            if row < len(part):
                return "".join(_LETTERS[part.codes[row]])
            row -= len(part)
        raise IndexError(index)


def evaluate(
    model: SequenceModel,
    source: Source,
    out: Path,
    *,
    part: str = "test",
    resamples: int = 1000,
    seed: int | None = None,
    worst: int = 20,
) -> dict[str, Any]:
    """Judge a loaded model by the data a source names, and write all results.

    Parameters
    ----------
    model : SequenceModel
        With its card, of one bin.
    source : Source
        As in training. A table's sequences are padded to the model's window if ``pad`` says where.
        If the files are those of the model's training, what is not given is as in it.
    out : Path
        Folder for the results; made if absent.
    part : {"test", "validation", "training", "all"}, optional
        Which examples of the split; ``all`` is every row of a table and every peak, which are then
        not split.
    resamples : int, optional
        Bootstrap resamples of the rows behind the 95% intervals; 0 gives none.
    seed : int, optional
        Of resamples, shares and negatives, instead of the source's; by default that of the model's
        training on the same files, else 0.
    worst : int, optional
        Worst predictions that are listed.

    Returns
    -------
    dict
        The document of ``metrics.json``.

    Raises
    ------
    DataError
        If the data cannot be used as asked, or are those of the model's training in other parts.
    ModelError
        If the model's window, tracks or bins do not fit the data.
    DependencyError
        If matplotlib is not installed.
    OutputError
        If the folder cannot be written.
    """
    figures.new_figure(1, 1)  # what would fail at the end fails now
    make_folder(out)
    card, split = model.card, part != "all"
    source = _for_card(as_trained(source, card, seed, split=split), card)
    for name in _FILES:
        discard_abandoned(out / name)
    data = open_data(source, out / _SCRATCH, needed=(part,) if split else ())
    shutil.rmtree(out / _SCRATCH, ignore_errors=True)  # what is mapped from it stays readable
    facts = data.facts()
    check_held_out(facts, card, "validation" if part == "validation" else "test", source.data)
    columns = check_fit(card, data, source.data)
    predictor = Predictor(model, device=model.device, activation=False, threads=None)
    judged = [
        judge(predictor.predict, card, name, data.task, parts, columns)
        for name, parts in choose_part(data, part, source.data).items()
    ]
    document = {
        "model": card.name,
        "weights_sha256": card.weights_sha256,
        "task": data.task,
        "part": part,
        "data": facts,
        "bootstrap": {"resamples": resamples, "seed": source.seed, "interval": 0.95},
        "sets": {one.name: _metrics_of(one, resamples, source.seed) for one in judged},
        "genomes": _by_genome(judged, facts.get("genomes", ()), resamples, source.seed),
    }
    _write_results(document, judged, out, worst)
    return document


def _for_card(source: Source, card: Card) -> Source:
    """The source with what the card knows: the window, and what its labels are.

    Raises
    ------
    DataError
        If the model was trained on labels that were transformed otherwise.
    """
    is_labeled = source.labels is not None or (
        TABLE.search(source.data.name) is not None and not is_manifest(Table(source.data))
    )
    if source.window is None and (source.pad or not is_labeled):
        source = replace(source, window=card.window)
    facts = card.training.get("data")
    transform = facts.get("transform") if isinstance(facts, dict) else None
    if transform not in (None, source.transform):
        raise DataError(
            f"{source.data}: --transform {source.transform} was asked, but model {card.name!r} "
            f"predicts labels transformed by {transform}; give --transform {transform}"
        )
    if source.task == "auto" and is_labeled:
        trained = "profile" if card.activation == "softmax" else card.training.get("task")
        source = replace(source, task=trained if trained in TASKS else "auto")
    return source


def check_fit(card: Card, data: Data, path: Path) -> list[int]:
    """Column of the model's output for each track of the data.

    Tracks are matched by name if the model has all of the names, else by order.

    Raises
    ------
    ModelError
        If windows or tracks do not fit, or the model has several bins.
    """
    if card.bins != 1:
        raise ModelError(
            f"model {card.name!r} predicts {card.bins} bins a window, but labels are one a "
            "sequence; evaluate a model of one bin"
        )
    if data.window != card.window:
        advice = (
            f"give --pad left or --pad right to fill them up to {card.window}"
            if data.window < card.window
            else "use a model with that window, or shorter sequences"
        )
        raise ModelError(
            f"model {card.name!r} sees windows of {card.window} bases, but the sequences of {path} "
            f"have {data.window}; {advice}"
        )
    names = [track.name for track in card.tracks]
    if set(data.tracks) <= set(names):
        return [names.index(track) for track in data.tracks]
    if len(data.tracks) != len(names):
        raise ModelError(
            f"model {card.name!r} predicts {len(names)} tracks ({listed(names, 4)}), but the "
            f"labels of {path} are {len(data.tracks)} ({listed(data.tracks, 4)}); choose columns "
            "with --target"
        )
    return list(range(len(names)))


def choose_part(data: Data, part: str, path: Path) -> dict[str, list[Examples]]:
    """Examples of a part of the data, by the name of each set.

    Raises
    ------
    DataError
        If training examples of peaks are asked for: those differ from epoch to epoch.
    """
    if part == "test" or (part == "all" and not isinstance(data, LabeledData)):
        return {name: [examples] for name, examples in data.test().items()}
    if part == "validation":
        return {part: [data.validation()]}
    if not isinstance(data, LabeledData):
        raise DataError(
            f"--part {part}: {path} holds peaks, whose negatives in training are drawn anew every "
            "epoch; choose test, validation or all"
        )
    return {part: data.parts[:1] if part == "training" else list(filter(len, data.parts))}


def judge(
    predict: Callable[[Codes], Float32],
    card: Card,
    name: str,
    task: str,
    parts: Sequence[Examples],
    columns: Sequence[int],
) -> Judged:
    """Predict examples, and take some of a model's tracks.

    As in predictions of a genome, windows with fewer known bases than the card asks have none.

    Parameters
    ----------
    predict : callable
        Codes ``uint8 [n, window]`` to raw values ``float32 [n, 1, tracks]``.
    card : Card
        Of the model.
    name, task : str
        Of the set; what its labels are.
    parts : sequence of Examples
    columns : sequence of int
        Tracks of the model, in the order of the labels.

    Raises
    ------
    DataError
        If no example has enough known bases.
    ModelError
        If a prediction is not finite.
    """
    known = np.concatenate([known_bases(part.codes) for part in parts])
    rows = np.flatnonzero(known >= card.min_bases)
    if not len(rows):
        raise DataError(
            f"{name}: none of {len(known)} sequences has the {card.min_bases} known bases that "
            f"model {card.name!r} asks, the most are {known.max()}; give longer sequences"
        )
    raw = np.concatenate([predict(part.codes)[:, 0] for part in parts])[rows]
    predictions = ACTIVATION_FUNCTIONS[card.activation](torch.from_numpy(raw)).numpy()
    if not np.isfinite(predictions).all():
        row, track = map(int, np.argwhere(~np.isfinite(predictions))[0])
        raise ModelError(
            f"model {card.name!r} predicts {predictions[row, track]} for row {rows[row] + 1} of "
            "those asked for; its weights or its input are unusable"
        )
    raw, predictions = raw[:, columns], predictions[:, columns]
    scores: Values = predictions
    if task == "binary" and card.activation == "sigmoid":
        scores = raw  # without ties near 0 and 1
    elif task == "profile":
        scores = predictions / predictions.sum(axis=1, keepdims=True)
    return Judged(
        name,
        task,
        tuple(card.tracks[column] for column in columns),
        parts,
        rows,
        np.concatenate([_names(part) for part in parts])[rows],
        np.concatenate([part.labels for part in parts])[rows],
        predictions,
        scores,
        0.0 if scores is raw else 0.5,
    )


def _names(examples: Examples) -> NDArray[np.str_]:
    if examples.names is not None:
        return examples.names
    return np.arange(1, len(examples) + 1).astype(np.str_)


def _metrics_of(one: Judged, resamples: int, seed: int) -> dict[str, Any]:
    """Metrics of a set: of each track, and of all together if there are several."""
    rows, tracks = len(one.labels), [track.name for track in one.tracks]
    measure = bootstrap.regression
    if one.task == "binary":
        measure = partial(bootstrap.binary, threshold=one.threshold)
    draw = partial(bootstrap.bootstrap, rows=rows, resamples=resamples, seed=seed)
    found = draw(bootstrap.by_track(measure, one.labels, one.scores))
    if not found:
        raise DataError(
            f"constant labels: in none of {len(tracks)} tracks do the {rows} labels vary, "
            "so nothing can be measured; choose another part or column"
        )
    result: dict[str, Any] = {
        "rows": rows,
        "left_out": {"too few known bases": one.left_out},
        "labels": {t: int(n) for t, n in zip(tracks, (~np.isnan(one.labels)).sum(0), strict=True)},
        "tracks": {
            track: {name: _estimate(table[:, i]) for name, table in found.items()}
            for i, track in enumerate(tracks)
        },
    }
    if one.task == "profile":
        whole = draw(_whole(one.labels, one.scores))
        result["overall"] = {name: _estimate(table[:, 0]) for name, table in whole.items()}
    elif len(tracks) > 1:
        result["overall"] = {name: _estimate(table[:, -1]) for name, table in found.items()}
    return result


def _by_genome(
    judged: Sequence[Judged], genomes: Sequence[str], resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Metrics of each of several genomes, those of each set; the worst first.

    A set in which a genome has no labels that vary is left out.
    """
    found: dict[str, dict[str, Any]] = {}
    for one in judged if len(genomes) > 1 else ():
        names = (name.removeprefix("shuffled ").partition(":")[0] for name in one.names)
        of = np.array(list(names), object)
        for genome in genomes:
            rows = np.flatnonzero(of == genome)
            labels = one.labels[rows]
            if not len(rows) or not (labels != labels[:1]).any():
                continue
            own = one._replace(rows=one.rows[rows], labels=labels, scores=one.scores[rows])
            metrics = _metrics_of(own, resamples, seed)
            del metrics["left_out"]
            found.setdefault(genome, {})[one.name] = metrics

    return {genome: found[genome] for genome in sorted(found, key=lambda g: _mean_of(found[g]))}


def _mean_of(sets: Mapping[str, Any]) -> float:
    """The mean headline of what a genome has in each set."""
    return float(np.nanmean(list(map(_headline, sets.values()))))


def _headline(of_set: Mapping[str, Any]) -> float:
    """The auPRC or R2 of a set, the mean of its tracks."""
    metrics = of_set.get("overall") or next(iter(of_set["tracks"].values()))
    value = metrics.get("auPRC", metrics.get("R2"))["value"]
    return math.nan if value is None else value


def worst_genomes(document: Mapping[str, Any], most: int = 5) -> list[tuple[str, float]]:
    """The genomes on which a model does worst, with the mean auPRC or R2 of the sets."""
    return [(name, _mean_of(sets)) for name, sets in list(document["genomes"].items())[:most]]


def _whole(labels: Float32, values: Values) -> bootstrap.Resampled:
    """Metrics of profiles as a whole, in one column."""
    measure = bootstrap.profile(labels, values)
    return lambda counts: {name: value[:, None] for name, value in measure(counts).items()}


def _estimate(three: Float64) -> dict[str, float | None]:
    values = (None if math.isnan(x) else float(x) for x in three)
    return dict(zip(("value", "low", "high"), values, strict=True))


class Line(NamedTuple):
    """One line of ``metrics.tsv``."""

    set: str
    track: str
    metric: str
    value: float | None
    low: float | None
    high: float | None


def lines(document: Mapping[str, Any]) -> Iterator[Line]:
    """The metrics of an evaluation, a line each; track ``-`` is all tracks together."""
    yield from _lines(document["sets"])


def _lines(sets: Mapping[str, Any]) -> Iterator[Line]:
    for name, found in sets.items():
        tracks = dict(found["tracks"])
        if "overall" in found:
            tracks[_OVERALL] = found["overall"]
        for track, metrics in tracks.items():
            for metric, estimate in metrics.items():
                yield Line(name, track, metric, **estimate)


def _write_results(
    document: dict[str, Any], judged: Sequence[Judged], out: Path, worst: int
) -> None:
    summary = out / "metrics.json"  # written last: where it is, all the rest is of the same call
    try:
        summary.unlink(missing_ok=True)
    except OSError as error:
        raise output_error(summary, error) from error
    _write_table(pd.DataFrame(lines(document), columns=Line._fields), out / "metrics.tsv")
    _write_table(pd.concat([_table(one) for one in judged]), out / "predictions.tsv")
    if document["genomes"]:
        rows = [(g, *line) for g, sets in document["genomes"].items() for line in _lines(sets)]
        columns = ["genome", *Line._fields]
        _write_table(pd.DataFrame(rows, columns=columns), out / "genomes.tsv")
    ranked = pd.concat([_worst(one, worst) for one in judged])
    ranked = ranked.sort_values("margin", ascending=False, kind="stable").drop(columns="margin")
    once = ranked.drop_duplicates(["name", "track", "sequence"])  # test sets share their peaks
    _write_table(once[:worst], out / "worst.tsv")
    _draw(document, judged, out)
    write_whole(summary, (json.dumps(document, indent=2) + "\n").encode())


def _write_table(frame: pd.DataFrame, path: Path) -> None:
    with publishing(path, follow=True) as temporary:
        frame.to_csv(temporary, sep="\t", index=False, float_format="%.7g")


def _table(one: Judged) -> pd.DataFrame:
    """Names, labels and predictions of a set, a row each."""
    frame = pd.DataFrame({"set": one.name, "name": one.names})
    for i, track in enumerate(one.tracks):
        frame[f"label_{track.name}"] = one.labels[:, i]
        frame[f"prediction_{track.name}"] = one.predictions[:, i]
    return frame


def _worst(one: Judged, count: int) -> pd.DataFrame:
    """Rows of a set with the largest errors, of which ``margin`` gives the order."""
    errors = np.abs(one.labels - one.predictions)
    margins, tracks = errors, np.array([track.name for track in one.tracks])
    if one.task == "binary":
        margins = (one.scores - one.threshold) * (1 - 2 * one.labels)
    elif one.task == "profile":
        errors = margins = errors.sum(axis=1, keepdims=True) / 2
        tracks = np.array([_OVERALL])
    margins = np.where(np.isnan(margins), -np.inf, margins)
    order = np.argsort(-margins, axis=None, kind="stable")[:count]
    rows, columns = np.unravel_index(order[np.isfinite(margins.flat[order])], margins.shape)
    frame = _table(one).iloc[rows].reset_index(drop=True)
    frame.insert(2, "track", tracks[columns])
    frame.insert(3, "error", errors[rows, columns])
    frame["sequence"] = [one.sequence(int(row)) for row in rows]
    frame["margin"] = margins[rows, columns]
    return frame


def _draw(document: Mapping[str, Any], judged: Sequence[Judged], out: Path) -> None:
    is_binary = judged[0].task == "binary"
    told = ("auROC", "auPRC") if is_binary else ("R2", "Pearson", "Spearman", "MSE")
    series = {}
    for one in judged:
        for i, track in enumerate(one.tracks):
            metrics = document["sets"][one.name]["tracks"][track.name]
            notes = [f"{metric} {tell(**metrics[metric])}" for metric in told]
            note = ", ".join(notes) if is_binary else "\n".join(notes)
            names = [one.name] * (len(judged) > 1) + [track.name] * (len(one.tracks) > 1)
            series[", ".join(names) or track.name] = figures.Series(
                one.labels[:, i], one.scores[:, i], note, track.unit
            )
    if is_binary:
        figures.roc_pr(series, out / "roc_pr.png")
    else:
        figures.parity(series, out / "parity.png")


def tell(value: float | None, low: float | None, high: float | None) -> str:
    """A metric and its interval as text."""
    if value is None:
        return "undefined"
    if low is None or high is None:
        return _short(value)
    return f"{_short(value)} [{_short(low)}, {_short(high)}]"


def _short(number: float) -> str:
    """Four decimals, or three digits where these would be lost."""
    return f"{number:.2e}" if 0 < abs(number) < 1e-3 else f"{number:.4f}"
