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

from genomepred.kernels.conv_block.reference import empty_block_outputs
from genomepred.kernels.epilogue.cpu import TILE_VALUES, bias_act_pool, numbers
from genomepred.kernels.epilogue.reference import Epilogue
from genomepred.kernels.vectors import MANY, WIDE
from genomepred.machine_code import address, entry

# The largest block of sums that the registers hold beside the weights: positions, and vectors of
# channels. With 32 registers 6 x 4, 14 x 2, 28 x 1, with the 16 of AVX2 and SSE 6 x 2, 12 x 1.
FOUR = 4 * WIDE if MANY else 1 << 30  # channels from which four vectors are computed at a time
BEST_FOUR, BEST_TWO, BEST_ONE = (6, 14, 28) if MANY else (6, 6, 12)

_CODE = "genomepred.kernels.conv_block.cpu_code:"
_conv_block = entry(_CODE + "conv_block")


class Packed(NamedTuple):
    """Weights of a direct convolution, their channels padded to whole vectors.

    ``tiles`` are the addresses of what computes four, two and one vector of channels at a time; of
    what these channels do not need, 0.
    """

    weight: Tensor
    shift: Tensor
    tiles: tuple[int, int, int]


def pack_block(weight: Tensor, shift: Tensor) -> Packed:
    """Weights ``[K, C_in, C]`` and shift ``[C]`` for :func:`conv_block`."""
    more = -weight.shape[2] % WIDE
    padded = (functional.pad(tensor.float(), (0, more)) for tensor in (weight, shift))
    width = weight.shape[2] + more
    rest = width % FOUR
    needed = {"by_four": width >= FOUR, "by_two": rest >= 2 * WIDE, "by_one": rest % (2 * WIDE) > 0}
    tiles = (address(_CODE + name) if used else 0 for name, used in needed.items())
    return Packed(*(tensor.detach().contiguous() for tensor in padded), tuple(tiles))


def conv_block(
    x: Tensor,
    weight: Tensor,
    shift: Tensor,
    residual: Tensor | None,
    padding: Sequence[int],
    dilation: int,
    epilogue: Epilogue,
    keep: bool,
    packed: Packed | None = None,
    outs: Sequence[Tensor] = (),
) -> list[Tensor]:
    """Direct convolution; see :func:`.reference.conv_block_reference`.

    Parameters
    ----------
    packed : Packed, optional
        What :func:`pack_block` makes of ``weight`` and ``shift``, kept from call to call.
    outs : sequence of float32 tensors, contiguous, optional
        Filled and, but for their dtype, returned.
    """
    taps, channels_in, _ = weight.shape
    packed = packed or pack_block(weight, shift)
    wide, added = x.float(), None if residual is None else residual.float()
    of_x, of_residual = (
        (0, 0, 0) if y is None else (y.data_ptr(), 4 * y.stride(0), 4 * y.stride(1))
        for y in (wide, added)
    )
    width, span = len(packed.shift), dilation * (taps - 1) + 1
    outs = outs or empty_block_outputs(wide, weight, padding, dilation, epilogue.pool, keep)
    length = x.shape[1] + sum(padding) - span + 1
    best = BEST_FOUR if width >= FOUR else BEST_TWO if width >= 2 * WIDE else BEST_ONE
    positions = max(TILE_VALUES // width // best, 1) * best  # even, as pools need
    group = max(positions // length // best * best, 1)
    needed = group * (min(length, positions) + span - 1) * channels_in if any(padding) else 0
    tile = torch.empty(positions * width + needed)
    _conv_block()(
        *(*of_x, *wide.shape, packed.weight.data_ptr(), packed.shift.data_ptr(), taps, width),
        *(*padding, dilation, *of_residual, *numbers(epilogue)),
        *(outs[0].data_ptr(), *outs[0].shape[1:], outs[1].data_ptr() if len(outs) > 1 else 0),
        *(tile.data_ptr(), positions, group, tile.data_ptr() + 4 * positions * width),
        *packed.tiles,
    )
    return [out.to(x.dtype) for out in outs]


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
    """As :func:`conv_block`, by a (1, K) channels-last 2-D convolution of oneDNN and one pass.

    oneDNN has no such form in one dimension.
    """
    return bias_act_pool(_onednn(x, weight, padding, dilation), shift, residual, epilogue, keep)


def _onednn(x: Tensor, weight: Tensor, padding: Sequence[int], dilation: int) -> Tensor:
    """Convolution alone, channels-last."""
    image = x.permute(0, 2, 1).unsqueeze(2)
    if padding[0] != padding[1]:
        image, padding = functional.pad(image, tuple(padding)), (0, 0)
    values = functional.conv2d(
        image, weight.permute(2, 1, 0).unsqueeze(2), None, 1, (0, padding[0]), (1, dilation)
    )
    rows = values.squeeze(2).transpose(1, 2)
    return rows if rows.stride(2) == 1 else rows.contiguous()
