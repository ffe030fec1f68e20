"""The decision of a run's numerics: candidates and guard windows in, ``Numerics`` out.

Windows are read before, as data, so a decision reads no files and calls nobody back: the same
candidates and windows on the same machine give the same numerics, but where a probe measures time.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import gcd

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from genomepred.errors import ModelError, PrecisionError
from genomepred.inference.engine import COMPILED, Batches, Engine, Numerics
from genomepred.lowering.fuse import (
    PRECISIONS,
    REFERENCE,
    TORCH,
    are_measured,
    prepare,
    resolve_kernels,
)
from genomepred.lowering.receptive_field import multiply_adds
from genomepred.lowering.shared import Stretches
from genomepred.models.card import Card, difference
from genomepred.sequences.grid import Geometry

# Compiling takes 3-17 s on a CPU, so runs that finish within about two minutes on one core never
# probe: 5e10 multiply-adds a second is what one AVX-512 core reaches. On a GPU, where a hundred
# times that is reached and compiling takes longer, only what needs no compiling is tried below.
# Counted, not timed, so that equal runs decide alike.
PROBE_FROM_MULTIPLY_ADDS = {"cpu": 6e12, "cuda": 5e14}
# Kernels replace those before them only where clearly faster, so that noise decides nothing.
_PROBE_MARGIN = 1.15


@dataclass(frozen=True)
class Subject:
    """A model, its card, its windows and the device that it is to run on."""

    model: nn.Module
    card: Card
    geometry: Geometry
    device: torch.device
    _last: list[tuple[Numerics, int, Engine]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    def engine(self, numerics: Numerics) -> Engine:
        """The engine that obeys the given numerics; the last one is kept for its thread."""
        wanted = numerics, threading.get_ident()
        if not self._last or self._last[0][:2] != wanted:
            self._last.clear()  # its memory first
            engine = Engine(self.model, self.card, self.geometry, numerics, self.device)
            self._last.append((*wanted, engine))
        return self._last[0][2]


@dataclass(frozen=True)
class Candidates:
    """The choices that a request leaves open.

    Parameters
    ----------
    precision : {"auto", "fp32", "fp16", "bf16"}
        ``auto`` is float32 on the CPU and, on a GPU, the first of float16, bfloat16 and float32
        that the precision guard accepts; an explicit choice that it rejects is an error.
    kernels : {"auto", "triton", "cudnn", "cpu", "reference"}
        ``auto``: those of the table of :mod:`genomepred.kernels.dispatch`, unless a probe finds
        something faster, or they differ from the model as written by more than its card allows.
    strand : {"forward", "reverse", "mean", "each"}
    stretches : Stretches, optional
        Stretches to share overlap by; the guard may decide against them.
    windows : float
        Windows that each worker will compute, about: decides whether a probe can pay.
    """

    precision: str = "auto"
    kernels: str = "auto"
    strand: str = "forward"
    stretches: Stretches | None = None
    windows: float = 0


@dataclass(frozen=True)
class GuardWindows:
    """Windows that ways to compute are compared on.

    Parameters
    ----------
    spread : Batches
        One compute batch without sharing; tells how many windows it has.
    following : Batches, optional
        One compute batch of windows that follow each other as the grid's do, if there are
        stretches to share overlap by.
    """

    spread: Batches
    following: Batches | None = None


def decide(subject: Subject, candidates: Candidates, windows: GuardWindows) -> Numerics:
    """Decide precision, kernels and overlap for a run.

    Raises
    ------
    PrecisionError
        If the explicitly chosen precision or kernels give NaN or differ from the model as written,
        in float32, by more than the card's tolerance.
    DeviceError, ModelError
        See :func:`resolve_kernels`.
    """
    written = Numerics("fp32", REFERENCE, len(windows.spread.starts), candidates.strand)
    guard, precision = _Guard(subject, written, windows), "fp32"
    if subject.device.type != "cpu" or candidates.precision != "auto":
        precision = _precision(candidates.precision, guard)
    used = resolve_kernels(subject.model, candidates.kernels, subject.device, precision)
    numerics, stretches = replace(written, precision=precision, kernels=used), candidates.stretches
    if stretches is not None and used != REFERENCE:  # the prepared model alone can share
        shared = replace(numerics, compute_batch=stretches.windows, overlap="share")
        if not (why := guard.why_not(shared)):
            return shared
        warnings.warn(f"overlap is not shared: {why}", stacklevel=2)
    numerics = _probed(subject, candidates, numerics)
    if not (why := guard.why_not(numerics)):
        return numerics
    if (asked := candidates.kernels) not in ("auto", REFERENCE[0]):
        raise PrecisionError(f"--kernels {asked}: {why}; use --kernels auto or reference")
    if numerics.kernels != REFERENCE:
        warnings.warn(f"the model is computed as written: {why}", stacklevel=2)
    return replace(numerics, kernels=REFERENCE)


@dataclass(frozen=True)
class _Guard:
    """Compares ways to compute with the model as written, in float32."""

    subject: Subject
    written: Numerics
    windows: GuardWindows

    @cached_property
    def _spread(self) -> NDArray[np.float32]:
        return self.subject.engine(self.written).submit(self.windows.spread)()

    def difference(self, numerics: Numerics) -> float:
        """See :func:`genomepred.models.card.difference`: from the model as written."""
        engine, batches = self.subject.engine, self.windows.spread
        if numerics.overlap == "naive":
            reference = self._spread  # a model that does not run as written is an error here
        else:
            assert self.windows.following is not None
            batches, windows = self.windows.following, numerics.compute_batch
            alone = gcd(windows, self.written.compute_batch)  # both multiples of powers of two
            smaller = replace(batches, needed=np.ones(windows // alone, np.bool_))
            reference = engine(replace(self.written, compute_batch=alone)).submit(smaller)()
        found = reference if numerics == self.written else engine(numerics).submit(batches)()
        return difference(found, reference)

    def why_not(self, numerics: Numerics) -> str:
        """Reason against a way to compute the model; empty if there is none."""
        try:
            found = self.difference(numerics)
        except ModelError as error:  # a module of the user's own that only runs as written
            if numerics.kernels == REFERENCE:
                raise
            return str(error)
        card = self.subject.card
        if found <= (tolerance := card.tolerance[numerics.precision]):
            return ""
        return (
            f"{_called(numerics.kernels)} differs from the model as written by {found:.2g} "
            f"(relative to 1 + |value|); the card of {card.name!r} allows {tolerance:.2g}"
        )


def _precision(asked: str, guard: _Guard) -> str:
    """The precision asked for, or of ``auto`` on a GPU the first, that the guard accepts."""
    card, device = guard.subject.card, guard.subject.device
    tried: tuple[str, ...] = (asked,)
    if asked == "auto":  # bfloat16 is emulated, slowly, before sm_80
        old = torch.cuda.get_device_capability(device) < (8, 0)
        tried = ("fp16", "fp32") if old else ("fp16", "bf16", "fp32")
    for precision in tried:
        found = 0.0
        if precision != "fp32":
            found = guard.difference(replace(guard.written, precision=precision))
        if found <= card.tolerance[precision]:
            return precision
        if asked != "auto":
            raise PrecisionError(
                f"--precision {precision} differs from fp32 by {found:.2g} (relative to 1 + "
                f"|value|) on {guard.written.compute_batch} windows of the genome; the card of "
                f"{card.name!r} allows {card.tolerance[precision]:.2g}; use --precision auto or "
                "fp32"
            )
    return "fp32"


def _probed(subject: Subject, candidates: Candidates, numerics: Numerics) -> Numerics:
    """The fastest kernels, where trying them can pay or nobody has measured those of the table."""
    if candidates.kernels != "auto":
        return numerics
    ways = list(ways_to_try(subject, candidates, numerics.precision, numerics.kernels))
    if len(ways) == 1:
        return numerics

    def seconds(kernels: tuple[str, ...]) -> float:
        return subject.engine(replace(numerics, kernels=kernels)).seconds_per_batch()

    return replace(numerics, kernels=fastest(ways, seconds))


def ways_to_try(
    subject: Subject, candidates: Candidates, precision: str, used: tuple[str, ...]
) -> Iterable[tuple[str, ...]]:
    """Kernels that a probe compares, each once: those of the table first.

    On a CPU runs that are long enough try the model as written and compiled. On a GPU the same
    holds, and of any length what needs no compiling is tried while an entry of the table that
    decides a block is not measured.
    """
    device = subject.device
    work = candidates.windows * multiply_adds(subject.model, subject.geometry.window)
    long = work >= PROBE_FROM_MULTIPLY_ADDS[device.type]
    ways = [used]
    if device.type == "cuda":
        prepared = None if used in (REFERENCE, TORCH) else _prepared(subject, used, precision)
        if prepared is not None and not are_measured(prepared, PRECISIONS[precision]):
            ways += [resolve_kernels(subject.model, "cudnn", device, precision), REFERENCE]
        if long and used != REFERENCE:
            ways += [REFERENCE, (COMPILED, *used)]
    elif long:
        ways += [REFERENCE]
    if long:
        ways += [(COMPILED, *TORCH)]
    return dict.fromkeys(ways)


def _prepared(subject: Subject, kernels: tuple[str, ...], precision: str) -> nn.Module:
    model = subject.model.to(subject.device).eval()
    return prepare(model, kernels, dtype=PRECISIONS[precision])


def fastest(
    ways: Iterable[tuple[str, ...]], seconds: Callable[[tuple[str, ...]], float]
) -> tuple[str, ...]:
    """The first of the ways that no later one beats clearly.

    Parameters
    ----------
    ways : iterable of kernels
    seconds : callable
        Time of one compute batch by them. What it raises counts against compiled ways and, if it is
        a ModelError, against all but the model as written; else it goes on.
    """
    best: tuple[str, ...] = REFERENCE
    best_time = float("inf")
    for used in ways:
        try:
            found = seconds(used)
        except Exception as error:
            # A module of the user's own may only run as written, and a missing compiler must not
            # stop a run that works without.
            if used[0] == COMPILED:
                why = str(error).split("\n")[0]
                warnings.warn(f"torch.compile is not used: {why}", stacklevel=2)
            elif used == REFERENCE or not isinstance(error, ModelError):
                raise
            continue
        if found * _PROBE_MARGIN < best_time:
            best, best_time = used, found
    return best


def _called(kernels: tuple[str, ...]) -> str:
    """The form of a model that kernels compute, in words."""
    if kernels == REFERENCE:
        return "the model as written"
    if kernels[0] == COMPILED:
        return "the compiled model"
    return f"the prepared model ({', '.join(kernels)})"
