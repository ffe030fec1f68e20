"""Sweeps: a grid of trainings, each with several seeds, and their comparison."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from genomepred.documents import DocumentError, read_document
from genomepred.errors import DataError, GenomepredError, OutputError
from genomepred.evaluation import figures
from genomepred.files import publishing
from genomepred.models.checkpoint import load_model
from genomepred.progress import Progress
from genomepred.training.fit import HISTORY, history_digest
from genomepred.training.folder import METRICS, read_outcome
from genomepred.training.run import train
from genomepred.training.spec import TrainingSpec

TABLE, FIGURE = "comparison.tsv", "comparison.png"
_LARGEST_CONFIG = 1 << 24  # bytes


@dataclass(frozen=True)
class Config:
    """A sweep as its file describes it.

    Parameters
    ----------
    runs : dict of str to dict
        Options of the training of each run, as on the command line but without dashes before
        them; those under ``set`` are a dict.
    changes : dict of str to dict
        The part of them that the run gives itself.
    metric : str or None
        Of the figure.
    """

    runs: dict[str, dict[str, Any]]
    changes: dict[str, dict[str, Any]]
    metric: str | None


def read_config(path: Path) -> Config:
    """Read ``{"train": OPTIONS, "runs": {NAME: OPTIONS}, "metric": NAME}``.

    A run has the options under ``train`` but for those that it gives itself; under ``set``, one by
    one. ``metric`` may be left out. A path may begin with an environment variable: ``$DATA/x.csv``.

    Raises
    ------
    DataError
        If it is not that, naming the place, or a variable is not set.
    """
    try:
        document = read_document(path, object, limit=_LARGEST_CONFIG)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except DocumentError as error:
        raise DataError(f"{path}: is no sweep: {error}") from error
    _check_config(document, path)
    common = document["train"]
    runs = {}
    for name, own in document["runs"].items():
        runs[name] = {key: _placed(value, path) for key, value in (common | own).items()}
        if "set" in common and "set" in own:
            runs[name]["set"] = common["set"] | own["set"]
    return Config(runs, document["runs"], document.get("metric"))


def _placed(value: Any, path: Path) -> Any:
    """A value with the folder that an environment variable at its beginning stands for."""
    if isinstance(value, list):
        return [_placed(one, path) for one in value]
    found = re.match(r"\$(\w+)(?=/)", value) if isinstance(value, str) else None
    if found is None:
        return value
    name = found[1]
    if not (folder := os.environ.get(name)):
        raise DataError(
            f"{path}: {value}: the variable {name} is not set; write {name}=FOLDER before the "
            "command, or another path"
        )
    return folder + value[found.end() :]


def _check_config(document: Any, path: Path) -> None:
    parts: dict[str, Any] = {"train": dict, "runs": dict, "metric": str}
    if not isinstance(document, dict) or not {"train", "runs"} <= document.keys() <= parts.keys():
        raise DataError(
            f'{path}: a sweep is {{"train": {{...}}, "runs": {{NAME: {{...}}}}}}, with "metric" if '
            f"wished; found {json.dumps(document)[:60]}"
        )
    for key, value in document.items():
        if not isinstance(value, parts[key]) or not value:
            what = "a name" if parts[key] is str else "an object, not empty"
            raise DataError(f"{path}: {key!r} is {json.dumps(value)[:60]}; it must be {what}")
    for name, options in {"train": document["train"], **document["runs"]}.items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
            raise DataError(f"{path}: run {name!r}: name runs by letters, digits and . _ + -")
        if not isinstance(options, dict) or not isinstance(options.get("set", {}), dict):
            raise DataError(f"{path}: {name!r} and its 'set' must be objects")


@dataclass(frozen=True)
class Trial:
    """One configuration of a sweep.

    Parameters
    ----------
    changes : mapping
        In what it differs from the other trials, for the table (JSON-able).
    specs : sequence of TrainingSpec
        What to train, one a seed.
    """

    changes: Mapping[str, Any]
    specs: Sequence[TrainingSpec]


@dataclass(frozen=True)
class Result:
    """Outcome of one seed of a trial.

    Parameters
    ----------
    outcome : dict
        The training's ``metrics.json``.
    history : dict of str to float64 array
        Columns of its ``history.csv``.
    parameters : int
        Number of weights that were trained.
    """

    outcome: dict[str, Any]
    history: dict[str, figures.Float64]
    parameters: int

    @classmethod
    def read(cls, folder: Path) -> Result:
        """Result of a finished training's folder.

        Raises
        ------
        OutputError
            If its history is not the one it was finished with.
        """
        model = load_model(folder / "best")
        parameters = sum(weights.numel() for weights in model.parameters())
        outcome, history = read_outcome(folder), folder / HISTORY
        if not history.is_file() or history_digest(history) != outcome["history_sha256"]:
            raise OutputError(
                f"{history}: is not the one that {METRICS} tells of; delete {METRICS} to train "
                "again"
            )
        return cls(outcome, figures.read_history(history), parameters)

    def metrics(self) -> dict[str, dict[str, float]]:
        """Metrics of the best epoch's weights by set: ``validation``, ``test``, or each test."""
        found = self.outcome["metrics"]
        sets = {"validation": found["validation"], "test": found["test"]}
        if "examples" not in found["test"]:
            del sets["test"]
            sets |= {f"test, {kind}": figures_ for kind, figures_ in found["test"].items()}
        return {
            name: {
                metric: math.nan if value is None else value
                for metric, value in of_set.items()
                if value is None or isinstance(value, float)
            }
            for name, of_set in sets.items()
        }


