"""Tasks: what raw values mean, the loss that trains them and the metrics that judge them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from genomepred.errors import DataError
from genomepred.evaluation.metrics import (
    binary_metrics,
    profile_metrics,
    regression_metrics,
    softmax,
)
from genomepred.models.layers import SequenceModel, rescale_output

Float32 = NDArray[np.float32]
Metrics = dict[str, float]


@dataclass(frozen=True)
class Task:
    """A task: the kind of labels, and the statistics of them that its loss needs.

    Parameters
    ----------
    name : {"regression", "binary", "profile"}
        ``binary`` has a yes-or-no label a track, ``profile`` the shares of one whole.
    shift, scale : tuple of float, optional
        Regression: mean and standard deviation of each track's training labels. Models learn
        ``(label - shift) / scale``; :meth:`restore` and :meth:`fold` lead back to the labels' unit.
    weights : tuple of float, optional
        Binary: weight of a positive label of each track beside a negative one; by default 1.
    """

    name: str
    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()

    @property
    def activation(self) -> str:
        """Turns raw values into predictions; a field of the card."""
        return _KINDS[self.name].activation

    @property
    def headline(self) -> str:
        """Metric that chooses the best epoch; higher is better."""
        return _KINDS[self.name].headline

    def loss(self, values: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of the labels that are known.

        Parameters
        ----------
        values : float tensor, [batch, tracks]
            What the model in training computes.
        labels : float tensor, [batch, tracks]
            In their unit; NaN where missing.

        Returns
        -------
        float tensor, []
            0 if no label is known.
        """
        return _KINDS[self.name].loss(self, values, labels)

    def restore(self, values: Float32) -> Float32:
        """Values ``[n, tracks]`` of a model in training as raw values of the finished model."""
        if not self.scale:
            return values
        return values * np.array(self.scale, np.float32) + np.array(self.shift, np.float32)

    def fold(self, model: SequenceModel) -> None:
        """Put :meth:`restore` into a trained model's last layer, in place."""
        if self.scale:
            rescale_output(model, self.shift, self.scale)

    def metrics(self, labels: Float32, values: Float32) -> Metrics:
        """Metrics of raw values; means over the tracks, but for a profile, which is one whole.

        Parameters
        ----------
        labels : float array, [n, tracks]
            NaN where missing. Tracks whose known labels are all equal do not count.
        values : float array, [n, tracks]
            Raw values in the labels' unit: logits, or predictions of a regression.

        Returns
        -------
        dict
            The names are those of :mod:`genomepred.evaluation.metrics`; NaN where undefined.

        Raises
        ------
        DataError
            If the labels of every track are constant.
        """
        if self.name == "profile":
            whole = _whole(labels)
            return profile_metrics(labels[whole], values[whole])
        tracks = [found for found in self.track_metrics(labels, values) if found]
        if not tracks:
            raise DataError(
                f"constant labels: in none of {labels.shape[1]} tracks do the {len(labels)} "
                "labels vary, so nothing can be measured"
            )
        return {name: _mean([found[name] for found in tracks]) for name in tracks[0]}

    def track_metrics(self, labels: Float32, values: Float32) -> list[Metrics]:
        """Metrics of each track; empty where its known labels are all equal.

        Parameters as of :meth:`metrics`. A profile's tracks are measured as shares, by the metrics
        of a regression.
        """
        measure = binary_metrics if self.name == "binary" else regression_metrics
        raw = softmax(values) if self.name == "profile" else values
        found = []
        for y, value in zip(labels.T, raw.T, strict=True):
            known = ~np.isnan(y)
            varies = known.any() and np.ptp(y[known]) > 0
            found.append(measure(y[known], value[known]) if varies else {})
        return found


