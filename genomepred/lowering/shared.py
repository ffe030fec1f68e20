"""Overlap sharing: a base is convolved once, however many windows see it.

Windows ``stride`` bases apart are computed from one *stretch*, the sequence they cover together. A
trunk position that no zero padding has touched depends on the sequence alone, so a window's
positions are a view of the stretch's. Its outermost positions, which padding does touch (they are
the *edges*), are computed from short strips: every layer takes the edges of the layer before, some
positions of the stretch beside them, and the zeros that the window's end means. Hence the result is
that of the window by itself, up to rounding.

With a pool, a position stands for several bases, and only windows whose starts are a multiple of
that apart share positions. Windows are grouped by *phase*, but no layer is computed for more phases
than it distinguishes: a pool of 2 makes two phases of one where the stride is odd. Window ``i``
belongs to phase ``i % phases``, so the windows of a phase are equally far apart.

Tensors here are ``[phases, positions, channels]`` and ``[phases, windows, positions, channels]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from genomepred.errors import ModelError
from genomepred.kernels.epilogue.reference import Epilogue
from genomepred.lowering.blocks import Buffers, DirectLinear, FusedConv, Taps
from genomepred.lowering.long import check_bins, long_work, without_values
from genomepred.lowering.receptive_field import (
    CannotShareError,
    Place,
    Trunk,
    Work,
    counted,
    place_of_windows,
    trunk_of,
)
from genomepred.models.layers import AttentionPool, FlattenPositions, MaxPool, SequenceModel
from genomepred.sequences.grid import Geometry

# Values of a product whose diagonals are summed; larger ones would leave the cache.
_DIAGONAL_VALUES = 65_536
# Bases of one call of a head that is neither linear nor pooling: its features are gathered.
_GATHERED_BASES = 32_768

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


class Sharing(nn.Module):
    """Computes a model for windows that overlap, from the stretch of sequence they cover.

    Parameters
    ----------
    model : SequenceModel
        One with a trunk and a head, as :func:`genomepred.lowering.fuse.prepare` rewrites it. Its
        parameters are used, not copied.
    stride : int
        Bases from one window to the next.
    windows : int
        Windows of a stretch; a multiple of the phases.

    Attributes
    ----------
    bases : int
        Bases of a stretch.

    Raises
    ------
    CannotShareError
        If the model has no trunk and head, its trunk a layer that is not known, or padding
        touches all positions of a window.
    """

    def __init__(self, model: nn.Module, stride: int, windows: int) -> None:
        super().__init__()
        self.model, self._steps = trunk_of(model)
        sizes = self.model.window, stride, windows
        self._start = place_of_windows(*sizes)
        self.bases = self._start.count
        phases = place_of_windows(*sizes, self._steps).phases
        if windows % phases:
            raise ValueError(f"{windows} windows are no multiple of {phases} phases")
        self._outputs = Buffers()

    def forward(self, codes: Tensor) -> Tensor:
        """Codes ``uint8 [bases]`` -> raw values ``[windows, 1, tracks]``."""
        encoded = self.model.encode(codes.contiguous()[None])
        stretch = encoded[..., None] if encoded.dim() == 2 else encoded.transpose(1, 2).contiguous()
        none = stretch.new_empty(1, self._start.windows, 0, stretch.shape[2])
        x, kept = Shared(self._start, stretch, none, none), list[Shared]()
        for number, (layer, taps, keeps, adds) in enumerate(self._steps):
            before, residual = x, kept.pop() if adds else None
            if isinstance(layer, FusedConv):
                if x.place.after(taps).phases == x.place.phases:
                    x, before = self._block(number, layer, layer.epilogue, x, residual)
                else:
                    x, before = self._split(number, layer, x, residual)
            elif isinstance(layer, MaxPool):
                x = pooled(layer, taps, x)
            elif layer is not None:
                x = Shared(x.place, *(pointwise(layer, y) for y in (x.stretch, x.left, x.right)))
            elif residual is not None:
                x = added(residual, x)
            if keeps:
                kept.append(before)
        values = head_values(self.model, x)  # [phases, windows of a phase, tracks]
        return values.transpose(0, 1).reshape(self._start.windows, 1, -1)

    def _block(
        self,
        number: int,
        block: FusedConv,
        epilogue: Epilogue,
        x: Shared,
        residual: Shared | None,
    ) -> tuple[Shared, Shared]:
        """A block whose pool, if it has one, splits no phase; its result and what it keeps."""
        taps = block.unpooled if epilogue.pool == "none" else block.taps
        pool, after = taps.stride, x.place.after(taps)
        begin, tail = after.first * pool - taps.left - x.place.first, after.length - after.right
        size, end = (after.count - 1) * pool + taps.width, (after.left - 1) * pool + taps.width
        pieces = (
            x.stretch[:, begin : begin + size],
            x.whole(0, end - taps.left) if after.left else None,
            x.whole(tail * pool - taps.left) if after.right else None,
        )
        more: list[Tensor | None] = [None, None, None]
        if residual is not None:
            skip = after.first * pool - residual.place.first
            more = [residual.stretch[:, skip : skip + after.count * pool]]
            more += [residual.whole(0, after.left * pool), residual.whole(tail * pool)]
        sides = (0, 0), (block.padding[0], 0), (0, block.padding[1])
        shape = after.phases, after.windows // after.phases
        found: list[Sequence[Tensor]] = []
        for part, (y, add, padding) in enumerate(zip(pieces, more, sides, strict=True)):
            if y is None:
                found.append([block.weight.new_empty(*shape, 0, block.channels)])
                continue
            y = y[..., 0] if block.reads_codes else y.to(block.weight.dtype)  # noqa: PLW2901
            if part:
                y, add = y.flatten(0, 1), None if add is None else add.flatten(0, 1)  # noqa: PLW2901
            outs = block.empty(y, padding, epilogue, self._outputs, (number, part))
            outs = block.kernel(y, add, padding, epilogue, outs)
            found.append([out.view(*shape, *out.shape[1:]) for out in outs] if part else outs)
        result, before = ([outs[i] for outs in found] for i in (0, -1))
        return Shared(after, *result), Shared(after, *before)

    def _split(
        self, number: int, block: FusedConv, x: Shared, residual: Shared | None
    ) -> tuple[Shared, Shared]:
        """A block whose pool splits phases: it is pooled, for each of them, on its own."""
        end = block.epilogue
        x, _ = self._block(number, block, Epilogue(end.activation, end.factor), x, residual)
        round_up = end.pool == "ceil"
        kept = pooled(MaxPool(2, round_up), Taps(2, 0, int(round_up), 2), x)
        parts = (block.activate_next(part) for part in (kept.stretch, kept.left, kept.right))
        return Shared(kept.place, *parts), kept


def pointwise(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer on ``[..., positions, channels]``, which is channels-last memory."""
    if not x.numel():
        return x
    y: Tensor = layer(x.flatten(0, -3).transpose(1, 2))
    return y.transpose(1, 2).contiguous().view(x.shape)


