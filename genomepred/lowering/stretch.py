"""Some positions of a trunk: every layer is computed where a later one needs it, nowhere else.

What is taken of a stretch of sequence lies in its middle, and all around it only what the layers
see: the first layers need most of that, the last ones none. Beyond the ends of the stretch is the
zero padding that a window's ends have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor

from genomepred.lowering.blocks import Buffers, FusedConv, Taps
from genomepred.lowering.receptive_field import CannotShareError, Step, trunk_of
from genomepred.lowering.shared import largest, pointwise
from genomepred.models.layers import MaxPool, SequenceModel


class _Range(NamedTuple):
    """Positions ``[begin, end)`` of a layer."""

    begin: int
    end: int

    def with_(self, other: _Range) -> _Range:
        """The shortest range that holds both."""
        return _Range(min(self.begin, other.begin), max(self.end, other.end))

    def of(self, x: Tensor, have: _Range) -> Tensor:
        """These positions of ``[batch, positions, channels]`` that has ``have``."""
        return x[:, self.begin - have.begin : self.end - have.begin]


class _Computed(NamedTuple):
    """Positions that a step takes and makes.

    Parameters
    ----------
    step : Step
    reads, makes : _Range
        Positions of the step's input, and of its result.
    padding : (int, int)
        Positions that it reads beyond the ends of the stretch.
    adds : _Range
        Positions of what was kept that are added.
    """

    step: Step
    reads: _Range
    makes: _Range
    padding: tuple[int, int]
    adds: _Range


class Stretch:
    """Computes positions ``[begin, begin + count)`` of a trunk on stretches of sequence.

    Parameters
    ----------
    model : SequenceModel
        Its parameters are used, not copied.
    steps : sequence of Step
        Of its trunk, as :func:`genomepred.lowering.receptive_field.trunk_of` gives them.
    length : int
        Bases of a stretch.
    begin, count : int
        Positions that are computed, of those that the trunk makes of a stretch; none of a window's
        end that padding leaves alone.
    outputs : Buffers, optional
        What stretches of the same steps share that have no window's ends and are computed in turn.
    """

    def __init__(
        self,
        model: SequenceModel,
        steps: Sequence[Step],
        length: int,
        begin: int,
        count: int,
        outputs: Buffers | None = None,
    ) -> None:
        self._model, self._count = model, count
        self._computed = _computed(steps, length, _Range(begin, begin + count))
        self._whole = _Range(0, length)
        self._outputs = Buffers() if outputs is None else outputs

    def __call__(self, codes: Tensor) -> Tensor:
        """Codes ``uint8 [batch, length]`` -> ``[batch, count, channels]``."""
        encoded = self._model.encode(codes)
        x = encoded[..., None] if encoded.dim() == 2 else encoded.transpose(1, 2)
        have, kept = self._whole, list[tuple[Tensor, _Range]]()
        last = len(self._computed) - 1
        for number, done in enumerate(self._computed):
            layer, _, keeps, adds = done.step
            more = None
            if adds:
                residual, had = kept.pop()
                more = done.adds.of(residual, had)
            before = x = done.reads.of(x, have)
            if isinstance(layer, FusedConv):
                x, before = self._block(number, number == last, done, x, more)
            elif isinstance(layer, MaxPool):
                x = largest(layer, x)
            elif layer is not None:
                x = pointwise(layer, x.contiguous())
            elif more is not None:
                x = x + more
            if keeps:
                kept.append((before, done.makes))
            have = done.makes
        return x[:, : self._count]

    def _block(
        self, number: int, last: bool, done: _Computed, x: Tensor, residual: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        block: Any = done.step.layer
        x = x[..., 0] if block.reads_codes else x.to(block.weight.dtype)
        how = done.padding, block.epilogue
        outs = block.empty(x, *how, None if last else self._outputs, number)
        found = block.kernel(x, residual, *how, outs)
        return found[0], found[-1]

    @property
    def reads(self) -> tuple[int, int]:
        """Bases of a stretch, from one to before another, that anything depends on."""
        return self._computed[0].reads if self._computed else self._whole

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one stretch."""
        return sum(_work(done) for done in self._computed)


def on_stretches(
    model: SequenceModel, length: int, begin: int, count: int, outputs: Buffers | None = None
) -> Callable[[Tensor], Tensor]:
    """Return what computes positions of a model's trunk as :class:`Stretch` does.

    Of a model as written, whose trunk is no chain of blocks, all positions are computed.
    """
    try:
        return Stretch(*trunk_of(model), length, begin, count, outputs)
    except CannotShareError:
        return partial(_taken, model, begin, count)


def _taken(model: Any, begin: int, count: int, codes: Tensor) -> Tensor:
    y: Tensor = model.trunk(model.encode(codes))
    return y[:, :, begin : begin + count].transpose(1, 2)


def _work(done: _Computed) -> int:
    block, (begin, end) = done.step.layer, done.reads
    if not isinstance(block, FusedConv):
        return 0
    positions = end - begin + sum(done.padding) - block.receptive_field + 1
    return int(positions * block.channels * block.products)


def _computed(steps: Sequence[Step], length: int, taken: _Range) -> list[_Computed]:
    """Return what every step takes and makes, from the last one back."""
    lengths = [length]
    for _, taps, *_ in steps:
        lengths.append(taps.after(lengths[-1]))
    if taken.begin == taken.end:  # one position tells the channels
        first = min(taken.begin, lengths[-1] - 1)
        taken = _Range(first, first + 1)
    computed, waiting = list[_Computed](), list[_Range]()
    for step, (length_in, _) in reversed(list(zip(steps, pairwise(lengths), strict=True))):
        makes = taken.with_(waiting.pop()) if step.keeps else taken
        adds = _Range(makes.begin * step.taps.stride, min(makes.end * step.taps.stride, length_in))
        if step.adds:
            waiting.append(adds)
        reads, padding = _read_by(step, length_in, makes)
        computed.append(_Computed(step, reads, makes, padding, adds))
        taken = reads
    return computed[::-1]


def _read_by(step: Step, length: int, makes: _Range) -> tuple[_Range, tuple[int, int]]:
    """Return the positions that a step reads of its input, and how many beyond its ends."""
    taps: Taps = step.taps
    begin = makes.begin * taps.stride - taps.left
    end = (makes.end - 1) * taps.stride - taps.left + taps.width
    # A pool takes an incomplete last group as it is: only a convolution pads.
    most = step.layer.padding[1] if isinstance(step.layer, FusedConv) else 0
    padding = max(-begin, 0), min(max(end - length, 0), most)
    return _Range(max(begin, 0), min(end, length)), padding
