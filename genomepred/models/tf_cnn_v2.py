"""Two-block CNN with BatchNorm for transcription-factor binding."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from genomepred.models.layers import (
    FlattenPositions,
    MaxPool,
    SameConv1d,
    SequenceModel,
    start_from_lecun,
)


class TFCNNv2(SequenceModel):
    """The two-block CNN with BatchNorm and dropout.

    A block of convolution, BatchNorm, tanh-GELU, max-pool 2; one of convolution, tanh-GELU,
    BatchNorm, max-pool 2; then dense layers with tanh-GELU and dropout between them. With the
    default sizes 461,953 parameters at window 200 and 257,153 at window 100: 2,624 and 41,024 in
    the convolutions, 128 in each BatchNorm, ``64 * (window // 4) * 128 + 128``, 8,256 and 65 in
    the dense layers. Convolutions are SAME (width 10: 4 zeros left, 5 right). A pool drops the
    last position of an odd length. Features are flattened position-major. BatchNorm's running
    statistics take a hundredth of each batch (``momentum=0.01``; other frameworks call it 0.99).
    Convolutions and dense layers start from LeCun's normal distribution, biases from 0.

    Parameters
    ----------
    window : int, optional
        Bases a window, at least 4.
    tracks : int, optional
        Outputs; raw values (logits).
    filters : int, optional
        Channels of both convolutions.
    kernel : int, optional
        Width of both convolutions.
    hidden : sequence of int, optional
        Widths of the dense layers before the last.
    dropout : float, optional
        Share of each hidden dense layer that is dropped in training.
    base_order, n_policy : str, optional
        See :class:`genomepred.models.layers.OneHot`.
    """

    def __init__(
        self,
        window: int = 200,
        tracks: int = 1,
        *,
        filters: int = 64,
        kernel: int = 10,
        hidden: Sequence[int] = (128, 64),
        dropout: float = 0.2,
        base_order: str = "ACGT",
        n_policy: str = "ones",
    ) -> None:
        super().__init__(window, tracks, base_order=base_order, n_policy=n_policy)
        positions = window // 4
        if positions < 1:
            raise ValueError(f"window {window} is shorter than 4, one pooled position")
        self.trunk = nn.Sequential(
            SameConv1d(4, filters, kernel),
            nn.BatchNorm1d(filters, momentum=0.01),
            nn.GELU("tanh"),
            MaxPool(2),
            SameConv1d(filters, filters, kernel),
            nn.GELU("tanh"),
            nn.BatchNorm1d(filters, momentum=0.01),
            MaxPool(2),
        )
        widths = [filters * positions, *hidden]
        layers: list[nn.Module] = [FlattenPositions()]
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.GELU("tanh"), nn.Dropout(dropout)]
        self.head = nn.Sequential(*layers, nn.Linear(widths[-1], tracks))
        start_from_lecun(self)
