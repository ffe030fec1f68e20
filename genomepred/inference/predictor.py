"""Codes to predictions, in memory: the way to a model for everything that is not a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from genomepred.errors import ModelError
from genomepred.inference.engine import (
    CUDA_SETTINGS,
    Batches,
    Engine,
    Numerics,
    compute_batch,
    find_device,
)
from genomepred.inference.numerics import Candidates, GuardWindows, Subject, decide
from genomepred.inference.pipeline import missing_bins
from genomepred.models.card import Card, Track
from genomepred.models.checkpoint import load_model
from genomepred.models.external import as_model
from genomepred.models.layers import SequenceModel

Codes = NDArray[np.uint8]
# Compute batches that are copied to the device together.
_BATCHES_TOGETHER = {"cpu": 4, "cuda": 2}


class _Computed(BaseException):
    """Leaves a model once the layer that is asked for is computed."""


class Predictor:
    """A model on a device: codes in, predictions out, as a run computes them.

    Windows are computed in compute batches of one fixed size, so a prediction depends on the window
    and on its place modulo that size, never on how many windows there are. Weights are those of
    the moment when the predictor is made, unless the kernels are ``reference``.

    Parameters
    ----------
    model : nn.Module, str or path
        A model in memory, a checkpoint directory, or the name of a bundled model. A model in memory
        is moved to the device and put into evaluation mode. A module that is no
        :class:`SequenceModel` is called with what the card says, codes or a one-hot.
    card : Card, optional
        Of a model in memory that has no attribute ``card``. A :class:`SequenceModel` can do without
        one, as in training: it knows its sizes, and its values are raw.
    device : str or torch.device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    strand : {"forward", "reverse", "mean", "each"}
        ``mean`` averages both strands after activation; ``each`` doubles the tracks.
    precision : {"auto", "fp32", "fp16", "bf16"}
        As of a run; compared with float32 on random sequence.
    kernels : {"auto", "triton", "cudnn", "cpu", "reference"}
        As of a run. ``reference``: the model as written, with the weights that it has when
        :meth:`predict` is called.
    numerics : Numerics, optional
        Decided before, as in a run's ``run.json``: used instead of the three above, but that every
        window is computed by itself.
    activation : bool
        Whether the card's activation is applied; without, raw values.
    min_bases : int, optional
        Windows with fewer known bases are NaN; by default the card's.
    threads : int, optional
        CPU threads of one operation. None: as many as torch is set to, on which last bits depend.
    trust_code : str, optional
        Code of a model that comes with its own, see :func:`genomepred.predict`.

    Raises
    ------
    ModelError
        If the model has no card, or does not return what its card promises.
    PrecisionError, DeviceError
        If precision or kernels that are asked for are not accurate enough, or do not run here.
    """

    def __init__(
        self,
        model: nn.Module | str | os.PathLike[str],
        *,
        card: Card | None = None,
        device: str | torch.device = "auto",
        strand: str = "forward",
        precision: str = "auto",
        kernels: str = "auto",
        numerics: Numerics | None = None,
        activation: bool = True,
        min_bases: int | None = None,
        threads: int | None = 1,
        trust_code: str | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            model = load_model(os.fspath(model), trust_code=trust_code)
        found = _card_of(model, card)
        model = as_model(model, found)
        self.card = found if activation else replace(found, activation="none")
        self.device = find_device(str(device))
        self.min_bases = found.min_bases if min_bases is None else min_bases
        self._geometry = found.geometry()
        self._threads = threads
        with self.settings():
            if numerics is None:
                subject = Subject(model, found, self._geometry, self.device)
                batch = compute_batch(self.window, self.device.type, self.bins)
                spread = GuardWindows(Batches.random(batch, self._geometry))
                numerics = decide(subject, Candidates(precision, kernels, strand), spread)
            self.numerics = replace(numerics, overlap="naive")  # windows come one by one
            #: What calls the model.
            self.engine = Engine(model, self.card, self._geometry, self.numerics, self.device)

    @property
    def window(self) -> int:
        """Bases of a window."""
        return self._geometry.window

    @property
    def bins(self) -> int:
        """Output bins of a window."""
        return self._geometry.bins

    @property
    def tracks(self) -> int:
        """Output channels, both strands' with ``each``."""
        return self.engine.tracks

    def predict(self, codes: Codes) -> NDArray[np.float32]:
        """Predictions of windows.

        Parameters
        ----------
        codes : uint8 array, [windows, window]
            A, C, G, T as 0 to 3; 4 is an unknown base. Any memory layout, such as a sliding view.

        Returns
        -------
        float32 array, [windows, bins, tracks]
            NaN where too few bases are known.

        Raises
        ------
        ValueError
            If the array has another shape or type.
        """
        codes = np.asarray(codes)
        self._check(codes)
        out = np.empty((len(codes), self.bins, self.tracks), np.float32)
        slots = self.numerics.compute_batch * _BATCHES_TOGETHER[self.device.type]
        with self.settings():
            for first in range(0, len(codes), slots):
                part = np.ascontiguousarray(codes[first : first + slots])
                out[first : first + slots] = self._compute(part)
        return out

    def activations(self, codes: Codes, layer: nn.Module) -> Tensor:
        """Output of one layer of the model as written, for windows of the forward strand.

        Nothing after the layer is computed.

        Parameters
        ----------
        codes : uint8 array, [windows, window]
        layer : nn.Module
            A module within the model that the predictor was made of.

        Returns
        -------
        float32 tensor, [windows, ...]
            On the CPU.

        Raises
        ------
        ModelError
            If the model does not call the layer.
        """
        self._check(codes)
        batch, found = self.numerics.compute_batch, []

        def stop(module: nn.Module, inputs: object, output: Tensor) -> None:
            raise _Computed(output)

        hook = layer.register_forward_hook(stop)
        try:
            with self.settings(), torch.no_grad():
                for first in range(0, len(codes), batch):
                    part = codes[first : first + batch]
                    found.append(self._until(_padded(part, batch)).float().cpu()[: len(part)])
        finally:
            hook.remove()
        return torch.cat(found)

    def _until(self, codes: Codes) -> Tensor:
        """Output of the layer with a hook for one compute batch."""
        try:
            self.engine.written(torch.from_numpy(codes).to(self.device))
        except _Computed as reached:
            result: Tensor = reached.args[0]
            return result
        raise ModelError(f"model {self.card.name!r} does not use the layer that is asked for")

    def _check(self, codes: Codes) -> None:
        if codes.ndim != 2 or codes.shape[1] != self.window or codes.dtype != np.uint8:
            raise ValueError(
                f"codes are {codes.dtype} {list(codes.shape)}; give uint8 [windows, {self.window}]"
            )

    def _compute(self, windows: Codes) -> NDArray[np.float32]:
        batch, window = self.numerics.compute_batch, self.window
        slots = -(-len(windows) // batch) * batch
        starts = np.arange(slots, dtype=np.int64) * window
        flat = _padded(windows, slots).reshape(-1)
        needed = np.ones(slots // batch, np.bool_)
        batches = Batches(torch.from_numpy(flat), starts, window, needed)
        values = self.engine.submit(batches)()[: len(windows)]
        missing = missing_bins(flat, starts[: len(windows)], self._geometry, self.min_bases)
        return np.where(missing[:, :, None], np.float32(np.nan), values)

    @contextmanager
    def settings(self) -> Iterator[None]:
        """The engine's settings of torch, which belong to the process, for a while."""
        threads = torch.get_num_threads()
        before = [getattr(holder, name) for holder, name, _ in CUDA_SETTINGS]
        try:
            for holder, name, value in CUDA_SETTINGS:
                setattr(holder, name, value)
            torch.set_num_threads(self._threads or threads)
            yield
        finally:
            for (holder, name, _), value in zip(CUDA_SETTINGS, before, strict=True):
                setattr(holder, name, value)
            torch.set_num_threads(threads)


def _padded(windows: Codes, slots: int) -> Codes:
    """Windows and, up to ``slots`` of them, unknown bases."""
    padded = np.full((slots, windows.shape[1]), 4, np.uint8)
    padded[: len(windows)] = windows
    return padded


def _card_of(model: nn.Module, card: Card | None) -> Card:
    """The card given, or the model's own, or sizes of a model without one; its values are raw."""
    found = card or getattr(model, "card", None)
    if isinstance(found, Card):
        return found
    if found is not None or not isinstance(model, SequenceModel):
        raise ModelError("a model in memory needs a card: give it as `card`")
    return Card(
        name="model",
        architecture="external",
        config={},
        window=model.window,
        bin_size=model.bin_size,
        stride=model.bins * model.bin_size,
        tracks=tuple(Track(f"track{k + 1}") for k in range(model.tracks)),
        activation="none",
        crop=model.crop,
        bins=model.bins,
        base_order=model.base_order,
        n_policy=model.n_policy,
    )
