"""Metrics of a trained model: on held-out examples, and in a scan of held-out regions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from genomepred.data.examples import TEST, VALIDATION, Data, Examples
from genomepred.data.peak_data import PeakData
from genomepred.evaluation.metrics import Sites, find_sites, peaks_inside
from genomepred.models.layers import SequenceModel
from genomepred.training.fit import raw_predictor
from genomepred.training.tasks import Task


def measure(model: SequenceModel, data: Data, task: Task) -> dict[str, Any]:
    """Metrics of a loaded model, as they stand in its card.

    Parameters
    ----------
    model : SequenceModel
        With its card.
    data : Data
        Its validation and test examples are used; of peaks, the map of the held-out regions too.
    task : Task
        The data's.

    Returns
    -------
    dict
        ``validation`` and ``test``, the latter by kind of negatives for peaks; and ``map``, see
        :func:`map_metrics`, for peaks, unless the held-out regions of the genomes have none.
    """
    tests = {name: _measure(model, examples, task) for name, examples in data.test().items()}
    metrics = {
        "validation": _measure(model, data.validation(), task),
        "test": tests.get("test", tests),
    }
    if isinstance(data, PeakData) and _has_map(data):
        metrics["map"] = map_metrics(model, data)
    return metrics


def _measure(model: SequenceModel, examples: Examples, task: Task) -> dict[str, Any]:
    """Metrics of a model on examples: their number, means, then each track's."""
    predictor = raw_predictor(model, len(examples))
    values = predictor.predict(examples.codes).reshape(len(examples), -1)
    labels = np.asarray(examples.labels)
    found: dict[str, Any] = {"examples": len(examples), **rounded_all(task.metrics(labels, values))}
    if labels.shape[1] > 1:
        each = task.track_metrics(labels, values)
        found["tracks"] = {
            track.name: rounded_all(of) for track, of in zip(model.card.tracks, each, strict=True)
        }
    return found


def _has_map(data: PeakData) -> bool:
    """Whether validation and test regions of the genomes hold peaks."""
    return all(
        any(map(len, peaks_inside(data.regions[part], data.peaks.regions)))
        for part in (VALIDATION, TEST)
    )


def map_metrics(model: SequenceModel, data: PeakData) -> dict[str, Any]:
    """Sites in a scan of the test regions, by a threshold from the validation regions.

    Forward strand, at the card's stride; see :func:`genomepred.evaluation.metrics.find_sites`. The
    regions of several genomes are one map.
    """
    card, predict = model.card, raw_predictor(model).predict

    def sites(part: int) -> Sites:
        return find_sites(
            predict,
            data.contigs,
            data.regions[part],
            data.peaks.regions,
            window=card.window,
            stride=card.stride,
            min_bases=card.min_bases,
        )

    threshold = sites(VALIDATION).best_threshold()
    found = sites(TEST)
    numbers = {
        "megabases": found.megabases,
        "peaks": found.peaks,
        "threshold": 1 / (1 + float(np.exp(-threshold))),
        "threshold_choice": "highest F1 in the validation regions",
        **found.at(threshold),
        "recall_at_1_false_per_Mb": found.recall_at(1),
    }
    return {
        "regions": [f"{r.contig}:{r.start + 1}-{r.end}" for r in data.regions[TEST]],
        "stride": card.stride,
        "strand": "forward",
        **rounded_all(numbers),
    }


def rounded_all(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The same with its floats rounded."""
    return {key: rounded(x) if isinstance(x, float) else x for key, x in numbers.items()}


def rounded(number: float) -> float | None:
    """Five digits, as many as a metric of some thousand examples can mean; NaN as None."""
    return None if math.isnan(number) else float(f"{number:.5g}")
