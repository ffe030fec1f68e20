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
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn import functional

from genomepred.inference.overlap_heads import Shared, attention_pool, flat_linear, gathered
from genomepred.inference.overlap_work import (
    Place,
    Taps,
    conv_of,
    convolutions,
    follow,
    sharable,
    taps_of,
)
from genomepred.kernels.epilogue.reference import Epilogue
from genomepred.models.fused import Buffers, FusedChain, FusedConv
from genomepred.models.layers import (
    AttentionPool,
    ChannelsLastConv,
    FlattenPositions,
    MaxPool,
    Residual,
    SameConv1d,
)

# Bases of one call of a head that is neither linear nor pooling: its features are gathered.
_GATHERED_BASES = 32_768


class Sharing(nn.Module):
    """Computes a model for windows that overlap, from the block of sequence they cover.

    Parameters
    ----------
    model : SequenceModel
        One with a trunk and a head, in evaluation mode, as written or as
        :func:`genomepred.models.fused.prepare` rewrites it. Its parameters are used, not copied.
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
        If the model has no trunk and head, its trunk a layer that is not known, or padding
        touches all positions of a window.
    """

    def __init__(self, model: nn.Module, stride: int, windows: int) -> None:
        super().__init__()
        self.model = model = sharable(model)
        self._start = Place.of_bases(model, stride, windows)
        self.bases = self._start.count
        place = follow(model.trunk, self._start).place
        if windows % place.phases:
            raise ValueError(f"{windows} windows are no multiple of {place.phases} phases")
        self._bare = {layer: bare(layer) for layer in convolutions(model.trunk)}
        self._outputs, self._calls = Buffers(), count()

    def forward(self, codes: Tensor) -> Tensor:
        """Codes ``uint8 [bases]`` -> raw values ``[windows, 1, tracks]``."""
        self._calls = count()
        encoded = self.model.encode(codes.contiguous()[None])
        is_codes = encoded.dim() == 2
        block = encoded[..., None] if is_codes else encoded.transpose(1, 2).contiguous()
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
            case FusedChain():
                return self._chain(layer, x)
        if isinstance(layer, MaxPool) or layer in self._bare:
            return self._local(taps_of(layer), self._bare.get(layer, layer), x)
        left, right = (
            call_all(layer, edge) if edge.numel() else edge for edge in (x.left, x.right)
        )
        return Shared(x.place, call(layer, x.block), left, right)

    def _chain(self, chain: FusedChain, x: Shared) -> Shared:
        kept = x = Shared(x.place, *map(chain.enter, (x.block, x.left, x.right)))
        for block in chain:
            residual = kept if block.adds else None
            if x.place.after(taps_of(block)).phases == x.place.phases:
                x, before = self._block(block, x, residual)
            else:
                x, before = self._split(block, x, residual)
            kept = before if block.keeps else kept
        return Shared(x.place, *map(chain.leave, (x.block, x.left, x.right)))

    def _block(
        self, block: FusedConv, x: Shared, residual: Shared | None, epilogue: Epilogue | None = None
    ) -> tuple[Shared, Shared]:
        """A block whose pool, if it has one, splits no phase; its result and what it keeps."""
        epilogue = epilogue or block.epilogue
        pool = 1 if epilogue.pool == "none" else 2
        taps = taps_of(block) if pool == block.pool else Taps(1, *block.padding, block.span)
        place, after = x.place, x.place.after(taps)
        begin = after.first * pool - taps.left - place.first
        size = (after.count - 1) * pool + taps.width
        add: list[Tensor | None] = [None, None, None]
        if residual is not None:
            skip, right = after.first * pool - residual.place.first, after.length - after.right
            add[0] = residual.block[:, skip : skip + after.count * pool]
            add[1], add[2] = residual.head(after.left * pool), residual.tail(right * pool)
        outs = [self._call(block, x.block[:, begin : begin + size], add[0], (0, 0), epilogue)]
        none = outs[0][0].new_empty(after.phases, after.group, 0, outs[0][0].shape[2])
        edges: list[Tensor | None] = [None, None, None]
        if after.left:
            edges[1] = x.head((after.left - 1) * pool - taps.left + taps.width)
        if after.right:
            edges[2] = x.tail((after.length - after.right) * pool - taps.left)
        sides = (0, 0), (block.padding[0], 0), (0, block.padding[1])
        for i in (1, 2):
            edge, more = edges[i], add[i]
            if edge is None:
                outs.append([none])
                continue
            more = None if more is None else more.flatten(0, 1)
            windows = self._call(block, edge.flatten(0, 1), more, sides[i], epilogue)
            outs.append([out.view(after.phases, after.group, *out.shape[1:]) for out in windows])
        return (
            Shared(after, outs[0][0], outs[1][0], outs[2][0]),
            Shared(after, outs[0][-1], outs[1][-1], outs[2][-1]),
        )

    def _split(self, block: FusedConv, x: Shared, residual: Shared | None) -> tuple[Shared, Shared]:
        """A block whose pool splits phases: it is pooled, for each of them, on its own."""
        end = block.epilogue
        x, _ = self._block(block, x, residual, Epilogue(end.activation, end.factor))
        pool = MaxPool(2, round_up=end.pool == "ceil")
        kept = self._local(taps_of(pool), pool, x)
        parts = (block.activate_next(part) for part in (kept.block, kept.left, kept.right))
        return Shared(kept.place, *parts), kept

    def _call(
        self,
        block: FusedConv,
        x: Tensor,
        residual: Tensor | None,
        padding: tuple[int, int],
        epilogue: Epilogue,
    ) -> list[Tensor]:
        x = x[..., 0] if block.reads_codes else x
        outs: Sequence[Tensor] = ()
        if block.fills:
            # By call, not by block: layers that share one may hand it its own last outputs.
            outs = self._outputs.take(next(self._calls), block, x, padding, epilogue)
        result: list[Tensor] = block(x, residual, padding, epilogue, outs)
        return result

    def _local(self, taps: Taps, layer: nn.Module, x: Shared) -> Shared:
        """A convolution or pool; ``layer`` itself pads nothing."""
        place, after = x.place, x.place.after(taps)
        begin = after.first * taps.stride - taps.left - place.first
        size = (after.count - 1) * taps.stride + taps.width
        starts = (begin + i * place.pitch for i in range(after.phases // place.phases))
        pieces = [call(layer, x.block[:, start : start + size]) for start in starts]
        block = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        left = right = block.new_empty(after.phases, after.group, 0, block.shape[2])
        if after.left:
            end = (after.left - 1) * taps.stride - taps.left + taps.width
            left = regrouped(call_all(layer, x.head(end, taps.left)), after)
        if after.right:
            start = (after.length - after.right) * taps.stride - taps.left
            # An incomplete last group of a pool is not padded: the pool takes it as it is.
            zeros = 0 if isinstance(layer, MaxPool) else taps.right
            right = regrouped(call_all(layer, x.tail(start, zeros)), after)
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


def bare(layer: nn.Module) -> nn.Module:
    """The same convolution without padding; its parameters are those of the given one."""
    memo: dict[int, object] = {id(tensor): tensor for tensor in layer.parameters()}
    twin = copy.deepcopy(layer, memo)
    conv = conv_of(twin)
    assert conv is not None
    conv.padding = (0,)
    if isinstance(conv, SameConv1d):
        conv.sides = (0, 0)
    if isinstance(twin, ChannelsLastConv):
        twin.sides, twin.padding = None, (0, 0)
    return twin


def call(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer on ``[batch, positions, channels]``, which is channels-last memory."""
    if isinstance(layer, MaxPool):
        return largest(layer, x)
    if isinstance(layer, ChannelsLastConv) and is_matrix(layer.conv):
        return functional.linear(x, layer.conv.weight[:, :, 0], layer.conv.bias)
    y: Tensor = layer(x.transpose(1, 2))
    return y.transpose(1, 2).contiguous()


def largest(pool: MaxPool, x: Tensor) -> Tensor:
    """Maximum of neighbors, by comparing whole vectors.

    8 channels, 29,504 positions on one thread: 33 us, and 224 by torch's pooling.
    """
    whole, rest = divmod(x.shape[1], pool.size)
    groups = x[:, : whole * pool.size].view(len(x), whole, pool.size, x.shape[2])
    out = groups[:, :, 0]
    for i in range(1, pool.size):
        out = torch.maximum(out, groups[:, :, i])
    if pool.round_up and rest:
        out = torch.cat([out, x[:, -rest:].amax(dim=1, keepdim=True)], dim=1)
    return out.contiguous()


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
