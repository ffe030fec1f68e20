"""CNN with attention pooling for the ribosome load of 5'UTRs."""

from __future__ import annotations

from torch import Tensor, nn

from genomepred.models.layers import AttentionPool, MaxPool, SequenceModel


class UTRAttention(SequenceModel):
    """Convolutions with ReLU and max-pool 2, attention over positions, two dense layers.

    Convolution of width 8 (4 zeros at each side, so that the length grows by 1) and pool;
    ``depth - 2`` convolutions of width 5 (2 zeros); one more that doubles the channels, and pool.
    A pool drops the last position of an odd length. The positions' mean, weighted by the softmax
    of a linear score, goes through dropout, a dense layer with ReLU and a linear layer.

    Parameters are ``33 f``, ``depth - 2`` times ``5 f**2 + f``, ``10 f**2 + 2 f``, ``2 f`` in the
    score (the softmax would cancel a bias), ``2 f h + h`` and ``tracks (h + 1)``. With the default
    sizes 51,649 at depth 2: 2,112 + 41,088 + 128 + 8,256 + 65; and 20,544 more, 72,193, at
    depth 3. They do not depend on the window.

    Parameters
    ----------
    window : int, optional
        Bases a window, at least 3.
    tracks : int, optional
        Outputs; raw values.
    depth : int, optional
        Number of convolutions, at least 2.
    filters : int, optional
        Channels ``f`` of all convolutions but the last, which has twice as many.
    hidden : int, optional
        Width ``h`` of the first dense layer.
    dropout : float, optional
        Share of the pooled channels that are dropped in training; by default 0.3 at depth 2 and
        0.2 at others.
    base_order, n_policy : str, optional
        See :class:`genomepred.models.layers.OneHot`.

    Raises
    ------
    ValueError
        If the window is too short or the depth below 2.
    """

    head: nn.Sequential

    def __init__(
        self,
        window: int = 50,
        tracks: int = 1,
        *,
        depth: int = 2,
        filters: int = 64,
        hidden: int = 64,
        dropout: float | None = None,
        base_order: str = "ACGT",
        n_policy: str = "zeros",
    ) -> None:
        super().__init__(window, tracks, base_order=base_order, n_policy=n_policy)
        if depth < 2:
            raise ValueError(f"depth {depth} is below 2")
        if window < 3:
            raise ValueError(f"window {window} is shorter than 3, one pooled position")
        if dropout is None:
            dropout = 0.3 if depth == 2 else 0.2
        layers = [nn.Conv1d(4, filters, 8, padding=4), nn.ReLU(), MaxPool(2)]
        for _ in range(depth - 2):
            layers += [nn.Conv1d(filters, filters, 5, padding=2), nn.ReLU()]
        layers += [nn.Conv1d(filters, 2 * filters, 5, padding=2), nn.ReLU(), MaxPool(2)]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Sequential(
            AttentionPool(2 * filters),
            nn.Dropout(dropout),
            nn.Linear(2 * filters, hidden),
            nn.ReLU(),
            nn.Linear(hidden, tracks),
        )

    def attention(self, codes: Tensor) -> list[Tensor]:
        """The weight of each position, ``[batch, 1, 1, positions]``, as the only layer's.

        Position ``i`` stands for bases ``[i * pool, + pool)``.
        """
        pooling = self.head[0]
        assert isinstance(pooling, AttentionPool)
        weights = pooling.weights(self.trunk(self.encode(codes)))
        return [weights[:, None, None, :]]
