"""From labeled data to an evaluated checkpoint: what ``genomepred train`` does."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genomepred.data.examples import Codes, Data, known_bases
from genomepred.data.read import open_data
from genomepred.documents import seal
from genomepred.errors import DataError, DeviceError
from genomepred.evaluation.figures import curves, new_figure
from genomepred.files import write_whole
from genomepred.models.card import Card
from genomepred.models.checkpoint import build, check_target, load_model, save_checkpoint
from genomepred.models.layers import SequenceModel
from genomepred.training.fit import HISTORY, Fit, Settings, Weights, fit, history_digest
from genomepred.training.folder import (
    CURVES,
    METRICS,
    SCRATCH,
    batch_size_of,
    claim,
    identity_of,
    is_finished,
    leave,
    tidy,
)
from genomepred.training.measure import measure, rounded, rounded_all
from genomepred.training.precision import precision_differences, tolerances
from genomepred.training.spec import TrainingSpec
from genomepred.training.tasks import Float32, Task, find_task

# Golden inputs: enough of each kind to show a difference, few enough to be checked in an instant.
_GOLDEN = 4
# Examples whose labels are gathered together.
_BLOCK = 4096


def train(spec: TrainingSpec, out: Path) -> Card:
    """Train, evaluate on what was held out, and write checkpoints and curves.

    ``out`` gets ``best`` and ``last`` (checkpoints), ``history.csv``, ``curves.png``,
    ``metrics.json`` and ``run.json``, which says what is trained. Until the end ``state.pt`` holds
    what a killed training needs to go on: the same call continues it and, on a CPU, gives the same
    weights. A finished training is left as it is.

    Parameters
    ----------
    spec : TrainingSpec
        What to train.
    out : Path
        Folder for the results; made if absent.

    Returns
    -------
    Card
        Of the checkpoint ``out/best``, with its metrics.

    Raises
    ------
    DataError
        If the data cannot be used as asked.
    SignatureError
        If ``out`` was started with other options or other data.
    OutputError
        If the folder cannot be written.
    DependencyError
        If matplotlib is not installed.
    """
    # What would fail at the end fails now.
    new_figure(1, 1)
    for name in ("best", "last"):
        check_target(out / name)
    if is_finished(spec, out):
        return leave(spec, out)
    data = open_data(spec.source, out / SCRATCH)
    tracks = spec.description.to_tracks(data.tracks)
    config = {"window": data.window, **spec.config}
    if len(tracks) > 1:
        config = {"tracks": len(tracks), **config}
    torch.manual_seed(spec.settings.seed)
    model = _on_device(build(spec.architecture, **config), spec.device)
    _check_shape(model, data)
    task = find_task(data.task, _training_labels(data), class_weights=spec.settings.class_weights)
    _finished(model, model.state_dict(), task)
    card = Card(
        name=spec.description.name,
        architecture=spec.architecture,
        config=config,
        window=data.window,
        bin_size=data.window,
        stride=max(data.window // 5, 1) if spec.stride is None else spec.stride,
        tracks=tracks,
        activation=task.activation,
        base_order=model.base_order,
        n_policy=model.n_policy,
        min_bases=_min_bases(data) if spec.min_bases is None else spec.min_bases,
        license=spec.description.license,
    )
    golden = _golden(data)
    settings = _decided(spec, model, out)
    identity = identity_of(spec, config, data, task, settings)
    claim(out, identity)
    if (out / METRICS).exists():
        return leave(spec, out)
    course = fit(model, data, task, settings, out=out)
    card = replace(card, training=_provenance(spec, identity, task, course))
    dtype = spec.weights_dtype
    last = replace(card, metrics={"validation": rounded_all(course.epochs[-1].metrics)})
    save_checkpoint(
        out / "last", _finished(model, course.last, task), last, golden, weights_dtype=dtype
    )
    save_checkpoint(
        out / "best", _finished(model, course.best, task), card, golden, weights_dtype=dtype
    )
    stored = load_model(out / "best", spec.device)  # with its weights as they were rounded
    differences = precision_differences(stored, data.validation())
    card = replace(
        card,
        metrics=measure(stored, data, task),
        tolerance=tolerances(differences),
        training={**card.training, "measured_difference": rounded_all(differences)},
    )
    card = save_checkpoint(out / "best", stored, card, golden, weights_dtype=dtype)
    curves({spec.description.name: out / HISTORY}, task.headline, out / CURVES)
    write_whole(out / METRICS, seal(_outcome(card, task, course, out)))
    tidy(out)
    return card


def _decided(spec: TrainingSpec, model: SequenceModel, out: Path) -> Settings:
    """The settings asked for; a batch size left open is the one this training began with."""
    if spec.settings.batch_size is None and (begun := batch_size_of(out)) is not None:
        return replace(spec.settings, batch_size=begun)
    return spec.settings.decided(model)


def _check_shape(model: SequenceModel, data: Data) -> None:
    tracks = len(data.tracks)
    if (model.window, model.bins, model.tracks) != (data.window, 1, tracks):
        raise DataError(
            f"the model has window {model.window}, bins {model.bins} and tracks {model.tracks}; "
            f"the data need window {data.window}, bins 1 and tracks {tracks}: "
            f"{', '.join(data.tracks)}"
        )


def _on_device(model: SequenceModel, device: str) -> SequenceModel:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"device {device!r} cannot be used: {error}") from error


def _training_labels(data: Data) -> Float32:
    """Labels ``[n, tracks]`` of an epoch."""
    examples = data.epoch(0)
    blocks = range(0, len(examples), _BLOCK)
    return np.concatenate([examples.take(slice(i, i + _BLOCK)).labels for i in blocks])


def _finished(model: SequenceModel, weights: Weights, task: Task) -> SequenceModel:
    """Copy of the model with some weights, whose raw values are in the labels' unit."""
    finished = copy.deepcopy(model)
    finished.load_state_dict(weights)
    task.fold(finished)
    return finished.eval()


