"""Overlap sharing: a base is convolved once, however many windows see it.

Windows ``stride`` bases apart are computed from one *block*, the sequence they cover together. A
trunk position that no zero padding has touched depends on the sequence alone, so a window's
positions are a view of the block's. Its outermost positions, which padding does touch (they are
the *edges*), are computed from short strips: every layer takes the edges of the layer before, some
positions of the block beside them, and the zeros that the window's end means. Hence the result is
that of the window by itself, up to rounding.

With a pool, a position stands for several bases, and only windows whose starts are a multiple of
that apart share positions. Windows are grouped by *phase*, but no layer is computed for more phases
than it distinguishes: a pool of 2 makes two phases of one where the stride is odd. Window ``i``
belongs to phase ``i % phases``, so the windows of a phase are equally far apart.

Tensors here are ``[phases, positions, channels]`` and ``[phases, windows, positions, channels]``.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from genomepred.errors import ModelError
from genomepred.models.layers import (
    AttentionPool,
    ChannelsLastConv,
    FlattenPositions,
    MaxPool,
    OneDNNConv,
    Residual,
    SameConv1d,
    SequenceModel,
    reach,
    same_padding,
)

# Windows of one call of a head that is not linear or pooling: their features are gathered.
_GATHERED_BASES = 32_768


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


@dataclass(frozen=True, eq=False)
class Shared:
    """Activations of all windows of a block.

    Parameters
    ----------
    place : Place
        Sizes.
    block : float tensor, [phases, count, channels]
        Contiguous.
    left, right : float tensor, [phases, windows / phases, left or right, channels]
        Edges.
    """

    place: Place
    block: Tensor
    left: Tensor
    right: Tensor

    def inner(self, begin: int, end: int, more: int = 0) -> Tensor:
        """View of all windows' positions ``[begin, end)``, none of which may be an edge.

        ``more`` is the number of windows past the last one, as far as the block goes.
        """
        place, (phases, count, channels) = self.place, self.block.shape
        shape = (phases, place.windows // phases + more, end - begin, channels)
        strides = (count * channels, place.pitch * channels, channels, 1)
        offset = self.block.storage_offset() + (begin - place.first) * channels
        return self.block.as_strided(shape, strides, offset)

    def head(self, end: int, zeros: int = 0) -> Tensor:
        """Positions ``[-zeros, end)`` of all windows; zero before position 0."""
        edge = self.place.left
        parts = [self._zeros(zeros + min(end, 0)), self.left[:, :, : max(end, 0)]]
        return torch.cat(parts if end <= edge else [*parts, self.inner(edge, end)], dim=2)

    def tail(self, begin: int, zeros: int = 0) -> Tensor:
        """Positions of all windows from ``begin`` to ``zeros`` past their end; zero there."""
        length, edge = self.place.length, self.place.length - self.place.right
        parts = [self.right[:, :, max(begin - edge, 0) :]]
        parts.append(self._zeros(zeros + min(length - begin, 0)))
        return torch.cat(parts if begin >= edge else [self.inner(begin, edge), *parts], dim=2)

    def _zeros(self, count: int) -> Tensor:
        phases, windows, _, channels = self.left.shape
        return self.left.new_zeros(1, 1, 1, 1).expand(phases, windows, count, channels)


class Sharing(nn.Module):
    """Computes a model for windows that overlap, from the block of sequence they cover.

    Parameters
    ----------
    model : SequenceModel
        One with a trunk and a head, in evaluation mode, as written or as
        :func:`genomepred.models.layers.prepare` rewrites it. Its parameters are used, not copied.
    stride : int
        Bases from one window to the next.
    windows : int
        Windows of a block; a multiple of the phases.

    Attributes
    ----------
    bases : int
        Bases of a block.

    Raises
    ------
    CannotShareError
        As :func:`work`.
    """

    def __init__(self, model: SequenceModel, stride: int, windows: int) -> None:
        super().__init__()
        self.model = model
        self._start = Place.of_bases(model, stride, windows)
        self.bases = self._start.count
        place = follow(trunk_of(model), self._start).place
        if windows % place.phases:
            raise ValueError(f"{windows} windows are no multiple of {place.phases} phases")
        # One for the block and each edge: the fused form packs weights for one shape.
        self._bare = {
            layer: (bare(layer), bare(layer), bare(layer)) for layer in convolutions(model.trunk)
        }

    def forward(self, codes: Tensor) -> Tensor:
        """Codes ``uint8 [bases]`` -> raw values ``[windows, 1, tracks]``."""
        block = self.model.encode(codes[None]).transpose(1, 2).contiguous()
        none = block.new_empty(1, self._start.windows, 0, block.shape[2])
        features = self._run(self.model.trunk, Shared(self._start, block, none, none))
        values = self._head(features)  # [phases, windows of a phase, tracks]
        return values.transpose(0, 1).reshape(self._start.windows, 1, -1)

    def _run(self, layer: nn.Module, x: Shared) -> Shared:
        match layer:
            case nn.Sequential():
                for child in layer:
                    x = self._run(child, x)
                return x
            case Residual():
                return self._add(x, self._run(layer.branch, x))
            case nn.Identity() | nn.Dropout():
                return x
            case MaxPool():
                return self._local(taps_of(layer), (layer, layer, layer), x)
        if layer in self._bare:
            return self._local(taps_of(layer), self._bare[layer], x)
        left, right = (
            call_all(layer, edge) if edge.numel() else edge for edge in (x.left, x.right)
        )
        return Shared(x.place, call(layer, x.block), left, right)

    def _local(self, taps: Taps, layers: Sequence[nn.Module], x: Shared) -> Shared:
        """A convolution or pool; ``layers`` for the block, left and right edges pad nothing."""
        place, after = x.place, x.place.after(taps)
        begin = after.first * taps.stride - taps.left - place.first
        size = (after.count - 1) * taps.stride + taps.width
        starts = (begin + i * place.pitch for i in range(after.phases // place.phases))
        pieces = [call(layers[0], x.block[:, start : start + size]) for start in starts]
        block = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        left = right = block.new_empty(after.phases, after.group, 0, block.shape[2])
        if after.left:
            end = (after.left - 1) * taps.stride - taps.left + taps.width
            left = regrouped(call_all(layers[1], x.head(end, taps.left)), after)
        if after.right:
            start = (after.length - after.right) * taps.stride - taps.left
            # An incomplete last group of a pool is not padded: the pool takes it as it is.
            zeros = 0 if isinstance(layers[2], MaxPool) else taps.right
            right = regrouped(call_all(layers[2], x.tail(start, zeros)), after)
        return Shared(after, block, left, right)

    def _add(self, x: Shared, branch: Shared) -> Shared:
        """Sum of a residual branch, whose edges are at least as long, and its input."""
        place = x.place.beside(branch.place)
        skip = place.first - x.place.first
        block = x.block[:, skip : skip + place.count] + branch.block[:, : place.count]
        left = x.head(place.left) + branch.left
        return Shared(place, block, left, x.tail(place.length - place.right) + branch.right)

    def _head(self, x: Shared) -> Tensor:
        """Values ``[phases, windows of a phase, tracks]``."""
        layers = list(self.model.head) if isinstance(self.model.head, nn.Sequential) else []
        match layers:
            case [FlattenPositions(), nn.Linear() as linear, *rest]:
                return through(rest, flat_linear(linear, x))
            case [AttentionPool() as pool, *rest]:
                return through(rest, attention_pool(pool, x))
        return gathered(self.model.head, x, max(_GATHERED_BASES // self.model.window, 1))


class Followed(NamedTuple):
    """Place after layers, and the multiply-adds of their convolutions for one block."""

    place: Place
    multiply_adds: int


def follow(layer: nn.Module, place: Place) -> Followed:
    """Follow sizes through layers.

    Raises
    ------
    CannotShareError
        If padding touches all positions of a window.
    """
    work = 0
    if isinstance(layer, nn.Sequential):
        for child in layer:
            place, more = follow(child, place)
            work += more
    elif isinstance(layer, Residual):
        branch, work = follow(layer.branch, place)
        place = place.beside(branch)
    elif (conv := conv_of(layer)) is not None:
        place = place.after(taps_of(layer))
        edges = place.windows * (place.left + place.right)
        work = (place.phases * place.count + edges) * conv.weight.numel()
    elif isinstance(layer, MaxPool):
        place = place.after(taps_of(layer))
    return Followed(place, work)


def convolutions(layer: nn.Module) -> dict[nn.Module, nn.Conv1d]:
    """Layers that are convolutions, as written or rewritten, and the convolutions themselves."""
    if (conv := conv_of(layer)) is not None:
        return {layer: conv}
    return {key: conv for child in layer.children() for key, conv in convolutions(child).items()}


def trunk_of(model: nn.Module) -> nn.Sequential:
    """Trunk of a model that can share, checked.

    Raises
    ------
    CannotShareError
        If it has none, or not with one bin a window, or its layers are not known.
    """
    trunk = getattr(model, "trunk", None)
    if not isinstance(trunk, nn.Sequential) or not hasattr(model, "head") or model.bins != 1:
        raise CannotShareError(f"{type(model).__name__} has no trunk and head to share")
    try:
        reach(trunk)
    except ModelError as error:
        raise CannotShareError(str(error)) from error
    return trunk


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


def bare(layer: nn.Module) -> nn.Module:
    """The same convolution without padding; its parameters are those of the given one."""
    memo: dict[int, object] = {id(tensor): tensor for tensor in layer.parameters()}
    if isinstance(layer, OneDNNConv):
        memo[id(layer._packed)] = []  # weights packed for another shape
    twin = copy.deepcopy(layer, memo)
    conv = conv_of(twin)
    assert conv is not None
    conv.padding = (0,)
    if isinstance(conv, SameConv1d):
        conv.sides = (0, 0)
    inner = twin.layer if isinstance(twin, OneDNNConv) else twin
    if isinstance(inner, ChannelsLastConv):
        inner.sides, inner.padding = None, (0, 0)
    return twin


def call(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer on ``[batch, positions, channels]``, which is channels-last memory."""
    if isinstance(layer, ChannelsLastConv) and is_matrix(layer.conv):
        return functional.linear(x, layer.conv.weight[:, :, 0], layer.conv.bias)
    y: Tensor = layer(x.transpose(1, 2)).transpose(1, 2)
    return y.contiguous()


