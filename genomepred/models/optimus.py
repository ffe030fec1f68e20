"""CNN for the ribosome load of 5'UTRs, in the manner of Optimus 5-Prime."""

from __future__ import annotations

from torch import nn

from genomepred.models.layers import FlattenPositions, SameConv1d, SequenceModel


class Optimus5P(SequenceModel):
    """Convolutions with ReLU, flattened position-major, a dense layer with ReLU, linear.

    After Sample et al., Nat. Biotechnol. 37, 803 (2019). SAME convolutions of width 8 have 3
    zeros left and 4 right. Dropout follows the dense layer's ReLU, which is the same as before it.

    Parameters are ``4 f k + f`` and ``f**2 k + f`` in the first and further convolutions,
    ``positions * f * hidden + hidden`` and ``tracks (hidden + 1)`` in the dense layers. With the
    default sizes 474,681: 3,960 + 2 * 115,320 + 240,040 + 41, and 475,214 with the 14 tracks of
    a polysome profile. The published variant for evolution (2 convolutions, 40 filters, valid,
    window 54) has 78,241: 1,320 + 12,840 + 64,040 + 41.

    Parameters
    ----------
    window : int, optional
        Bases a window; with valid padding more than ``convolutions * (kernel - 1)``.
    tracks : int, optional
        Outputs; raw values.
    convolutions, filters, kernel : int, optional
        Number of convolutions, their channels and their width.
    padding : {"same", "valid"}, optional
        Whether convolutions keep the length or see no padding.
    hidden : int, optional
        Width of the dense layer.
    dropout : float, optional
        Share of the dense layer that is dropped in training.
    base_order, n_policy : str, optional
        See :class:`genomepred.models.layers.OneHot`.

    Raises
    ------
    ValueError
        If the padding is neither, or the window too short.
    """

    def __init__(
        self,
        window: int = 50,
        tracks: int = 1,
        *,
        convolutions: int = 3,
        filters: int = 120,
        kernel: int = 8,
        padding: str = "same",
        hidden: int = 40,
        dropout: float = 0.2,
        base_order: str = "ACGT",
        n_policy: str = "zeros",
    ) -> None:
        super().__init__(window, tracks, base_order=base_order, n_policy=n_policy)
        if padding not in ("same", "valid"):
            raise ValueError(f"padding {padding!r} is neither same nor valid")
        lost = convolutions * (kernel - 1) if padding == "valid" else 0
        if window <= lost:
            raise ValueError(f"window {window} is shorter than {lost + 1}, one valid position")
        layers: list[nn.Module] = []
        channels = 4
        for _ in range(convolutions):
            convolution = SameConv1d if padding == "same" else nn.Conv1d
            layers += [convolution(channels, filters, kernel), nn.ReLU()]
            channels = filters
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Sequential(
            FlattenPositions(),
            nn.Linear(channels * (window - lost), hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, tracks),
        )
