"""Sizes and work of overlap sharing, which follow from a model's layers.

See :mod:`genomepred.inference.overlap` for what a block, an edge and a phase are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor, nn

from genomepred.errors import ModelError
from genomepred.models.fused import FusedChain, FusedConv
from genomepred.models.layers import (
    ChannelsLastConv,
    MaxPool,
    Residual,
    SameConv1d,
    SequenceModel,
    reach,
    zeros_beside,
)


class CannotShareError(ModelError):
    """The windows of a model cannot be computed from a block."""


class Taps(NamedTuple):
    """Inputs of a layer's output ``j``: ``[j * stride - left, j * stride - left + width)``.

    Beyond a window's ends the layer sees ``left`` and ``right`` positions of padding.
    """

    stride: int
    left: int
    right: int
    width: int

    def length(self, length: int) -> int:
        """Positions out for positions in."""
        return (length + self.left + self.right - self.width) // self.stride + 1


@dataclass(frozen=True)
class Place:
    """Where a layer stands: sizes that follow from the layers before it.

    Parameters
    ----------
    stride : int
        Bases from one window to the next.
    windows : int
        Windows of the block.
    step : int
        Bases from one position to the next.
    length : int
        Positions of a window.
    left, right : int
        How many of them, at its ends, are edges.
    first : int
        Position of a phase's first window at which the block begins.
    count : int
        Positions of the block, of each phase.
    """

    stride: int
    windows: int
    step: int
    length: int
    left: int
    right: int
    first: int
    count: int

    @classmethod
    def of_bases(cls, model: SequenceModel, stride: int, windows: int) -> Place:
        """Place before the first layer."""
        bases = (windows - 1) * stride + model.window
        return cls(stride, windows, 1, model.window, 0, 0, 0, bases)

    @property
    def phases(self) -> int:
        """Phases that a layer here distinguishes."""
        return self.step // gcd(self.stride, self.step)

    @property
    def group(self) -> int:
        """Windows of a phase."""
        return self.windows // self.phases

    @property
    def pitch(self) -> int:
        """Positions from one window of a phase to the next."""
        return self.stride // gcd(self.stride, self.step)

    def after(self, taps: Taps) -> Place:
        """Place after a layer.

        Raises
        ------
        CannotShareError
            If every position of a window is an edge.
        """
        length = taps.length(self.length)
        left = -(-(self.left + taps.left) // taps.stride)
        inner = (self.length - self.right + taps.left - taps.width) // taps.stride + 1
        if left >= inner:
            raise CannotShareError("padding touches all positions of a window")
        after = replace(self, step=self.step * taps.stride, length=length, left=left)
        first = -(-(self.first + taps.left) // taps.stride)
        lost = first * taps.stride - taps.left - self.first
        lost += (after.phases // self.phases - 1) * self.pitch
        count = (self.count - lost - taps.width) // taps.stride + 1
        return replace(after, right=length - inner, first=first, count=count)

    def beside(self, branch: Place) -> Place:
        """Place after adding a branch from here."""
        first = max(self.first, branch.first)
        end = min(self.first + self.count, branch.first + branch.count)
        return replace(
            self,
            left=max(self.left, branch.left),
            right=max(self.right, branch.right),
            first=first,
            count=end - first,
        )


class Work(NamedTuple):
    """Cost of a computation.

    Parameters
    ----------
    multiply_adds : int
        Of convolutions and linear layers.
    values : int
        Of their largest output.
    split : int
        Values of pools that make more phases.
    """

    multiply_adds: int
    values: int
    split: int = 0

    def __add__(self, more: Work) -> Work:  # type: ignore[override]
        """Work of both, one after the other."""
        return Work(
            self.multiply_adds + more.multiply_adds,
            max(self.values, more.values),
            self.split + more.split,
        )


class Followed(NamedTuple):
    """Where layers lead, for one block: the place after them, of so many channels, and the work."""

    place: Place
    channels: int
    work: Work


def follow(layer: nn.Module, place: Place, channels: int = 4) -> Followed:
    """Follow sizes through layers, from a place of so many channels.

    Raises
    ------
    CannotShareError
        If padding touches all positions of a window.
    """
    work = Work(0, 0)
    if isinstance(layer, nn.Sequential):
        for child in layer:
            place, channels, more = follow(child, place, channels)
            work += more
    elif isinstance(layer, Residual):
        branch, channels, work = follow(layer.branch, place, channels)
        place = place.beside(branch)
    elif (conv := conv_of(layer)) is not None:
        place, channels = place.after(taps_of(layer)), conv.out_channels
        edges = place.windows * (place.left + place.right)
        positions = place.phases * place.count
        work = Work((positions + edges) * conv.weight.numel(), max(positions, edges) * channels)
    elif isinstance(layer, MaxPool):
        before, place = place, place.after(taps_of(layer))
        if place.phases > before.phases:
            work = Work(0, 0, place.phases * place.count * channels)
    elif isinstance(layer, FusedChain):  # its work is counted as written
        for block in layer:
            place, channels = place.after(taps_of(block)), block.channels
    return Followed(place, channels, work)


def convolutions(layer: nn.Module) -> dict[nn.Module, nn.Conv1d]:
    """Layers that are convolutions, as written or rewritten, and the convolutions themselves."""
    if (conv := conv_of(layer)) is not None:
        return {layer: conv}
    return {key: conv for child in layer.children() for key, conv in convolutions(child).items()}


def sharable(model: nn.Module) -> SequenceModel:
    """The model, if windows of it can be computed from a block, as far as its layers tell.

    Raises
    ------
    CannotShareError
        If it has no trunk and head, more than one bin a window, or a layer that is not known.
    """
    if not isinstance(model, SequenceModel) or not hasattr(model, "trunk") or model.bins != 1:
        raise CannotShareError(f"{type(model).__name__} has no trunk and head to share")
    for layer in model.trunk.modules():
        if isinstance(layer, nn.Conv1d) and type(layer) not in (nn.Conv1d, SameConv1d):
            raise CannotShareError(f"{type(layer).__name__} is a convolution of its own kind")
    try:
        reach(model.trunk)
    except ModelError as error:
        raise CannotShareError(str(error)) from error
    return model


def conv_of(layer: nn.Module) -> nn.Conv1d | None:
    """The convolution within a layer, as written or rewritten."""
    layer = layer.conv if isinstance(layer, ChannelsLastConv) else layer
    return layer if isinstance(layer, nn.Conv1d) else None


def taps_of(layer: nn.Module) -> Taps:
    """Taps of a convolution, of a pool, or of both as one block."""
    if isinstance(layer, FusedConv):
        more = 1 if layer.epilogue.pool == "ceil" else 0
        left, right = layer.padding
        return Taps(layer.pool, left, right + more, layer.span + layer.pool - 1)
    if isinstance(layer, MaxPool):
        return Taps(layer.size, 0, layer.size - 1 if layer.round_up else 0, layer.size)
    conv = conv_of(layer)
    assert conv is not None
    width = conv.dilation[0] * (conv.kernel_size[0] - 1) + 1
    return Taps(conv.stride[0], *zeros_beside(conv), width)


def phases_of(model: SequenceModel, stride: int) -> int:
    """Phases that a model's last layer distinguishes.

    Raises
    ------
    CannotShareError
        As :func:`block_work`.
    """
    return follow(sharable(model).trunk, Place.of_bases(model, stride, 1)).place.phases


def block_work(model: SequenceModel, stride: int, windows: int) -> Work:
    """Work of a block of windows; its heads' outputs are not among the largest.

    Raises
    ------
    CannotShareError
        If windows of the model cannot be computed from a block.
    """
    start = Place.of_bases(model, stride, windows)
    place, channels, work = follow(sharable(model).trunk, start)
    features = next(model.parameters()).new_zeros(1, channels, place.length)
    return work + Work(windows * counted(model.head, features).multiply_adds, 0)


def multiply_adds(model: nn.Module, window: int) -> int:
    """Multiply-adds of one window on one strand; of a model as written."""
    device = next(chain(model.parameters(), model.buffers())).device
    codes = torch.zeros(1, window, dtype=torch.uint8, device=device)
    return counted(model, codes).multiply_adds


def counted(module: nn.Module, x: Tensor) -> Work:
    """Work of a call."""
    total = largest = 0

    def count(layer: nn.Module, _: object, out: Tensor) -> None:
        nonlocal total, largest
        weight = layer.weight
        assert isinstance(weight, Tensor)
        total += out.numel() * weight[0].numel()
        largest = max(largest, out.numel())

    layers = [m for m in module.modules() if isinstance(m, nn.Conv1d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        module(x)
    for hook in hooks:
        hook.remove()
    return Work(total, largest)