def call_all(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer on ``[phases, windows, positions, channels]``."""
    y = call(layer, x.flatten(0, 1))
    return y.view(*x.shape[:2], *y.shape[1:])


def regrouped(edges: Tensor, after: Place) -> Tensor:
    """Edges ``[phases, windows, positions, channels]``, their windows grouped by more phases."""
    phases, _, *rest = edges.shape
    grouped = edges.view(phases, after.group, after.phases // phases, *rest)
    return grouped.permute(2, 0, 1, 3, 4).reshape(after.phases, after.group, *rest)


def is_matrix(conv: nn.Conv1d) -> bool:
    """Whether a bare convolution is a matrix product at each position.

    As a convolution of one long sequence torch would compute it by its slow path: 32 to 32
    channels, 13,666 positions took 2.4 ms against 0.6 (one thread).
    """
    return conv.kernel_size == (1,) and conv.stride == (1,) and conv.groups == 1


def through(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """``x`` through one layer after the other."""
    for layer in layers:
        x = layer(x)
    return x


def flat_linear(linear: nn.Linear, x: Shared) -> Tensor:
    """A linear layer on each window's flattened positions, ``[phases, windows, out]``.

    On the positions between the edges it is a convolution as wide as they are, with the windows'
    pitch for its stride: a sum of matrix products, one for each ``pitch`` positions of a window,
    whose rows lie in the block side by side. No feature is copied.
    """
    place, channels = x.place, x.block.shape[2]
    end = place.length - place.right
    weight = linear.weight.t().expand(place.phases, -1, -1)
    values = x.left.flatten(2) @ linear.weight.t()[: place.left * channels]
    values += x.right.flatten(2) @ linear.weight.t()[end * channels :]
    if linear.bias is not None:
        values += linear.bias
    for begin in range(place.left, end, place.pitch):
        stop = min(begin + place.pitch, end)
        rows = x.inner(begin, stop).flatten(2)
        values += torch.bmm(rows, weight[:, begin * channels : stop * channels])
    return values


class Weighted(NamedTuple):
    """Positions summed with the weights ``exp(score - top)``, and the weights' sum."""

    top: Tensor
    weight: Tensor
    total: Tensor


def attention_pool(pool: AttentionPool, x: Shared) -> Tensor:
    """Attention pooling of each window, ``[phases, windows, channels]``.

    Each ``pitch`` positions of the block are summed once, with weights relative to the largest of
    their own scores; a window adds up such sums, relative to the largest score it holds.
    """
    place = x.place
    windows, end = place.group, place.length - place.right
    whole, rest = divmod(end - place.left, place.pitch)
    parts = [weighted(pool, edge) for edge in (x.left, x.right) if edge.shape[2]]
    if whole:
        every = weighted(pool, x.inner(place.left, place.left + place.pitch, whole - 1))
        parts += [Weighted(*(part[:, i : i + windows] for part in every)) for i in range(whole)]
    if rest:
        parts.append(weighted(pool, x.inner(end - rest, end)))
    top = torch.stack([part.top for part in parts]).amax(dim=0)
    weight = total = torch.zeros_like(top)[..., None]
    for part in parts:
        factor = (part.top - top).exp()[..., None]
        weight = weight + factor * part.weight[..., None]
        total = total + factor * part.total
    return (total / weight).to(x.block.dtype)


def weighted(pool: AttentionPool, x: Tensor) -> Weighted:
    """Positions ``[phases, windows, positions, channels]``, summed over the positions."""
    scores: Tensor = pool.score(x).squeeze(3)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    top = scores.amax(dim=2)
    weights = (scores - top[..., None]).exp()
    total = (weights.to(x.dtype)[:, :, None] @ x).squeeze(2)
    return Weighted(top, weights.sum(dim=2), total.to(scores.dtype))


def gathered(head: nn.Module, x: Shared, batch: int) -> Tensor:
    """Any head on the positions of ``batch`` windows at a time, ``[phases, windows, tracks]``."""
    place = x.place
    inner = x.inner(place.left, place.length - place.right)
    phases = []
    for i in range(place.phases):
        pieces = (torch.split(part[i], batch) for part in (x.left, inner, x.right))
        batches = (torch.cat(parts, dim=1) for parts in zip(*pieces, strict=True))
        phases.append(torch.cat([head(features.transpose(1, 2)) for features in batches]))
    return torch.stack(phases)


def phases_of(model: SequenceModel, stride: int) -> int:
    """Phases that a model's last layer distinguishes.

    Raises
    ------
    CannotShareError
        As :func:`block_multiply_adds`.
    """
    return follow(trunk_of(model), Place.of_bases(model, stride, 1)).place.phases


def window_multiply_adds(model: SequenceModel) -> int:
    """Multiply-adds of one window by itself; of a model as written."""
    device = next(model.parameters()).device
    return multiply_adds(model, torch.zeros(1, model.window, dtype=torch.uint8, device=device))


def block_multiply_adds(model: SequenceModel, stride: int, windows: int) -> int:
    """Multiply-adds of a block of windows, counted as those of a window are.

    Raises
    ------
    CannotShareError
        If windows of the model cannot be computed from a block.
    """
    trunk = trunk_of(model)
    place, work = follow(trunk, Place.of_bases(model, stride, windows))
    channels = [4, *(conv.out_channels for conv in convolutions(trunk).values())][-1]
    features = next(model.parameters()).new_zeros(1, channels, place.length)
    return work + windows * multiply_adds(model.head, features)


def multiply_adds(module: nn.Module, x: Tensor) -> int:
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
