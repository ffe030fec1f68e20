"""A model's head on windows whose trunk positions are those of pieces that other windows have too.

A head that begins with a linear layer on all positions is linear in each piece: a distinct piece is
multiplied once with the weights of every place that it may have in a window, and a window is the
sum of its pieces' products. Another head runs on the positions of every window, gathered from
those of its pieces.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from genomepred.inference.tile_pieces import Pieces, linear_by_pieces

# Values that one call of the head gathers: they stay in the cache.
_GATHERED_VALUES = 262_144


class GatheredHead:
    """Computes any head.

    Parameters
    ----------
    head : nn.Module
    positions : int
        Positions of a window.
    """

    def __init__(self, head: nn.Module, positions: int) -> None:
        self._head, self._positions = head, positions

    def kept(self, kind: int, found: Tensor) -> Tensor:
        """Return what windows need of pieces of one kind: ``[pieces, count, channels]`` as is."""
        return found

    def __call__(self, kept: Sequence[Tensor], numbers: Sequence[Tensor]) -> Tensor:
        """Return raw values ``[rows, tracks]``.

        Parameters
        ----------
        kept : sequence of tensor
            Of all pieces, a kind each.
        numbers : sequence of int32 tensor, [rows, places]
            Pieces of each window.
        """
        rows, channels = len(numbers[0]), kept[0].shape[2]
        batch = max(_GATHERED_VALUES // (self._positions * channels), 1)
        outs = []
        for first in range(0, rows, batch):
            parts = []
            for values, number in zip(kept, numbers, strict=True):
                some = number[first : first + batch]
                if len(some) < batch:  # the same shape for every call
                    some = torch.cat([some, some[:1].expand(batch - len(some), -1)])
                found = values.flatten(1).index_select(0, some.reshape(-1))
                parts.append(found.view(batch, -1, channels))
            # Of the last tile only what comes before the right end.
            parts[1] = parts[1][:, : self._positions - parts[0].shape[1] - parts[2].shape[1]]
            x = torch.cat(parts, dim=1).transpose(1, 2)
            outs.append(self._head(x)[: rows - first].clone())
        return torch.cat(outs)


class LinearHead:
    """Computes a head that begins with a linear layer on all positions.

    Parameters
    ----------
    head : nn.Sequential
    linear : nn.Linear
        Its first layer that computes.
    cut : sequence of Pieces
    positions : int
        Positions of a window.
    """

    def __init__(
        self, head: nn.Sequential, linear: nn.Linear, cut: Sequence[Pieces], positions: int
    ) -> None:
        self._linear, self._rest = linear, head[2:]
        weight = linear.weight.detach().t().float().view(positions, -1, linear.out_features)
        left, _, right = (pieces.count for pieces in cut)
        parts = weight[:left], weight[left : positions - right], weight[positions - right :]
        self._weights = [_of_places(part, pieces) for part, pieces in zip(parts, cut, strict=True)]

    def kept(self, kind: int, found: Tensor) -> Tensor:
        """Return products ``[pieces, places, out]`` of positions ``[pieces, count, channels]``."""
        # Under automatic precision products would be rounded before they are added up.
        with torch.autocast(found.device.type, enabled=False):
            products = found.flatten(1).float() @ self._weights[kind]
        return products.view(len(found), -1, self._linear.out_features)

    def __call__(self, kept: Sequence[Tensor], numbers: Sequence[Tensor]) -> Tensor:
        """Return raw values ``[rows, tracks]``; see :class:`GatheredHead`."""
        values = kept[0].new_zeros(len(numbers[0]), self._linear.out_features)
        if self._linear.bias is not None:
            values += self._linear.bias
        for products, number in zip(kept, numbers, strict=True):
            places = torch.arange(products.shape[1], device=number.device, dtype=number.dtype)
            at = number * products.shape[1] + places
            values += embedding_bag(at, products.flatten(0, 1), mode="sum")
        found: Tensor = self._rest(values)
        return found


def _of_places(weight: Tensor, pieces: Pieces) -> Tensor:
    """Weights ``[positions, channels, out]`` as ``[count x channels, places x out]``."""
    places = len(pieces.offsets)
    # The last tile may be longer than what is left for it.
    padded = weight.new_zeros(places * pieces.count, *weight.shape[1:])
    padded[: len(weight)] = weight
    of_places = padded.view(places, -1, weight.shape[2]).transpose(0, 1)
    return of_places.reshape(-1, places * weight.shape[2]).contiguous()


def head_on_pieces(
    head: nn.Module, cut: Sequence[Pieces], positions: int
) -> GatheredHead | LinearHead:
    """Return what computes a head with less to gather for a window."""
    linear = linear_by_pieces(head, cut)
    if linear is None:
        return GatheredHead(head, positions)
    assert isinstance(head, nn.Sequential)
    return LinearHead(head, linear, cut, positions)
