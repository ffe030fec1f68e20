"""Choice of a run's computing: whose kernels, and whether overlap is shared, by what stretches."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import nn

from genomepred.errors import DeviceError, ModelError
from genomepred.kernels.dispatch import PRECISIONS, obstacle
from genomepred.lowering.cost import Work, stretch_work
from genomepred.lowering.fuse import kernels_of, prepare
from genomepred.lowering.long import LongWindow, check_bins, long_work, without_values
from genomepred.lowering.receptive_field import (
    CannotShareError,
    follow,
    place_of_windows,
    trunk_of,
)
from genomepred.lowering.shared import Sharing
from genomepred.models.layers import SequenceModel
from genomepred.sequences.grid import Geometry

# What a model is computed by: as it is written; prepared, without a kernel of ours.
REFERENCE, TORCH = ("reference",), ("torch",)
OVERLAPS = ("auto", "share", "naive")

# Values of the largest layer of a stretch, and its windows: enough that calls of small layers are
# worth their time, few enough that activations stay in the cache, and that glibc does not hand
# their memory back to be faulted in again (CPU), or that they fit (CUDA). One thread, us a window
# for values / windows: basenji-maize, stride 104: 16.2 for 236k / 256, 12.7 for 449k / 512, 15.7
# for 875k / 1,024; stride 103: 42 for 0.9M / 256, 92 for 1.8M / 512; the two-block CNN, W = 200,
# stride 25: 43 for 421k / 256, 34 for 830k / 512, 38 for 1.6M / 1,024.
_STRETCH_VALUES = {"cpu": 1_048_576, "cuda": 268_435_456}
_STRETCH_WINDOWS = {"cpu": 1_024, "cuda": 8_192}
# Multiply-adds that take as long as a value of a pool that makes more phases: it is pooled and
# activated by itself, where other blocks end with both. One thread, 22 models and strides: with it
# the counted saving is 1.2 times the measured one on average, and the measured order is kept.
_SPLIT = 200
# How many times less work pays. CPU, one thread, of what was measured (benchmarks/overlap.py): all
# that save as much are faster shared, from 1.07 times on. CUDA: not measured; sharing is left to
# where it saves most.
_PAYS = {"cpu": 1.25, "cuda": 4.0}


class Stretches(NamedTuple):
    """Windows of a stretch, and how many times the work of stretches they all are alone."""

    windows: int
    saving: float


# Given the windows of a stretch, says which share of them is asked for on average.
Filled = Callable[[int], float]


@dataclass(frozen=True, eq=False)
class StretchSizes:
    """Sizes of the stretches that windows of a model can share overlap in.

    Their work is counted when it is first asked for, and only once.

    Parameters
    ----------
    model : nn.Module
        As written.
    geometry : Geometry
        Windows of the grid.
    device_type : {"cpu", "cuda"}
        Bounds the size of stretches.
    """

    model: nn.Module
    geometry: Geometry
    device_type: str

    def choose(self, overlap: str, whole: Filled, asked: Filled | None = None) -> Stretches | None:
        """Stretches to share overlap by, or None where every window is computed by itself.

        Parameters
        ----------
        overlap : {"auto", "share", "naive"}
            What is asked for. ``auto``: stretches where they are clearly faster.
        whole, asked : callable
            How a whole genome fills stretches, which decides on their size, and how the regions
            that are asked for do, if there are any.

        Raises
        ------
        ModelError
            If sharing is asked for and impossible.
        """
        if overlap == "naive":
            return None
        try:
            found = self.best(whole)
        except CannotShareError as error:
            if overlap == "auto":
                return None
            raise ModelError(f"--overlap share: {error}; use --overlap auto or naive") from error
        if asked is not None:
            part = asked(found.windows) / whole(found.windows)
            found = found._replace(saving=found.saving * part)
        return found if overlap == "share" or found.saving >= _PAYS[self.device_type] else None

    def why_alone(self, whole: Filled) -> str:
        """Reason for which ``auto`` shares no overlap; empty if it would.

        Parameters
        ----------
        whole : callable
            As of :meth:`choose`.
        """
        try:
            saving = self.best(whole).saving
        except CannotShareError as error:
            return str(error)
        pays = _PAYS[self.device_type]
        if saving >= pays:
            return ""
        return f"it would be {saving:.2f} times less work, and pays from {pays}"

    def best(self, filled: Filled) -> Stretches:
        """Stretches that save most, by counted work.

        Raises
        ------
        CannotShareError
            If windows of the model do not overlap or cannot be computed from a stretch.
        """
        alone, costs = self._costs
        found = (Stretches(n, n * alone * filled(n) / cost) for n, cost in costs.items())
        return max(found, key=lambda stretches: stretches.saving)

    @cached_property
    def _costs(self) -> tuple[int, dict[int, int]]:
        """Multiply-adds of a window by itself, and of stretches by their windows."""
        window, stride = self.geometry.window, self.geometry.stride
        if stride > window:
            raise CannotShareError(f"windows do not overlap at stride {stride}")
        work: Callable[[int], Work]
        if getattr(self.model, "bins", 1) == 1:
            trunk = trunk_of(self.model, as_written=True)
            alone, work = stretch_work(trunk, 0, 1), partial(stretch_work, trunk, stride)
            windows, fewest = follow(trunk.steps, place_of_windows(window, stride, 1)).phases, 32
        else:
            work = partial(long_work, without_values(check_bins(self.model)))
            alone, windows, fewest = work(1), 1, 2
        costs: dict[int, int] = {}
        while windows <= _STRETCH_WINDOWS[self.device_type] or not costs:
            if windows >= fewest:
                whole = work(windows)
                if costs and whole.values > _STRETCH_VALUES[self.device_type]:
                    break
                costs[windows] = whole.multiply_adds + _SPLIT * whole.split
            windows *= 2
        return alone.multiply_adds, costs


def share(model: nn.Module, stride: int, windows: int) -> Sharing | LongWindow:
    """A prepared model that :class:`StretchSizes` gave stretches for, in the form that shares."""
    if isinstance(model, SequenceModel) and model.bins > 1:
        return LongWindow(model, windows)
    return Sharing(model, stride, windows)


def resolve_kernels(
    model: nn.Module, asked: str, device: torch.device, precision: str
) -> tuple[str, ...]:
    """Return ``--kernels`` for a model on a device, as :class:`Numerics` says it.

    Parameters
    ----------
    asked : {"auto", "triton", "cudnn", "cpu", "reference"}
        ``auto`` is the model as written where nothing else can be.

    Raises
    ------
    DeviceError
        If the kernels do not run on the device.
    ModelError
        If they are asked for and the model cannot be rewritten.
    """
    if asked == REFERENCE[0]:
        return REFERENCE
    kernels, why = asked, obstacle(device, PRECISIONS[precision], asked)
    if why and asked != "auto":
        raise DeviceError(f"--kernels {asked}: {why}")
    if why:
        warnings.warn(f"torch's convolutions are used: {why}", stacklevel=2)
        kernels = "torch"
    try:
        return kernels_of(prepare(model.to(device).eval(), kernels, dtype=PRECISIONS[precision]))
    except ModelError as error:
        if asked != "auto":
            raise
        warnings.warn(f"the model is computed as written: {error}", stacklevel=2)
        return REFERENCE