def find_task(name: str, labels: Float32 | None = None, *, class_weights: str = "none") -> Task:
    """Task of a name, with the statistics of the training labels if these are given.

    Parameters
    ----------
    name : {"regression", "binary", "profile"}
    labels : float array, [n, tracks], optional
        Training labels, NaN where missing; needed to train, not to measure.
    class_weights : str, optional
        Binary: ``none``; ``balanced``, which gives a track's positives together the weight of its
        negatives; or the weight of a positive, one number or one a track, separated by commas.

    Raises
    ------
    DataError
        If there is no such task, its labels are constant, negative shares or no classes, or the
        weights do not fit.
    """
    if name not in _KINDS:
        raise DataError(f"unknown task {name!r}; there are {', '.join(_KINDS)}")
    task = Task(name)
    if class_weights != "none" and name != "binary":
        raise DataError(
            f"class weights {class_weights!r} were asked for, but the task is {name}; only binary "
            "labels have classes"
        )
    if labels is None:
        return task
    for track, y in enumerate(labels.T):
        _check(name, track, y[~np.isnan(y)])
    if name == "regression":
        exact = labels.astype(np.float64)
        shift, scale = np.nanmean(exact, axis=0).tolist(), np.nanstd(exact, axis=0).tolist()
        return replace(task, shift=tuple(shift), scale=tuple(scale))
    if class_weights != "none":
        return replace(task, weights=_weights(class_weights, labels))
    return task


def _check(name: str, track: int, known: Float32) -> None:
    """Refuse the known labels of a track that the task cannot be learned from."""
    if not np.isfinite(known).all():
        raise DataError(f"track {track + 1}: infinite labels; check the transformation")
    if name == "binary" and not np.isin(known, (0, 1)).all():
        wrong = known[~np.isin(known, (0, 1))][0]
        raise DataError(f"track {track + 1}: label {wrong:g} is neither 0 nor 1, as binary needs")
    if name == "profile" and (known < 0).any():
        raise DataError(f"track {track + 1}: label {known.min():g} is no share; it is negative")
    if name == "regression" and (known.size == 0 or np.ptp(known) == 0):
        what = f"all {known.size} are {known[0]:g}" if known.size else "none is known"
        raise DataError(f"constant labels: track {track + 1}: {what}; leave the track out")


def _weights(text: str, labels: Float32) -> tuple[float, ...]:
    if text == "balanced":
        positives, negatives = (labels == 1).sum(axis=0), (labels == 0).sum(axis=0)
        # Without positives or negatives there is nothing to balance.
        both = (positives > 0) & (negatives > 0)
        return tuple(np.where(both, negatives / np.maximum(positives, 1), 1.0).tolist())
    try:
        weights = tuple(float(part) for part in text.split(","))
    except ValueError:
        weights = ()
    tracks = labels.shape[1]
    if len(weights) not in (1, tracks) or not all(0 < w < np.inf for w in weights):
        raise DataError(
            f"class weights {text!r} are neither none, balanced, nor one positive number or "
            f"{tracks} of them, one a track"
        )
    return weights * tracks if len(weights) == 1 else weights


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def _whole(labels: Float32) -> NDArray[np.bool_]:
    """Rows of a profile without missing shares."""
    rows = np.asarray(~np.isnan(labels).any(axis=1))
    if not rows.any():
        raise DataError(f"no labels: in each of {len(labels)} profiles some share is missing")
    return rows


def _known_mean(losses: Tensor, known: Tensor) -> Tensor:
    return (losses * known).sum() / known.sum().clamp(min=1)


def _squared_error(task: Task, values: Tensor, labels: Tensor) -> Tensor:
    shift, scale = torch.tensor([task.shift, task.scale], device=labels.device)
    known = ~labels.isnan()
    wanted = torch.where(known, (labels - shift) / scale, values.detach())
    return _known_mean(functional.mse_loss(values, wanted, reduction="none"), known)


def _cross_entropy_of_classes(task: Task, values: Tensor, labels: Tensor) -> Tensor:
    weights = torch.tensor(task.weights, device=labels.device) if task.weights else None
    losses = functional.binary_cross_entropy_with_logits(
        values, labels.nan_to_num(), pos_weight=weights, reduction="none"
    )
    return _known_mean(losses, ~labels.isnan())


def _cross_entropy_of_shares(task: Task, values: Tensor, labels: Tensor) -> Tensor:
    known = ~labels.isnan().any(dim=1)
    losses = -(labels.nan_to_num() * functional.log_softmax(values, dim=1)).sum(dim=1)
    return _known_mean(losses, known)


class _Kind(NamedTuple):
    activation: str
    headline: str
    loss: Callable[[Task, Tensor, Tensor], Tensor]


_KINDS = {
    "regression": _Kind("none", "R2", _squared_error),
    "binary": _Kind("sigmoid", "auPRC", _cross_entropy_of_classes),
    "profile": _Kind("softmax", "D2", _cross_entropy_of_shares),
}
