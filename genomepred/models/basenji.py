"""Dilated residual CNN for expression, in the manner of Basenji."""

from __future__ import annotations

from torch import nn

from genomepred.models.layers import (
    FlattenPositions,
    MaxPool,
    Residual,
    SameConv1d,
    ScaledGELU,
    SequenceModel,
)

# Wider than any window.
_LARGEST_DILATION = 1 << 30


class Basenji(SequenceModel):
    """Convolution, pooling tower, dilated residual blocks, two 1x1 convolutions, linear.

    After Kelley et al., Genome Res. 28, 739 (2018), at a size for few examples. Every block is
    GELU (``x * sigmoid(a x)``, ``a`` learnable), SAME convolution without bias, BatchNorm,
    dropout and max-pool 2, the last two where named; the first GELU acts on the one-hot. A
    residual block is two such blocks, the first dilated, the second 1x1, added to their input.
    The first pool drops the last position of an odd length, those of the tower keep it.
    BatchNorm's running statistics take a tenth of each batch (``momentum=0.1``; other frameworks
    call it 0.9). Features are flattened position-major.

    A block has ``in * out * kernel`` parameters in its convolution, ``2 * out`` in its BatchNorm
    and 1 in its GELU. At the default 9,587:

    ================ ================================== ==========
    block            sum                                parameters
    ================ ================================== ==========
    4 to 8, k15      480 + 16 + 1                              497
    8 to 16, k5      640 + 32 + 1                              673
    16 to 32, k5     2,560 + 64 + 1                          2,625
    2 x 32 to 16, k3 2 (1,536 + 32 + 1)                      3,138
    2 x 16 to 32, k1 2 (512 + 64 + 1)                        1,154
    32 to 32, k1     1,024 + 64 + 1                          1,089
    32 to 1, k1      32 + 2 + 1                                 35
    linear           375 + 1                                   376
    ================ ================================== ==========

    Parameters
    ----------
    window : int, optional
        Bases a window, at least 2.
    tracks : int, optional
        Outputs; raw values.
    filters, kernel, dropout : optional
        Of the first block.
    tower_first, tower_last, tower_repeat : int, optional
        Channels of the tower's first and last block, growing geometrically between them, and
        the number of its blocks.
    tower_kernel : int, optional
        Width of the tower's convolutions.
    dilated_filters, dilated_kernel, dilated_dropout : optional
        Channels and width of the dilated convolutions, and dropout after the 1x1 ones.
    dilated_repeat : int, optional
        Number of residual blocks.
    rate_multiplier : float, optional
        Factor from one residual block's dilation to the next one's, starting with 1; each is
        rounded before the next one is computed from it: 1.5 gives 1, 2, 3, 4.
    final_filters, head_filters : int, optional
        Channels of the two 1x1 convolutions.
    base_order, n_policy : str, optional
        See :class:`genomepred.models.layers.OneHot`.

    Raises
    ------
    ValueError
        If a size is out of range.
    """

    def __init__(
        self,
        window: int = 3000,
        tracks: int = 1,
        *,
        filters: int = 8,
        kernel: int = 15,
        dropout: float = 0.4,
        tower_first: int = 16,
        tower_last: int = 32,
        tower_repeat: int = 2,
        tower_kernel: int = 5,
        dilated_filters: int = 16,
        dilated_kernel: int = 3,
        dilated_repeat: int = 2,
        rate_multiplier: float = 2.0,
        dilated_dropout: float = 0.3,
        final_filters: int = 32,
        head_filters: int = 1,
        base_order: str = "ACGT",
        n_policy: str = "zeros",
    ) -> None:
        super().__init__(window, tracks, base_order=base_order, n_policy=n_policy)
        if window < 2:
            raise ValueError(f"window {window} is shorter than 2, one pooled position")
        tower = geometric(tower_first, tower_last, tower_repeat)
        dilations = _dilations(rate_multiplier, dilated_repeat)
        layers = [*_block(4, filters, kernel, dropout=dropout), MaxPool(2)]
        channels, positions = filters, window // 2
        for wider in tower:
            layers += [*_block(channels, wider, tower_kernel), MaxPool(2, round_up=True)]
            channels, positions = wider, -(-positions // 2)
        for dilation in dilations:
            dilated = _block(channels, dilated_filters, dilated_kernel, dilation=dilation)
            back = _block(dilated_filters, channels, 1, dropout=dilated_dropout)
            layers.append(Residual(*dilated, *back))
        layers += [*_block(channels, final_filters, 1), *_block(final_filters, head_filters, 1)]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Sequential(FlattenPositions(), nn.Linear(head_filters * positions, tracks))


def _dilations(multiplier: float, repeat: int) -> list[int]:
    """Dilations of ``repeat`` blocks; half numbers are rounded to even ones, as NumPy does."""
    dilations: list[int] = []
    rate = 1
    for _ in range(repeat):
        if not 1 <= rate <= _LARGEST_DILATION:
            raise ValueError(
                f"rate_multiplier {multiplier} gives dilation {rate} in block "
                f"{len(dilations) + 1} of {repeat}; allowed: 1 to {_LARGEST_DILATION}"
            )
        dilations.append(rate)
        rate = round(rate * multiplier)
    return dilations


def _block(
    channels_in: int, channels_out: int, kernel: int, *, dilation: int = 1, dropout: float = 0.0
) -> list[nn.Module]:
    return [
        ScaledGELU(),
        SameConv1d(channels_in, channels_out, kernel, dilation=dilation, bias=False),
        nn.BatchNorm1d(channels_out),
        *([nn.Dropout(dropout)] if dropout else []),
    ]


def geometric(first: int, last: int, repeat: int) -> list[int]:
    """``repeat`` whole numbers from ``first`` to ``last``, each about the same factor apart.

    Raises
    ------
    ValueError
        If an end is below 1, or one number would have to be two.
    """
    if min(first, last) < 1 or repeat < 0 or (repeat == 1 and first != last):
        raise ValueError(
            f"{repeat} blocks cannot have {first} to {last} filters; filters are at least 1, and "
            "a single block has its first and last number equal"
        )
    steps = max(repeat - 1, 1)
    return [round(first * (last / first) ** (i / steps)) for i in range(repeat)]