def _golden(data: Data) -> Codes:
    """Held-out sequences: the first and last of a test set; of peaks, with real negatives."""
    tests = data.test()
    examples = tests.get("GC-matched") or next(iter(tests.values()))
    rows = np.unique(np.r_[:_GOLDEN, -_GOLDEN:0] % len(examples))
    return examples.take(rows).codes


def _min_bases(data: Data) -> int:
    """Half the window, or as few known bases as a held-out example has, but at least one."""
    fewest = data.window // 2
    for examples in (data.validation(), *data.test().values()):
        fewest = min(fewest, int(known_bases(examples.codes).min()))
    return max(fewest, 1)


def _provenance(
    spec: TrainingSpec, identity: Mapping[str, Any], task: Task, course: Fit
) -> dict[str, Any]:
    best = course.best_epoch
    return {
        "task": task.name,
        "source": spec.description.source,
        "data": identity["data"],
        "command": spec.description.command,
        "settings": {**identity["settings"], "batch_size": identity["batch_size"]},
        "standardized_by": {"mean": list(task.shift), "deviation": list(task.scale)}
        if task.scale
        else None,
        "class_weights": list(task.weights) or None,
        "epochs": len(course.epochs),
        "best_epoch": best.epoch,
        f"validation_{task.headline}": rounded(best.score),
        "torch": identity["torch"],
    }


def _outcome(card: Card, task: Task, course: Fit, out: Path) -> dict[str, Any]:
    """Content of ``metrics.json``."""
    return {
        "name": card.name,
        "architecture": card.architecture,
        "task": task.name,
        "headline": task.headline,
        "epochs": len(course.epochs),
        "best_epoch": course.best_epoch.epoch,
        "weights_sha256": card.weights_sha256,
        "history_sha256": history_digest(out / HISTORY),
        "metrics": card.metrics,
    }
