"""Building blocks shared by architectures, and their form in channels-last memory.

Activations inside a model are ``[batch, channels, length]``. Blocks keep the memory format of
what they are given, so the same code runs on channels-first and on channels-last memory.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional

from genomepred.errors import ModelError
from genomepred.models.card import N_POLICIES, Card

if TYPE_CHECKING:
    from genomepred.models.external import TrustedCode

Model = TypeVar("Model", bound=nn.Module)

# Standard deviation of a normal distribution truncated at two of its own.
_TRUNCATED = 0.87962566103423978


class OneHot(nn.Module):
    """Codes ``uint8 [batch, W]`` -> ``float [batch, 4, W]``, one channel a base.

    The result is a view of channels-last memory and has the dtype of the module.

    Parameters
    ----------
    base_order : str, optional
        Base of each channel: a permutation of ``ACGT``.
    n_policy : {"zeros", "ones", "uniform"}, optional
        What all four channels hold where the base is unknown (code 4): 0, 1 or 0.25.

    Raises
    ------
    ValueError
        If the order or the policy is neither.
    """

    table: Tensor

    def __init__(self, base_order: str = "ACGT", n_policy: str = "zeros") -> None:
        super().__init__()
        if sorted(base_order) != list("ACGT"):
            raise ValueError(f"base order {base_order!r} is not a permutation of ACGT")
        if n_policy not in N_POLICIES:
            raise ValueError(f"N policy {n_policy!r} is none of {', '.join(N_POLICIES)}")
        self.base_order, self.n_policy = base_order, n_policy
        table = torch.full((5, 4), N_POLICIES[n_policy])
        rows = [[float(base == column) for column in base_order] for base in "ACGT"]
        table[:4] = torch.tensor(rows)  # torch.eye would import a compiler on the meta device
        self.register_buffer("table", table, persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        """One-hot of codes; any code above 3 is an unknown base."""
        return functional.embedding(codes.clamp(max=4).int(), self.table).transpose(1, 2)


class SequenceModel(nn.Module):
    """Base of all models: ``codes uint8 [batch, window] -> float [batch, bins, tracks]``.

    ``encode`` turns codes into floats, ``body`` floats into raw values (logits where the card
    names an activation); ``forward`` composes them. Gradients are taken through ``body``.

    Parameters
    ----------
    window : int
        Bases a model sees.
    tracks : int
        Output channels.
    crop : int, optional
        Bases at each end of the window without output.
    bins : int, optional
        Output positions of a window.
    base_order, n_policy : str, optional
        See :class:`OneHot`.

    Attributes
    ----------
    bin_size : int
        Bases described by one bin.
    card : Card
        Set by :func:`genomepred.models.checkpoint.load_model`, as is ``checkpoint``, its folder.
    code : TrustedCode, optional
        Code of a model that is none of this package.
    trunk, head : nn.Module
        Of a model that has them: ``[batch, 4, window]`` to features ``[batch, channels, length]``,
        and these to ``[batch, tracks]``.
    """

    card: Card
    code: TrustedCode | None = None
    checkpoint: Path
    trunk: nn.Sequential
    head: nn.Module
    input, output = "codes", "bins_tracks"

    def __init__(
        self,
        window: int,
        tracks: int,
        *,
        crop: int = 0,
        bins: int = 1,
        base_order: str = "ACGT",
        n_policy: str = "zeros",
    ) -> None:
        super().__init__()
        if window < 1 or tracks < 1:
            raise ValueError(f"window {window} and tracks {tracks} must be at least 1")
        self.window, self.tracks, self.crop, self.bins = window, tracks, crop, bins
        self.bin_size = (window - 2 * crop) // bins
        self.base_order, self.n_policy = base_order, n_policy
        self.encoder = OneHot(base_order, n_policy)

    def encode(self, codes: Tensor) -> Tensor:
        """Codes ``uint8 [batch, window]`` -> ``float [batch, 4, window]``."""
        encoded: Tensor = self.encoder(codes)
        return encoded

    def body(self, x: Tensor) -> Tensor:
        """``float [batch, 4, window]`` -> raw values ``[batch, bins, tracks]``.

        Those of one bin are ``head`` of ``trunk``, unless a model says otherwise.
        """
        values: Tensor = self.head(self.trunk(x))
        return values.unsqueeze(1)

    def forward(self, codes: Tensor) -> Tensor:
        """Codes ``uint8 [batch, window]`` -> raw values ``[batch, bins, tracks]``."""
        return self.body(self.encode(codes))

    @property
    def device(self) -> torch.device:
        """The device of the model; of one without parameters too."""
        return self.encoder.table.device

    def expose_convolutions(self) -> list[nn.Sequential]:
        """Rewrite the model, in evaluation mode, so that its first layers are convolutions.

        Returns
        -------
        list of nn.Sequential
            What the encoded sequence enters; the rewritten model may be given codes there.
        """
        return [self.trunk] if hasattr(self, "trunk") else []


class SameConv1d(nn.Conv1d):
    """Convolution whose output is as long as its input, for even kernels as well."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        *,
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(channels_in, channels_out, kernel, dilation=dilation, bias=bias)
        self.sides = zeros_beside(self)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, channels_in, length]`` -> ``[batch, channels_out, length]``."""
        return super().forward(functional.pad(x, self.sides))


class MaxPool(nn.Module):
    """Maximum of each ``size`` neighbors.

    Parameters
    ----------
    size : int
        Neighbors, and the distance between them.
    round_up : bool, optional
        Whether an incomplete last group counts (as if padded with -inf) or is left out.
    """

    def __init__(self, size: int, round_up: bool = False) -> None:
        super().__init__()
        self.size, self.round_up = size, round_up

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, channels, length]`` -> ``[batch, channels, length / size]``."""
        if x.stride(1) != 1:
            return functional.max_pool1d(x, self.size, ceil_mode=self.round_up)
        # The 1-D form would copy channels-last memory; the 2-D form is slow on channels-first.
        pooled = functional.max_pool2d(x.unsqueeze(2), (1, self.size), ceil_mode=self.round_up)
        return pooled.squeeze(2)

    def length(self, length: int) -> int:
        """Length of the output for a length of the input."""
        return -(-length // self.size) if self.round_up else length // self.size


class Residual(nn.Module):
    """A branch whose output is added to its input, which has the same shape."""

    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, channels, length]`` in and out."""
        added: Tensor = x + self.branch(x)
        return added


class ScaledGELU(nn.Module):
    """``x * sigmoid(a x)`` with a learnable ``a``; 1.702, its start, approximates GELU.

    Hendrycks and Gimpel, 2016. One parameter.
    """

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(1.702))

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return x * torch.sigmoid(self.a * x)


class FlattenPositions(nn.Module):
    """``[batch, channels, length]`` -> ``[batch, length * channels]``, position-major.

    Feature ``position * channels + channel``: the order of channels-last frameworks, and a view
    of channels-last memory.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Flatten all but the batch."""
        return x.transpose(1, 2).flatten(1)


class AttentionPool(nn.Module):
    """Mean over positions, weighted by the softmax of a linear score of each position.

    ``channels`` parameters: the softmax would cancel a bias.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.score = nn.Linear(channels, 1, bias=False)

    def weights(self, x: Tensor) -> Tensor:
        """``[batch, channels, length]`` -> ``[batch, length]``, which sum to 1."""
        scores: Tensor = self.score(x.transpose(1, 2))
        return scores.squeeze(2).softmax(dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, channels, length]`` -> ``[batch, channels]``."""
        weights = self.weights(x).to(x.dtype)
        return (x @ weights.unsqueeze(2)).squeeze(2)


def dense(sizes: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """Linear layers of the given widths with tanh-GELU, and dropout, between them.

    Names of parameters are the same with and without dropout.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        gelu = nn.GELU("tanh")
        between = nn.Sequential(gelu, nn.Dropout(dropout)) if dropout else gelu
        layers += [nn.Linear(before, after), between]
    return nn.Sequential(*layers[:-1])