def sweep(trials: Mapping[str, Trial], out: Path, metric: str | None = None) -> pd.DataFrame:
    """Train each trial with each of its seeds, and compare them.

    The training of trial T and seed K lies in ``out/T/seedK``: those that are finished are left as
    they are, and one that was stopped goes on. ``out/comparison.tsv`` and ``out/comparison.png``
    are written at the end.

    Parameters
    ----------
    trials : mapping of str to Trial
        By name.
    out : Path
        Folder for the results; made if absent.
    metric : str, optional
        Of the figure; by default the one that chooses the best epoch.

    Returns
    -------
    DataFrame
        The table, a row a trial.

    Raises
    ------
    GenomepredError
        As by training, naming the trial and seed; or if there is no such metric.
    """
    results: dict[str, list[Result]] = {}
    for name, spec in _bar(trials):
        result = _train(name, spec, out, metric)
        results.setdefault(name, []).append(result)
        metric = metric or result.outcome["headline"]
    table = pd.DataFrame([_row(name, trials[name], found) for name, found in results.items()])
    with publishing(out / TABLE) as temporary:
        table.to_csv(temporary, sep="\t", index=False, float_format="%.6g")
    assert metric is not None
    _draw(results, metric, out / FIGURE)
    return table


def _bar(trials: Mapping[str, Trial]) -> Iterator[tuple[str, TrainingSpec]]:
    """Every training with its trial's name, behind a bar."""
    specs = [(name, spec) for name, trial in trials.items() for spec in trial.specs]
    with Progress(specs, desc="sweep", unit="training") as bar:
        for name, spec in bar:
            bar.set_postfix_str(f"{name}, seed {spec.settings.seed}")
            yield name, spec


def _train(name: str, spec: TrainingSpec, out: Path, metric: str | None) -> Result:
    """Result of a training; refused at once if it lacks the metric of the figure."""
    seed = spec.settings.seed
    folder = out / name / f"seed{seed}"
    try:
        train(spec, folder)
        result = Result.read(folder)
        there = result.metrics()["validation"]
        if metric not in (None, *there):
            raise DataError(f"no metric {metric!r} to draw; there are {', '.join(there)}")
        return result
    except GenomepredError as error:
        error.args = (f"{name}, seed {seed}: {error}",)
        raise


def _row(name: str, trial: Trial, results: Sequence[Result]) -> dict[str, Any]:
    """A trial's line of the table."""
    row: dict[str, Any] = {
        "run": name,
        "parameters": results[0].parameters,
        "seeds": len(results),
        "epochs": np.mean([len(result.history["epoch"]) for result in results]),
        "seconds": np.mean([result.history["seconds"].sum() for result in results]),
    }
    by_seed = [result.metrics() for result in results]
    for part, metrics in by_seed[0].items():
        for metric in metrics:
            values = np.array([found[part][metric] for found in by_seed])
            for statistic, value in _spread(values).items():
                row[f"{part} {metric} {statistic}"] = value
    return row | {"changes": json.dumps(dict(trial.changes))}


def summary(table: pd.DataFrame) -> list[str]:
    """Lines that show a sweep's table: a column a trial, metrics as mean ± standard deviation."""
    shown: dict[str, list[str]] = {"": list(table.run)}
    for name in ("parameters", "seeds", "epochs", "seconds"):
        shown[name] = [f"{value:,.6g}" for value in table[name]]
    for column in table.columns[table.columns.str.endswith(" mean")]:
        name = column.removesuffix(" mean")
        shown[name] = [
            f"{mean:.4f}" if math.isnan(sd) else f"{mean:.4f} ± {sd:.4f}"
            for mean, sd in zip(table[column], table[f"{name} sd"], strict=True)
        ]
    first = max(map(len, shown))
    widths = [max(map(len, column)) for column in zip(*shown.values(), strict=True)]
    return [
        name.ljust(first)
        + "".join(f"  {text:>{width}}" for text, width in zip(texts, widths, strict=True))
        for name, texts in shown.items()
    ]


def _spread(values: figures.Float64) -> dict[str, float]:
    known = pd.Series(values)  # which leaves out what is NaN
    return {"mean": known.mean(), "sd": known.std(), "min": known.min(), "max": known.max()}


def _draw(results: Mapping[str, Sequence[Result]], metric: str, path: Path) -> None:
    runs = {}
    for name, found in results.items():
        by_seed = [result.metrics() for result in found]
        finals = {part: np.array([of[part][metric] for of in by_seed]) for part in by_seed[0]}
        runs[name] = figures.Run([result.history[metric] for result in found], finals)
    figures.comparison(runs, metric, path)
