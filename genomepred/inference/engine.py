"""The engine: the one place that calls a model at scale.

A model is always called with the same number of windows, its *compute batch*, on one CPU thread or
on one GPU, and each window sits in the slot that its number in the grid fixes. A window's
prediction is then bitwise the same however a run is sharded, killed, resumed or batched: measured
on CPU, another batch shape or another number of threads changes the last bits of a third to all of
the rows, a fixed shape on one thread changes none.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from math import gcd
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from genomepred.compiled import keep_inductor
from genomepred.errors import DeviceError, ModelError, PrecisionError
from genomepred.inference.overlap_choice import Blocks, share
from genomepred.inference.overlap_work import multiply_adds
from genomepred.kernels.dispatch import PRECISIONS, obstacle
from genomepred.models.agreement import difference as _difference
from genomepred.models.card import Card
from genomepred.models.fused import kernels_of, prepare
from genomepred.sequences.grid import Geometry

STRANDS = ("forward", "reverse", "mean", "each")
# What Numerics.kernels may say beside the kernels of a prepared model.
REFERENCE, COMPILED = "reference", "compiled"

# Bases of one compute batch. CPU, one thread, us a window in batches of 8,192 / 16,384 / 32,768 /
# 65,536 / 131,072 bases: basenji-maize 226 / 144 / 117 / 111 / 106, the two-block CNN at W = 200
# 66 / 59 / 57 / 55 / 55: calls cost less, and kernels keep their tiles in the cache themselves.
# CUDA: small models are bound by launches below about 1M bases a batch.
_BATCH_BASES = {"cpu": 65_536, "cuda": 2_097_152}
_BATCH_WINDOWS = {"cpu": 256, "cuda": 8_192}
# With several bins, activations keep the window's length through all layers and leave the cache
# sooner. A residual network of 32 channels, us a base: W = 5,400, batches of 1 / 2 / 4: 3.3 / 3.0 /
# 4.8; W = 1,400, batches of 1 / 4 / 16: 6.5 / 4.2 / 5.1.
_BATCH_BASES_IN_BINS = 8_192

# Compiling takes 3-17 s, so runs that finish within about two minutes on one core never probe:
# 5e10 multiply-adds a second is what one AVX-512 core reaches. Counted, not timed, so that equal
# runs decide alike.
PROBE_FROM_MULTIPLY_ADDS = 6e12
# Kernels replace those before them only where clearly faster, so that noise decides nothing.
_PROBE_MARGIN = 1.15
# Calls before a CUDA graph is recorded: libraries choose algorithms and allocate in the first.
_WARM_UP_CALLS = 3
# Settings of torch, for the whole process, under which an engine computes on a GPU.
CUDA_SETTINGS: tuple[tuple[Any, str, bool], ...] = (
    (torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", False),
    (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False),
    (torch.backends.cuda.matmul, "allow_tf32", False),
    (torch.backends.cudnn, "allow_tf32", False),
    (torch.backends.cudnn, "deterministic", True),
)


@dataclass(frozen=True)
class Numerics:
    """What the engine does that can change the last bits of a prediction.

    Parameters
    ----------
    precision : {"fp32", "fp16", "bf16"}
        Type of convolutions and matrix products; accumulation and activation stay in float32.
    kernels : str
        What the blocks of the prepared model are computed by, in order, as
        :func:`genomepred.models.fused.kernels_of` tells: ``kmers,direct,onednn``, or ``torch``
        if no block has a kernel of ours. Otherwise ``reference``, the model as written, or
        ``compiled``, the prepared model without kernels of ours by ``torch.compile``.
    compute_batch : int
        Windows of every call of the model.
    strand : {"forward", "reverse", "mean", "each"}
        Strands that are predicted, and how they are combined.
    overlap : {"naive", "share"}
        Whether every window is computed by itself, or a compute batch from one block of sequence
        (see :mod:`genomepred.inference.overlap`).
    """

    precision: str
    kernels: str
    compute_batch: int
    strand: str
    overlap: str = "naive"


@dataclass(frozen=True, eq=False)
class Block:
    """Windows for whole compute batches, cut from one buffer of codes.

    Parameters
    ----------
    codes : uint8 tensor, [bases]
        On the CPU, pinned when bound for a GPU.
    starts : int64 array, [slots]
        Where each slot's window starts in ``codes``; slots are a multiple of the compute batch.
        An engine that shares overlap takes the first of each compute batch and the geometry's
        stride.
    stride : int
        Distance between the starts if it is the same for all slots, otherwise 0.
    needed : bool array, [slots / compute batch]
        Compute batches that hold at least one window to predict; the others are not computed.
    """

    codes: Tensor
    starts: NDArray[np.int64]
    stride: int
    needed: NDArray[np.bool_]


def find_device(name: str) -> torch.device:
    """Device of a name: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:1``.

    Raises
    ------
    DeviceError
        If the name is unknown or the device is not there.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"--device {name!r}: write auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"--device {name!r} is not supported; write auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"--device {name!r}: this machine shows {torch.cuda.device_count()} CUDA devices to "
            f"torch {torch.__version__}; use --device cpu or see `genomepred doctor`"
        )
    return device


