"""OpenSpliceAI as a plain PyTorch module: splice sites at single-base resolution.

A pre-activation residual network of dilated convolutions (the SpliceAI architecture). Names of
parameters are those of the published weights, so that they load as they are.
"""

from __future__ import annotations

from torch import Tensor, nn

CHANNELS = 32
# Width and dilation of the convolutions of each group of four units.
GROUPS = ((11, 1), (11, 4), (21, 10), (41, 25))
UNITS_A_GROUP = 4


class Unit(nn.Module):
    """BatchNorm, LeakyReLU and a dilated convolution, twice; added to the input."""

    def __init__(self, kernel: int, dilation: int) -> None:
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.batchnorm1 = nn.BatchNorm1d(CHANNELS)
        self.conv1 = nn.Conv1d(CHANNELS, CHANNELS, kernel, dilation=dilation, padding=padding)
        self.batchnorm2 = nn.BatchNorm1d(CHANNELS)
        self.conv2 = nn.Conv1d(CHANNELS, CHANNELS, kernel, dilation=dilation, padding=padding)
        self.activation = nn.LeakyReLU(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, channels, length]`` in and out."""
        y = self.conv1(self.activation(self.batchnorm1(x)))
        y = self.conv2(self.activation(self.batchnorm2(y)))
        return x + y


class Skip(nn.Module):
    """1x1 convolution whose results are summed up into the output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, channels, length]`` in and out."""
        return self.conv(x)


class OpenSpliceAI(nn.Module):
    """One-hot ``[batch, 4, window]`` -> logits ``[batch, window - 2 * crop, 3]``.

    The three tracks are none, acceptor and donor; softmax makes them probabilities.

    Parameters
    ----------
    groups : int
        Groups of four residual units: 4 for the 10,000-nt models, 2 for the 400-nt ones.
    crop : int
        Bases at each end that give context only: 5,000 and 200.
    """

    def __init__(self, groups: int = 4, crop: int = 5_000) -> None:
        super().__init__()
        self.crop = crop
        self.initial_conv = nn.Conv1d(4, CHANNELS, 1)
        self.initial_skip = Skip()
        self.residual_units = nn.ModuleList()
        for kernel, dilation in GROUPS[:groups]:
            self.residual_units.extend(Unit(kernel, dilation) for _ in range(UNITS_A_GROUP))
            self.residual_units.append(Skip())
        self.final_conv = nn.Conv1d(CHANNELS, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the bases between the crops."""
        inner = slice(self.crop, x.shape[2] - self.crop)
        x = self.initial_conv(x)
        total = self.initial_skip(x[..., inner])
        for layer in self.residual_units:
            if isinstance(layer, Skip):
                total = total + layer(x[..., inner])
            else:
                x = layer(x)
        return self.final_conv(total).transpose(1, 2)
