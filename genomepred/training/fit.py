"""The training loop: one for all models and tasks, that goes on where it was stopped."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import os
import pickle
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from genomepred.errors import DataError, DeviceError, ModelError, OutputError
from genomepred.files import open_regular, publishing, sync, write_whole
from genomepred.inference.engine import Numerics
from genomepred.inference.predictor import Predictor
from genomepred.lowering.fuse import REFERENCE, prepare
from genomepred.models.layers import SequenceModel, channels_last
from genomepred.progress import Progress, tell
from genomepred.training.memory import pass_size, step_size

if TYPE_CHECKING:
    from genomepred.data.examples import Batches, Data, Examples
    from genomepred.training.tasks import Task

Weights = dict[str, Tensor]

STATE, HISTORY = "state.pt", "history.csv"
# The state of the epoch before, for when the last one is damaged.
PREVIOUS = "state.previous.pt"
# Of a file that holds a state: this line, the sha256 of what follows in hexadecimal, a line end.
_STATE_HEADER = b"genomepred training state 1\n"
OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}
# What taking up a state of another model raises.
_MISFIT = (
    pickle.UnpicklingError,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
)
_BATCH = 256  # examples a step, if memory allows
_PASS = 512  # examples that are predicted together, if memory allows
PRECISIONS = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Settings:
    """Settings of the training itself.

    Parameters
    ----------
    epochs : int, optional
        Passes at most.
    batch_size : int, optional
        Examples a step; by default 256, or fewer where memory does not suffice for so many.
    optimizer : {"adamw", "adam"}, optional
        Adam adds the weight decay to the gradients, AdamW takes it from the weights.
    learning_rate, weight_decay : float, optional
        Of the optimizer; the rate is the highest one.
    schedule : {"cosine", "constant"}, optional
        Course of the learning rate after the warm-up; cosine ends at zero with the last epoch.
    warmup : float, optional
        Share of all steps in which the rate rises linearly from zero.
    clip : float, optional
        Largest norm of a step's gradient.
    patience : int, optional
        Epochs without improvement after which training stops.
    precision : {"auto", "fp32", "fp16", "bf16"}, optional
        Of the layers in training; weights, loss and validation are fp32, and the loss is scaled in
        fp16. ``auto`` is fp32 on a CPU and, on a CUDA device, bf16 where it has it, else fp16.
    class_weights : str, optional
        See :func:`genomepred.training.tasks.find_task`.
    seed : int, optional
        Of weights and dropout.

    Raises
    ------
    DataError
        If a number is not finite.
    """

    epochs: int = 10
    batch_size: int | None = None
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    schedule: str = "cosine"
    warmup: float = 0.02
    clip: float = 1.0
    patience: int = 3
    precision: str = "auto"
    class_weights: str = "none"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "weight_decay", "warmup", "clip"):
            if not math.isfinite(value := getattr(self, name)):
                option = name.replace("_", "-")
                raise DataError(f"--{option} {value} asked for; give a finite number")

    def decided(self, model: SequenceModel) -> Settings:
        """The settings with the number of examples a step that the model and the machine allow."""
        if self.batch_size is not None:
            return self
        return replace(self, batch_size=step_size(channels_last(model), _BATCH))

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of a step, counted from 0, of ``steps`` in all."""
        rise = min(1.0, (step + 1) / max(self.warmup * steps, 1))
        if self.schedule == "constant":
            return self.learning_rate * rise
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))


@dataclass(frozen=True)
class Epoch:
    """One line of ``history.csv``.

    Parameters
    ----------
    epoch : int
        Counted from 0.
    loss, validation_loss : float
        Means over the epoch's batches and over the validation examples.
    metrics : dict
        Of the validation examples.
    score : float
        The task's headline metric.
    learning_rate : float
        Of the last step.
    seconds : float
        Validation included.
    """

    epoch: int
    loss: float
    validation_loss: float
    metrics: dict[str, float]
    score: float
    learning_rate: float
    seconds: float


@dataclass
class Fit:
    """A training's course so far.

    Parameters
    ----------
    epochs : list of Epoch
        One an epoch.
    best, last : dict of str to tensor
        Weights after the best epoch and after the last one.
    """

    epochs: list[Epoch] = field(default_factory=list)
    best: Weights = field(default_factory=dict)
    last: Weights = field(default_factory=dict)

    @property
    def best_epoch(self) -> Epoch:
        """The first epoch with the highest score, or of undefined (NaN) ones the lowest loss."""

        def rank(epoch: Epoch) -> tuple[bool, float]:
            is_defined = not math.isnan(epoch.score)
            return is_defined, epoch.score if is_defined else -epoch.validation_loss

        return max(self.epochs, key=rank)

    def is_over(self, settings: Settings) -> bool:
        """Whether no epoch is left, or too many have passed without improvement."""
        if not self.epochs:
            return False
        waited = len(self.epochs) - 1 - self.best_epoch.epoch
        return len(self.epochs) >= settings.epochs or waited >= settings.patience


