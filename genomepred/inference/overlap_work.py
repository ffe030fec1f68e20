"""Sizes and work of overlap sharing, which follow from a model's layers.

See :mod:`genomepred.inference.overlap` for what a block, an edge and a phase are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor, nn

from genomepred.errors import ModelError
from genomepred.models.layers import (
    ChannelsLastConv,
    MaxPool,
    OneDNNConv,
    Residual,
    SameConv1d,
    SequenceModel,
    reach,
    same_padding,
)
from genomepred.sequences.grid import Geometry

OVERLAPS = ("auto", "share", "naive")

# Values of the largest layer of a block, and its windows: enough that calls of small layers are
# worth their time, few enough that activations stay in the cache, and that glibc does not hand
# their memory back to be faulted in again (CPU), or that they fit (CUDA). One thread, us a window
# for values / windows: basenji-maize, stride 104: 16.2 for 236k / 256, 12.7 for 449k / 512, 15.7
# for 875k / 1,024; stride 103: 42 for 0.9M / 256, 92 for 1.8M / 512; the two-block CNN, W = 200,
# stride 25: 43 for 421k / 256, 34 for 830k / 512, 38 for 1.6M / 1,024.
_BLOCK_VALUES = {"cpu": 1_048_576, "cuda": 268_435_456}
_BLOCK_WINDOWS = {"cpu": 512, "cuda": 8_192}
_FEWEST_WINDOWS = 32
# How many times fewer multiply-adds pay: a block's take longer than those of windows by
# themselves, and what is gained must be clear. CPU, one thread, against the default form: 1.0 times
# as long (basenji-maize, stride 104), 1.0 to 1.4 (two-block CNN, strides 100 to 4), 1.4
# (utr-attention, stride 12 to 4), 1.0 to 1.2 (optimus5p, stride 12 to 1). CUDA: not measured;
# sharing is left to where it saves most.
_PAYS = {"cpu": 1.5, "cuda": 4.0}


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


class Followed(NamedTuple):
    """Where layers lead, for one block.

    Parameters
    ----------
    place : Place
        Place after the layers.
    multiply_adds : int
        Of their convolutions.
    values : int
        Of their largest output.
    """

    place: Place
    multiply_adds: int
    values: int


def follow(layer: nn.Module, place: Place) -> Followed:
    """Follow sizes through layers.

    Raises
    ------
    CannotShareError
        If padding touches all positions of a window.
    """
    work = values = 0
    if isinstance(layer, nn.Sequential):
        for child in layer:
            place, more, largest = follow(child, place)
            work, values = work + more, max(values, largest)
    elif isinstance(layer, Residual):
        branch, work, values = follow(layer.branch, place)
        place = place.beside(branch)
    elif (conv := conv_of(layer)) is not None:
        place = place.after(taps_of(layer))
        edges = place.windows * (place.left + place.right)
        work = (place.phases * place.count + edges) * conv.weight.numel()
        values = max(place.phases * place.count, edges) * conv.out_channels
    elif isinstance(layer, MaxPool):
        place = place.after(taps_of(layer))
    return Followed(place, work, values)


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
    layer = layer.layer if isinstance(layer, OneDNNConv) else layer
    layer = layer.conv if isinstance(layer, ChannelsLastConv) else layer
    return layer if isinstance(layer, nn.Conv1d) else None


def taps_of(layer: nn.Module) -> Taps:
    """Taps of a convolution or pool."""
    if isinstance(layer, MaxPool):
        return Taps(layer.size, 0, layer.size - 1 if layer.round_up else 0, layer.size)
    conv = conv_of(layer)
    assert conv is not None
    width = conv.dilation[0] * (conv.kernel_size[0] - 1) + 1
    return Taps(conv.stride[0], *zeros_of(conv), width)


def zeros_of(conv: nn.Conv1d) -> tuple[int, int]:
    """Zeros that a convolution puts left and right of its input."""
    if isinstance(conv, SameConv1d):
        return conv.sides
    if isinstance(conv.padding, str):
        same = same_padding(conv.kernel_size[0], conv.dilation[0])
        return same if conv.padding == "same" else (0, 0)
    return int(conv.padding[0]), int(conv.padding[0])


def phases_of(model: SequenceModel, stride: int) -> int:
    """Phases that a model's last layer distinguishes.

    Raises
    ------
    CannotShareError
        As :func:`block_multiply_adds`.
    """
    return follow(sharable(model).trunk, Place.of_bases(model, stride, 1)).place.phases


class Blocks(NamedTuple):
    """Windows of a block, and how many times the work of blocks they all are by themselves."""

    windows: int
    saving: float


# Given the windows of a block, says which share of them is asked for on average.
Filled = Callable[[int], float]


def choose_blocks(
    model: nn.Module,
    geometry: Geometry,
    device_type: str,
    overlap: str,
    whole: Filled,
    asked: Filled | None = None,
) -> Blocks | None:
    """Blocks to share overlap by, or None where every window is computed by itself.

    Parameters
    ----------
    model : nn.Module
        As written.
    geometry : Geometry
        Windows of the grid.
    device_type : {"cpu", "cuda"}
        Bounds the size of blocks.
    overlap : {"auto", "share", "naive"}
        What is asked for. ``auto``: blocks where they are clearly faster.
    whole, asked : callable
        How a whole genome fills blocks, which decides on their size, and how the regions that are
        asked for do, if there are any.

    Raises
    ------
    ModelError
        If sharing is asked for and impossible.
    """
    if overlap == "naive":
        return None
    try:
        if geometry.stride > geometry.window:
            raise CannotShareError(f"windows do not overlap at stride {geometry.stride}")
        blocks = best_blocks(sharable(model), geometry.stride, device_type, whole)
    except CannotShareError as error:
        if overlap == "auto":
            return None
        raise ModelError(f"--overlap share: {error}; use --overlap auto or naive") from error
    if asked is not None:
        part = asked(blocks.windows) / whole(blocks.windows)
        blocks = blocks._replace(saving=blocks.saving * part)
    return blocks if overlap == "share" or blocks.saving >= _PAYS[device_type] else None


def best_blocks(model: SequenceModel, stride: int, device_type: str, filled: Filled) -> Blocks:
    """Blocks that save most, by counted multiply-adds.

    Raises
    ------
    CannotShareError
        If windows of the model cannot be computed from a block.
    """
    alone = multiply_adds(model, model.window)
    windows = phases_of(model, stride)
    while windows < _FEWEST_WINDOWS:
        windows *= 2
    found: list[Blocks] = []
    while windows <= _BLOCK_WINDOWS[device_type] or not found:
        place = Place.of_bases(model, stride, windows)
        if found and follow(model.trunk, place).values > _BLOCK_VALUES[device_type]:
            break
        work = block_multiply_adds(model, stride, windows)
        found.append(Blocks(windows, windows * alone * filled(windows) / work))
        windows *= 2
    return max(found, key=lambda blocks: blocks.saving)


def block_multiply_adds(model: SequenceModel, stride: int, windows: int) -> int:
    """Multiply-adds of a block of windows, counted as those of a window are.

    Raises
    ------
    CannotShareError
        If windows of the model cannot be computed from a block.
    """
    place, work, _ = follow(sharable(model).trunk, Place.of_bases(model, stride, windows))
    channels = [4, *(conv.out_channels for conv in convolutions(model.trunk).values())][-1]
    features = next(model.parameters()).new_zeros(1, channels, place.length)
    return work + windows * counted(model.head, features)


def multiply_adds(model: nn.Module, window: int) -> int:
    """Multiply-adds of one window on one strand; of a model as written."""
    device = next(chain(model.parameters(), model.buffers())).device
    return counted(model, torch.zeros(1, window, dtype=torch.uint8, device=device))


def counted(module: nn.Module, x: Tensor) -> int:
    """Multiply-adds of a call, counted in convolutions and linear layers."""
    total = 0

    def count(layer: nn.Module, _: object, out: Tensor) -> None:
        nonlocal total
        weight = layer.weight
        assert isinstance(weight, Tensor)
        total += out.numel() * weight[0].numel()

    layers = [m for m in module.modules() if isinstance(m, nn.Conv1d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        module(x)
    for hook in hooks:
        hook.remove()
    return total
