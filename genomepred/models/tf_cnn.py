"""Two-block CNN for transcription-factor binding."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from genomepred.models.layers import (
    FlattenPositions,
    MaxPool,
    SameConv1d,
    SequenceModel,
    dense,
    start_from_lecun,
)


class TFCNN(SequenceModel):
    """Two blocks of convolution, tanh-GELU and max-pool 2, then three dense layers.

    With the default sizes 256,897 parameters at window 100 and 461,697 at window 200: 2,624 and
    41,024 in the convolutions, ``64 * (window // 4) * 128 + 128``, 8,256 and 65 in the dense
    layers. Convolutions are SAME (width 10: 4 zeros left, 5 right). A pool drops the last
    position of an odd length. Features are flattened position-major. Convolutions and dense layers
    start from LeCun's normal distribution, biases from 0.

    Parameters
    ----------
    window : int, optional
        Bases a window.
    tracks : int, optional
        Outputs; raw values (logits).
    filters : int, optional
        Channels of both convolutions.
    kernel : int, optional
        Width of both convolutions.
    blocks : int, optional
        Number of convolution blocks.
    hidden : sequence of int, optional
        Widths of the dense layers before the last.
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
        blocks: int = 2,
        hidden: Sequence[int] = (128, 64),
        base_order: str = "ACGT",
        n_policy: str = "ones",
    ) -> None:
        super().__init__(window, tracks, base_order=base_order, n_policy=n_policy)
        positions = window >> blocks
        if positions < 1:
            raise ValueError(f"window {window} is shorter than {2**blocks}, one pooled position")
        trunk: list[nn.Module] = []
        for i in range(blocks):
            channels = filters if i else 4
            trunk += [SameConv1d(channels, filters, kernel), nn.GELU("tanh"), MaxPool(2)]
        features = (filters if blocks else 4) * positions
        self.trunk = nn.Sequential(*trunk)
        self.head = nn.Sequential(FlattenPositions(), *dense([features, *hidden, tracks]))
        start_from_lecun(self)