def fit(
    model: SequenceModel, data: Data, task: Task, settings: Settings, *, out: Path | None = None
) -> Fit:
    """Train a model in place and leave it with the weights of its best epoch.

    The same data, settings and machine type give the same weights on a CPU with one thread, however
    often training was killed in between: after each epoch all that the next one needs is in
    ``out/state.pt``, and random numbers start afresh from the seed and the epoch's number.

    Parameters
    ----------
    model : SequenceModel
        On the device to train on, with its initial weights.
    data : Data
        Training and validation examples.
    task : Task
        With the statistics of the training labels.
    settings : Settings
        How to train.
    out : Path, optional
        Folder for the state and ``history.csv``. A state in it must be of the same model, data,
        task and settings.

    Returns
    -------
    Fit
        The history, and weights in the units of training: see
        :meth:`genomepred.training.tasks.Task.fold`.

    Raises
    ------
    ModelError
        If the loss or the predictions become NaN or infinite.
    DeviceError
        If the device's memory is full.
    OutputError
        If the folder cannot be written, or its state is of another training. A damaged state is
        told, and the one before it taken up; without one training starts again.
    """
    trainer = _Trainer(model, task, settings)
    course = Fit() if out is None else trainer.resume(out)
    if out is not None and course.epochs:  # killed between the state and its line
        _write_history(out / HISTORY, course.epochs)
    validation = data.validation()
    bar = Progress(total=settings.epochs, initial=len(course.epochs), desc="training", unit="epoch")
    with bar:
        while not course.is_over(settings):
            done = trainer.epoch(len(course.epochs), data, validation, bar)
            course.epochs.append(done)
            course.last = _copy(model)
            if course.best_epoch is done:
                course.best = course.last
            if out is not None:
                trainer.save(out, course)
                _write_history(out / HISTORY, course.epochs)
            bar.update()
            bar.set_postfix({"loss": f"{done.loss:.4f}", task.headline: f"{done.score:.4f}"})
    model.load_state_dict(course.best)
    model.eval()
    return course