def describe_device(device: torch.device) -> str:
    """What of a device can change the last bits of a result."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"{torch.cuda.get_device_name(device)} sm_{major}{minor}"
    return f"cpu {torch.backends.cpu.get_cpu_capability()}"


def compute_batch(window: int, device_type: str, bins: int = 1) -> int:
    """Windows of one compute batch: a power of two that depends on nothing but its arguments."""
    bases = _BATCH_BASES[device_type]
    if bins > 1 and device_type == "cpu":
        bases = _BATCH_BASES_IN_BINS
    fitting = max(bases // window, 1)
    return min(1 << (fitting.bit_length() - 1), _BATCH_WINDOWS[device_type])


class Engine:
    """Runs one model on one device.

    Parameters
    ----------
    model : nn.Module
        Maps uint8 codes ``[batch, window]`` to ``[batch, bins, tracks]``.
    card : Card
        The model's card; its activation is applied here, in float32.
    geometry : Geometry
        Windows of the grid.
    numerics : Numerics
        Obeyed to the letter.
    device : torch.device
        Where the model runs. On the CPU the process is set to one intra-op thread.
    """

    def __init__(
        self,
        model: nn.Module,
        card: Card,
        geometry: Geometry,
        numerics: Numerics,
        device: torch.device,
    ) -> None:
        self.card, self.geometry, self.numerics, self.device = card, geometry, numerics, device
        if device.type == "cpu":
            torch.set_num_threads(1)
        else:
            torch.cuda.set_device(device)
            for holder, name, value in CUDA_SETTINGS:
                setattr(holder, name, value)
        self._model = _with_kernels(model.to(device).eval(), numerics, device)
        self._activation = activation_function(card.activation)
        self._reverse_tracks = (
            torch.tensor(card.reverse_tracks, device=device) if card.reverse_tracks else None
        )
        self._complement = torch.tensor([3, 2, 1, 0, 4], dtype=torch.uint8, device=device)
        shape: tuple[int, ...] = (numerics.compute_batch, geometry.window)
        self._shared = numerics.overlap == "share"
        if self._shared:
            sharing = share(self._model, geometry.stride, numerics.compute_batch)
            self._model, shape = sharing, (sharing.bases,)
        self._buffer = torch.full(shape, 4, dtype=torch.uint8, device=device)
        self._offsets = torch.arange(geometry.window, device=device)
        self._warm = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self.tracks = len(card.tracks) * (2 if numerics.strand == "each" else 1)
        self._check_output_shape()
        if device.type == "cuda" and numerics.kernels not in (REFERENCE, COMPILED):
            self._record()

    def _check_output_shape(self) -> None:
        found = tuple(self._predict_buffer().shape)
        wanted = (self.numerics.compute_batch, self.geometry.bins, self.tracks)
        if found != wanted:
            raise ModelError(
                f"model {self.card.name!r} returns [batch, bins, tracks] = {list(found)}, its card "
                f"promises {list(wanted)}; correct the card or the model"
            )
        self._warm = True

    def _record(self) -> None:
        """Record a compute batch as a CUDA graph: hundreds of small launches become one.

        As torch's notes on CUDA graphs ask: warmed up on the side stream that records, and nothing
        in it waits for the host or needs memory whose address changes. Windows go in by the
        buffer, predictions come out in a tensor that the next replay overwrites.
        """
        try:
            current = torch.cuda.current_stream(self.device)
            side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            with torch.cuda.stream(side):  # left in any case, also by a recording that fails
                side.wait_stream(current)
                for _ in range(_WARM_UP_CALLS):
                    self._predict_buffer()
                current.wait_stream(side)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=side):
                    self._recorded = self._predict_buffer()
        except Exception as error:  # a module of the user's own that waits for the host
            why = str(error).split("\n")[0]
            warnings.warn(f"batches run without a CUDA graph: {why}", stacklevel=2)
            return
        self._graph = graph

    def submit(self, block: Block) -> Callable[[], NDArray[np.float32]]:
        """Start the predictions of a block; the returned call waits for them.

        Returns
        -------
        callable -> float32 array, [slots, bins, tracks]
            Rows of compute batches that were not needed are undefined.
        """
        batch = self.numerics.compute_batch
        codes = block.codes.to(self.device, non_blocking=True)
        slots = len(block.starts)
        out = torch.empty(slots, self.geometry.bins, self.tracks, device=self.device)
        for k in np.flatnonzero(block.needed):
            self._cut(codes, block, int(k) * batch)
            out[k * batch : (k + 1) * batch] = self._predict_buffer()
        if self.device.type == "cpu":
            return out.numpy
        host = torch.empty(out.shape, pin_memory=True)
        host.copy_(out, non_blocking=True)
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(self.device))

        def result() -> NDArray[np.float32]:
            done.synchronize()
            return host.numpy()

        return result

    def _cut(self, codes: Tensor, block: Block, slot: int) -> None:
        """Fill the buffer with the windows of one compute batch, or the sequence they lie in."""
        if self._shared:
            start = int(block.starts[slot])
            self._buffer.copy_(codes[start : start + len(self._buffer)])
            return
        batch, window = self._buffer.shape
        if block.stride:
            shape, strides = (batch, window), (block.stride, 1)
            self._buffer.copy_(codes.as_strided(shape, strides, int(block.starts[slot])))
        else:
            starts = torch.from_numpy(block.starts[slot : slot + batch]).to(self.device)
            torch.take(codes, starts[:, None] + self._offsets, out=self._buffer)

    def _predict_buffer(self) -> Tensor:
        """Predictions of the windows in the buffer, float32 ``[batch, bins, tracks]``.

        They may be overwritten by the next call.
        """
        if self._graph is not None:
            self._graph.replay()
            return self._recorded
        strand = self.numerics.strand
        try:
            with torch.no_grad(), self._autocast(), self._no_recompilation():
                if strand == "forward":
                    return self._forward()
                forward = self._forward() if strand != "reverse" else None
                reverse = self._reverse()
        except torch.cuda.OutOfMemoryError as error:
            raise DeviceError(
                f"{self.device}: not enough memory for {self.numerics.compute_batch} windows of "
                f"{self.geometry.window} bases; use a GPU with more, or --device cpu"
            ) from error
        if forward is None:
            return reverse
        if strand == "mean":
            return (forward + reverse) / 2
        return torch.cat([forward, reverse], dim=2)

    def _forward(self) -> Tensor:
        result: Tensor = self._activation(self._model(self._buffer).float())
        # A model may return a view of its input or of a buffer that its next call reuses.
        return result.clone() if self.numerics.strand in ("mean", "each") else result

    def _reverse(self) -> Tensor:
        self._buffer.copy_(self._complement[self._buffer.long()].flip(-1))
        # On the other strand of a block its windows stand in the opposite order.
        result = self._forward().flip((0, 1) if self._shared else 1)
        return result if self._reverse_tracks is None else result[..., self._reverse_tracks]

    def _autocast(self) -> AbstractContextManager[object]:
        if self.numerics.precision == "fp32":
            return nullcontext()
        # Casts that were cached outside of a CUDA graph would be none of its memory.
        cached = self.device.type == "cpu" or self.numerics.kernels in (REFERENCE, COMPILED)
        dtype = PRECISIONS[self.numerics.precision]
        return torch.autocast(self.device.type, dtype=dtype, cache_enabled=cached)

    def _no_recompilation(self) -> AbstractContextManager[object]:
        """After the first call a recompilation, which would change last bits, is an error."""
        if self.numerics.kernels == COMPILED and self._warm:
            stance: AbstractContextManager[object] = torch.compiler.set_stance("fail_on_recompile")
            return stance
        return nullcontext()

    def seconds_per_batch(self, calls: int = 5) -> float:
        """Median time of one compute batch, all strands included."""
        times = []
        for _ in range(calls):
            begin = time.perf_counter()
            self._predict_buffer()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            times.append(time.perf_counter() - begin)
        return float(np.median(times))


def _with_kernels(model: nn.Module, numerics: Numerics, device: torch.device) -> nn.Module:
    """The model as the numerics say that it is computed."""
    if numerics.kernels == REFERENCE:
        return model
    if numerics.kernels != COMPILED:
        return _prepared(model, numerics.kernels, numerics.precision)
    prepared = _prepared(model, "torch", numerics.precision)
    keep_inductor()
    options = {"freezing": True} if device.type == "cpu" else None
    prepared.compile(dynamic=False, options=options)
    return prepared


def _prepared(model: nn.Module, kernels: str, precision: str) -> nn.Module:
    try:
        return prepare(model, kernels, dtype=PRECISIONS[precision])
    except Exception as error:  # a module of the user's own that cannot be copied
        raise ModelError(f"the model cannot be rewritten: {error}") from error


def resolve_kernels(model: nn.Module, asked: str, device: torch.device, precision: str) -> str:
    """What ``--kernels`` means for a model on a device, as :class:`Numerics` says it.

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
    if asked == REFERENCE:
        return asked
    kernels, why = asked, obstacle(device, PRECISIONS[precision], asked)
    if why and asked != "auto":
        raise DeviceError(f"--kernels {asked}: {why}")
    if why:
        warnings.warn(f"torch's convolutions are used: {why}", stacklevel=2)
        kernels = "torch"
    try:
        return kernels_of(_prepared(model.to(device).eval(), kernels, precision))
    except ModelError as error:
        if asked != "auto":
            raise
        warnings.warn(f"the model is computed as written: {error}", stacklevel=2)
        return REFERENCE


