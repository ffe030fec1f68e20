"""Convolutions on a CPU: direct ones of ours, or those of oneDNN and one pass.

A direct convolution is multiplied a tile of positions by all channels at a time, each tile going
through all that follows before it leaves the L1 cache. A value never depends on the batch or the
place in which it is computed: its sum always has the same order. The products are vector
instructions whose sums stay in registers, because the compiled function says so. A long sum is one
of partial sums, so that its rounding does not grow with taps and channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from genomepred.kernels.epilogue.cpu import TILE_VALUES, bias_act_pool, numbers
from genomepred.kernels.epilogue.reference import NO_EPILOGUE, Epilogue
from genomepred.kernels.vectors import MANY, WIDE
from genomepred.machine_code import address, entry

# The largest block of sums that the registers hold beside the weights: positions, and vectors of
# channels. With 32 registers 6 x 4, 14 x 2, 28 x 1, with the 16 of AVX2 and SSE 6 x 2, 12 x 1.
FOUR = 4 * WIDE if MANY else 1 << 30  # channels from which four vectors are computed at a time
BEST_FOUR, BEST_TWO, BEST_ONE = (6, 14, 28) if MANY else (6, 6, 12)

_CODE = "genomepred.kernels.conv_block.cpu_code:"
_conv_block = entry(_CODE + "conv_block")


class Packed(NamedTuple):
    """A direct convolution, packed.

    The ``channels`` of weight and shift are padded to whole vectors. ``tiles`` are the addresses of
    what computes four, two and one vector of them at a time; of what they do not need, 0.
    """

    weight: Tensor
    shift: Tensor
    channels: int
    dilation: int
    tiles: tuple[int, int, int]

    def __call__(
        self,
        x: Tensor,
        residual: Tensor | None,
        padding: Sequence[int],
        epilogue: Epilogue,
        outs: Sequence[Tensor],
    ) -> Sequence[Tensor]:
        """Fill ``outs``, contiguous: the result and, if it is wanted, what is kept.

        All is computed in float32, whatever the dtype.
        """
        taps, channels_in, width = self.weight.shape
        wide, added = x.float(), None if residual is None else residual.float()
        of_x, of_residual = (
            (0, 0, 0) if y is None else (y.data_ptr(), 4 * y.stride(0), 4 * y.stride(1))
            for y in (wide, added)
        )
        kind = torch.float32
        filled = [y if y.dtype == kind else torch.empty_like(y, dtype=kind) for y in outs]
        span = self.dilation * (taps - 1) + 1
        length = x.shape[1] + sum(padding) - span + 1
        best = BEST_FOUR if width >= FOUR else BEST_TWO if width >= 2 * WIDE else BEST_ONE
        positions = max(TILE_VALUES // width // best, 1) * best  # even, as pools need
        group = max(positions // length // best * best, 1)
        needed = group * (min(length, positions) + span - 1) * channels_in if any(padding) else 0
        tile = torch.empty(positions * width + needed)
        _conv_block()(
            *(*of_x, *wide.shape, self.weight.data_ptr(), self.shift.data_ptr(), taps, width),
            *(*padding, self.dilation, *of_residual, *numbers(epilogue)),
            *(
                filled[0].data_ptr(),
                *filled[0].shape[1:],
                filled[-1].data_ptr() if filled[1:] else 0,
            ),
            *(tile.data_ptr(), positions, group, tile.data_ptr() + 4 * positions * width),
            *self.tiles,
        )
        for out, values in zip(outs, filled, strict=True):
            if values is not out:
                out.copy_(values)
        return outs

    def linear(self, x: Tensor) -> Tensor:
        """Linear layer of a convolution of one tap, float32 ``[..., C_in]`` -> ``[..., C]``."""
        rows, out = x.reshape(1, -1, x.shape[-1]), x.new_empty(*x.shape[:-1], self.channels)
        rows = rows if rows.stride(2) == 1 else rows.contiguous()
        self(rows, None, (0, 0), NO_EPILOGUE, [out.view(1, -1, self.channels)])
        return out


def pack_block(weight: Tensor, shift: Tensor, dilation: int = 1) -> Packed:
    """Direct convolution of weights ``[K, C_in, C]`` and shift ``[C]``."""
    channels = weight.shape[2]
    width = channels + -channels % WIDE
    padded = (functional.pad(y.float(), (0, width - channels)) for y in (weight, shift))
    rest = width % FOUR
    needed = {"by_four": width >= FOUR, "by_two": rest >= 2 * WIDE, "by_one": rest % (2 * WIDE) > 0}
    tiles = tuple(address(_CODE + name) if used else 0 for name, used in needed.items())
    return Packed(*(y.detach().contiguous() for y in padded), channels, dilation, tiles)


def conv_block_by_onednn(
    x: Tensor,
    weight: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    padding: Sequence[int],
    dilation: int,
    epilogue: Epilogue,
    keep: bool,
) -> list[Tensor]:
    """A convolution block by a (1, K) channels-last 2-D convolution of oneDNN and one pass.

    oneDNN has no such form in one dimension.
    """
    image = x.permute(0, 2, 1).unsqueeze(2)
    if padding[0] != padding[1]:
        image, padding = functional.pad(image, tuple(padding)), (0, 0)
    values = functional.conv2d(
        image, weight.permute(2, 1, 0).unsqueeze(2), None, 1, (0, padding[0]), (1, dilation)
    )
    rows = values.squeeze(2).transpose(1, 2)
    rows = rows if rows.stride(2) == 1 else rows.contiguous()
    return bias_act_pool(rows, shift, residual, epilogue, keep)