def start_from_lecun(model: nn.Module) -> None:
    """Initialize convolutions and linear layers by LeCun's normal distribution, biases by 0.

    A normal distribution truncated at two standard deviations, of variance ``1 / fan in`` then.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Conv1d | nn.Linear):
            deviation = layer.weight[0].numel() ** -0.5 / _TRUNCATED
            nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class ChannelsLastConv(nn.Module):
    """A 1-D convolution computed as a (1, K) 2-D one, which keeps channels-last memory.

    Backends optimize 2-D convolutions in channels-last memory, and 1-D ones in no format.

    Parameters
    ----------
    conv : nn.Conv1d
        The convolution to imitate; its parameters are used, not copied.
    """

    def __init__(self, conv: nn.Conv1d) -> None:
        super().__init__()
        self.conv = conv
        self.sides = (*conv.sides, 0, 0) if isinstance(conv, SameConv1d) else None
        self.padding = conv.padding if isinstance(conv.padding, str) else (0, conv.padding[0])

    def forward(self, x: Tensor) -> Tensor:
        """As the imitated convolution: ``[batch, channels, length]`` in and out."""
        conv, x = self.conv, x.unsqueeze(2)
        if self.sides is not None:
            x = functional.pad(x, self.sides)
        y = functional.conv2d(
            x,
            conv.weight.unsqueeze(2),
            conv.bias,
            (1, conv.stride[0]),
            self.padding,
            (1, conv.dilation[0]),
            conv.groups,
        )
        return y.squeeze(2)


def channels_last(model: Model) -> Model:
    """Form of a model that computes in channels-last memory and shares all its parameters.

    A training step of the two-block CNN takes two thirds of its plain form's time on a CPU.
    """
    tensors = [*model.parameters(), *model.buffers()]
    shared = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    rewrite_channels_last(shared)
    return shared


def zeros_beside(conv: nn.Conv1d) -> tuple[int, int]:
    """Zeros left and right of a convolution's input; to keep the length, a rest on the right."""
    if isinstance(conv, SameConv1d) or conv.padding == "same":
        total = conv.dilation[0] * (conv.kernel_size[0] - 1)
        return total // 2, total - total // 2
    sides = 0 if isinstance(conv.padding, str) else int(conv.padding[0])
    return sides, sides