def activation_function(name: str) -> Callable[[Tensor], Tensor]:
    """Function of a card's ``activation``: raw values ``[..., tracks]`` -> predictions."""
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "none": lambda x: x,
        "sigmoid": torch.sigmoid,
        "softmax": lambda x: torch.softmax(x, dim=-1),
        "softplus": nn.functional.softplus,
        "exp": torch.exp,
    }
    return functions[name]


def choose_numerics(
    model: nn.Module,
    card: Card,
    geometry: Geometry,
    device: torch.device,
    *,
    precision: str,
    kernels: str = "auto",
    strand: str,
    windows: float,
    sample: Callable[[int, bool], Block],
    blocks: Blocks | None = None,
) -> Numerics:
    """Decide precision, kernels and overlap for a run.

    Parameters
    ----------
    precision : {"auto", "fp32", "fp16", "bf16"}
        ``auto`` is float32 on the CPU and, on a GPU, the first of float16, bfloat16 and float32
        that the precision guard accepts; an explicit choice that it rejects is an error.
    kernels : {"auto", "triton", "cudnn", "cpu", "reference"}
        ``auto``: those of the table of :mod:`genomepred.kernels.dispatch`, unless a probe finds
        something faster, or they differ from the model as written by more than its card allows.
    windows : float
        Windows that each worker will compute, about: decides whether a probe can pay.
    sample : callable
        Given a compute batch, and whether its windows follow each other as the grid's do, returns
        a block of fixed grid rows for the guard.
    blocks : Blocks, optional
        Blocks to share overlap by; the guard may decide against them.

    Raises
    ------
    PrecisionError
        If the explicitly chosen precision or kernels give NaN or differ from the model as written,
        in float32, by more than the card's tolerance.
    DeviceError, ModelError
        See :func:`resolve_kernels`.
    """
    batch = compute_batch(geometry.window, device.type, geometry.bins)
    candidates: tuple[str, ...] = (precision,)
    if precision == "auto":
        candidates = ("fp32",) if device.type == "cpu" else ("fp16", "bf16", "fp32")
        if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
            candidates = ("fp16", "fp32")  # bfloat16 is emulated, slowly, before sm_80

    def engine(precision: str, used: str, batch: int = batch, overlap: str = "naive") -> Engine:
        numerics = Numerics(precision, used, batch, strand, overlap)
        return Engine(model, card, geometry, numerics, device)

    def difference(precision: str, used: str) -> float:
        block = sample(batch, False)
        reference = engine("fp32", REFERENCE).submit(block)()
        return _difference(engine(precision, used).submit(block)(), reference)

    def difference_shared(precision: str, used: str, windows: int) -> float:
        block = sample(windows, True)
        alone = gcd(windows, batch)  # both are multiples of powers of two
        batches = replace(block, needed=np.ones(windows // alone, np.bool_))
        reference = engine("fp32", REFERENCE, alone).submit(batches)()
        return _difference(engine(precision, used, windows, "share").submit(block)(), reference)

    def why_not(used: str, difference: Callable[[], float]) -> str:
        """What speaks against a way to compute the model; empty if nothing does."""
        try:
            found = difference()
        except ModelError as error:  # a module of the user's own that only runs as written
            if used == REFERENCE:
                raise
            return str(error)
        if found <= tolerance:
            return ""
        return (
            f"{_called(used)} differs from the model as written by {found:.2g} "
            f"(relative to 1 + |value|); the card of {card.name!r} allows {tolerance:.2g}"
        )

    accepted = "fp32"
    for candidate in candidates:
        found = difference(candidate, REFERENCE) if candidate != "fp32" else 0.0
        if found <= card.tolerance[candidate]:
            accepted = candidate
            break
        if precision != "auto":
            raise PrecisionError(
                f"--precision {candidate} differs from fp32 by {found:.2g} (relative to 1 + "
                f"|value|) on {batch} windows of the genome; the card of {card.name!r} allows "
                f"{card.tolerance[candidate]:.2g}; use --precision auto or fp32"
            )
    used, tolerance = resolve_kernels(model, kernels, device, accepted), card.tolerance[accepted]
    ways = (used,) if kernels != "auto" or used == REFERENCE else (used, REFERENCE)
    for way in ways if blocks else ():
        assert blocks is not None
        shared = partial(difference_shared, accepted, way, blocks.windows)
        if not (why := why_not(way, shared)):
            return Numerics(accepted, way, blocks.windows, strand, "share")
        warnings.warn(f"overlap is not shared by {_called(way)}: {why}", stacklevel=2)
    probed = kernels == "auto" and (
        windows * multiply_adds(model, geometry.window) >= PROBE_FROM_MULTIPLY_ADDS
    )
    if probed:
        used = _fastest(lambda used: engine(accepted, used), (used, REFERENCE, COMPILED))
    if why := why_not(used, partial(difference, accepted, used)):
        if kernels not in ("auto", REFERENCE):
            raise PrecisionError(f"--kernels {kernels}: {why}; use --kernels auto or reference")
        if used != REFERENCE:
            warnings.warn(f"the model is computed as written: {why}", stacklevel=2)
        used = REFERENCE
    return Numerics(accepted, used, batch, strand)


def _called(kernels: str) -> str:
    """The form of a model that kernels compute, in words."""
    forms = {REFERENCE: "the model as written", COMPILED: "the compiled model"}
    return forms.get(kernels, f"the prepared model ({kernels})")


def _fastest(engine: Callable[[str], Engine], kernels: tuple[str, ...]) -> str:
    best, best_time = REFERENCE, float("inf")
    for used in kernels:
        try:
            seconds = engine(used).seconds_per_batch()
        except Exception as error:
            # A module of the user's own may only run as written, and a missing compiler must not
            # stop a run that works without.
            if used == COMPILED:
                warnings.warn(f"torch.compile is not used: {error}", stacklevel=2)
            elif used == REFERENCE or not isinstance(error, ModelError):
                raise
            continue
        if seconds * _PROBE_MARGIN < best_time:
            best, best_time = used, seconds
    return best
