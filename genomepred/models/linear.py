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
        self.flatten: nn.Module = FlattenPositions()
        self.linear: nn.Module = nn.Linear(4 * window, tracks)

    def expose_convolutions(self) -> list[nn.Sequential]:
        """As :meth:`SequenceModel.expose_convolutions`: a convolution as wide as the window."""
        linear = self.linear
        assert isinstance(linear, nn.Linear)
        conv = nn.Conv1d(4, self.tracks, self.window).to(linear.weight)
        weight = linear.weight.detach().view(self.tracks, self.window, 4)
        conv.weight.data, conv.bias = weight.transpose(1, 2).contiguous(), linear.bias
        layers = nn.Sequential(conv)
        self.flatten, self.linear = layers, FlattenPositions()
        return [layers]

    def body(self, x: Tensor) -> Tensor:
        """``float [batch, 4, window]`` -> raw values ``[batch, 1, tracks]``."""
        values: Tensor = self.linear(self.flatten(x))
        return values.unsqueeze(1)