class _Trainer:
    """Optimizer, precision and learning-rate course of one run."""

    def __init__(self, model: SequenceModel, task: Task, settings: Settings) -> None:
        self.model, self.task, self.settings = model, task, settings.decided(model)
        self.compute = channels_last(model)  # shares the parameters
        self.device = model.device
        self.size = self.settings.batch_size or _BATCH
        self.optimizer = OPTIMIZERS[settings.optimizer](
            model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.dtype = PRECISIONS[_precision(settings.precision, self.device)]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.step, self.rate = 0, 0.0

    def epoch(self, number: int, data: Data, validation: Examples, bar: Progress) -> Epoch:
        """Train for an epoch and validate."""
        start = time.perf_counter()
        _reseed(self.settings.seed, number)
        try:
            loss = self._train(data.epoch(number), bar)
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"the memory of device {self.device} is full with batches of "
                f"{self.size}; use a smaller --batch-size"
            ) from error
        predictor = raw_predictor(self.model, len(validation))
        values = predictor.predict(validation.codes).reshape(len(validation), -1)
        if not np.isfinite(values).all():
            raise ModelError(f"predictions are not finite after epoch {number}; {self._advice()}")
        labels = np.asarray(validation.labels)
        validation_loss = self.task.loss(torch.from_numpy(values), torch.from_numpy(labels))
        metrics = self.task.metrics(labels, self.task.restore(values))
        return Epoch(
            epoch=number,
            loss=loss,
            validation_loss=validation_loss.item(),
            metrics=metrics,
            score=metrics[self.task.headline],
            learning_rate=self.rate,
            seconds=round(time.perf_counter() - start, 2),
        )

    def _train(self, examples: Batches, bar: Progress) -> float:
        """One pass; the mean loss. Examples that fill no batch wait for another epoch's order."""
        size = self.size
        batches = max(len(examples) // size, 1)
        self.compute.train()
        total = 0.0
        for i in range(batches):
            total += self._step(examples.take(slice(i * size, (i + 1) * size)), batches)
            if i % 100 == 99:
                bar.set_postfix(loss=f"{total / (i + 1):.4f}", batch=f"{i + 1}/{batches}")
        return total / batches

    def _step(self, examples: Examples, batches: int) -> float:
        self.rate = self.settings.rate(self.step, batches * self.settings.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        labels = torch.from_numpy(examples.labels).to(self.device)
        with self._autocast():
            values = self.compute(torch.from_numpy(examples.codes).to(self.device)).flatten(1)
        loss = self.task.loss(values.float(), labels)
        value = loss.item()
        if not math.isfinite(value):
            raise ModelError(f"the loss is {value} at step {self.step}; {self._advice()}")
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        return value

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def _advice(self) -> str:
        return f"lower the learning rate ({self.settings.learning_rate:g})"

    def save(self, out: Path, course: Fit) -> None:
        """Write all that the next epoch needs, whole or not at all, and keep the state before."""
        state = {
            "of": self._identity(),
            "model": self.model.state_dict(),
            "best": course.best,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "epochs": [vars(epoch) for epoch in course.epochs],
        }
        packed = io.BytesIO()  # a full disk is an OSError below, and an obscure one in torch
        torch.save(state, packed)
        with publishing(out / STATE) as temporary:
            with open(temporary, "xb") as file:
                file.write(_header(packed.getbuffer()))
                file.write(packed.getbuffer())
            sync(temporary)  # before the one that it replaces is moved away
            if (out / STATE).exists():
                os.replace(out / STATE, out / PREVIOUS)

    def resume(self, out: Path) -> Fit:
        """Take up the last whole state, if there is one."""
        for name in (STATE, PREVIOUS):
            packed = _read_state(out / name)
            if packed is None:
                continue
            course = self._restore(packed, out / name)
            if name == PREVIOUS:
                tell(f"{out}: goes on from the state before, of {len(course.epochs)} epochs")
            return course
        if (out / HISTORY).exists():
            tell(f"{out}: holds no whole state of its training, which starts again")
        return Fit()

    def _restore(self, packed: bytes, path: Path) -> Fit:
        try:
            state = torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
            if state["of"] != self._identity():
                raise ValueError("other settings")
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            self.step = state["step"]
            epochs = [Epoch(**epoch) for epoch in state["epochs"]]
            return Fit(epochs, state["best"], _copy(self.model))
        except _MISFIT as error:
            raise OutputError(
                f"{path} is of another training; delete it to start again, or use another --out"
            ) from error

    def _identity(self) -> dict[str, Any]:
        """Identity that a state must have, as plain values."""
        return {"task": asdict(self.task), "settings": asdict(self.settings)}


def _header(packed: bytes | memoryview) -> bytes:
    return _STATE_HEADER + hashlib.sha256(packed).hexdigest().encode() + b"\n"


def _read_state(path: Path) -> bytes | None:
    """The packed state in a file; None if it is absent or, which is told, damaged."""
    try:
        with open(open_regular(path), "rb") as file:
            whole = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(f"{path}: cannot be read: {error.strerror}") from error
    size = len(_header(b""))
    if whole[:size] == _header(memoryview(whole)[size:]):
        return whole[size:]
    tell(f"{path} is damaged: its content does not match its sha256; it is not used")
    return None


def _precision(asked: str, device: torch.device) -> str:
    """The precision to compute in, ``auto`` decided."""
    if asked != "auto":
        return asked
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def _reseed(seed: int, epoch: int) -> None:
    """Start torch's random numbers (dropout) afresh."""
    torch.manual_seed(int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]))


def _copy(model: nn.Module) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def raw_predictor(model: SequenceModel, windows: int = _PASS) -> Predictor:
    """Predictor of a model's raw values, with the weights that it has now.

    Parameters
    ----------
    model : SequenceModel
        On its device.
    windows : int, optional
        That will be predicted: 512 of them at a time, or as many as fit into memory.
    """
    form = prepare(model, "torch")
    batch = pass_size(form, min(_PASS, windows))
    numerics = Numerics("fp32", REFERENCE, batch, "forward")
    return Predictor(
        form,
        device=model.device,
        numerics=numerics,
        activation=False,
        min_bases=0,
        threads=None,
    )


def _write_history(path: Path, epochs: Sequence[Epoch]) -> None:
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    metrics = list(epochs[0].metrics)
    writer.writerow(["epoch", "loss", "validation_loss", *metrics, "learning_rate", "seconds"])
    for r in epochs:
        row = [r.epoch, r.loss, r.validation_loss, *r.metrics.values(), r.learning_rate, r.seconds]
        # An undefined metric is an empty field.
        writer.writerow(["" if isinstance(x, float) and math.isnan(x) else x for x in row])
    write_whole(path, table.getvalue().encode())


def history_digest(path: Path) -> str:
    """sha256 of a history but for the seconds, its last column, which differ from run to run."""
    digest = hashlib.sha256()
    for line in path.read_bytes().splitlines():
        digest.update(line.rpartition(b",")[0] + b"\n")
    return digest.hexdigest()