def pooled(pool: MaxPool, taps: Taps, x: Shared) -> Shared:
    """A pool, for each phase that it distinguishes."""
    place, after = x.place, x.place.after(taps)
    begin = after.first * taps.stride - place.first
    size = (after.count - 1) * taps.stride + taps.width
    starts = (begin + i * place.pitch for i in range(after.phases // place.phases))
    pieces = [largest(pool, x.stretch[:, start : start + size]) for start in starts]
    stretch = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    shape = after.phases, after.windows // after.phases, 0, stretch.shape[2]
    left = right = stretch.new_empty(shape)
    if after.left:
        left = pooled_edges(pool, x.whole(0, (after.left - 1) * taps.stride + taps.width), after)
    if after.right:
        # An incomplete last group is not padded: the pool takes it as it is.
        right = pooled_edges(pool, x.whole((after.length - after.right) * taps.stride), after)
    return Shared(after, stretch, left, right)


def pooled_edges(pool: MaxPool, x: Tensor, after: Place) -> Tensor:
    """Edges ``[phases, windows, positions, channels]`` pooled, grouped by the phases after."""
    y = largest(pool, x.flatten(0, 1))
    phases, *rest = x.shape[0], *y.shape[1:]
    group = after.windows // after.phases
    grouped = y.view(phases, group, after.phases // phases, *rest)
    return grouped.permute(2, 0, 1, 3, 4).reshape(after.phases, group, *rest)


def largest(pool: MaxPool, x: Tensor) -> Tensor:
    """Maximum of neighbors in ``[batch, positions, channels]``, by comparing whole vectors.

    8 channels, 29,504 positions on one thread: 33 us, and 224 by torch's pooling.
    """
    whole, rest = divmod(x.shape[1], pool.size)
    groups = x[:, : whole * pool.size].view(len(x), whole, pool.size, x.shape[2])
    out = groups[:, :, 0]
    for i in range(1, pool.size):
        out = torch.maximum(out, groups[:, :, i])
    if pool.round_up and rest:
        out = torch.cat([out, x[:, -rest:].amax(dim=1, keepdim=True)], dim=1)
    return out.contiguous()


def added(x: Shared, branch: Shared) -> Shared:
    """Sum of a residual branch, whose edges are at least as long, and its input."""
    place = branch.place
    skip = place.first - x.place.first
    stretch = x.stretch[:, skip : skip + place.count] + branch.stretch
    left = x.whole(0, place.left) + branch.left
    return Shared(place, stretch, left, x.whole(place.length - place.right) + branch.right)


def head_values(model: SequenceModel, x: Shared) -> Tensor:
    """A model's head on its windows' positions, ``[phases, windows of a phase, tracks]``."""
    layers = list(model.head) if isinstance(model.head, nn.Sequential) else []
    match layers:
        case [FlattenPositions(), nn.Linear() as linear, *rest]:
            values = flat_linear(linear, x)
        case [AttentionPool() as pool, *rest]:
            values = attention_pool(pool, x)
        case _:
            return gathered(model.head, x, max(_GATHERED_BASES // model.window, 1))
    for layer in rest:
        values = layer.kernel(values) if isinstance(layer, DirectLinear) else layer(values)
    return values


@dataclass(frozen=True, eq=False)
class Shared:
    """Activations of all windows of a stretch.

    Parameters
    ----------
    place : Place
        Sizes.
    stretch : float tensor, [phases, count, channels]
        Contiguous.
    left, right : float tensor, [phases, windows / phases, left or right, channels]
        Edges.
    """

    place: Place
    stretch: Tensor
    left: Tensor
    right: Tensor

    def inner(self, begin: int, end: int, more: int = 0) -> Tensor:
        """View of all windows' positions ``[begin, end)``, none of which may be an edge.

        ``more`` is the number of windows past the last one, as far as the stretch goes.
        """
        place, (phases, count, channels) = self.place, self.stretch.shape
        shape = (phases, place.windows // phases + more, end - begin, channels)
        strides = (count * channels, place.pitch * channels, channels, 1)
        offset = self.stretch.storage_offset() + (begin - place.first) * channels
        return self.stretch.as_strided(shape, strides, offset)

    def whole(self, begin: int, end: int | None = None) -> Tensor:
        """Positions ``[begin, end)`` of all windows, edges of one side included.

        Those of the left side with an ``end``, for which they begin at 0; else to the windows' end.
        """
        first, last = self.place.left, self.place.length - self.place.right
        if end is None:
            right = self.right[:, :, max(begin - last, 0) :]
            return right if begin >= last else torch.cat([self.inner(begin, last), right], dim=2)
        left = self.left[:, :, begin : max(end, 0)]
        return left if end <= first else torch.cat([left, self.inner(first, end)], dim=2)


def flat_linear(linear: nn.Linear, x: Shared) -> Tensor:
    """A linear layer on each window's flattened positions, ``[phases, windows, out]``.

    On the positions between the edges it is a convolution as wide as they are, with the windows'
    pitch for its stride: a sum of matrix products, one for each ``pitch`` positions of a window,
    whose rows lie in the stretch side by side. No feature is copied.
    """
    place, channels = x.place, x.stretch.shape[2]
    end = place.length - place.right
    weight = linear.weight.t().to(x.stretch.dtype)  # autocast knows no product in place
    values = x.left.flatten(2) @ weight[: place.left * channels]
    values += x.right.flatten(2) @ weight[end * channels :]
    if linear.bias is not None:
        values += linear.bias
    begin, whole = place.left, (end - place.left) // place.pitch
    if 0 < whole * values.numel() <= _DIAGONAL_VALUES:
        values += diagonals(weight, x, whole)
        begin += whole * place.pitch
    for first in range(begin, end, place.pitch):
        last = min(first + place.pitch, end)
        rows = x.inner(first, last).flatten(2)
        part = weight[first * channels : last * channels].expand(place.phases, -1, -1)
        if rows.dtype == values.dtype:
            values.baddbmm_(rows, part)
        else:  # automatic precision: products are rounded, the sum is not
            values += torch.bmm(rows, part)
    return values


def diagonals(weight: Tensor, x: Shared, whole: int) -> Tensor:
    """The sum of the first ``whole`` such products, ``[phases, windows, out]``, by a single one.

    Each ``pitch`` positions in a row times the weights of each place it can have in a window;
    a window is a diagonal of the result.
    """
    place, out, channels = x.place, weight.shape[1], x.stretch.shape[2]
    rows = x.inner(place.left, place.left + place.pitch, whole - 1).flatten(2)
    part = weight[place.left * channels :][: whole * rows.shape[2]]
    stacked = part.view(whole, -1, out).transpose(0, 1).reshape(-1, whole * out)
    products = rows @ stacked  # [phases, windows + whole - 1, whole * out]
    row = whole * out
    shape = (place.phases, place.windows // place.phases, whole, out)
    strides = (products.shape[1] * row, row, row + out, 1)
    return products.as_strided(shape, strides).sum(dim=2)


class Weighted(NamedTuple):
    """Positions summed with the weights ``exp(score - top)``, and the weights' sum."""

    top: Tensor
    weight: Tensor
    total: Tensor


def attention_pool(pool: AttentionPool, x: Shared) -> Tensor:
    """Attention pooling of each window, ``[phases, windows, channels]``.

    Each ``pitch`` positions of the stretch are summed once, with weights relative to the largest of
    their own scores; a window adds up such sums, relative to the largest score it holds.
    """
    place = x.place
    windows, end = place.windows // place.phases, place.length - place.right
    whole, rest = divmod(end - place.left, place.pitch)
    parts = [weighted(pool, edge) for edge in (x.left, x.right) if edge.shape[2]]
    if whole:
        every = weighted(pool, x.inner(place.left, place.left + place.pitch, whole - 1))
        parts += [Weighted(*(part[:, i : i + windows] for part in every)) for i in range(whole)]
    if rest:
        parts.append(weighted(pool, x.inner(end - rest, end)))
    top = torch.stack([part.top for part in parts]).amax(dim=0)
    weight = total = torch.zeros_like(top)[..., None]
    for part in parts:
        factor = (part.top - top).exp()[..., None]
        weight = weight + factor * part.weight[..., None]
        total = total + factor * part.total
    return (total / weight).to(x.stretch.dtype)


def weighted(pool: AttentionPool, x: Tensor) -> Weighted:
    """Positions ``[phases, windows, positions, channels]``, summed over the positions."""
    scores: Tensor = pool.score(x).squeeze(3)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    top = scores.amax(dim=2)
    weights = (scores - top[..., None]).exp()
    total = (weights.to(x.dtype)[:, :, None] @ x).squeeze(2)
    return Weighted(top, weights.sum(dim=2), total.to(scores.dtype))


def gathered(head: nn.Module, x: Shared, batch: int) -> Tensor:
    """Any head on the positions of ``batch`` windows at a time, ``[phases, windows, tracks]``."""
    place = x.place
    inner = x.inner(place.left, place.length - place.right)
    phases = []
    for i in range(place.phases):
        pieces = (torch.split(part[i], batch) for part in (x.left, inner, x.right))
        batches = (torch.cat(parts, dim=1) for parts in zip(*pieces, strict=True))
        phases.append(torch.cat([head(features.transpose(1, 2)) for features in batches]))
    return torch.stack(phases)


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
            alone, costs = self._costs
        except CannotShareError as error:
            if overlap == "auto":
                return None
            raise ModelError(f"--overlap share: {error}; use --overlap auto or naive") from error
        ways = (Stretches(n, n * alone * whole(n) / cost) for n, cost in costs.items())
        found = max(ways, key=lambda stretches: stretches.saving)
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
            found = self.choose("share", whole)
        except ModelError as error:
            return str(error.__cause__)
        pays = _PAYS[self.device_type]
        if found is None or found.saving >= pays:
            return ""
        return f"it would be {found.saving:.2f} times less work, and pays from {pays}"

    @cached_property
    def _costs(self) -> tuple[int, dict[int, int]]:
        """Multiply-adds of a window by itself, and of stretches by their windows.

        Raises
        ------
        CannotShareError
            If windows of the model do not overlap or cannot be computed from a stretch.
        """
        window, stride = self.geometry.window, self.geometry.stride
        if stride > window:
            raise CannotShareError(f"windows do not overlap at stride {stride}")
        work: Callable[[int], Work]
        if getattr(self.model, "bins", 1) == 1:
            trunk = trunk_of(self.model, as_written=True)
            alone, work = stretch_work(trunk, 0, 1), partial(stretch_work, trunk, stride)
            windows, fewest = place_of_windows(window, stride, 1, trunk.steps).phases, 32
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


def stretch_work(trunk: Trunk, stride: int, windows: int) -> Work:
    """Work of a stretch of windows; its heads' outputs are not among the largest.

    Raises
    ------
    CannotShareError
        If padding touches all positions of a window.
    """
    place = place_of_windows(trunk.model.window, stride, windows)
    total, largest, split, channels = 0, 0, 0, 4
    for layer, taps, *_ in trunk.steps:
        pool = taps
        if isinstance(layer, FusedConv):
            place, channels = place.after(layer.unpooled), layer.channels
            edges, positions = windows * (place.left + place.right), place.phases * place.count
            total += (positions + edges) * layer.channels * layer.products
            largest = max(largest, max(positions, edges) * channels)
            pool = Taps(taps.stride, 0, taps.right - layer.padding[1], taps.stride)
        phases, place = place.phases, place.after(pool)
        if place.phases > phases:
            split += place.phases * place.count * channels
    features = torch.zeros(1, channels, place.length, device=trunk.model.encoder.table.device)
    head = counted(trunk.model.head, features)
    return Work(total + windows * head.multiply_adds, largest, split)
