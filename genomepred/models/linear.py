"""Linear model: the cheapest one, for baselines and benchmarks."""

from __future__ import annotations

from torch import Tensor, nn

from genomepred.models.layers import FlattenPositions, SequenceModel


class Linear(SequenceModel):
    """One linear layer on the flattened one-hot: ``4 * window * tracks + tracks`` parameters.

    Weight ``[track, position * 4 + channel]`` is the contribution of a base at a position.

    Parameters
    ----------
    window : int
        Bases a window.
    tracks : int, optional
        Outputs; raw values.
    base_order, n_policy : str, optional
        See :class:`genomepred.models.layers.OneHot`.
    """

    def __init__(
        self, window: int, tracks: int = 1, *, base_order: str = "ACGT", n_policy: str = "zeros"
    ) -> None:
        super().__init__(window, tracks, base_order=base_order, n_policy=n_policy)
        self.flatten = FlattenPositions()
        self.linear = nn.Linear(4 * window, tracks)

    def body(self, x: Tensor) -> Tensor:
        """``float [batch, 4, window]`` -> raw values ``[batch, 1, tracks]``."""
        values: Tensor = self.linear(self.flatten(x))
        return values.unsqueeze(1)
