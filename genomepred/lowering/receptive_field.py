"""Receptive fields of a trunk's positions, and where these stand in windows that overlap.

A trunk is read once, by :func:`steps_of`, into steps: what a layer sees of the one before it is
all that its receptive field, its positions in a stretch of windows and its work depend on. See
:mod:`genomepred.lowering.shared` for what a stretch, an edge and a phase are. Work is counted, not
timed, so that equal runs decide alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import gcd
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from genomepred.errors import ModelError
from genomepred.lowering.blocks import (
    ACTIVATIONS,
    Affine,
    DirectActivation,
    FusedChain,
    FusedConv,
    Taps,
)
from genomepred.lowering.fuse import prepare
from genomepred.models.layers import (
    ChannelsLastConv,
    MaxPool,
    Residual,
    SameConv1d,
    SequenceModel,
    zeros_beside,
)


class CannotShareError(ModelError):
    """The windows of a model cannot be computed from a stretch."""


_ALONE = Taps(1, 0, 0, 1)
_UNKNOWN = nn.ELU, nn.Sigmoid, nn.Tanh, nn.Softplus  # to the kernels
_POINTWISE = (*ACTIVATIONS, *_UNKNOWN, Affine, DirectActivation, nn.BatchNorm1d)


class Step(NamedTuple):
    """A layer of a trunk, or the beginning or end of a residual branch.

    ``keeps`` and ``adds`` say whether its result (a block's before the next activation) is kept for
    a later step, and whether what was kept last is added.
    """

    layer: nn.Module | None
    taps: Taps
    keeps: bool = False
    adds: bool = False


class ReceptiveField(NamedTuple):
    """Bases that a position of a stack of layers depends on.

    Position ``j`` depends on no base outside ``[j*pool - left, j*pool + pool + right)``.
    """

    pool: int
    left: int
    right: int


def receptive_field(layers: nn.Module) -> ReceptiveField:
    """Receptive field of a trunk, derived from its layers.

    Parameters
    ----------
    layers : nn.Module
        As written or prepared; see :func:`steps_of`.

    Raises
    ------
    ModelError
        If a layer among them is not known.
    """
    step, first, last = 1, 0, 0
    for _, taps, *_ in steps_of(layers):
        first -= taps.left * step
        last += (taps.width - 1 - taps.left) * step
        step *= taps.stride
    return ReceptiveField(step, max(-first, 0), max(last - step + 1, 0))


def steps_of(layer: nn.Module) -> Iterator[Step]:
    """Steps of a stack of layers, in order.

    Parameters
    ----------
    layer : nn.Module
        Layers that :func:`genomepred.lowering.fuse.prepare` makes or leaves: chains of blocks,
        :class:`MaxPool`, :class:`Residual` around what keeps the length, zero-padded convolutions
        and layers that treat each position alone, in ``nn.Sequential`` of any nesting.

    Raises
    ------
    ModelError
        If another layer is among them, or a residual branch changes positions.
    """
    conv: Any = layer.conv if isinstance(layer, ChannelsLastConv) else layer
    if isinstance(layer, nn.Sequential) and type(layer).forward is nn.Sequential.forward:
        for child in layer:
            yield from steps_of(child)
    elif isinstance(layer, FusedChain):
        for block in layer.blocks:
            assert isinstance(block, FusedConv)
            yield Step(block, block.taps, block.keeps, block.adds)
    elif type(layer) is Residual:
        branch = list(steps_of(layer.branch))
        more = sum(taps.left + taps.right - taps.width + 1 for _, taps, *_ in branch)
        if more or any(step.taps.stride != 1 for step in branch):
            raise ModelError("a residual branch of its trunk changes the distance of positions")
        yield from (Step(None, _ALONE, keeps=True), *branch, Step(None, _ALONE, adds=True))
    elif type(conv) in (nn.Conv1d, SameConv1d) and conv.padding_mode == "zeros":
        width = conv.dilation[0] * (conv.kernel_size[0] - 1) + 1
        yield Step(layer, Taps(conv.stride[0], *zeros_beside(conv), width))
    elif type(layer) is MaxPool:
        yield Step(layer, Taps(layer.size, 0, layer.size - 1 if layer.round_up else 0, layer.size))
    elif type(layer) in _POINTWISE:
        yield Step(layer, _ALONE)
    elif not isinstance(layer, nn.Identity | nn.Dropout):
        raise ModelError(
            f"the receptive field of layer {layer} is not known; a trunk consists of Sequential, "
            "MaxPool, zero-padded Conv1d, Residual around what keeps the length, and pointwise "
            "layers"
        )


@dataclass(frozen=True)
class Place:
    """Place of a layer: sizes that follow from the layers before it.

    Parameters
    ----------
    stride : int
        Bases from one window to the next.
    windows : int
        Windows of the stretch.
    length : int
        Positions of a window.
    count : int
        Positions of the stretch, of each phase.
    step : int
        Bases from one position to the next.
    left, right : int
        How many positions of a window, at its ends, are edges.
    first : int
        Position of a phase's first window at which the stretch begins.
    phases : int
        Phases that a layer here distinguishes.
    pitch : int
        Positions from one window of a phase to the next.
    """

    stride: int
    windows: int
    length: int
    count: int
    step: int = 1
    left: int = 0
    right: int = 0
    first: int = 0
    phases: int = 1
    pitch: int = 0

    def after(self, taps: Taps) -> Place:
        """Place after a layer.

        Raises
        ------
        CannotShareError
            If every position of a window is an edge.
        """
        length = taps.after(self.length)
        left = -(-(self.left + taps.left) // taps.stride)
        inner = (self.length - self.right + taps.left - taps.width) // taps.stride + 1
        if left >= inner:
            raise CannotShareError("padding touches all positions of a window")
        step = self.step * taps.stride
        common = gcd(self.stride, step)
        phases, pitch = step // common, self.stride // common
        first = -(-(self.first + taps.left) // taps.stride)
        lost = first * taps.stride - taps.left - self.first
        lost += (phases // self.phases - 1) * self.pitch
        count = (self.count - lost - taps.width) // taps.stride + 1
        sizes = length, count, step, left, length - inner, first, phases, pitch
        return Place(self.stride, self.windows, *sizes)


def place_of_windows(window: int, stride: int, windows: int, steps: Sequence[Step] = ()) -> Place:
    """Place of windows of so many bases after steps, of none before the first layer.

    Raises
    ------
    CannotShareError
        As :meth:`Place.after`.
    """
    place = Place(stride, windows, window, (windows - 1) * stride + window, pitch=stride)
    for step in steps:
        place = place.after(step.taps)
    return place


def shortest(
    place: Callable[[int], Place],
    window: int,
    count: int,
    most: int,
    *,
    left: bool = False,
    right: bool = False,
) -> tuple[int, Place]:
    """Return the shortest stretch with ``count`` positions that only its own window's ends pad.

    Parameters
    ----------
    place : callable
        Place after the trunk, of a stretch of so many bases.
    window, most : int
        Bases of a window, and those of the longest stretch to try.
    left, right : bool, optional
        Whether it lies at that end of a window; at none, positions that padding touches are not
        counted.

    Raises
    ------
    CannotShareError
        If there is none.
    """
    step = place(window).step
    for bases in range(window % step if right else 0, most + 1, step):
        try:
            found = place(bases)
        except (ModelError, ValueError):
            continue
        good = found.length - (0 if left else found.left) - (0 if right else found.right)
        if bases and good >= count:
            return bases, found
    raise CannotShareError("windows are too short to be computed in pieces")


class Trunk(NamedTuple):
    """A model as sharing needs it: its prepared form and the steps of its trunk."""

    model: SequenceModel
    steps: tuple[Step, ...]


def trunk_of(model: nn.Module, as_written: bool = False) -> Trunk:
    """Trunk of a prepared model, if windows of it can be computed from a stretch.

    Parameters
    ----------
    model : nn.Module
        As :func:`genomepred.lowering.fuse.prepare` makes it or, if said so, as written.

    Raises
    ------
    CannotShareError
        If it has no trunk and head, more than one bin a window, or a layer that is not known.
    """
    if not isinstance(model, SequenceModel) or not hasattr(model, "trunk") or model.bins != 1:
        raise CannotShareError(f"{type(model).__name__} has no trunk and head to share")
    try:
        lowered = prepare(model) if as_written else model
        steps = tuple(steps_of(lowered.trunk))
    except ModelError as error:
        raise CannotShareError(str(error)) from error
    for layer, *_ in steps:
        if isinstance(layer, ChannelsLastConv | nn.Conv1d):
            raise CannotShareError(
                f"its trunk has a convolution that is none of our blocks, {layer}"
            )
    return Trunk(lowered, steps)


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


def multiply_adds(model: nn.Module, window: int) -> int:
    """Multiply-adds of one window on one strand, of a model as written or prepared."""
    device = next(chain(model.parameters(), model.buffers())).device
    codes = torch.zeros(1, window, dtype=torch.uint8, device=device)
    return counted(model, codes).multiply_adds


def counted(module: nn.Module, x: Tensor) -> Work:
    """Work of a call."""
    total = largest = 0

    def count(layer: Any, given: tuple[Tensor, ...], out: Any) -> None:
        nonlocal total, largest
        if isinstance(layer, FusedConv):
            values = len(given[0]) * layer.unpooled.after(given[0].shape[1]) * layer.channels
            products = layer.products
        else:
            conv = layer.conv if isinstance(layer, ChannelsLastConv) else layer
            values, products = out.numel(), conv.weight[0].numel()
        total += values * products
        largest = max(largest, values)

    kinds = nn.Conv1d | nn.Linear | ChannelsLastConv | FusedConv
    layers = [layer for layer in module.modules() if isinstance(layer, kinds)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        module(x)
    for hook in hooks:
        hook.remove()
    return Work(total, largest)
