"""The engine: the one place that calls a model at scale.

A model is always called with the same number of windows, its *compute batch*, on one CPU thread or
on one GPU, and each window sits in the slot that its number in the grid fixes. A window's
prediction is then bitwise the same however a run is sharded, killed, resumed or batched: measured
on CPU, another batch shape or another number of threads changes the last bits of a third to all of
the rows, a fixed shape on one thread changes none.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from genomepred.compiled import keep_inductor
from genomepred.errors import DeviceError, ModelError
from genomepred.lowering.fuse import PRECISIONS, REFERENCE, prepare
from genomepred.lowering.long import LongWindow
from genomepred.lowering.shared import Sharing
from genomepred.models.card import Card
from genomepred.sequences.grid import Geometry

# For each strand option, whether the sequence is turned to its other strand, call by call.
_TURNS = {"forward": (False,), "reverse": (True,), "mean": (False, True), "each": (False, True)}
STRANDS = tuple(_TURNS)
# What Numerics.kernels may say beside the kernels of a prepared model.
COMPILED = "compiled"

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


# A card's activations: raw values ``[..., tracks]`` -> predictions.
ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "sigmoid": torch.sigmoid,
    "softmax": lambda x: torch.softmax(x, dim=-1),
    "softplus": nn.functional.softplus,
    "exp": torch.exp,
}


@dataclass(frozen=True)
class Numerics:
    """Choices of the engine that can change the last bits of a prediction.

    Parameters
    ----------
    precision : {"fp32", "fp16", "bf16"}
        Type of convolutions and matrix products; accumulation and activation stay in float32.
    kernels : tuple of str
        What the blocks of the prepared model are computed by, in order, as
        :func:`genomepred.lowering.fuse.kernels_of` tells: ``("kmers", "direct", "onednn")``, or
        ``("torch",)`` if no block has a kernel of ours. After a leading ``"compiled"`` the same
        model goes through ``torch.compile``, which keeps our operations whole. The model as written
        is ``("reference",)``.
    compute_batch : int
        Windows of every call of the model.
    strand : {"forward", "reverse", "mean", "each"}
        Strands that are predicted, and how they are combined.
    overlap : {"naive", "share"}
        Whether every window is computed by itself, or a compute batch from one stretch of sequence
        (see :mod:`genomepred.lowering.shared`).
    """

    precision: str
    kernels: tuple[str, ...]
    compute_batch: int
    strand: str
    overlap: str = "naive"


@dataclass(frozen=True, eq=False)
class Batches:
    """Windows of whole compute batches, cut from one buffer of codes.

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

    @classmethod
    def random(
        cls, windows: int, geometry: Geometry, shared: bool = False, seed: int = 0
    ) -> Batches:
        """One compute batch of windows of random sequence: a stretch, or one behind the other."""
        pitch = geometry.stride if shared else geometry.window
        size = (windows - 1) * pitch + geometry.window
        codes = np.random.default_rng(seed).integers(0, 4, size, dtype=np.uint8)
        starts = np.arange(windows, dtype=np.int64) * pitch
        return cls(torch.from_numpy(codes), starts, pitch, np.ones(1, np.bool_))


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
    """Properties of a device that can change the last bits of a result."""
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

    #: The precision of convolutions and matrix products, while it is entered.
    autocast: AbstractContextManager[object] = nullcontext()
    _graph: torch.cuda.CUDAGraph | None = None
    # After the first call a recompilation, which would change last bits, is an error.
    _guarded = False

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
            _use_gpu(device)
        kernels, dtype = numerics.kernels, PRECISIONS[numerics.precision]
        compiled = kernels[0] == COMPILED
        recorded = device.type == "cuda" and kernels != REFERENCE and not compiled
        #: The model as written, and as it is computed.
        self.written = model.to(device).eval()
        self.model: Any = self.written
        if kernels != REFERENCE:
            self.model = prepare(self.written, kernels[compiled:], dtype=dtype)
        if compiled:
            _compile(self.model, device)
        if dtype != torch.float32:  # casts cached outside of a CUDA graph are none of its memory
            self.autocast = torch.autocast(device.type, dtype=dtype, cache_enabled=not recorded)
        shape: tuple[int, ...] = (numerics.compute_batch, geometry.window)
        self._model, self._shared = self.model, numerics.overlap == "share"
        if self._shared:
            how = self.model, geometry.stride, numerics.compute_batch
            form: Sharing | LongWindow = Sharing(*how) if geometry.bins == 1 else LongWindow(*how)
            self._model, shape = form, (form.bases,)
        self.turns, self.activate = _TURNS[numerics.strand], ACTIVATION_FUNCTIONS[card.activation]
        self._swapped = torch.tensor(card.reverse_tracks or (), device=device)
        self._complement = torch.tensor([3, 2, 1, 0, 4], dtype=torch.uint8, device=device)
        self._buffer = torch.full(shape, 4, dtype=torch.uint8, device=device)
        self.tracks = len(card.tracks) * (2 if numerics.strand == "each" else 1)
        found = tuple(self._predict_buffer().shape)
        wanted = (numerics.compute_batch, geometry.bins, self.tracks)
        if found != wanted:
            raise ModelError(
                f"model {card.name!r} returns [batch, bins, tracks] = {list(found)}, its card "
                f"promises {list(wanted)}; correct the card or the model"
            )
        self._guarded = compiled
        if recorded:
            self._record()

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

    def submit(self, batches: Batches) -> Callable[[], NDArray[np.float32]]:
        """Start the predictions of compute batches; the returned call waits for them.

        Returns
        -------
        callable -> float32 array, [slots, bins, tracks]
            Rows of compute batches that were not needed are undefined.
        """
        batch = self.numerics.compute_batch
        codes = batches.codes.to(self.device, non_blocking=True)
        slots = len(batches.starts)
        out = torch.empty(slots, self.geometry.bins, self.tracks, device=self.device)
        for k in np.flatnonzero(batches.needed):
            slot = int(k) * batch
            start = int(batches.starts[slot])
            if self._shared:  # the sequence that the windows lie in
                self._buffer.copy_(codes[start : start + len(self._buffer)])
            elif batches.stride:
                strides = (batches.stride, 1)
                self._buffer.copy_(codes.as_strided(self._buffer.shape, strides, start))
            else:
                starts = torch.from_numpy(batches.starts[slot : slot + batch]).to(self.device)
                every = starts[:, None] + torch.arange(self.geometry.window, device=self.device)
                torch.take(codes, every, out=self._buffer)
            out[slot : slot + batch] = self._predict_buffer()
        return out.numpy if self.device.type == "cpu" else _on_host(out)

    def _predict_buffer(self) -> Tensor:
        """Predictions of the windows in the buffer, float32 ``[batch, bins, tracks]``.

        They may be overwritten by the next call.
        """
        if self._graph is not None:
            self._graph.replay()
            return self._recorded
        values = []
        try:
            with (
                torch.no_grad(),
                self.autocast,
                torch.compiler.set_stance("fail_on_recompile") if self._guarded else nullcontext(),
            ):
                for turn in self.turns:
                    if turn:
                        self._buffer.copy_(self._complement[self._buffer.long()].flip(-1))
                    found = self.activate(self._model(self._buffer).float())
                    if len(self.turns) > 1:  # it may be a view of what the next call reuses
                        found = found.clone()
                    if turn:
                        # On the other strand of a stretch its windows stand in the opposite order.
                        found = self.turned_tracks(found.flip((0, 1) if self._shared else 1))
                    values.append(found)
        except torch.cuda.OutOfMemoryError as error:
            raise DeviceError(
                f"{self.device}: not enough memory for {self.numerics.compute_batch} windows of "
                f"{self.geometry.window} bases; use a GPU with more, or --device cpu"
            ) from error
        if len(values) == 1:
            return values[0]
        mean = self.numerics.strand == "mean"
        return (values[0] + values[1]) / 2 if mean else torch.cat(values, dim=2)

    def turned_tracks(self, values: Tensor) -> Tensor:
        """Values of the other strand, each in the column of the track that it is of."""
        return values[..., self._swapped] if self.card.reverse_tracks else values

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what it makes of one fixed compute batch.

        Processors of one description may differ in last bits by maker and generation.
        """
        batches = Batches.random(self.numerics.compute_batch, self.geometry, self._shared)
        return hashlib.sha256(self.submit(batches)().tobytes()).hexdigest()

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


def _use_gpu(device: torch.device) -> None:
    torch.cuda.set_device(device)
    for holder, name, value in CUDA_SETTINGS:
        setattr(holder, name, value)


def _compile(model: nn.Module, device: torch.device) -> None:
    keep_inductor()
    options = {"freezing": True} if device.type == "cpu" else None
    model.compile(dynamic=False, options=options)


def _on_host(values: Tensor) -> Callable[[], NDArray[np.float32]]:
    """Start copying values from a GPU; the returned call waits for them."""
    host = torch.empty(values.shape, pin_memory=True)
    host.copy_(values, non_blocking=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record(torch.cuda.current_stream(values.device))

    def result() -> NDArray[np.float32]:
        done.synchronize()
        return host.numpy()

    return result
