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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from genomepred.kernels.epilogue.reference import Epilogue
from genomepred.lowering.blocks import Buffers, FusedConv
from genomepred.lowering.receptive_field import (
    Place,
    Taps,
    follow,
    place_of_windows,
    taps_of,
    trunk_of,
)
from genomepred.models.layers import AttentionPool, FlattenPositions, MaxPool, SequenceModel

# Values of a product whose diagonals are summed; larger ones would leave the cache.
_DIAGONAL_VALUES = 65_536
# Bases of one call of a head that is neither linear nor pooling: its features are gathered.
_GATHERED_BASES = 32_768


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
        self._start = place_of_windows(self.model.window, stride, windows)
        self.bases = self._start.count
        phases = follow(self._steps, self._start).phases
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
        taps = taps_of(block, epilogue.pool)
        pool, after = taps.stride, x.place.after(taps)
        begin, tail = after.first * pool - taps.left - x.place.first, after.length - after.right
        size, end = (after.count - 1) * pool + taps.width, (after.left - 1) * pool + taps.width
        pieces = (
            x.stretch[:, begin : begin + size],
            x.head(end - taps.left) if after.left else None,
            x.tail(tail * pool - taps.left) if after.right else None,
        )
        more: list[Tensor | None] = [None, None, None]
        if residual is not None:
            skip = after.first * pool - residual.place.first
            more = [residual.stretch[:, skip : skip + after.count * pool]]
            more += [residual.head(after.left * pool), residual.tail(tail * pool)]
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
            outs: Sequence[Tensor] = ()
            if block.fills:
                outs = self._outputs.take((number, part), block, y, padding, epilogue)
            outs = block(y, add, padding, epilogue, outs)
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
        left = pooled_edges(pool, x.head((after.left - 1) * taps.stride + taps.width), after)
    if after.right:
        # An incomplete last group is not padded: the pool takes it as it is.
        right = pooled_edges(pool, x.tail((after.length - after.right) * taps.stride), after)
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
    left = x.head(place.left) + branch.left
    return Shared(place, stretch, left, x.tail(place.length - place.right) + branch.right)


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
        values = layer(values)
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

    def head(self, end: int) -> Tensor:
        """Positions ``[0, end)`` of all windows."""
        edge, left = self.place.left, self.left[:, :, : max(end, 0)]
        return left if end <= edge else torch.cat([left, self.inner(edge, end)], dim=2)

    def tail(self, begin: int) -> Tensor:
        """Positions of all windows from ``begin`` to their end."""
        edge = self.place.length - self.place.right
        right = self.right[:, :, max(begin - edge, 0) :]
        return right if begin >= edge else torch.cat([self.inner(begin, edge), right], dim=2)


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
