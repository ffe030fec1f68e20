"""Attention maps of transformers, and the attention that each base receives."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from genomepred.errors import ModelError
from genomepred.lowering.receptive_field import receptive_field
from genomepred.models.layers import SequenceModel
from genomepred.models.nucleic_transformer import NucleicTransformer
from genomepred.sequences.codes import Codes

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]


class Attention(NamedTuple):
    """Attention in one window.

    ``maps`` is a list of ``float32 [heads, queries, positions]``, one a layer: row ``i`` is what
    query ``i`` takes from each position and sums to 1. ``received`` ``float32 [layers, window]``
    is each base's share of all that is taken in a layer, a position's share being spread evenly
    over its bases; a layer's shares sum to 1. ``even`` ``float32 [window]`` is what each base would
    receive if all positions were attended to alike: less where fewer k-mers hold it.
    """

    maps: list[Float32]
    received: Float32
    even: Float32


@runtime_checkable
class HasAttention(Protocol):
    """A model that returns its attention weights on request."""

    def attention(self, codes: Tensor) -> list[Tensor]:
        """Codes ``[batch, window]`` -> ``[batch, heads, queries, positions]`` of each layer."""


def attention_layers(model: SequenceModel) -> int:
    """Number of a model's layers with attention.

    Raises
    ------
    ModelError
        If it has none.
    """
    return len(attend(model, np.zeros(model.window, np.uint8)).maps)


def attend(model: SequenceModel, codes: Codes) -> Attention:
    """Attention maps of one window.

    Parameters
    ----------
    model : SequenceModel
        In evaluation mode.
    codes : uint8 array, [window]

    Raises
    ------
    ModelError
        If the model has no attention.
    """
    window = torch.from_numpy(codes)[None].to(model.device)
    with torch.no_grad():
        layers = model.attention(window) if isinstance(model, HasAttention) else []
    if not layers:
        raise ModelError(
            f"model {model.card.name!r} ({model.card.architecture}) has no attention to show; use "
            "ism or gradients"
        )
    maps = [layer[0].float().cpu().numpy() for layer in layers]
    received = [_spread(m.mean((0, 1)), *places(model, m.shape[2]), model.window) for m in maps]
    count = maps[0].shape[2]
    even = np.full(count, 1 / count, np.float32)
    return Attention(maps, np.array(received), _spread(even, *places(model, count), model.window))


def places(model: SequenceModel, positions: int) -> tuple[Int64, Int64]:
    """First base and number of bases of each position that is attended to.

    Parameters
    ----------
    model : SequenceModel
    positions : int
        Number of positions.

    Returns
    -------
    starts, widths : int64 array, [positions]
    """
    if isinstance(model, NucleicTransformer):
        convs = [conv for conv in model.aggregation.convs if isinstance(conv, nn.Conv1d)]
        counts = [(conv.kernel_size[0], model.window - conv.kernel_size[0] + 1) for conv in convs]
        starts = np.concatenate([np.arange(count) for _, count in counts])
        return starts, np.concatenate([np.full(count, k) for k, count in counts])
    pool = receptive_field(model.trunk).pool
    return np.arange(positions) * pool, np.full(positions, pool)


def _spread(shares: Float32, starts: Int64, widths: Int64, window: int) -> Float32:
    """Shares of positions as shares of bases; a last position that hangs over stays inside."""
    ends = np.minimum(starts + widths, window)
    starts = np.minimum(starts, window - 1)
    each = shares / np.maximum(ends - starts, 1)
    edges = np.zeros(window + 1)
    np.add.at(edges, starts, each)
    np.subtract.at(edges, np.maximum(ends, starts + 1), each)
    return np.cumsum(edges)[:window].astype(np.float32)
