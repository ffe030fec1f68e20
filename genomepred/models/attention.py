"""Self-attention over positions, and the encoder layers that transformers are made of.

Activations are ``[batch, length, dim]``. Each module has two paths that agree within 1e-5: its
``forward``, fused where the device has a kernel for it, and ``with_weights``, which spells the
softmax out and returns it as well.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class SelfAttention(nn.Module):
    """Multi-head scaled-dot-product attention of a sequence to itself (Vaswani et al., 2017).

    ``4 * dim * inner + 3 * inner + dim`` parameters. As in ``nn.MultiheadAttention``, the joint
    projection starts from Xavier's uniform distribution, biases from 0.

    Parameters
    ----------
    dim : int
        Channels in and out.
    heads : int
        Heads, each on ``inner / heads`` channels of its own.
    inner : int, optional
        Channels of the queries, keys and values of all heads; by default ``dim``.
    dropout : float, optional
        Share of the weights that are dropped in training.

    Raises
    ------
    ValueError
        If the heads do not divide the channels.
    """

    def __init__(
        self, dim: int, heads: int, *, inner: int | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        inner = dim if inner is None else inner
        if heads < 1 or inner < 1 or inner % heads:
            raise ValueError(f"{heads} heads do not divide {inner} channels")
        self.heads, self.dropout = heads, dropout
        self.project = nn.Linear(dim, 3 * inner)  # queries, keys, values
        self.out = nn.Linear(inner, dim)
        nn.init.xavier_uniform_(self.project.weight)
        for projection in (self.project, self.out):
            nn.init.zeros_(projection.bias)

    def start_from_xavier(self) -> None:
        """Initialize each of the four projections by Xavier's uniform distribution."""
        for weight in (*self.project.weight.chunk(3), self.out.weight):
            nn.init.xavier_uniform_(weight)

    def forward(self, x: Tensor) -> Tensor:
        """``float [batch, length, dim]`` in and out."""
        dropout = self.dropout if self.training else 0.0
        attended = functional.scaled_dot_product_attention(*self._split(x), dropout_p=dropout)
        return self._join(attended)

    def with_weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As ``forward``, and the weights ``[batch, heads, length, length]``.

        Row ``i`` of a head's weights is what position ``i`` takes from each position; it sums to 1.
        """
        queries, keys, values = self._split(x)
        scores = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[3])
        weights = scores.softmax(dim=3)
        kept = functional.dropout(weights, self.dropout, self.training)
        return self._join(kept @ values), weights

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each ``[batch, heads, length, inner / heads]``."""
        batch, length, _ = x.shape
        parts = self.project(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        queries, keys, values = parts.unbind(0)
        return queries, keys, values

    def _join(self, attended: Tensor) -> Tensor:
        out: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return out


class EncoderLayer(nn.Module):
    """Self-attention and a position-wise feed-forward network, each added to its input.

    Post-norm (``norm_first=False``, as published by Vaswani et al., 2017) normalizes each sum;
    pre-norm normalizes what each of the two is given. LayerNorm is over the channels. Without
    ``inner``, ``4 * dim**2 + 4 * dim`` parameters in the attention,
    ``2 * dim * feedforward + feedforward + dim`` in the network, ``4 * dim`` in the two norms.

    Parameters
    ----------
    dim, heads, inner
        See :class:`SelfAttention`.
    feedforward : int
        Hidden channels of the feed-forward network.
    activation : nn.Module
        Between its two linear layers.
    norm_first : bool
        Pre-norm or post-norm.
    dropout : float, optional
        Share dropped in training of the attention weights, of the hidden channels and of what is
        added.
    hidden_dropout : float, optional
        Of the hidden channels; by default ``dropout``.
    eps : float, optional
        Added to the variance by the norms.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        feedforward: int,
        activation: nn.Module,
        *,
        norm_first: bool,
        inner: int | None = None,
        dropout: float = 0.0,
        hidden_dropout: float | None = None,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.attention = SelfAttention(dim, heads, inner=inner, dropout=dropout)
        self.feedforward = nn.Sequential(
            nn.Linear(dim, feedforward),
            activation,
            nn.Dropout(dropout if hidden_dropout is None else hidden_dropout),
            nn.Linear(feedforward, dim),
        )
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps), nn.LayerNorm(dim, eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``float [batch, length, dim]`` in and out."""
        return self._after(x, self.attention(self._before(x)))

    def with_weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As ``forward``, and the attention weights ``[batch, heads, length, length]``."""
        attended, weights = self.attention.with_weights(self._before(x))
        return self._after(x, attended), weights

    def _before(self, x: Tensor) -> Tensor:
        before: Tensor = self.norm1(x) if self.norm_first else x
        return before

    def _after(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.dropout(attended)
        out: Tensor
        if self.norm_first:
            out = x + self.dropout(self.feedforward(self.norm2(x)))
        else:
            x = self.norm1(x)
            out = self.norm2(x + self.dropout(self.feedforward(x)))
        return out


class Encoder(nn.Sequential):
    """Encoder layers, one after the other; without any the identity."""

    def __init__(self, *layers: EncoderLayer) -> None:
        super().__init__(*layers)

    def with_weights(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """As ``forward``, and each layer's attention weights ``[batch, heads, length, length]``."""
        weights = []
        for layer in self:
            assert isinstance(layer, EncoderLayer)
            x, of_layer = layer.with_weights(x)
            weights.append(of_layer)
        return x, weights


def sinusoids(length: int, dim: int) -> Tensor:
    """Sinusoidal positions ``float32 [length, dim]`` (Vaswani et al., 2017).

    Channel ``2 i`` is the sine and ``2 i + 1`` the cosine of ``position / 10000**(2 i / dim)``.

    Raises
    ------
    ValueError
        If ``dim`` is odd.
    """
    if dim % 2:
        raise ValueError(f"sinusoidal positions need an even number of channels, not {dim}")
    positions = torch.arange(length, dtype=torch.float64)[:, None]
    frequencies = 10_000.0 ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = positions * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1).float()
