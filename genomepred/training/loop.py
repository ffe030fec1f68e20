"""The training loop: one for all models."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from genomepred.errors import ModelError, OutputError
from genomepred.models.layers import SequenceModel, channels_last, prepare
from genomepred.training.data import Codes, Examples

Float32 = NDArray[np.float32]
Loss = Callable[[Tensor, Tensor], Tensor]
Metric = Callable[[Float32, Float32], float]


class Data(Protocol):
    """What the loop trains on."""

    def epoch(self, number: int) -> Examples:
        """Training examples of an epoch in the order to use them; a function of its number."""
        ...

    def validation(self) -> Examples:
        """Examples that choose the best epoch; always the same."""
        ...


@dataclass(frozen=True)
class Settings:
    """How to train.

    Parameters
    ----------
    epochs : int, optional
        Passes at most.
    batch_size : int, optional
        Examples a step.
    learning_rate, weight_decay : float, optional
        Of AdamW; the rate is the highest one.
    schedule : {"cosine", "constant"}, optional
        Course of the learning rate after the warm-up; cosine ends at zero with the last epoch.
    warmup : float, optional
        Share of all steps in which the rate rises linearly from zero.
    clip : float, optional
        Largest norm of a step's gradient.
    patience : int, optional
        Epochs without improvement after which training stops.
    seed : int, optional
        Of weights, order and negatives.
    """

    epochs: int = 10
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    schedule: str = "cosine"
    warmup: float = 0.02
    clip: float = 1.0
    patience: int = 3
    seed: int = 0

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step, counted from 0, of ``steps`` in all."""
        rise = min(1.0, (step + 1) / max(self.warmup * steps, 1))
        if self.schedule == "constant":
            return self.learning_rate * rise
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))


@dataclass(frozen=True)
class Epoch:
    """One line of ``history.csv``."""

    epoch: int
    loss: float
    metric: float
    learning_rate: float
    seconds: float


def fit(
    model: SequenceModel,
    data: Data,
    metric: Metric,
    settings: Settings,
    *,
    loss: Loss = functional.binary_cross_entropy_with_logits,
    history: Path | None = None,
) -> list[Epoch]:
    """Train a model in place and leave it with the weights of its best epoch.

    The same data, settings and machine type give the same weights on a CPU with one thread.

    Parameters
    ----------
    model : SequenceModel
        On the device to train on.
    data : Data
        Training and validation examples.
    metric : callable
        ``metric(labels, raw values) -> float`` on the validation examples; higher is better.
    settings : Settings
        How to train.
    loss : callable, optional
        ``loss(raw values, labels) -> scalar``, both ``[batch, tracks]``.
    history : Path, optional
        CSV file that gets one line an epoch.

    Returns
    -------
    list of Epoch
        The history; the best epoch is the first with the highest metric.

    Raises
    ------
    ModelError
        If the loss becomes NaN or infinite.
    OutputError
        If the history cannot be written.
    """
    trainer = _Trainer(model, loss, settings)
    validation = data.validation()
    epochs: list[Epoch] = []
    best: dict[str, Tensor] = {}
    bar: tqdm[Any] = tqdm(total=settings.epochs, desc="training", unit="epoch")
    with bar:
        for number in range(settings.epochs):
            start = time.perf_counter()
            mean_loss = trainer.run(data.epoch(number), bar)
            values = raw_values(prepare(model), validation.codes)
            score = metric(validation.labels, values.reshape(len(values), -1))
            seconds = round(time.perf_counter() - start, 2)
            epochs.append(Epoch(number, mean_loss, score, trainer.rate, seconds))
            _write(history, epochs)
            bar.update()
            bar.set_postfix(loss=f"{mean_loss:.4f}", metric=f"{score:.4f}")
            leader = best_epoch(epochs)
            if leader == number:
                best = {name: t.detach().clone() for name, t in model.state_dict().items()}
            elif number - leader >= settings.patience:
                break
    model.load_state_dict(best)
    model.eval()
    return epochs


def best_epoch(epochs: list[Epoch]) -> int:
    """Number of the first epoch with the highest metric."""
    return max(epochs, key=lambda epoch: epoch.metric).epoch


class _Trainer:
    """Optimiser and learning-rate course of one run."""

    def __init__(self, model: SequenceModel, loss: Loss, settings: Settings) -> None:
        self.model, self.loss, self.settings = model, loss, settings
        self.compute = channels_last(model)  # shares the parameters
        self.device = next(model.parameters()).device
        self.optimiser = torch.optim.AdamW(
            model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.step, self.rate = 0, 0.0

    def run(self, examples: Examples, bar: tqdm[Any]) -> float:
        """One pass; the mean loss. Examples that fill no batch wait for another epoch."""
        size = self.settings.batch_size
        batches = max(len(examples) // size, 1)
        self.compute.train()
        total = 0.0
        for i in range(batches):
            part = slice(i * size, (i + 1) * size)
            total += self._step(examples.codes[part], examples.labels[part], batches)
            if i % 100 == 99:
                bar.set_postfix(loss=f"{total / (i + 1):.4f}", batch=f"{i + 1}/{batches}")
        return total / batches

    def _step(self, codes: Codes, labels: Float32, batches: int) -> float:
        self.rate = self.settings.rate(self.step, batches * self.settings.epochs)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate
        values = self.compute(torch.from_numpy(codes).to(self.device)).flatten(1)
        loss = self.loss(values, torch.from_numpy(labels).to(self.device))
        if not math.isfinite(loss.item()):
            raise ModelError(
                f"the loss is {loss.item()} at step {self.step}; lower the learning rate "
                f"({self.settings.learning_rate:g})"
            )
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.optimiser.step()
        self.step += 1
        return loss.item()


def raw_values(model: nn.Module, codes: Codes, batch_size: int = 512) -> Float32:
    """Raw values ``float32 [n, bins, tracks]`` of a model for codes ``uint8 [n, window]``.

    ``codes`` may be a view with overlapping rows; it is copied a batch at a time.
    """
    device = next(model.parameters()).device
    batches = []
    with torch.inference_mode():
        for first in range(0, len(codes), batch_size):
            batch = torch.from_numpy(codes[first : first + batch_size].copy())
            batches.append(model(batch.to(device)).float().cpu().numpy())
    return np.concatenate(batches)


def _write(path: Path | None, epochs: list[Epoch]) -> None:
    if path is None:
        return
    try:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(Epoch.__dataclass_fields__)
            writer.writerows(vars(epoch).values() for epoch in epochs)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror}") from error