@torch.no_grad()
def rescale_output(model: SequenceModel, shift: ArrayLike, scale: ArrayLike) -> None:
    """Make a model return ``raw value * scale + shift``, in place, by its last linear layer.

    A regression learns standardized labels and is then put back into their unit.

    Parameters
    ----------
    model : SequenceModel
        Its raw values are what its last ``nn.Linear`` returns.
    shift, scale : float array, [tracks]
        In the unit of the labels.

    Raises
    ------
    ModelError
        If the last linear layer does not return one value, with a bias, a track.
    """
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    last = linears[-1] if linears else None
    if last is None or last.bias is None or last.out_features != model.tracks:
        raise ModelError(
            f"{type(model).__name__} cannot be rescaled: its last linear layer is {last}; needed "
            f"is one with {model.tracks} outputs and a bias"
        )
    # In double, so that a shift much larger than the scale costs no more than one rounding.
    by = torch.as_tensor(scale, dtype=torch.float64, device=last.weight.device)
    up = torch.as_tensor(shift, dtype=torch.float64, device=last.weight.device)
    last.weight.copy_(last.weight.double() * by[:, None])
    last.bias.copy_(last.bias.double() * by + up)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Context in which a GPU computes convolutions in float32; those in TF32 miss its tolerance."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def rewrite_channels_last(module: nn.Module) -> None:
    """Replace the convolutions within a module by :class:`ChannelsLastConv`, in place.

    Those that somebody has changed, in a subclass or by a hook, stay.
    """
    children: dict[str, Any] = dict(module.named_children())
    for name, child in children.items():
        known = type(child) in (nn.Conv1d, SameConv1d) and not child._forward_hooks
        if known and child.padding_mode == "zeros" and not child._forward_pre_hooks:
            setattr(module, name, ChannelsLastConv(child))
        else:
            rewrite_channels_last(child)
