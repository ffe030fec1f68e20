"""Convolution, transformer and dense blocks for transcription-factor binding."""

from __future__ import annotations

from torch import Tensor, nn

from genomepred.models.attention import Encoder, EncoderLayer
from genomepred.models.layers import (
    MaxPool,
    SameConv1d,
    SequenceModel,
    dense,
    start_from_lecun,
)


class TransformerHead(nn.Module):
    """Encoder layers over positions, flattened position-major, then dense layers.

    Parameters
    ----------
    transformer : Encoder
        On ``[batch, positions, channels]``.
    mlp : nn.Sequential
        On ``[batch, positions * channels]``.
    """

    def __init__(self, transformer: Encoder, mlp: nn.Sequential) -> None:
        super().__init__()
        self.transformer, self.mlp = transformer, mlp

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, channels, positions]`` -> ``[batch, tracks]``."""
        values: Tensor = self.mlp(self.transformer(x.transpose(1, 2)).flatten(1))
        return values


class TFConvTransformer(SequenceModel):
    """Blocks of convolution, then of transformer, then of dense layers; any number of each.

    A convolution block is a SAME convolution (width 10: 4 zeros left, 5 right), BatchNorm,
    tanh-GELU and max-pool 2, which drops the last position of an odd length. A transformer block
    is a pre-norm encoder layer with tanh-GELU, without explicit positions, its feed-forward width
    and its heads together as wide as the convolutions, LayerNorm's eps 1e-6. Dense block ``i``
    has width ``128 // (i + 1)`` and tanh-GELU; before the first, features are flattened
    position-major; a linear layer follows the last. Dropout acts on the dense blocks and between
    the two layers of each feed-forward network. BatchNorm's running statistics take a hundredth of
    each batch (``momentum=0.01``; other frameworks call it 0.99). Convolutions and dense layers
    start from LeCun's normal distribution, the attention's projections from Xavier's uniform one,
    biases from 0.

    Parameters are ``41 f`` and ``10 f**2 + f`` in the first and further convolutions and ``2 f``
    in each BatchNorm; ``6 f**2 + 10 f`` in a transformer block (``4 f**2 + 4 f`` attention,
    ``2 f**2 + 2 f`` feed-forward, ``4 f`` norms); ``f * positions * 128 + 128``, 8,256 and 65 in
    the dense layers. With the default sizes 512,385 at window 200: 2,624 + 41,024 + 2 * 128 +
    2 * 25,216 + 409,728 + 8,256 + 65.

    Parameters
    ----------
    window : int, optional
        Bases a window, at least 2 to the power of ``conv_blocks``.
    tracks : int, optional
        Outputs; raw values (logits).
    conv_blocks, transformer_blocks, mlp_blocks : int, optional
        Number of blocks of each kind, any of them 0. Without convolutions the transformer blocks
        see the one-hot's four channels.
    filters : int, optional
        Channels of the convolutions, of the heads together and of the feed-forward networks; a
        multiple of ``heads``.
    kernel : int, optional
        Width of the convolutions.
    heads : int, optional
        Attention heads.
    dropout : float, optional
        Share that is dropped in training, of each dense block and feed-forward network.
    base_order, n_policy : str, optional
        See :class:`genomepred.models.layers.OneHot`.

    Raises
    ------
    ValueError
        If the window is too short, a count out of range or the sizes do not divide.
    """

    head: TransformerHead

    def __init__(
        self,
        window: int = 200,
        tracks: int = 1,
        *,
        conv_blocks: int = 2,
        transformer_blocks: int = 2,
        mlp_blocks: int = 2,
        filters: int = 64,
        kernel: int = 10,
        heads: int = 8,
        dropout: float = 0.2,
        base_order: str = "ACGT",
        n_policy: str = "ones",
    ) -> None:
        super().__init__(window, tracks, base_order=base_order, n_policy=n_policy)
        if min(conv_blocks, transformer_blocks, mlp_blocks) < 0 or mlp_blocks > 128:
            raise ValueError(
                f"conv_blocks {conv_blocks}, transformer_blocks {transformer_blocks} and "
                f"mlp_blocks {mlp_blocks} must be at least 0, the last at most 128"
            )
        positions = window >> conv_blocks
        if positions < 1:
            raise ValueError(
                f"window {window} is shorter than {2**conv_blocks}, one pooled position"
            )
        blocks: list[nn.Module] = []
        channels = 4
        for _ in range(conv_blocks):
            norm = nn.BatchNorm1d(filters, momentum=0.01)
            blocks += [SameConv1d(channels, filters, kernel), norm, nn.GELU("tanh"), MaxPool(2)]
            channels = filters
        self.trunk = nn.Sequential(*blocks)
        transformer = Encoder(
            *[
                EncoderLayer(
                    *(channels, heads, filters, nn.GELU("tanh")),
                    norm_first=True,
                    inner=filters,
                    hidden_dropout=dropout,
                    eps=1e-6,
                )
                for _ in range(transformer_blocks)
            ]
        )
        widths = [128 // (i + 1) for i in range(mlp_blocks)]
        mlp = dense([channels * positions, *widths, tracks], dropout)
        self.head = TransformerHead(transformer, mlp)
        start_from_lecun(self)
        for layer in transformer:
            assert isinstance(layer, EncoderLayer)
            layer.attention.start_from_xavier()

    def attention(self, codes: Tensor) -> list[Tensor]:
        """Attention weights of each transformer block, ``[batch, heads, positions, positions]``.

        Position ``i`` stands for bases ``[i * 2**conv_blocks, + 2**conv_blocks)``.
        """
        features = self.trunk(self.encode(codes)).transpose(1, 2)
        return self.head.transformer.with_weights(features)[1]
