"""Costs of computing, in multiply-adds: counted, not timed, so that equal runs decide alike."""

from __future__ import annotations

from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from genomepred.kernels.epilogue.reference import convolved_length
from genomepred.lowering.blocks import FusedConv
from genomepred.lowering.receptive_field import Taps, Trunk, place_of_windows, taps_of
from genomepred.models.layers import ChannelsLastConv


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


def stretch_work(trunk: Trunk, stride: int, windows: int) -> Work:
    """Work of a stretch of windows; its heads' outputs are not among the largest.

    Raises
    ------
    CannotShareError
        If padding touches all positions of a window.
    """
    place = place_of_windows(trunk.model.window, stride, windows)
    total, largest, split, channels = 0, 0, 0, 4
    for layer, taps, *_ in trunk.steps:
        pool = taps
        if isinstance(layer, FusedConv):
            place, channels = place.after(taps_of(layer, "none")), layer.channels
            edges, positions = windows * (place.left + place.right), place.phases * place.count
            total += (positions + edges) * layer.channels * layer.products
            largest = max(largest, max(positions, edges) * channels)
            pool = Taps(taps.stride, 0, taps.right - layer.padding[1], taps.stride)
        phases, place = place.phases, place.after(pool)
        if place.phases > phases:
            split += place.phases * place.count * channels
    features = torch.zeros(1, channels, place.length, device=trunk.model.device)
    head = counted(trunk.model.head, features)
    return Work(total + windows * head.multiply_adds, largest, split)


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
            length = convolved_length(given[0].shape[1], layer.receptive_field, layer.padding)
            values, products = len(given[0]) * length * layer.channels, layer.products
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
