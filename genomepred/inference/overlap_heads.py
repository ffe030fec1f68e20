"""Activations of a block's windows, and heads on them without a copy of what windows share.

See :mod:`genomepred.inference.overlap` for what a block, an edge and a phase are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from genomepred.inference.overlap_work import Place
from genomepred.models.layers import AttentionPool

# Values of a product whose diagonals are summed; larger ones would leave the cache.
_DIAGONAL_VALUES = 65_536


@dataclass(frozen=True, eq=False)
class Shared:
    """Activations of all windows of a block.

    Parameters
    ----------
    place : Place
        Sizes.
    block : float tensor, [phases, count, channels]
        Contiguous.
    left, right : float tensor, [phases, windows / phases, left or right, channels]
        Edges.
    """

    place: Place
    block: Tensor
    left: Tensor
    right: Tensor

    def inner(self, begin: int, end: int, more: int = 0) -> Tensor:
        """View of all windows' positions ``[begin, end)``, none of which may be an edge.

        ``more`` is the number of windows past the last one, as far as the block goes.
        """
        place, (phases, count, channels) = self.place, self.block.shape
        shape = (phases, place.windows // phases + more, end - begin, channels)
        strides = (count * channels, place.pitch * channels, channels, 1)
        offset = self.block.storage_offset() + (begin - place.first) * channels
        return self.block.as_strided(shape, strides, offset)

    def head(self, end: int, zeros: int = 0) -> Tensor:
        """Positions ``[-zeros, end)`` of all windows; zero before position 0."""
        edge = self.place.left
        parts = [self._zeros(zeros + min(end, 0)), self.left[:, :, : max(end, 0)]]
        return torch.cat(parts if end <= edge else [*parts, self.inner(edge, end)], dim=2)

    def tail(self, begin: int, zeros: int = 0) -> Tensor:
        """Positions of all windows from ``begin`` to ``zeros`` past their end; zero there."""
        length, edge = self.place.length, self.place.length - self.place.right
        parts = [self.right[:, :, max(begin - edge, 0) :]]
        parts.append(self._zeros(zeros + min(length - begin, 0)))
        return torch.cat(parts if begin >= edge else [self.inner(begin, edge), *parts], dim=2)

    def _zeros(self, count: int) -> Tensor:
        phases, windows, _, channels = self.left.shape
        return self.left.new_zeros(1, 1, 1, 1).expand(phases, windows, count, channels)


def flat_linear(linear: nn.Linear, x: Shared) -> Tensor:
    """A linear layer on each window's flattened positions, ``[phases, windows, out]``.

    On the positions between the edges it is a convolution as wide as they are, with the windows'
    pitch for its stride: a sum of matrix products, one for each ``pitch`` positions of a window,
    whose rows lie in the block side by side. No feature is copied.
    """
    place, channels = x.place, x.block.shape[2]
    end = place.length - place.right
    weight = linear.weight.t().to(x.block.dtype)  # autocast knows no product in place
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

    Every stretch of ``pitch`` positions times the weights of each place it can have in a window;
    a window is a diagonal of the result.
    """
    place, out, channels = x.place, weight.shape[1], x.block.shape[2]
    rows = x.inner(place.left, place.left + place.pitch, whole - 1).flatten(2)
    part = weight[place.left * channels :][: whole * rows.shape[2]]
    stacked = part.view(whole, -1, out).transpose(0, 1).reshape(-1, whole * out)
    products = rows @ stacked  # [phases, windows + whole - 1, whole * out]
    row = whole * out
    shape = (place.phases, place.group, whole, out)
    strides = (products.shape[1] * row, row, row + out, 1)
    return products.as_strided(shape, strides).sum(dim=2)


class Weighted(NamedTuple):
    """Positions summed with the weights ``exp(score - top)``, and the weights' sum."""

    top: Tensor
    weight: Tensor
    total: Tensor


def attention_pool(pool: AttentionPool, x: Shared) -> Tensor:
    """Attention pooling of each window, ``[phases, windows, channels]``.

    Each ``pitch`` positions of the block are summed once, with weights relative to the largest of
    their own scores; a window adds up such sums, relative to the largest score it holds.
    """
    place = x.place
    windows, end = place.group, place.length - place.right
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
    return (total / weight).to(x.block.dtype)


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
