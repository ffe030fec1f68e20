"""Transformer over k-mers: the Nucleic Transformer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from genomepred.models.attention import Encoder, EncoderLayer, sinusoids
from genomepred.models.layers import SequenceModel


class KmerAggregation(nn.Module):
    """Every k-mer as one position: a valid convolution a ``k``, joined along the length.

    Parameters
    ----------
    dim : int
        Channels in and out.
    kmers : sequence of int
        Width of each convolution.
    """

    def __init__(self, dim: int, kmers: Sequence[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv1d(dim, dim, k) for k in kmers])
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, length, dim]`` -> ``[batch, sum over k of (length - k + 1), dim]``."""
        x = x.transpose(1, 2)
        joined = torch.cat([conv(x) for conv in self.convs], dim=2)
        normed: Tensor = self.norm(joined.transpose(1, 2))
        return normed


class KmerConvolutions(nn.Module):
    """Embedding, positions and k-mer aggregation of a one-hot, as convolutions of it.

    All three are linear: what positions and the embedding of an unknown base add is a constant.

    Parameters
    ----------
    model : NucleicTransformer
        In evaluation mode; its LayerNorm is used, not copied.
    """

    constant: Tensor

    def __init__(self, model: NucleicTransformer) -> None:
        super().__init__()
        self.norm, kernels = model.aggregation.norm, model.aggregation.convs
        unknown = model.embedding.weight[4].double()
        known = model.embedding.weight[:4].double() - unknown
        always = (unknown + model.positions.double()).T[None]
        layers, constants = [], []
        for conv in kernels:
            assert isinstance(conv, nn.Conv1d)
            weight = conv.weight.double()
            bias = None if conv.bias is None else conv.bias.double()
            constants.append(functional.conv1d(always, weight, bias))
            of_bases = nn.Conv1d(4, conv.out_channels, conv.kernel_size[0], bias=False)
            of_bases.weight.data = torch.einsum("odk,cd->ock", weight, known).to(conv.weight)
            layers.append(nn.Sequential(of_bases))
        self.layers = nn.ModuleList(layers)
        constant = torch.cat(constants, dim=2).transpose(1, 2).to(model.positions)
        self.register_buffer("constant", constant, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Encoded bases -> aggregated k-mers ``[batch, positions, dim]``."""
        kmers = [layer(x).transpose(1, 2) for layer in self.layers]
        joined = kmers[0] if len(kmers) == 1 else torch.cat(kmers, dim=1)
        normed: Tensor = self.norm(joined + self.constant)
        return normed


class GeM(nn.Module):
    """Generalised mean over positions: ``mean(max(x, eps)**p)**(1/p)`` with a learnable ``p``.

    ``p = 1`` is the mean, a large ``p`` the maximum (Radenovic et al., 2019). Computed in float32
    at least: the cube of ``eps`` is 0 in half precision.
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p, self.eps = nn.Parameter(torch.tensor([p])), eps

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, length, dim]`` -> ``[batch, dim]``."""
        exact = x.to(torch.promote_types(x.dtype, torch.float32)).clamp(min=self.eps)
        p = self.p.to(exact.dtype)
        return exact.pow(p).mean(dim=1).pow(1 / p).to(x.dtype)


class NucleicTransformer(SequenceModel):
    """Embedded bases with positions, k-mer aggregation, transformer, generalized mean, linear.

    The encoder layers are post-norm with Mish, and a generalized mean (GeM) follows them. With
    several ``kmers`` the aggregated sequences, which differ in length, stand one behind the other
    along the length, as in He et al., ACS Synth. Biol. 12, 3205 (2023), whose architecture this
    follows: positions are added before the aggregation, so that all of them know where they are,
    and attention sees across widths. The paper's own promoter code uses ReLU and max-pooling; this
    follows the form with Mish and GeM.

    An unknown base has an embedding of its own: ``x`` of the base's four channels gives
    ``sum_c x[c] E[c] + (1 - sum_c x[c]) E[N]``, which is ``E[N]`` where they are zeros. Hence a
    gradient by a channel compares that base with an unknown one.

    Parameters are ``5 d`` in the embedding, ``sum(k d**2 + d)`` and ``2 d`` in the aggregation, a
    layer ``4 d**2 + 4 d`` (attention), ``2 d f + f + d`` (feed-forward) and ``4 d`` (norms),
    1 in the mean, and ``tracks (d + 1)``. With d = 256, f = 2048 and 6 layers:

    ========== =============================================================== ==========
    kmers      sum                                                             parameters
    ========== =============================================================== ==========
    10         1,280 + 655,616 + 512 + 6 (263,168 + 1,050,880 + 1,024) + 258    8,548,098
    10, 13, 20 1,280 + 2,818,816 + 512 + 7,890,432 + 258                       10,711,298
    ========== =============================================================== ==========

    and with d = 512 and k = 10 21,540,354: 2,560 + 2,621,952 + 1,024 +
    6 (1,050,624 + 2,099,712 + 2,048) + 514.

    Parameters
    ----------
    window : int
        Bases a window, at least the longest k-mer.
    tracks : int, optional
        Outputs; raw values (logits).
    kmers : sequence of int, optional
        Lengths of the k-mers.
    dim : int, optional
        Channels ``d``; even, a multiple of ``heads``.
    heads, layers : int, optional
        Attention heads, and encoder layers.
    feedforward : int, optional
        Hidden channels ``f`` of each layer's feed-forward network.
    dropout : float, optional
        Share dropped in training: of the embedded bases and in each layer.
    base_order, n_policy : str, optional
        See :class:`genomepred.models.layers.OneHot`.

    Attributes
    ----------
    kmers : tuple of int
        As given; the order in which they stand along the length.

    Raises
    ------
    ValueError
        If a k-mer is longer than the window, there is none, or the sizes do not divide.
    """

    positions: Tensor

    def __init__(
        self,
        window: int,
        tracks: int = 1,
        *,
        kmers: Sequence[int] = (10,),
        dim: int = 256,
        heads: int = 8,
        layers: int = 6,
        feedforward: int = 2048,
        dropout: float = 0.1,
        base_order: str = "ACGT",
        n_policy: str = "zeros",
    ) -> None:
        super().__init__(window, tracks, base_order=base_order, n_policy=n_policy)
        if not kmers or min(kmers) < 1 or max(kmers) > window:
            raise ValueError(f"kmers {list(kmers)} must be at least one of 1 to window {window}")
        self.kmers = tuple(kmers)
        self.embedding = nn.Embedding(5, dim)
        self.register_buffer("positions", sinusoids(window, dim), persistent=False)
        self.dropout = nn.Dropout(dropout)
        self.aggregation = KmerAggregation(dim, kmers)
        self.transformer = Encoder(
            *[
                EncoderLayer(dim, heads, feedforward, nn.Mish(), norm_first=False, dropout=dropout)
                for _ in range(layers)
            ]
        )
        self.mean = GeM()
        self._convolutions: KmerConvolutions | None = None
        self.linear = nn.Linear(dim, tracks)

    def body(self, x: Tensor) -> Tensor:
        """``float [batch, 4, window]`` -> raw values ``[batch, 1, tracks]``."""
        values: Tensor = self.linear(self.mean(self.transformer(self._kmers(x))))
        return values.unsqueeze(1)

    @torch.no_grad()
    def expose_convolutions(self) -> list[nn.Sequential]:
        """As :meth:`SequenceModel.expose_convolutions`: of the embedded k-mers of each length."""
        self._convolutions = KmerConvolutions(self)
        self.aggregation.convs = nn.ModuleList()  # which these replace
        return list(self._convolutions.layers)  # type: ignore[arg-type]

    def attention(self, codes: Tensor) -> list[Tensor]:
        """Attention weights of each layer, ``[batch, heads, positions, positions]``.

        The positions are the first bases of the k-mers, ``window - k + 1`` for each of ``kmers``
        in turn. Dropout acts in training mode.
        """
        return self.transformer.with_weights(self._kmers(self.encode(codes)))[1]

    def _kmers(self, x: Tensor) -> Tensor:
        """``float [batch, 4, window]`` -> aggregated k-mers ``[batch, positions, dim]``."""
        if self._convolutions is not None:
            kmers: Tensor = self._convolutions(x)
            return kmers
        known = x.transpose(1, 2)
        tokens = torch.cat([known, 1 - known.sum(2, keepdim=True)], dim=2)
        embedded = tokens @ self.embedding.weight + self.positions
        aggregated: Tensor = self.aggregation(self.dropout(embedded))
        return aggregated
