"""One convolution and a linear layer: the smallest model that learns motifs."""

from __future__ import annotations

from torch import nn

from genomepred.models.layers import FlattenPositions, SequenceModel


class MotifCNN(SequenceModel):
    """A valid convolution with ReLU, flattened position-major, and a linear layer.

    Parameters are ``4 f k + f`` and ``tracks (f (window - k + 1) + 1)``: 609 at the default,
    416 + 193.

    Parameters
    ----------
    window : int, optional
        Bases a window, at least ``kernel``.
    tracks : int, optional
        Outputs; raw values.
    filters, kernel : int, optional
        Number of motifs, and their width.
    base_order, n_policy : str, optional
        See :class:`genomepred.models.layers.OneHot`.

    Raises
    ------
    ValueError
        If the window is shorter than the kernel.
    """

    def __init__(
        self,
        window: int = 8,
        tracks: int = 1,
        *,
        filters: int = 32,
        kernel: int = 3,
        base_order: str = "ACGT",
        n_policy: str = "zeros",
    ) -> None:
        super().__init__(window, tracks, base_order=base_order, n_policy=n_policy)
        if window < kernel:
            raise ValueError(f"window {window} is shorter than the kernel, {kernel}")
        self.trunk = nn.Sequential(nn.Conv1d(4, filters, kernel), nn.ReLU())
        features = filters * (window - kernel + 1)
        self.head = nn.Sequential(FlattenPositions(), nn.Linear(features, tracks))
